"""The stages of a study, one function each: embed -> align -> contamination -> samples (-> choose) -> search ->
finetune -> report.

A stage reads what earlier stages stored and stores its own result, so that each can be run alone and again
(`stages.stage`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from align_ray import __version__
from align_ray.alignment.coefficients import align_reduced
from align_ray.alignment.words import rank_by_cross_entropy
from align_ray.answers import remember
from align_ray.checks.contamination import find_contamination
from align_ray.checks.page import study_files
from align_ray.checks.predict import check_predictable, predictive_study
from align_ray.claims import held
from align_ray.config import TRAINED, Config
from align_ray.config_corpora import LmEval
from align_ray.context import Study
from align_ray.corpora.harness import check_task
from align_ray.corpora.sample import sample_corpora, token_counts
from align_ray.corpora.sources import check_corpus
from align_ray.embedding.evidence import Evidence, read_evidence, reduce_corpora
from align_ray.embedding.pool import embed_missing, embedded_so_far, say_if_inert
from align_ray.embedding.scores import refuse_unscorable, score_samples
from align_ray.embedding.sequential import embed_until_settled
from align_ray.errors import CapReached, ConfigError, ProbeError, UserError
from align_ray.estimate import estimate
from align_ray.events import told
from align_ray.fisher.probe import Located, locate_probe
from align_ray.fisher.sound import check_model
from align_ray.handover.recipe import make_recipe
from align_ray.handover.runs import FILES, run_files
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.mixmin import mixmin_weights
from align_ray.mixture.search import find_mixture
from align_ray.observed import Place, placed
from align_ray.reporting import excerpt, tracking
from align_ray.reporting.choices import Choice
from align_ray.reporting.headline import headline
from align_ray.reporting.page import render_report
from align_ray.reporting.results import Alignment, Contamination, Corpora, Mixture, Prediction, Samples
from align_ray.reporting.trained import Finetuned, Validation
from align_ray.stages import SEEDS, Stage, answer_key, found_key, need, stage, stored
from align_ray.store import Store
from align_ray.training.choose import check_choosable, choose_candidates
from align_ray.training.finetune import feasible_alone, finetune_runs, planned_runs
from align_ray.training.memory import assumes_gpu, check_probe_fits, check_training_fits
from align_ray.training.validate import VALIDATED, validate_mixtures


def open_study(config: Config, say: Callable[[str], None] = lambda line: None, write: bool = True) -> Study:
    """Check everything that can be checked without a cluster or a model's weights; raise a UserError at the first thing
    wrong.

    `write`: see that the output folder can be written and is not in use. The configuration is kept there with the
    first result (`stages`)."""
    study = Study(config, Store(config.output), checked_probe(config), told(say))
    if study.model != study.probe:
        check_model(study.model, as_probe=False)
    for field, model in (("probe", study.probe), ("finetune.model", study.model)):
        if config.sampling.sequence_length > model.context:
            raise ProbeError(
                f"field 'sampling.sequence_length' is {config.sampling.sequence_length}, but the context of '{field}' "
                "is "
                f"{model.context} tokens; lower it."
            )
    tracking.tracking_uri(config)
    if write:
        study.store.check_writable()
        with held(study.store, study.config):
            pass
    return study


def checked_probe(config: Config) -> Located:
    """The probe, after a look at the first records of every corpus and at whether it can be one."""
    for corpus in config.read:
        check_corpus(corpus)
    for target in config.targets:
        if isinstance(target.task, LmEval):
            check_task(target.name, target.task)
    probe = locate_probe(config.probe.plain())
    check_model(probe)
    return probe


@stage(
    "corpora",
    Corpora,
    fields=("targets", "candidates", "sampling", "embedding", "seed", "finetune.tokens", "finetune.eval_tokens"),
    check=check_probe_fits,
    track=tracking.corpora,
)
def embed(study: Study) -> dict[str, Any]:
    """Draw and batch the corpora, compute missing embeddings."""
    config = study.config
    say_if_inert(study)
    study.say(f"reading {len(config.read)} corpora")
    corpora = sample_corpora(study)
    most = sum(c["batches"] for c in corpora.values())
    study.say(f"embedding {'at most ' if config.sampling.sequential else ''}{most} batches")
    try:
        done = embed_until_settled(study) if config.sampling.sequential else embed_missing(study)
    except CapReached as stop:  # an alignment of what there is, with the intervals of so many batches, is still valid
        done = embedded_so_far(study)
        if min(done["used"].values()) < 2:
            raise
        study.say(f"note: {stop}")
    study.store.write_json("embedding.json", {k: done.get(k) for k in ("key", "dtype", "used")})
    reduce_corpora(study, done)
    study.say(f"embedded {done['computed']} batches now; {done['planned']} of {most} are in the store")
    return {"corpora": corpora, "work": done}


def evidence_of(study: Study) -> Evidence:
    """What the embedding stage stored; raises UserError where it has not run for this configuration."""
    return read_evidence(study, need(study, embed).work)


@stage("alignment", Alignment, needs=(embed,), fields=("unigram",), track=tracking.alignment, on_workers=False)
def align(study: Study) -> dict[str, Any]:
    """Alignment of every pair of corpora, diversity, noise floor and ranking (see `align_corpora`); `predicted`: the
    ranking by cross-entropy (see `rank_by_cross_entropy`)."""
    evidence, names = evidence_of(study), [t.name for t in study.config.targets]
    result = align_reduced(evidence.reduced, names, study.config.embedding.epsilon)
    by_entropy = rank_by_cross_entropy(evidence.batches, names, len(study.tokenizer), study.config.counted_tokens)
    for name, places in result["skipped"].items():
        if places:
            which = ", ".join(f"{sequence} of batch {batch}" for batch, sequence in places[:5])
            study.say(f"corpus '{name}': left out {len(places)} sequences without a finite embedding: {which}")
    return {**result, "predicted": by_entropy}


@stage("contamination", Contamination, needs=(embed,), fields=("unigram",))
def contamination(study: Study, top: int | None = None) -> dict[str, Any]:
    """Text that candidates share with the targets, and their ranks without it (see `find_contamination`). `top`: of so
    many candidates, the first in the ranking of any target, alone."""
    ranked = need(study, align).predicted.ranking.values() if top else []
    only = {row.candidate for rows in ranked for row in rows[:top]} if top else None
    result = find_contamination(study, evidence_of(study), only)
    for line in result["warnings"]:
        study.say(f"note: {line}")
    return result


@stage("samples", Samples, needs=(embed,))
def samples(study: Study) -> dict[str, Any]:
    """The most and the least aligned sequences of every corpus (see `score_samples`); none where single ones have no
    embedding."""
    try:
        refuse_unscorable(study.config.embedding)
    except ConfigError as reason:
        study.say(f"no samples of text by alignment: {reason}")
        return {}
    return score_samples(study, evidence_of(study))


@stage("choice", Choice, needs=(align,), fields=("choose", "finetune"), check=check_choosable, track=tracking.choice)
def choose(study: Study) -> dict[str, Any]:
    """Compare candidates by short trainings, of which those with hope go on (see `choose_candidates`)."""
    return choose_candidates(study, need(study, align).predicted.ranking)


def _trained_by(study: Study) -> tuple[str, ...]:
    """What a search depends on beside its own section: where it trains, on how that is done."""
    return ("finetune",) if study.config.search.objective in TRAINED else ()


@stage("search", Mixture, needs=(embed,), fields=("search",), further=_trained_by, track=tracking.mixture)
def search(study: Study) -> dict[str, Any]:
    """Mixture weights under the constraints (see `find_mixture`); writes recipe.json."""
    result = find_mixture(study, evidence_of(study))
    study.store.write_json("recipe.json", make_recipe(study, Mixture.parse(result), need(study, embed)))
    for line in result["warnings"]:
        study.say(f"note: {line}")
    return result


def recipe(study: Study) -> dict[str, Any]:
    """The recipe of the study's mixture (see `make_recipe`); raises UserError where there is none for this
    configuration."""
    return make_recipe(study, need(study, search), need(study, embed))


def _chosen_by(study: Study) -> tuple[str, ...]:
    """Where candidates were chosen by training, those alone are trained again."""
    return ("choose",) if study.config.choose.by == "training" else ()


@stage(
    "finetune",
    Finetuned,
    needs=(search,),
    fields=("finetune", SEEDS),
    further=_chosen_by,
    check=check_training_fits,
    track=tracking.finetuned,
)
def finetune(study: Study) -> dict[str, Any]:
    """Fine-tune on every candidate (chosen by training: on every target's best alone, and its best of those that could
    be recommended), uniform and the found mixture (see `finetune_runs`)."""
    found = need(study, search)
    alone = None
    if study.config.choose.by == "training":
        chosen, tokens = need(study, choose), token_counts(study)
        feasible = feasible_alone(study.config, tokens, found.caps)
        alone = [*chosen.chosen(), *chosen.chosen(feasible)]
    runs = planned_runs(study.config, found, alone)
    study.say(f"fine-tuning {len(runs)} times on {study.config.finetune.tokens} tokens")
    return finetune_runs(study, token_counts(study), runs, found.caps)


@stage(
    "validation",
    Validation,
    needs=(search,),
    fields=("finetune", SEEDS),
    check=check_training_fits,
    track=tracking.validation,
)
def validate(study: Study, further: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train on the proposed mixture and on what one would do without it, several seeds (see `validate_mixtures`);
    `further`: names of other mixtures of the search. Raises UserError for one it does not have."""
    tokens, searched, settings = token_counts(study), need(study, search), study.config.finetune
    known = searched.mixtures
    for name in further:
        if name not in known:
            raise UserError(f"--mixture {name}: the search has {', '.join(known)}.")
    before = stored(study, validate)
    compared = before.mixtures if before and before.seeds == settings.seeds else ()  # asked for earlier: they stay
    mixtures = {name: known[name].weights for name in (*VALIDATED, *further, *compared) if name in known}
    study.say("training on every candidate, for MixMin")
    mixtures["mixmin"] = mixmin_weights(study, tokens)
    study.say(f"training on {len(mixtures)} mixtures with {settings.seeds} seeds, {settings.tokens} tokens each")
    return validate_mixtures(study, tokens, mixtures, searched.caps)


