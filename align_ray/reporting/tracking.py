"""MLflow, from the driver only: one parent run per configuration of a study, which has the answer itself; child runs
for candidates and trainings; a search's trials as a table, trained ones one level deeper; corpora as datasets, and
the recommended mixture as a version of a registered model.

Workers never talk to MLflow: a new SQLite store that several processes meet at once is destroyed (hydraflow#245).
Whatever is tracked again as it stands there is left alone, so that a stage that is run again leaves no second copy.
Of very many corpora MLflow is asked once for all runs of a kind, and told as much at a time as it takes.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from string import Formatter
from typing import Any

from align_ray.alignment.coefficients import EVERY_PAIR
from align_ray.answers import answer_id
from align_ray.config import Config, digest
from align_ray.errors import CapReached, ConfigError, StoreError, first_line, mistake_behind
from align_ray.reporting.choices import Choice
from align_ray.reporting.results import Alignment, Corpora, Mixture, Prediction
from align_ray.reporting.trained import Finetuned, Validation, verdict_of
from align_ray.reporting.values import TaskScore, Verdict
from align_ray.store import Store

Series = dict[str, list[tuple[int, float]]]
"""Metrics with steps: by name the values with their step."""
AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""Entries that MLflow takes in one call, and those of them that may be parameters; tags as those."""
LISTED = 20
"""Of very many corpora, those that a description or a tag names."""


@dataclasses.dataclass(frozen=True)
class Logged:
    """What a child run holds."""

    params: dict[str, Any]
    values: dict[str, float]
    series: Series = dataclasses.field(default_factory=dict)

    @property
    def points(self) -> Series:
        return {**{key: [(0, value)] for key, value in self.values.items()}, **self.series}

    def is_in(self, run: Any) -> bool:
        """Whether an MLflow run is finished and says the same."""
        last = {key: float(rows[-1][1]) for key, rows in self.points.items() if rows}
        return (run.data.params, run.data.metrics) == (_params(self.params), last) and run.info.status == "FINISHED"


