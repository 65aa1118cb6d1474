"""The stages of a study, one plain function each: embed -> align -> contamination -> samples -> search -> finetune -> report.

A stage reads what earlier stages stored and stores its own result, so that each can be run alone and again.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from align_ray.alignment import align_corpora
from align_ray.config import Config, digest
from align_ray.constraints import constraints
from align_ray.contamination import contamination as find_contamination
from align_ray.corpora import check_corpus
from align_ray.cross_entropy import MEASURE, rank_by_cross_entropy
from align_ray.embedding import embed_missing, read_embeddings, read_sample, sample_corpora
from align_ray.errors import ConfigError, ProbeError, UserError
from align_ray.finetuning import finetune_runs, planned_runs
from align_ray.html_report import render_report
from align_ray.mixture_stage import find_mixture, mixmin_weights, token_counts
from align_ray.prediction import FEWEST
from align_ray.predictive_study import predictive_study
from align_ray.probe import Located, load_tokenizer, locate_probe
from align_ray.recipes import make_recipe
from align_ray.runtime import connect
from align_ray.sequence_scores import refuse_unscorable, score_samples
from align_ray.sequential import embed_until_settled
from align_ray.similarity import PUBLISHED_EPSILON
from align_ray.store import Store
from align_ray.study_report import study_files
from align_ray.tracking import Tracker, start_tracking
from align_ray.validation import VALIDATED, validate_mixtures


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked configuration, ready to run."""

    config: Config
    store: Store
    probe: Located
    say: Callable[[str], None]
    """Receives one line of progress per event."""


def open_study(config: Config, say: Callable[[str], None] = lambda line: None) -> Study:
    """Check everything that can be checked without a cluster or a model; raise a UserError at the first thing wrong."""
    store = Store(config.output)
    for corpus in config.corpora:
        check_corpus(corpus)
    located = locate_probe(config.probe)
    for field, model in (("probe", located), ("finetune.model", _finetune_model(config, located))):
        if config.sampling.sequence_length > model.context:
            raise ProbeError(
                f"field 'sampling.sequence_length' is {config.sampling.sequence_length}, but the context of '{field}' is "
                f"{model.context} tokens; lower it."
            )
    if store.local_path() is None and config.tracking.uri is None:
        raise ConfigError(
            f"field 'tracking.uri' is missing; the output {config.output} is not a local folder, so name an MLflow server."
        )
    store.check_writable()
    store.write_bytes("config.yaml", config.to_yaml().encode())
    return Study(config, store, located, say)