@stage(
    "prediction",
    Prediction,
    needs=(embed,),
    fields=("finetune", "predict"),
    check=check_predictable,
    track=tracking.prediction,
)
def predict(study: Study) -> dict[str, Any]:
    """The predictive study: every measure against real trainings (see `predictive_study`); writes study.md and its
    plots."""
    result = predictive_study(study, evidence_of(study))
    for name, content in study_files(Prediction.parse(result)).items():
        study.store.write_bytes(name, content)
    return result


STAGES: tuple[Stage[Any], ...] = (embed, align, contamination, samples, choose, search, finetune, validate, predict)
"""All of them, in order; commands, jobs, the page and the Python interface follow from it."""


def of_run(config: Config) -> tuple[Stage[Any], ...]:
    """The stages of `run`; the others are asked for by name."""
    trained: tuple[Stage[Any], ...] = (choose,) if config.choose.by == "training" else ()
    return (embed, align, contamination, samples, *trained, search, finetune)


def report(study: Study, stopped: str = "") -> str:
    """Write report.html from what is stored and belongs to this configuration; returns its path or URI. The files
    beside it are then those of this configuration too. `stopped`: what ended the run early, for the verdict."""
    store = study.store
    with held(store, study.config):
        need(study, embed)
        need(study, align)
        found = {one.file: value for one in STAGES if (value := stored(study, one))}
        for one in of_run(study.config):
            if one.file not in found:
                study.say(
                    f"no result of the stage '{one.name}' belongs to this configuration: the report leaves it out"
                )
        asked = study.config.finetune.seeds
        for name in (finetune.file, validate.file):
            if name in found and found[name].seeds != asked:
                study.say(f"note: {name} is over {found[name].seeds} seeds, of {asked} asked for; run that stage again")
        kept = {name: store.find_json(f"{name}.json") for name in ("cost", "estimate")}
        costs = {name: value for name, value in kept.items() if isinstance(value, dict)}
        page = render_report(study.config, found, costs, stopped).encode()
        # all is made before the first file is written: what fails changes nothing
        files = {f"{name}.json": result.dump() for name, result in found.items() if name != embed.file}
        if search.file in found:
            files["recipe.json"] = recipe(study)
        tables = run_files(found, study.config)
        beside = excerpt.files(found)
        for name, value in files.items():
            store.write_json(name, value)
        for name, content in (tables | beside).items():
            store.write_bytes(name, content)
        for name in (*FILES, *excerpt.FILES):
            if name not in tables | beside:  # of another answer
                store.remove(name)
        remember(store, study.config, __version__, {one.file: key for one in STAGES if (key := found_key(study, one))})
        store.write_bytes("config.yaml", study.config.to_yaml().encode())
        store.write_bytes("report.html", page)
        tracker = tracking.start_tracking(study.config, store)
        with tracker.running():
            for name in ("report.html", "config.yaml", *tables, *beside, *(f"{n}.json" for n in (*found, *costs))):
                tracker.text(name, store.read_bytes(name).decode())
            tracking.answer(tracker, study.config, found, headline(found, stopped), stopped)
    folder = store.local_path()
    return str(folder / "report.html") if folder else f"{store.uri}/report.html"


