"""Hand a recipe to a trainer, in the trainer's own field names and units: one function a format.

Every function gives the text of one file from the recipe and `data`, the folder that holds the trainer's copies of the
corpora by name. Trainers that draw documents get shares of documents; those that draw sequences of a fixed length get
shares of tokens. TRL and axolotl know no weights: they are given the materialised shards (align-ray materialise), whose
rows have the proportions.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import yaml

from align_ray.errors import ConfigError
from align_ray.handover.recipe import row_shares

PRESENT = 1e-6
"""A smaller weight is left out."""


@dataclasses.dataclass(frozen=True)
class Exporter:
    """`unit`: what the trainer's weights count; `write(recipe, data)`: the file's text."""

    file: str
    unit: str
    write: Callable[[dict[str, Any], str], str]


def _present(weights: dict[str, float]) -> dict[str, float]:
    kept = {n: w for n, w in weights.items() if w > PRESENT}
    total = sum(kept.values())
    return {n: w / total for n, w in kept.items()}


def _at(data: str, name: str) -> str:
    return str(PurePosixPath(data) / name) if data else name


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def huggingface(recipe: dict[str, Any], data: str) -> str:
    """Arguments of `datasets.interleave_datasets`, and the names of the data sets in their order."""
    shares = _present(row_shares(recipe))
    arguments = {"probabilities": list(shares.values()), "seed": recipe["seed"], "stopping_strategy": "all_exhausted"}
    return json.dumps({"datasets": list(shares), "interleave_datasets": arguments}, indent=1)


def trl(recipe: dict[str, Any], data: str) -> str:
    """TRL's `datasets` (DatasetMixtureConfig): the materialised shards."""
    return _yaml(
        {"datasets": [{"path": "parquet", "data_files": _at(data, "*.parquet"), "split": "train", "columns": ["text"]}]}
    )


def axolotl(recipe: dict[str, Any], data: str) -> str:
    """axolotl's `datasets` for raw text: the materialised shards."""
    return _yaml({"datasets": [{"path": data or ".", "ds_type": "parquet", "type": "completion", "field": "text"}]})


def megatron(recipe: dict[str, Any], data: str) -> str:
    """Megatron-LM's blend: weight and prefix of every indexed data set, for `--data-args-path` (or `--data-path`)."""
    return " ".join(f"{w:.6f} {_at(data, n)}" for n, w in _present(recipe["weights"]).items()) + "\n"


def olmo(recipe: dict[str, Any], data: str) -> str:
    """OLMo-core's SourceMixtureDatasetConfig; paths are globs of tokenised files. Rounded up, so that the budget can
    be met."""
    sources = [
        {
            "source_name": n,
            "target_ratio": round(w, 6),
            "max_repetition_ratio": max(1.0, round(recipe["corpora"][n]["epochs"] * 1.05, 3)),
            "paths": [_at(data, f"{n}/*.npy")],
        }
        for n, w in _present(recipe["weights"]).items()
    ]
    return _yaml({"source_mixture_config": {"requested_tokens": recipe["token_budget"], "source_configs": sources}})


def levanter(recipe: dict[str, Any], data: str) -> str:
    """Levanter's `data` section: `configs` and `train_weights`."""
    weights = _present(recipe["weights"])
    configs = {n: {"train_urls": [_at(data, f"{n}/*.jsonl.gz")]} for n in weights}
    return _yaml({"data": {"configs": configs, "train_weights": {n: round(w, 6) for n, w in weights.items()}}})


def regmix(recipe: dict[str, Any], data: str) -> str:
    """RegMix's mixture file."""
    return _yaml(
        {"train": {n: float(w) for n, w in recipe["weights"].items()}, "valid": dict.fromkeys(recipe["targets"], 1.0)}
    )


def doremi(recipe: dict[str, Any], data: str) -> str:
    """DoReMi's domain weights."""
    uniform = 1 / len(recipe["weights"])
    return json.dumps(
        {"train_domain_weights": recipe["weights"], "eval_domain_weights": dict.fromkeys(recipe["weights"], uniform)},
        indent=1,
    )


EXPORTERS: dict[str, Exporter] = {
    "huggingface": Exporter("interleave.json", "documents", huggingface),
    "trl": Exporter("trl.yaml", "documents (materialised)", trl),
    "axolotl": Exporter("axolotl.yaml", "documents (materialised)", axolotl),
    "megatron": Exporter("megatron_blend.txt", "tokens", megatron),
    "olmo": Exporter("olmo_source_mixture.yaml", "tokens", olmo),
    "levanter": Exporter("levanter.yaml", "tokens", levanter),
    "regmix": Exporter("regmix.yaml", "tokens", regmix),
    "doremi": Exporter("doremi.json", "tokens", doremi),
}

REMOVED = {
    "llama-factory": ("huggingface", "its probabilities are LLaMA-Factory's interleave_probs"),
    "ms-swift": ("huggingface", "its probabilities are ms-swift's interleave_prob"),
    "nanotron": ("levanter", "its train_weights are nanotron's dataset_weights"),
    "ray": ("huggingface", "its probabilities are the weights of Dataset.mix"),
}
"""Formats of 0.1: the one to use in its place, and how."""


def exporter(name: str) -> Exporter:
    """The exporter of a format; raises ConfigError where there is none, or none any more."""
    if name in REMOVED:
        other, how = REMOVED[name]
        raise ConfigError(
            f"--format {name} was removed in 0.2.0: use --format {other}, {how} (docs/recipes.md, 'Other trainers')."
        )
    if name not in EXPORTERS:
        raise ConfigError(f"--format {name}: choose one of {', '.join(EXPORTERS)}.")
    return EXPORTERS[name]
