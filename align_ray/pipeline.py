"""The stages of a study, one plain function each: embed -> align -> contamination -> samples -> search -> finetune -> report.

A stage reads what earlier stages stored and stores its own result, so that each can be run alone and again.
"""

from collections.abc import Callable
from typing import Any

import torch

from align_ray.alignment.coefficients import align_corpora
from align_ray.alignment.distance import PUBLISHED_EPSILON
from align_ray.alignment.words import MEASURE, rank_by_cross_entropy
from align_ray.checks.contamination import contamination as find_contamination
from align_ray.checks.page import study_files
from align_ray.checks.predict import predictive_study
from align_ray.checks.prediction import FEWEST
from align_ray.config import Config
from align_ray.context import Study
from align_ray.corpora.sample import sample_corpora, token_counts
from align_ray.corpora.sources import check_corpus
from align_ray.embedding.evidence import read_evidence
from align_ray.embedding.pool import embed_missing, embedded_so_far
from align_ray.embedding.scores import refuse_unscorable, score_samples
from align_ray.embedding.sequential import embed_until_settled
from align_ray.errors import CapReached, ConfigError, ProbeError, UserError
from align_ray.estimate import estimate
from align_ray.fisher.probe import Located, locate_probe
from align_ray.handover.recipe import make_recipe
from align_ray.mixture.constraints import constraints
from align_ray.mixture.mixmin import mixmin_weights
from align_ray.mixture.search import find_mixture
from align_ray.reporting.page import render_report
from align_ray.reporting.results import Alignment, Contamination, Corpora, Finetuned, Mixture, Samples, Validation
from align_ray.reporting.tracking import tracking_uri
from align_ray.stages import STAGES, alone, need, stored, timed, tracking
from align_ray.store import Store
from align_ray.training.finetune import finetune_runs, planned_runs
from align_ray.training.validate import VALIDATED, validate_mixtures


def open_study(config: Config, say: Callable[[str], None] = lambda line: None, write: bool = True) -> Study:
    """Check everything that can be checked without a cluster or a model; raise a UserError at the first thing wrong.

    `write`: keep the configuration in the output folder, which shows that it can be written."""
    study = Study(config, Store(config.output), checked_probe(config), say)
    for field, model in (("probe", study.probe), ("finetune.model", study.model)):
        if config.sampling.sequence_length > model.context:
            raise ProbeError(
                f"field 'sampling.sequence_length' is {config.sampling.sequence_length}, but the context of '{field}' is "
                f"{model.context} tokens; lower it."
            )
    tracking_uri(config)
    if write:
        study.store.check_writable()
        with study.store.locked():  # the configuration of a run that is going on stays
            study.store.write_bytes("config.yaml", config.to_yaml().encode())
    return study


def checked_probe(config: Config) -> Located:
    """The probe, after a look at the first records of every corpus."""
    for corpus in config.corpora:
        check_corpus(corpus)
    return locate_probe(config.probe.plain())


def embed(study: Study) -> Corpora:
    """Draw and batch the corpora, compute missing embeddings; returns {"corpora": counts, "work": counts}."""
    config, store = study.config, study.store

    def work() -> dict[str, Any]:
        study.say(f"reading {len(config.corpora)} corpora")
        corpora = sample_corpora(study)
        constraints(config.search, {c.name: corpora[c.name]["estimated_tokens"] for c in config.candidates})
        most = sum(c["batches"] for c in corpora.values())
        study.say(f"embedding {'at most ' if config.sampling.sequential else ''}{most} batches")
        try:
            done = embed_until_settled(study) if config.sampling.sequential else embed_missing(study)
        except CapReached as stop:  # an alignment of what there is, with the intervals of so many batches, is still valid
            done = embedded_so_far(study)
            if min(done["limits"].values()) < 2:
                raise
            study.say(f"note: {stop}")
        store.write_json("embedding.json", {k: done.get(k) for k in ("key", "dtype", "limits")})
        study.say(f"embedded {done['computed']} batches now; {done['planned']} of {most} are in the store")
        return {"corpora": corpora, "work": done}

    return timed(study, "embed", work, on_workers=True)


def align(study: Study) -> Alignment:
    """Alignment of every pair of corpora, diversity, noise floor and ranking (see `align_corpora`); `predicted`: the ranking by
    the measure that predicts losses best (see `rank_by_cross_entropy`)."""
    config = study.config

    def work() -> dict[str, Any]:
        published = config.embedding.estimator == "reference" and config.embedding.quirks.absolute_epsilon
        evidence, names = read_evidence(study), [t.name for t in config.targets]
        result = align_corpora(evidence.units, names, PUBLISHED_EPSILON if published else None)
        by_entropy = rank_by_cross_entropy(evidence.batches, names, len(study.tokenizer))
        result["predicted"] = {"measure": MEASURE, "ranking": by_entropy}
        for name, places in result["skipped"].items():
            if places:
                which = ", ".join(f"{sequence} of batch {batch}" for batch, sequence in places[:5])
                study.say(f"corpus '{name}': left out {len(places)} sequences without a finite embedding: {which}")
        study.store.write_json("alignment.json", result)
        return result

    return timed(study, "align", work)