@dataclasses.dataclass(frozen=True)
class Tracker:
    """The MLflow parent run of a study."""

    uri: str
    experiment_id: str
    run_id: str
    since: int | None = None
    """When the stage that is tracked was started, milliseconds since the epoch: its runs' start."""

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The parent run is RUNNING within, then FINISHED; FAILED after an error, KILLED where the process is told
        to end or `cost.max_cost` is reached."""
        client = self._client()
        client.update_run(self.run_id, "RUNNING")
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit | CapReached)
            client.set_terminated(self.run_id, "KILLED" if stopped else "FAILED")
            raise
        client.set_terminated(self.run_id)

    def metrics(self, values: dict[str, float]) -> None:
        """Log metrics of the parent run."""
        self.series({name: [(0, value)] for name, value in values.items()})

    def series(self, values: Series) -> None:
        """Log metrics of the parent run with their steps."""
        client = self._client()
        there, new = client.get_run(self.run_id).data.metrics, dict(values)
        for name in there.keys() & values.keys():
            known = {(m.step, m.value) for m in client.get_metric_history(self.run_id, name)}
            new[name] = [point for point in values[name] if point not in known]
        _log(client, self.run_id, {}, new)

    def children(self, kind: str, wanted: Mapping[str, Logged], within: str | None = None) -> dict[str, str]:
        """Finished child runs, which lasted as long as their stage, and their ids by name; those of the same name and
        kind are left alone where they say the same, else replaced. `within`: another child that they belong to."""
        client, ids = self._client(), dict[str, str]()
        tags = {"mlflow.parentRunId": within or self.run_id, "align_ray.kind": kind}
        for old in _runs(client, self.experiment_id, tags) if wanted else ():
            name = old.info.run_name
            if name in wanted and name not in ids and wanted[name].is_in(old):
                ids[name] = str(old.info.run_id)
            elif name in wanted and name not in ids:
                client.delete_run(old.info.run_id)
        for name in [name for name in wanted if name not in ids]:
            run = client.create_run(self.experiment_id, start_time=self.since, tags={**tags, "mlflow.runName": name})
            ids[name] = str(run.info.run_id)
            _log(client, ids[name], wanted[name].params, wanted[name].points)
            client.set_terminated(ids[name])
        return ids

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """Write a table of the parent run, in the place of the one with that name; MLflow shows it."""
        self.text(name, json.dumps({"columns": list(columns), "data": list(zip(*columns.values(), strict=True))}))
        client = self._client()
        known = {t["path"] for t in json.loads(client.get_run(self.run_id).data.tags.get(TABLES, "[]"))}
        listed = [{"path": path, "type": "table"} for path in sorted(known | {name})]
        client.set_tag(self.run_id, TABLES, json.dumps(listed))

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of the parent run."""
        from mlflow.entities import RunTag

        client, tags = self._client(), [RunTag(name, value[:5000]) for name, value in values.items()]
        for start in range(0, len(tags), PARAMS_AT_ONCE):
            client.log_batch(self.run_id, tags=tags[start : start + PARAMS_AT_ONCE])

    def datasets(self, config: Config, sample: Corpora) -> None:
        """Log every corpus as an MLflow dataset of the parent run: its digest is that of the documents drawn, its
        profile the counts of what was read, its context `target` or `candidate`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for corpus in config.corpora:
            counts = sample.corpora[corpus.name]
            source = json.dumps(
                {"uri": corpus.where, **corpus.model_dump(exclude={"name", "source"}, exclude_defaults=True)}
            )
            profile = json.dumps({k: v for k, v in counts.model_dump(exclude_unset=True).items() if isinstance(v, int)})
            named = [field for _, field, _, _ in Formatter().parse(corpus.template or f"{{{corpus.column}}}") if field]
            schema = json.dumps(
                {"mlflow_colspec": [{"name": n, "type": "string", "required": True} for n in dict.fromkeys(named)]}
            )
            dataset = Dataset(corpus.name, counts.sample_digest, _scheme(corpus.sources[0]), source, schema, profile)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", counts.role)]))
        client = self._client()
        for start in range(0, len(inputs), AT_ONCE):
            client.log_inputs(self.run_id, inputs[start : start + AT_ONCE])

    def verdict(self, found: Verdict | None, by: str) -> None:
        """The tags `align_ray.verdict`, `.verdict_why` and `.verdict_by` of the parent run; one by `validate`, which
        compares with more mixtures, stays (as in `verdict_of`)."""
        known = self._client().get_run(self.run_id).data.tags.get("align_ray.verdict_by")
        if found is not None and not (by == "finetune" and known == "validate"):
            values = {"verdict": found.state, "verdict_why": found.why, "verdict_by": by}
            self.tags({f"align_ray.{name}": value for name, value in values.items()})

    def text(self, name: str, content: str) -> None:
        """Attach a text file to the parent run; `name` may be a path within its artefacts."""
        self._client().log_text(self.run_id, content, name)

    def register(self, model: str, recipe: dict[str, Any]) -> str:
        """Register the recipe as a version of a model, once, and give it the alias `recommended`; returns the version.

        The version's files are recipe.json alone: a mixture, without weights of a network. They lie in a folder of
        their own, recipe/DIGEST, since the run of a configuration may find another mixture later.
        """
        from mlflow.exceptions import MlflowException

        client = self._client()
        key = digest({name: value for name, value in recipe.items() if name != "answer"})
        weights = sorted(recipe["weights"].items(), key=lambda item: -item[1])
        text = ", ".join(f"{name} {w:.1%}" for name, w in weights[:LISTED])
        if rest := weights[LISTED:]:
            text += f" and {sum(w for _, w in rest):.1%} of {len(rest)} others"
        text = f"Mixture for {', '.join(recipe['targets'])}, {recipe['token_budget']:,} tokens: {text}."
        self.text(f"recipe/{key}/recipe.json", json.dumps(recipe, indent=1))
        try:
            client.create_registered_model(
                model,
                description="Mixtures of training corpora, by align-ray: a version holds recipe.json, no network.",
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = client.search_model_versions(f"name = '{model}' and tags.`align_ray.recipe` = '{key}'")
        if known:
            version = str(known[0].version)
        else:
            tags = {
                "align_ray.recipe": key,
                "token_budget": str(recipe["token_budget"]),
                "objective": recipe["objective"],
            }
            tags |= {f"weight/{name}": f"{w:.4g}" for name, w in weights[:PARAMS_AT_ONCE]}
            source = f"runs:/{self.run_id}/recipe/{key}"
            version = str(client.create_model_version(model, source, self.run_id, tags=tags, description=text).version)
        client.set_registered_model_alias(model, "recommended", version)
        return version


def tracking_uri(config: Config) -> str:
    """`tracking.uri`, or the SQLite store in the output folder; raises ConfigError where that is not a local one."""
    file = Store(config.output).local_path("mlflow.db")
    if file is None and config.tracking.uri is None:
        raise ConfigError(
            f"field 'tracking.uri' is missing; the output {config.output} is not a local folder, so name an MLflow "
            "server."
        )
    return config.tracking.uri or f"sqlite:///{file}"


def start_tracking(config: Config, store: Store) -> Tracker:
    """Open the parent run of this configuration, or the one an earlier stage opened (mlflow-run.json has the ids).

    Raises ConfigError where `tracking.uri` does not answer.
    """
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new store reports each of its migrations
    uri = tracking_uri(config)
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(config.tracking.experiment)
    except Exception as error:  # no server, no data base, one of another version: SQLAlchemy's and MLflow's own classes
        if full := mistake_behind(error):
            raise full from None
        if config.tracking.uri:
            raise ConfigError(
                f"field 'tracking.uri': MLflow at {uri} does not answer ({first_line(error)}); check it."
            ) from None
        raise StoreError(
            f"MLflow's store {uri} cannot be opened ({first_line(error)}); fix it, or move it away to start a new one."
        ) from None
    if experiment and experiment.lifecycle_stage == "deleted":
        raise ConfigError(
            f"field 'tracking.experiment': the experiment '{config.tracking.experiment}' at {uri} was deleted; restore "
            f"it (mlflow experiments restore --experiment-id {experiment.experiment_id}), or name another one."
        )
    if experiment:
        experiment_id = experiment.experiment_id
    else:
        location = _artefacts(config, store)
        # else the pages take it for one of a chat application
        kind = {"mlflow.experimentKind": "custom_model_development"}
        experiment_id = client.create_experiment(config.tracking.experiment, artifact_location=location, tags=kind)
    tracked = config.model_dump(mode="json", exclude={"tracking", "cluster", "cost"})
    key, known = digest(tracked), store.find_json("mlflow-run.json")
    runs = known.get("runs", {}) if isinstance(known, dict) and known.get("uri") == uri else {}
    if experiment is None or "mlflow.note.content" not in experiment.tags:
        client.set_experiment_tag(experiment_id, "mlflow.note.content", WHERE_TO_LOOK)
    if key not in runs or not _exists(client, runs[key]):
        tags = {"align_ray.kind": "study", "align_ray.answer": answer_id(config)}
        runs[key] = client.create_run(experiment_id, run_name=parent_name(config), tags=tags).info.run_id
        _log(client, runs[key], _study_params(tracked), {})
    store.write_json("mlflow-run.json", {"uri": uri, "experiment_id": experiment_id, "run_id": runs[key], "runs": runs})
    return Tracker(uri, experiment_id, runs[key])


TABLES = "mlflow.loggedArtifacts"
"""The tag by which MLflow's pages know which files are tables."""
WHERE_TO_LOOK = """\
Each run at the top is one answer of a study, named by its date and target. Its **description** is the answer: mixture,
verdict, losses, ranking. Metrics `weight/NAME` are the recommended mixture, `mixture_loss/TARGET` and
`uniform_loss/TARGET` what was measured, of a target's task `mixture_accuracy/TARGET` and `mixture_score/TARGET`. Open
it with + for candidates and trainings (tag `align_ray.kind`: alignment, choice, finetune, validation). Artifacts hold
report.html, recipe.json, ratios.csv and metrics.csv, the trials of the search as a table, and of more than 64 corpora
candidates.csv, mixtures.csv and pairs.csv. The registered model
`mixture-NAME` has the recipe under the alias `recommended`.
"""


