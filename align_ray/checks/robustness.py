"""Does the ranking of candidates depend on choices that should not matter? Rank agreement over variants of a study.

Every axis varies one choice: the seed, the batch size, the sequence length, the probe, the rows of the embedding (trunk
or head, early or late layers), the estimator. Agreement is Kendall's W of the candidates' ranks: 1 where all variants
rank alike, about 1 / (number of variants) for rankings by chance.
"""

import dataclasses
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from scipy import stats

from align_ray.alignment.coefficients import batch_matrix
from align_ray.alignment.distance import distance_matrix
from align_ray.claims import held
from align_ray.config import Config, digest
from align_ray.context import Study
from align_ray.corpora.sample import sample_corpora
from align_ray.embedding.evidence import Evidence, read_evidence
from align_ray.embedding.pool import embed_missing, say_if_inert
from align_ray.embedding.units import unit_folder
from align_ray.errors import ConfigError, StoreError
from align_ray.fisher.probe import load_model, locate_probe
from align_ray.fisher.sound import check_model
from align_ray.store import Store

SEEDS = 3


def kendall_w(scores: np.ndarray) -> float:
    """Kendall's W of m variants' scores of n items, [m, n]: variance of the items' rank sums over its largest value."""
    m, n = scores.shape
    sums = np.apply_along_axis(stats.rankdata, 1, scores).sum(0)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (m**2 * (n**3 - n)))


def robustness(study: Study, probes: list[str], reference: bool) -> dict[str, Any]:
    """Embed all variants and compare their rankings; returns a JSON value.

    `axes[axis]`: `variants` (labels), `w` by target, `least` (the lowest rank correlation of any variant with the
    study's own setting) and `alignment[label][target]` by candidate. `probes`: further probes; `reference`: the
    published procedure as well, which is slow. Every variant keeps its own folder under OUTPUT/robustness and is not
    computed twice.
    """
    config = study.config
    if len(config.candidates) < 3:
        raise ConfigError("field 'candidates': rank agreement needs at least 3.")
    say_if_inert(study.changed(embedding={"estimator": "reference"}) if reference else study)
    for name in probes:
        check_model(locate_probe(study.changed(probe={"model": name, "revision": None}).config.probe.plain()))
    with held(study.store, study.config):
        own = _embedded(study, config)
        base = _scores(config, own.rows)
        axes = {
            axis: {"as configured": base} for axis in ("seed", "batch size", "sequence length", "probe", "estimator")
        }
        for axis, label, variant in _variants(study, probes, reference):
            study.say(f"{axis}: {label}")
            axes[axis][label] = _scores(variant, _embedded(study, variant).rows)
    axes["rows"] = {label: _scores(config, _matrices(own, blocks)) for label, blocks in _row_sets(own).items()}
    layers = _layers(study)
    trunk = _matrices(own, ("trunk",)) if layers else {}
    axes["layers"] = {
        label: _scores(config, {n: m[:, kept] for n, m in trunk.items()}) for label, kept in layers.items()
    }
    return {"axes": {axis: _agreement(found) for axis, found in axes.items() if len(found) > 1}}