def check_stages(study: Study) -> None:
    """Raises a UserError where the configuration does not allow a stage of `run`, before the first is started."""
    for one in of_run(study.config):
        one.check(study)


def plan(study: Study) -> dict[str, Any]:
    """The work, time and money of every stage, before anything is started (see `estimate.estimate`)."""
    check_stages(study)
    return estimate(study, assumes_gpu(study))


def to_make(study: Study, stages: Sequence[Stage[Any]]) -> list[str]:
    """Names of the stages without a result of just this configuration: one over other seeds, which `stored` gives as
    well, does not spare the trainings."""
    return [one.name for one in stages if found_key(study, one) != answer_key(study, one)]


def run(study: Study) -> str:
    """All stages of `of_run` and the report; returns where that is.

    Raises CapReached where `cost.max_cost` stopped a stage, after the report of what was finished.
    """
    check_stages(study)
    planned = plan(study)
    with held(study.store, study.config):
        capped: CapReached | None = None
        stages = of_run(study.config)
        for number, one in enumerate(stages, start=1):
            if capped and any(stored(study, needed) is None for needed in one.needs):
                continue
            later = to_make(study, stages[number:])
            seconds = sum(planned["stages"].get(name, {}).get("worker_seconds", 0.0) for name in later)
            try:
                with placed(Place(number, len(stages), seconds)):
                    one(study)
                if one is embed:
                    study.store.write_json("estimate.json", planned)
                    constraints_of(study.config.search, token_counts(study))  # refused before hours of training
            except CapReached as error:
                capped = error
        if capped and (stored(study, embed) is None or stored(study, align) is None):
            raise capped
        where = report(study, str(capped) if capped else "")
    if capped:
        raise capped
    return where