def embed(study: Study) -> dict[str, Any]:
    """Draw and batch the corpora, compute missing embeddings; returns {"corpora": counts, "work": counts}."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        connect(config.cluster)
        study.say(f"reading {len(config.corpora)} corpora")
        corpora = sample_corpora(config, store, study.probe)
        constraints(config.search, {c.name: corpora[c.name]["estimated_tokens"] for c in config.candidates})
        most = sum(c["batches"] for c in corpora.values())
        study.say(f"embedding {'at most ' if config.sampling.sequential else ''}{most} batches")
        if config.sampling.sequential:
            done = embed_until_settled(config, store, study.probe, study.say)
        else:
            done = embed_missing(config, store, study.probe)
        store.write_json("embedding.json", {k: done.get(k) for k in ("key", "dtype", "limits")})
        study.say(f"embedded {done['computed']} batches ({done['planned'] - done['computed']} were in the store)")
        return {"corpora": corpora, "work": done}

    return _timed(study, "embed", work)


def align(study: Study) -> dict[str, Any]:
    """Alignment of every pair of corpora, diversity, noise floor and ranking (see `align_corpora`); `predicted`: the ranking by
    the measure that predicts losses best (see `rank_by_cross_entropy`)."""
    config = study.config

    def work() -> dict[str, Any]:
        need(study, "embed")
        published = config.embedding.estimator == "reference" and config.embedding.quirks.absolute_epsilon
        embeddings = read_embeddings(config, study.store)
        names = [t.name for t in config.targets]
        result = align_corpora(embeddings, names, PUBLISHED_EPSILON if published else None)
        batches = {c.name: read_sample(study.store, c.name).batches[: len(embeddings[c.name])] for c in config.corpora}
        by_entropy = rank_by_cross_entropy(batches, names, len(load_tokenizer(study.probe)))
        result["predicted"] = {"measure": MEASURE, "ranking": by_entropy}
        for name, places in result["skipped"].items():
            if places:
                which = ", ".join(f"{sequence} of batch {batch}" for batch, sequence in places[:5])
                study.say(f"corpus '{name}': left out {len(places)} sequences without a finite embedding: {which}")
        tracker = start_tracking(config, study.store)
        for target, ranking in result["ranking"].items():
            for row in ranking:
                values = {f"alignment/{target}": row["value"], f"alignment_error/{target}": row["error"]}
                tracker.child(f"{row['candidate']} to {target}", "alignment", {"candidate": row["candidate"]}, values)
        study.store.write_json("alignment.json", result)
        return result

    return _timed(study, "align", work)


def contamination(study: Study) -> dict[str, Any]:
    """Text that candidates share with the targets, and their ranks without it (see `contamination.contamination`)."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        need(study, "embed")
        connect(config.cluster)
        result = find_contamination(config, store, study.probe, study.say)
        store.write_json("contamination.json", result)
        for line in result["warnings"]:
            study.say(f"note: {line}")
        return result

    return _timed(study, "contamination", work)


def samples(study: Study) -> dict[str, Any]:
    """The most and the least aligned sequences of every corpus (see `score_samples`); {} where single ones have no embedding."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        need(study, "embed")
        try:
            refuse_unscorable(config.embedding)
        except ConfigError as reason:
            study.say(f"no samples of text by alignment: {reason}")
            result = {}
        else:
            connect(config.cluster)
            result = score_samples(config, store, study.probe, study.say)
        store.write_json("samples.json", result)
        return result

    return _timed(study, "samples", work)


def search(study: Study) -> dict[str, Any]:
    """Mixture weights under the constraints (see `find_mixture`)."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        need(study, "embed")
        connect(config.cluster)
        result = find_mixture(config, store, study.probe, _finetune_model(config, study.probe), study.say)
        tracker = start_tracking(config, store)
        for i, trial in enumerate(result["trials"]):
            tracker.child(f"trial-{i:04d}", "trial", trial["weights"], {k: trial[k] for k in ("value", "loss") if k in trial})
        best = result["mixtures"][result["chosen"]]
        tracker.metrics({"mixture_alignment": best["alignment"]["value"], "mixture_value": best["value"]})
        store.write_json("search.json", result)
        store.write_json("recipe.json", make_recipe(config, study.probe, result, store.read_json("corpora.json")))
        for line in result["warnings"]:
            study.say(f"note: {line}")
        return result

    return _timed(study, "search", work)


def recipe(study: Study) -> dict[str, Any]:
    """The recipe of the study's mixture (see `make_recipe`); raises UserError where there is none for this configuration."""
    need(study, "search")
    return study.store.read_json("recipe.json")