def _variants(study: Study, probes: list[str], reference: bool) -> list[tuple[str, str, Config]]:
    """Axis, label and configuration."""
    config = study.config
    size, length, batches = config.sampling.batch_size, config.sampling.sequence_length, config.sampling.batches
    result = [
        ("seed", f"seed {config.seed + k}", config.model_copy(update={"seed": config.seed + k}))
        for k in range(1, SEEDS)
    ]
    for other in (max(2, size // 2), size * 2):  # the same number of sequences in all
        changed = study.changed(sampling={"batch_size": other, "batches": max(2, size * batches // other)})
        result.append(("batch size", f"B = {other}", changed.config))
    for other in (max(8, length // 2), length * 2):
        if other <= study.probe.context:
            result.append(
                ("sequence length", f"T = {other}", study.changed(sampling={"sequence_length": other}).config)
            )
    result += [("probe", name, study.changed(probe={"model": name, "revision": None}).config) for name in probes]
    result.append(("estimator", "head", study.changed(embedding={"estimator": "head"}).config))
    if reference:
        published = {"estimator": "reference", "draws": 1, "head_tuning": "none", "filters": None}
        result.append(("estimator", "reference", study.changed(embedding=published).config))
    return result


def _embedded(study: Study, config: Config) -> Evidence:
    parts = {"targets", "candidates", "seed", "sampling", "probe", "embedding"}
    later: dict[str, Any] = {"quirks": {"seed_by_batch"}}  # version 0.1 did not have these: its folders are found
    later |= {"filters": True} if config.embedding.filters is None else {}
    name = digest(config.model_dump(mode="json", include=parts, exclude={"embedding": later}))
    store = Store(f"{Store(config.output).uri}/robustness/{name}")
    variant = dataclasses.replace(study, config=config, store=store, probe=locate_probe(config.probe.plain()))
    with suppress(StoreError):  # nothing there yet, or not whole
        evidence = read_evidence(variant, {"used": None, **store.read_json("embedding.json")})
        if evidence.key == unit_folder(variant, evidence.dtype).key:  # else of another version
            return _whole(evidence)
    sample_corpora(variant)
    done = embed_missing(variant)
    store.write_json("embedding.json", {k: done[k] for k in ("key", "dtype", "used")})
    study.say(f"embedded {done['computed']} batches")
    return read_evidence(variant, done)


def _whole(evidence: Evidence) -> Evidence:
    """Raises StoreError where a unit is missing."""
    for name in evidence.units:
        _ = evidence.units[name]
    return evidence


def _matrices(evidence: Evidence, blocks: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: batch_matrix(units, blocks) for name, units in evidence.units.items()}


def _row_sets(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    blocks = tuple(next(iter(evidence.units.values()))[0].blocks)
    return {**{b: (b,) for b in blocks}, **({" and ".join(blocks): blocks} if len(blocks) > 1 else {})}


def _layers(study: Study) -> dict[str, np.ndarray]:
    """Rows of the trunk by third of the layers, bool [D]; {} for estimators without a trunk."""
    from align_ray.fisher.trunk import trunk_modules

    if study.config.embedding.estimator != "exact":
        return {}
    model = load_model(study.probe)
    rows = []
    for name, module in trunk_modules(model).items():
        number = re.search(r"\.(\d+)\.", f".{name}.")
        count = module.weight.shape[1] if type(module).__name__ == "Conv1D" else module.weight.shape[0]
        rows += [int(number.group(1)) if number else 0] * count
    layer = np.array(rows)
    edges = np.linspace(0, layer.max() + 1, 4)
    thirds = {
        "early layers": (edges[0], edges[1]),
        "middle layers": (edges[1], edges[2]),
        "late layers": (edges[2], edges[3]),
    }
    chosen = {label: (layer >= low) & (layer < high) for label, (low, high) in thirds.items()}
    return {
        "all layers": np.ones(len(layer), dtype=bool),
        **{label: kept for label, kept in chosen.items() if kept.any()},
    }


def _scores(config: Config, rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Alignment by target and candidate, from batch embeddings [N, D] by corpus; `config`: that by which they were
    made."""
    epsilon = config.embedding.epsilon
    return {
        t.name: {
            c.name: float(1 - distance_matrix(rows[c.name], rows[t.name], epsilon).mean()) for c in config.candidates
        }
        for t in config.targets
    }


def _agreement(found: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    labels = list(found)
    targets = list(found[labels[0]])
    values = {t: np.array([list(found[label][t].values()) for label in labels]) for t in targets}
    pairs = [stats.spearmanr(v[0], row).statistic for v in values.values() for row in v[1:]]
    return {
        "variants": labels,
        "w": {t: kendall_w(v) for t, v in values.items()},
        "least": float(min(pairs)),
        "alignment": found,
    }