def parent_name(config: Config) -> str:
    """What the parent run is called: date, targets, and the study's name."""
    names = [target.name for target in config.targets]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{datetime.now(UTC):%Y-%m-%d} {shown} ({config.name})"


def _artefacts(config: Config, store: Store) -> str | None:
    """Where a new experiment's files go: into the output, or beside the SQLite file of `tracking.uri` (MLflow's own
    default would be the folder in which the command was typed). None for a server, which knows its place."""
    uri = config.tracking.uri
    if uri and not uri.startswith("sqlite:///"):
        return None
    folder = (
        Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
        if uri
        else store.local_path("mlartifacts")
    )
    return folder.as_uri() if folder else None


def _exists(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:  # the store was removed
        return False


def _study_params(tracked: dict[str, Any]) -> dict[str, Any]:
    """What distinguishes studies, flat; what is empty or does not apply is left out, the rest is in config.yaml."""
    flat = {f"{s}.{k}": v for s, section in tracked.items() if isinstance(section, dict) for k, v in section.items()}
    if tracked["embedding"]["estimator"] != "reference":
        del flat["embedding.quirks"]
    names = {role: ", ".join(c["name"] for c in tracked[role]) for role in ("targets", "candidates")}
    return {**names, "seed": tracked["seed"], **{k: v for k, v in flat.items() if v not in (None, {}, [])}}


def _scheme(source: str) -> str:
    return source.partition(":")[0] if ":" in source else "local"


def _params(params: dict[str, Any]) -> dict[str, str]:
    return {name: (f"{value:.4g}" if isinstance(value, float) else str(value))[:500] for name, value in params.items()}


def _log(client: Any, run_id: str, params: dict[str, Any], points: Series) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    metrics = [Metric(name, float(value), now, step) for name, rows in points.items() for step, value in rows]
    left = [Param(name, value) for name, value in _params(params).items()]
    while left or metrics:
        first, left = left[:PARAMS_AT_ONCE], left[PARAMS_AT_ONCE:]
        room = AT_ONCE - len(first)
        client.log_batch(run_id, params=first, metrics=metrics[:room])
        metrics = metrics[room:]


def _runs(client: Any, experiment_id: str, tags: dict[str, str]) -> list[Any]:
    """All runs with these tags, the newest first."""
    clause = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
    found: list[Any] = []
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment_id], clause, max_results=AT_ONCE, page_token=token)
        found, token = [*found, *page], page.token or ""
    return found