def finetune(study: Study) -> dict[str, Any]:
    """Fine-tune on every candidate, uniform and the found mixture (see `finetune_runs`)."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        need(study, "search")
        connect(config.cluster)
        runs = planned_runs(config, store.read_json("search.json"))
        study.say(f"fine-tuning {len(runs)} times on {config.finetune.tokens} tokens")
        result = finetune_runs(config, store, _finetune_model(config, study.probe), token_counts(config, store), runs)
        tracker = start_tracking(config, store)
        for name, run in result["runs"].items():
            values = {f"{k}/{t}": v for t, row in run["targets"].items() for k, v in row.items() if v is not None}
            tracker.child(name, "finetune", run["weights"], values)
        store.write_json("finetune.json", result)
        return result

    return _timed(study, "finetune", work)


def validate(study: Study, further: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train on the proposed mixture and on what one would do without it, several seeds (see `validate_mixtures`); `further`:
    names of other mixtures of the search. Raises UserError for one it does not have."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        need(study, "search")
        connect(config.cluster)
        model, tokens = _finetune_model(config, study.probe), token_counts(config, store)
        known = store.read_json("search.json")["mixtures"]
        for name in further:
            if name not in known:
                raise UserError(f"--mixture {name}: the search has {', '.join(known)}.")
        mixtures = {name: known[name]["weights"] for name in (*VALIDATED, *further) if name in known}
        study.say("training on every candidate, for MixMin")
        mixtures["mixmin"] = mixmin_weights(config, store, model, tokens)
        study.say(f"training on {len(mixtures)} mixtures with {config.finetune.seeds} seeds, {config.finetune.tokens} tokens each")
        result = validate_mixtures(config, store, model, tokens, mixtures)
        tracker = start_tracking(config, store)
        for name, row in result["mixtures"].items():
            tracker.child(name, "validation", row["weights"], {f"loss/{t}": e["value"] for t, e in row["loss"].items()})
        store.write_json("validation.json", result)
        return result

    return _timed(study, "validate", work)


def predict(study: Study) -> dict[str, Any]:
    """The predictive study: every measure against real trainings (see `predictive_study`); writes study.md and its plots."""
    config, store = study.config, study.store
    most = max(config.predict.tokens)
    if most > config.finetune.tokens:
        raise ConfigError(
            f"field 'predict.tokens' asks for {most} tokens, but 'finetune.tokens', the sample they are drawn from, is "
            f"{config.finetune.tokens}; raise it."
        )

    names = {c.name for c in config.candidates}
    if all(len(names - set(config.predict.related.get(t.name, []))) < FEWEST for t in config.targets):
        raise ConfigError(f"field 'candidates': a target needs {FEWEST} candidates that are not its own corpus; add corpora.")

    def work() -> dict[str, Any]:
        need(study, "embed")
        connect(config.cluster)
        result = predictive_study(config, store, study.probe, _finetune_model(config, study.probe), study.say)
        tracker = start_tracking(config, store)
        for tokens, setting in result["settings"].items():
            for name in result["measures"]:
                found = {reading: qualities[name] for reading, qualities in setting["results"].items()}
                values = {
                    f"{k}/{reading}": q[k]["value"] for reading, q in found.items() for k in ("spearman", "pearson", "regret")
                }
                tracker.child(f"{name} ({tokens} tokens)", "measure", {"measure": name, "tokens": tokens}, values)
            for candidate, row in zip(result["candidates"], setting["loss"], strict=True):
                losses = {f"after/{t}": loss for t, loss in zip(result["targets"], row, strict=True)}
                tracker.child(f"{candidate} ({tokens} tokens)", "outcome", {"candidate": candidate, "tokens": tokens}, losses)
        store.write_json("prediction.json", result)
        for name, content in study_files(result).items():
            store.write_bytes(name, content)
        return result

    return _timed(study, "predict", work)


def report(study: Study) -> str:
    """Write report.html from what is stored and belongs to this configuration; returns its path or URI."""
    store = study.store
    need(study, "align")
    results = {STAGES[stage].result: value for stage in STAGES if (value := stored(study, stage))}
    for stage in ("embed", "align", "contamination", "samples", "search", "finetune"):  # validation is asked for by name
        if STAGES[stage].result not in results:
            study.say(f"no result of the stage '{stage}' belongs to this configuration: the report leaves it out")
    results["cost"] = store.read_json("cost.json")
    html = render_report(study.config, results)
    store.write_bytes("report.html", html.encode())
    tracker = start_tracking(study.config, store)
    folder = store.local_path()
    if folder:
        made = [*(f"{n}.json" for n in results), *(["recipe.json"] if "search" in results else [])]
        for name in ("report.html", "config.yaml", *made):
            tracker.artefact(str(folder / name))
    return str(folder / "report.html") if folder else f"{store.uri}/report.html"


def run(study: Study) -> str:
    """All stages; returns where the report is."""
    tracker = start_tracking(study.config, study.store)
    try:
        for stage in (embed, align, contamination, samples, search, finetune):
            stage(study)
        where = report(study)
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    tracker.finish()
    return where


def tracking(study: Study) -> Tracker:
    """The study's MLflow parent run."""
    return start_tracking(study.config, study.store)