def contamination(study: Study) -> Contamination:
    """Text that candidates share with the targets, and their ranks without it (see `contamination.contamination`)."""

    def work() -> dict[str, Any]:
        result = find_contamination(study)
        study.store.write_json("contamination.json", result)
        for line in result["warnings"]:
            study.say(f"note: {line}")
        return result

    return timed(study, "contamination", work, on_workers=True)


def samples(study: Study) -> Samples:
    """The most and the least aligned sequences of every corpus (see `score_samples`); {} where single ones have no embedding."""

    def work() -> dict[str, Any]:
        try:
            refuse_unscorable(study.config.embedding)
        except ConfigError as reason:
            study.say(f"no samples of text by alignment: {reason}")
            result = {}
        else:
            result = score_samples(study)
        study.store.write_json("samples.json", result)
        return result

    return timed(study, "samples", work, on_workers=True)


def search(study: Study) -> Mixture:
    """Mixture weights under the constraints (see `find_mixture`)."""
    store = study.store

    def work() -> dict[str, Any]:
        result = find_mixture(study)
        store.write_json("search.json", result)
        store.write_json("recipe.json", make_recipe(study, result, store.read_json("corpora.json")))
        for line in result["warnings"]:
            study.say(f"note: {line}")
        return result

    return timed(study, "search", work, on_workers=True)


def recipe(study: Study) -> dict[str, Any]:
    """The recipe of the study's mixture (see `make_recipe`); raises UserError where there is none for this configuration."""
    need(study, "search")
    return study.store.read_json("recipe.json")


def finetune(study: Study) -> Finetuned:
    """Fine-tune on every candidate, uniform and the found mixture (see `finetune_runs`)."""

    def work() -> dict[str, Any]:
        runs = planned_runs(study.config, study.store.read_json("search.json"))
        study.say(f"fine-tuning {len(runs)} times on {study.config.finetune.tokens} tokens")
        result = finetune_runs(study, token_counts(study), runs)
        study.store.write_json("finetune.json", result)
        return result

    return timed(study, "finetune", work, on_workers=True)


def validate(study: Study, further: tuple[str, ...] = ()) -> Validation:
    """Train on the proposed mixture and on what one would do without it, several seeds (see `validate_mixtures`); `further`:
    names of other mixtures of the search. Raises UserError for one it does not have."""
    settings = study.config.finetune

    def work() -> dict[str, Any]:
        tokens, known = token_counts(study), study.store.read_json("search.json")["mixtures"]
        for name in further:
            if name not in known:
                raise UserError(f"--mixture {name}: the search has {', '.join(known)}.")
        mixtures = {name: known[name]["weights"] for name in (*VALIDATED, *further) if name in known}
        study.say("training on every candidate, for MixMin")
        mixtures["mixmin"] = mixmin_weights(study, tokens)
        study.say(f"training on {len(mixtures)} mixtures with {settings.seeds} seeds, {settings.tokens} tokens each")
        result = validate_mixtures(study, tokens, mixtures)
        study.store.write_json("validation.json", result)
        return result

    return timed(study, "validate", work, on_workers=True)


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
        result = predictive_study(study)
        store.write_json("prediction.json", result)
        for name, content in study_files(result).items():
            store.write_bytes(name, content)
        return result

    return timed(study, "predict", work, on_workers=True)


@alone
def report(study: Study) -> str:
    """Write report.html from what is stored and belongs to this configuration; returns its path or URI."""
    store = study.store
    need(study, "align")
    results = {STAGES[stage].result: value for stage in STAGES if (value := stored(study, stage))}
    for stage in ("embed", "align", "contamination", "samples", "search", "finetune"):  # validation is asked for by name
        if STAGES[stage].result not in results:
            study.say(f"no result of the stage '{stage}' belongs to this configuration: the report leaves it out")
    results |= {name: store.read_json(f"{name}.json") for name in ("cost", "estimate") if store.exists(f"{name}.json")}
    html = render_report(study.config, results)
    store.write_bytes("report.html", html.encode())
    tracker = tracking(study)
    with tracker.running():
        for name in ("report.html", "config.yaml", *(f"{n}.json" for n in results)):
            tracker.text(name, store.read_bytes(name).decode())
    folder = store.local_path()
    return str(folder / "report.html") if folder else f"{store.uri}/report.html"


def plan(study: Study) -> dict[str, Any]:
    """The work, time and money of every stage, before anything is started (see `estimate.estimate`)."""
    config = study.config
    gpu = config.cluster.use_gpu if config.cluster.use_gpu is not None else torch.cuda.is_available()
    return estimate(study, gpu)


@alone
def run(study: Study) -> str:
    """All stages; returns where the report is.

    Raises CapReached where `cost.max_cost` stopped a stage, after the report of what was finished.
    """
    study.store.write_json("estimate.json", plan(study))
    capped: CapReached | None = None
    for stage in (embed, align, contamination, samples, search, finetune):
        if capped and any(stored(study, needed) is None for needed in STAGES[stage.__name__].needs):
            continue
        try:
            stage(study)
        except CapReached as error:
            capped = error
    if capped and stored(study, "align") is None:
        raise capped
    where = report(study)
    if capped:
        raise capped
    return where