def corpora(tracker: Tracker, config: Config, store: Store, result: Corpora) -> None:
    """Corpora as datasets of the parent run, and the looks of sequential embedding as metrics."""
    tracker.datasets(config, result)
    looks = list(enumerate(result.work.looks, start=1))
    tracker.series({f"looks/{name}": [(i, look[name]) for i, look in looks] for name in ("batches", "unsettled")})


def alignment(tracker: Tracker, config: Config, store: Store, result: Alignment) -> None:
    """A child run a candidate, with every target's values as metrics."""
    places = (result.predicted.ranking, result.predicted.unranked)
    entropy = {(t, row.candidate): row.value for placed in places for t, rows in placed.items() for row in rows}
    found: dict[str, dict[str, float]] = {}
    for target, ranking in result.ranking.items():
        for row in ranking:
            found.setdefault(row.candidate, {}).update(
                {
                    f"alignment/{target}": row.value,
                    f"alignment_error/{target}": row.error,
                    f"cross_entropy/{target}": entropy[target, row.candidate],
                }
            )
    tracker.children("alignment", {name: Logged({"candidate": name}, values) for name, values in found.items()})


def choice(tracker: Tracker, config: Config, store: Store, result: Choice) -> None:
    """A child run a candidate, and what was spent."""
    found = {}
    for name in (c.name for c in config.candidates):
        rows = {t: of.candidates[name] for t, of in result.targets.items() if name in of.candidates}
        if not rows:  # its training diverged
            continue
        values = {f"{k}/{t}": row[v] for k, v in CHOICE.items() for t, row in rows.items()}
        values |= _task_metrics({t: row.task for t, row in rows.items()})
        found[name] = Logged({"candidate": name, "tokens": max(r.tokens for r in rows.values())}, values)
    tracker.children("choice", found)
    tracker.metrics({"choice_tokens": result.spent, "choice_tokens_exhaustive": result.exhaustive})


