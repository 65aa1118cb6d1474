"""Hand a recipe to a trainer, in the trainer's own field names and units: one function a format.

Every function gives the text of one file from the recipe and `data`, the folder that holds the trainer's copies of the
corpora by name. Trainers that draw documents get shares of documents; those that draw sequences of a fixed length get
shares of tokens. TRL and axolotl know no weights: they are given the materialised shards (align-ray materialise), whose
rows have the proportions.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import yaml

from align_ray.corpora.files import COMPRESSED, KINDS, TEXT, WILD
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
    """Python that gives the mixture as one stream of `datasets`: documents by `interleave_datasets`.

    Corpora are read from where the study read them, or from `data`/NAME/*.parquet. Every one starts again at its end,
    and the stream ends with the budget: of the library's own ways to stop, `first_exhausted` would end with the
    smallest corpus, and `all_exhausted` with the largest. Raises ConfigError for conversations, which a template
    must render.
    """
    shares, corpora = _present(row_shares(recipe)), recipe["corpora"]
    wanted = sum(w * corpora[n]["documents"] / corpora[n]["tokens"] for n, w in recipe["weights"].items())
    return SNIPPET.format(
        answer=recipe.get("answer", ""),
        tokens=recipe["token_budget"],
        seed=recipe["seed"],
        documents=max(1, round(wanted * recipe["token_budget"])),
        probabilities="".join(f"    {name!r}: {share!r},\n" for name, share in shares.items()),
        corpora="".join(f"    {n!r}: {_loaded(n, corpora[n], data)},\n" for n in shares),
    )


SNIPPET = '''\
"""The mixture of align-ray's recipe {answer} as one stream of documents (pip install datasets).

Relative paths are relative to where the study was started.
"""

from string import Formatter

from datasets import interleave_datasets, load_dataset

SEED = {seed}
DOCUMENTS = {documents}  # about {tokens:,} tokens
PROBABILITIES = {{  # of documents: shares of tokens over mean tokens a document
{probabilities}}}
BUFFER = 10_000  # documents that are shuffled together


def value(row, column):
    """The text of a column, or of a nested one (outer.inner); None where there is none."""
    found = row.get(column)
    if column not in row:
        found = row
        for name in column.split("."):
            found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, list) and all(isinstance(line, str) for line in found):
        found = "\\n".join(found)
    return found if isinstance(found, str) else None


def filled(row, template):
    """A template with a row's values; None where one is missing."""
    parts = [(literal, value(row, column) if column else "") for literal, column, _, _ in Formatter().parse(template)]
    return None if any(said is None for _, said in parts) else "".join(literal + said for literal, said in parts)


def texts(rows, text):
    """Every row's text, shuffled, again and again; rows without one are left out, as the study left them out."""
    plain = rows.map(lambda row: {{"text": text(row) or ""}}).select_columns(["text"])
    plain = plain.filter(lambda row: row["text"].strip())
    return plain.shuffle(seed=SEED, buffer_size=BUFFER).repeat(None)


CORPORA = {{
{corpora}}}

mixture = interleave_datasets(
    [CORPORA[name] for name in PROBABILITIES],
    probabilities=list(PROBABILITIES.values()),
    seed=SEED,
    stopping_strategy="first_exhausted",  # none is: they repeat, and the budget ends the mixture
).take(DOCUMENTS)
'''
LOADERS = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv",
    ".tsv": "tsv", ".arrow": "arrow",
}  # fmt: skip
"""By suffix, how `datasets` calls a kind of file (tsv: csv with tabs)."""


def _loaded(name: str, corpus: dict[str, Any], data: str) -> str:
    """A line of Python that reads a corpus, as the recipe describes it."""
    how = "split='train', streaming=True"
    if data:
        files = _at(data, f"{name}/*.parquet")
        return f"texts(load_dataset('parquet', data_files={files!r}, {how}), lambda row: value(row, 'text'))"
    if "source" not in corpus:
        raise ConfigError(
            f"corpus '{name}': the recipe does not say where it is; give --data, a folder with all of them."
        )
    if corpus.get("chat") or corpus.get("completion"):
        raise ConfigError(
            f"corpus '{name}' holds conversations, which datasets does not render; write texts with align-ray "
            "materialise (or give --data, a folder with Parquet files of texts by corpus)."
        )
    template, column = corpus.get("template"), corpus.get("column", "text")
    text = f"lambda row: filled(row, {template!r})" if template else f"lambda row: value(row, {column!r})"
    sources = [corpus["source"]] if isinstance(corpus["source"], str) else list(corpus["source"])
    kinds, first = list(dict.fromkeys(_kind(name, source) for source in sources)), sources[0]
    if len(kinds) > 1 or (kinds[0] in ("hub", "folder") and len(sources) > 1):
        raise ConfigError(f"corpus '{name}' has several sources, which datasets does not read as one; {OTHERWISE}.")
    if kinds[0] == "hub":
        subset = f"{corpus['subset']!r}, " if corpus.get("subset") else ""
        split = f"split={corpus.get('split', 'train')!r}, streaming=True"
        return f"texts(load_dataset({first.removeprefix('hf://')!r}, {subset}{split}), {text})"
    if kinds[0] == "folder":  # its files say
        return f"texts(load_dataset({first!r}, {how}), {text})"
    by = {"paragraph": ", sample_by='paragraph'", "document": ", sample_by='document'"}
    more = by.get(corpus.get("sample_by", "document"), "") if kinds[0] == "text" else ""
    kind, more = ("csv", ", sep='\\t'") if kinds[0] == "tsv" else (kinds[0], more)
    return f"texts(load_dataset({kind!r}, data_files={sources!r}, {how}{more}), {text})"


OTHERWISE = "write it with align-ray materialise and give its folder with --data"


def _kind(name: str, source: str) -> str:
    """How a source is read: as `hub`, `folder`, `tsv`, or as `datasets` calls a kind of file."""
    if source.startswith("installed:"):
        raise ConfigError(f"corpus '{name}' is text of this installation ({source}); {OTHERWISE}.")
    if source.startswith("hf://") and not source.startswith("hf://datasets/"):
        return "hub"
    local = os.path.expanduser(source)
    if source.endswith("/") or os.path.isdir(local):
        return "folder"
    suffix = next((s for s in reversed(PurePosixPath(source.lower()).suffixes) if s not in COMPRESSED), "")
    if suffix in LOADERS or suffix in TEXT:
        return LOADERS.get(suffix, "text")
    if os.path.isfile(local) and suffix not in KINDS:
        return "text"
    if suffix or WILD & set(source):
        raise ConfigError(f"corpus '{name}': {source} does not say whether it is a folder or what file; {OTHERWISE}.")
    return "folder"


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
    "huggingface": Exporter("interleave.py", "documents", huggingface),
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