def _finetune_model(config: Config, probe: Located) -> Located:
    """The model to fine-tune; its tokenizer must be the probe's, since both see the same sequences."""
    if config.finetune.model is None or config.finetune.model == config.probe.model:
        return probe
    located = locate_probe(config.probe.model_copy(update={"model": config.finetune.model, "revision": None}))
    if load_tokenizer(located).get_vocab() != load_tokenizer(probe).get_vocab():
        raise ConfigError(
            f"field 'finetune.model' ({config.finetune.model}) has another tokenizer than the probe ({config.probe.model}); "
            "use a model of the same family or make it the probe."
        )
    return located


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's result file, the stages it reads and the fields of the configuration it depends on."""

    result: str
    needs: tuple[str, ...]
    fields: tuple[str, ...]


SAMPLE_FIELDS = ("targets", "candidates", "sampling", "embedding", "seed", "finetune.tokens", "finetune.eval_tokens")
STAGES = {
    "embed": Stage("corpora", (), SAMPLE_FIELDS),
    "align": Stage("alignment", ("embed",), ()),
    "contamination": Stage("contamination", ("embed",), ()),
    "samples": Stage("samples", ("embed",), ()),
    "search": Stage("search", ("embed",), ("search",)),
    "finetune": Stage("finetune", ("search",), ("finetune",)),
    "validate": Stage("validation", ("search",), ("finetune",)),
    "predict": Stage("prediction", ("embed",), ("finetune", "predict")),
}


def stored(study: Study, stage: str) -> dict[str, Any] | None:
    """The stored result of a stage; None where there is none or it was made from another configuration or sample."""
    costs = study.store.read_json("cost.json") if study.store.exists("cost.json") else {}
    if stage not in costs or costs[stage].get("made_from") != _key(study, stage):
        return None
    return study.store.read_json(f"{STAGES[stage].result}.json")


def _key(study: Study, stage: str) -> str:
    """Digest of all that determines a stage's result."""
    config = study.config.model_dump(mode="json")
    values = []
    for field in STAGES[stage].fields:
        value = config
        for part in field.split("."):
            value = value[part]
        values.append(value)
    inputs: list[Any] = [_key(study, needed) for needed in STAGES[stage].needs]
    if not inputs:
        samples = study.store.read_json("corpora.json") if study.store.exists("corpora.json") else {}
        inputs = [study.probe.digest, {name: counts["sample_digest"] for name, counts in samples.items()}]
    return digest([values, inputs])


def need(study: Study, stage: str) -> None:
    """Raise UserError where a stage has no result for this configuration."""
    if stored(study, stage) is None:
        raise UserError(
            f"{study.config.output} holds no result of the stage '{stage}' for this configuration; run that stage first."
        )


def _timed(study: Study, stage: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage; record what it cost and what its result belongs to in cost.json."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    costs = study.store.read_json("cost.json") if study.store.exists("cost.json") else {}
    costs[stage] = {"made_from": _key(study, stage), "seconds": seconds, **(result["work"] if stage == "embed" else {})}
    study.store.write_json("cost.json", costs)
    study.say(f"{stage}: {seconds:.1f} s")
    return result
