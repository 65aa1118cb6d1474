"""Hand a recipe to a trainer, in the trainer's own field names and units: one function a format.

Every function gives the text of one file from the recipe and `data`, the folder that holds the trainer's copies of the corpora by
name. Trainers that draw documents get shares of documents; those that draw sequences of a fixed length get shares of tokens. TRL
and axolotl know no weights: they are given the materialised shards (align-ray materialise), whose rows have the proportions.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import yaml

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


def llama_factory(recipe: dict[str, Any], data: str) -> str:
    """LLaMA-Factory's data arguments; names are those of its dataset_info.json."""
    shares = _present(row_shares(recipe))
    return _yaml(
        {
            "dataset": ",".join(shares),
            "mix_strategy": "interleave_over",
            "interleave_probs": ",".join(f"{s:.6f}" for s in shares.values()),
        }
    )


def ms_swift(recipe: dict[str, Any], data: str) -> str:
    """ms-swift's `dataset`, `interleave_prob` and `stopping_strategy`."""
    shares = _present(row_shares(recipe))
    return _yaml(
        {
            "dataset": [_at(data, n) for n in shares],
            "interleave_prob": [round(s, 6) for s in shares.values()],
            "stopping_strategy": "all_exhausted",
        }
    )


def axolotl(recipe: dict[str, Any], data: str) -> str:
    """axolotl's `datasets` for raw text: the materialised shards."""
    return _yaml({"datasets": [{"path": data or ".", "ds_type": "parquet", "type": "completion", "field": "text"}]})


def megatron(recipe: dict[str, Any], data: str) -> str:
    """Megatron-LM's blend: weight and prefix of every indexed data set, for `--data-args-path` (or `--data-path`)."""
    return " ".join(f"{w:.6f} {_at(data, n)}" for n, w in _present(recipe["weights"]).items()) + "\n"


def olmo(recipe: dict[str, Any], data: str) -> str:
    """OLMo-core's SourceMixtureDatasetConfig; paths are globs of tokenised files. Rounded up, so that the budget can be met."""
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


def nanotron(recipe: dict[str, Any], data: str) -> str:
    """nanotron's Nanoset: folders of tokenised files and their weights."""
    weights = _present(recipe["weights"])
    dataset = {"dataset_folder": [_at(data, n) for n in weights], "dataset_weights": [round(w, 6) for w in weights.values()]}
    stage = {"name": "mixture", "start_training_step": 1, "data": {"dataset": dataset, "seed": recipe["seed"]}}
    return _yaml({"data_stages": [stage]})


def regmix(recipe: dict[str, Any], data: str) -> str:
    """RegMix's mixture file."""
    return _yaml({"train": {n: float(w) for n, w in recipe["weights"].items()}, "valid": dict.fromkeys(recipe["targets"], 1.0)})


def doremi(recipe: dict[str, Any], data: str) -> str:
    """DoReMi's domain weights."""
    uniform = 1 / len(recipe["weights"])
    return json.dumps(
        {"train_domain_weights": recipe["weights"], "eval_domain_weights": dict.fromkeys(recipe["weights"], uniform)}, indent=1
    )


def ray_data(recipe: dict[str, Any], data: str) -> str:
    """Names in order and `weights` of `first.mix(*others, weights=...)`, shares of rows."""
    shares = _present(row_shares(recipe))
    return json.dumps({"datasets": list(shares), "mix": {"weights": list(shares.values())}}, indent=1)


EXPORTERS: dict[str, Exporter] = {
    "huggingface": Exporter("interleave.json", "documents", huggingface),
    "trl": Exporter("trl.yaml", "documents (materialised)", trl),
    "llama-factory": Exporter("llama_factory.yaml", "documents", llama_factory),
    "ms-swift": Exporter("ms_swift.yaml", "documents", ms_swift),
    "axolotl": Exporter("axolotl.yaml", "documents (materialised)", axolotl),
    "megatron": Exporter("megatron_blend.txt", "tokens", megatron),
    "olmo": Exporter("olmo_source_mixture.yaml", "tokens", olmo),
    "levanter": Exporter("levanter.yaml", "tokens", levanter),
    "nanotron": Exporter("nanotron.yaml", "tokens", nanotron),
    "regmix": Exporter("regmix.yaml", "tokens", regmix),
    "doremi": Exporter("doremi.json", "tokens", doremi),
    "ray": Exporter("ray_mix.json", "documents", ray_data),
}