CHOICE = {"loss": "value", "p_best": "p_best", "p_within": "p_within", "regret": "regret"}
"""What MLflow is told of a candidate that was trained to choose."""


def mixture(tracker: Tracker, config: Config, store: Store, result: Mixture) -> None:
    """A child run a trial, the course of the search, and the recommended mixture as a version of a model."""
    found: dict[str, list[tuple[int, float]]] = {"value": [], "penalised": [], "loss": []}
    trials = {}
    for i, trial in enumerate(result.trials):
        if trial.loss is not None:
            losses = {f"loss/{t}": loss for t, loss in (trial.losses or {}).items()}
            values = {"loss": trial.loss, **losses}
            trials[f"trial-{i:04d}"] = Logged(_weights(trial.weights), values)
        for name, points in found.items():
            if (value := getattr(trial, name)) is not None:
                points.append((i, value))
    if trials:
        search = tracker.children("search", {"search": Logged({"objective": result.objective}, {})})
        tracker.children("trial", trials, within=search["search"])
    key, better = ("loss", min) if found["loss"] else ("penalised", max)
    series = {f"search/{name}": points for name, points in found.items()}
    series[f"search/best_{key}"] = list(enumerate(accumulate((v for _, v in found[key]), better)))
    tracker.series(series)
    if result.trials:
        names = list(result.trials[0].weights)
        columns = {name: [trial.weights.get(name, 0.0) for trial in result.trials] for name in names}
        measured = {key: [getattr(trial, key) for trial in result.trials] for key in ("value", "penalised", "loss")}
        kept = {key: values for key, values in measured.items() if any(v is not None for v in values)}
        tracker.table("search_trials.json", {"trial": list(range(len(result.trials))), **kept, **columns})
    best = result.mixtures["recommended"]
    tracker.metrics({"mixture_alignment": best.alignment.value, "mixture_value": best.value, **_weights(best.weights)})
    tracker.register(f"mixture-{config.name}", store.read_json("recipe.json"))


def finetuned(tracker: Tracker, config: Config, store: Store, result: Finetuned) -> None:
    """A child run a training, and the verdict as a tag of the parent."""
    tracker.verdict(result.verdict, "finetune")
    # the first one is what MLflow's comparison draws
    shown = {
        "after": "loss",
        "change": "change",
        "change_error": "change_error",
        "before": "loss_before",
        "overlap": "overlap",
    }
    names, found = dict.fromkeys(name for run in result.runs.values() for name in run.weights), {}
    for name, run in result.runs.items():
        rows = {t: row.model_dump() for t, row in run.targets.items()}
        values = {f"{label}/{t}": row[k] for k, label in shown.items() for t, row in rows.items() if row[k] is not None}
        values |= _task_metrics({t: row.task for t, row in run.targets.items()})
        if run.general:
            values |= {"general_loss": run.general.after, "general_change": run.general.change}
        courses = {t: of.runs[name] for t, of in result.extrapolation.items() if name in of.runs}
        values |= {f"extrapolated_loss_at_budget/{t}": c.expected[-1].value for t, c in courses.items()}
        # all of them, of not very many: MLflow compares runs by what they share
        weights = {n: run.weights.get(n, 0.0) for n in (names if len(names) <= PARAMS_AT_ONCE else run.weights)}
        found[name] = Logged(_weights(weights), values, {"training_loss": list(run.training)})
        if name in ("mixture", "uniform"):
            tracker.metrics({f"{name}_loss/{t}": row.after for t, row in run.targets.items()})
            scores = _task_metrics({t: row.task for t, row in run.targets.items()})
            tracker.metrics({f"{name}_{key}": value for key, value in scores.items()})
    tracker.children("finetune", found)


def _task_metrics(tasks: Mapping[str, TaskScore | None]) -> dict[str, float]:
    """Accuracy and continuous score by target with a task."""
    found: dict[str, float] = {}
    for target, task in tasks.items():
        if task is not None:
            found |= {f"{name}/{target}": task[name].value for name in task.labels()}
    return found


def validation(tracker: Tracker, config: Config, store: Store, result: Validation) -> None:
    """A child run a mixture, and the verdict as a tag of the parent."""
    tracker.verdict(result.verdict, "validate")
    found = {}
    for name, row in result.mixtures.items():
        losses = {f"loss/{t}": e.value for t, e in row.loss.items()}
        found[name] = Logged(_weights(row.weights), losses | _task_metrics(row.task))
    tracker.children("validation", found)


def prediction(tracker: Tracker, config: Config, store: Store, result: Prediction) -> None:
    """A child run a measure and one a candidate, for every number of tokens."""
    measures, outcomes = {}, {}
    for tokens, setting in result.settings.items():
        for name in result.measures:
            found = {reading: qualities[name] for reading, qualities in setting.results.items()}
            values = {
                f"{k}/{reading}": getattr(q, k).value
                for reading, q in found.items()
                for k in ("spearman", "pearson", "regret")
            }
            measures[f"{name} ({tokens} tokens)"] = Logged({"measure": name, "tokens": tokens}, values)
        for candidate, row in zip(result.candidates, setting.loss, strict=True):
            losses = {f"loss/{t}": loss for t, loss in zip(result.targets, row, strict=True)}
            what = {"candidate": candidate, "tokens": tokens}
            outcomes[f"{candidate} ({tokens} tokens)"] = Logged(what, losses)
    tracker.children("measure", measures)
    tracker.children("outcome", outcomes)


def answer(tracker: Tracker, config: Config, results: Mapping[str, Any], said: str | None, stopped: str) -> None:
    """The answer on the parent run itself: its description, and tags of verdict and ranking. `results` by the name of
    their file; `said`: the answer in one sentence; `stopped`: what ended the run early."""
    found = verdict_of(results, stopped)
    rankings = {}
    listed = LISTED if len(config.corpora) > EVERY_PAIR else None  # the page's files have all of them
    lines = [f"**{said}**" if said else "No mixture yet.", "", f"Verdict: **{found.state}**: {found.why}"]
    if mixture := results.get("search"):
        lines += ["", f"Mixture for {config.search.token_budget:,} tokens:", "", "| corpus | weight |", "|---|---:|"]
        weights = sorted(mixture.mixtures["recommended"].weights.items(), key=lambda item: -item[1])
        lines += [f"| {name} | {weight:.1%} |" for name, weight in weights[:listed]]
        if rest := weights[listed:]:
            lines.append(f"| {len(rest)} others | {sum(weight for _, weight in rest):.1%} |")
    if trained := results.get("finetune"):
        for target in list(next(iter(trained.runs.values())).targets)[:listed]:
            lines += ["", f"Loss on {target} after training, nats per token:", "", "| trained on | loss | change |"]
            lines.append("|---|---:|---:|")
            ordered = sorted(trained.runs.items(), key=lambda item: item[1].targets[target].after)
            lines += [
                f"| {n} | {r.targets[target].after:.4f} | {r.targets[target].change:+.4f} |"
                for n, r in ordered[:listed]
            ]
        lines += [part for line in trained.tasks() for part in ("", line)]
    if aligned := results.get("alignment"):
        for target, rows in aligned.predicted.ranking.items():
            rankings[f"align_ray.ranking/{target}"] = order = ", ".join(row.candidate for row in rows[:listed])
            lines += ["", f"Ranking for {target} by word counts: {order}"]
    if chosen := results.get("choice"):
        for target, standings in chosen.targets.items():
            rankings[f"align_ray.ranking/{target}"] = order = ", ".join(list(standings.candidates)[:listed])
            lines += ["", f"Ranking for {target} by short trainings: {order} ({standings.state})"]
    lines += ["", f"Everything: report.html among the artifacts, and {Store(config.output).uri}"]
    tracker.tags({"mlflow.note.content": "\n".join(lines), **rankings})
    if found.state == "not tested":
        tracker.tags({"align_ray.verdict": found.state, "align_ray.verdict_why": found.why})


def _weights(weights: dict[str, float]) -> dict[str, float]:
    return {f"weight/{name}": weight for name, weight in weights.items()}
