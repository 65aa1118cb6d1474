"""Write exactly the mixture: Parquet shards of documents for a token budget, by Ray Data.

A document's place is decided by a keyed hash of its content, its corpus and its pass: the first epochs of a corpus take
all its documents, a part of an epoch those with the smallest hashes. So the same recipe and seed give the same shards
on any cluster, whatever the files' order and blocks.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from align_ray.config_corpora import Corpus
from align_ray.corpora.records import unmarked
from align_ray.corpora.sources import documents
from align_ray.corpora.tasks import on_tasks, read_task, read_tasks
from align_ray.errors import ConfigError, CorpusError
from align_ray.fisher.probe import Located, chat_template_of, load_tokenizer
from align_ray.handover.shards import SHARD_TOKENS, check_free, shard_list, write_shard
from align_ray.store import Store

BINS = 2**14
"""Bins of the hash, to find the share of a corpus that holds the tokens wanted: a budget is met within tokens / BINS
of each corpus, or one document."""
HELD = 2**23
"""Characters of documents that a task hands on together."""
MOST_EPOCHS = 16
"""A corpus is not repeated more often: the gain of a repetition is gone long before (see `search.max_epochs`)."""


def place(seed: int, corpus: str, epoch: int, text: str) -> int:
    """Where a document stands among all of a pass, 0 to 2**63 - 1."""
    key = f"{seed}/{corpus}/{epoch}".encode()[:64]
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", errors="replace"), key=key, digest_size=8).digest()) >> 1


def materialise(
    corpora: list[Corpus],
    weights: dict[str, float],
    budget: int,
    located: Located,
    seed: int,
    store: Store,
) -> dict[str, Any]:
    """Write `part-NNNNN.parquet` (columns text, corpus, epoch, tokens) and manifest.json to the store; returns the
    manifest.

    Rows are in random order, so that a trainer may read them as they come. Exact duplicates within a corpus are written
    as often as they occur. Raises ConfigError where a corpus would be repeated more than MOST_EPOCHS times or the
    folder holds other shards, CorpusError where a corpus changes while it is read.
    """
    chosen = [c for c in corpora if weights.get(c.name, 0) > 0]
    settings = {"token_budget": budget, "weights": weights, "seed": seed, "tokenizer": located.digest}
    head = {"format": "align-ray materialised mixture 1", **settings}
    check_free(store, settings)
    template = chat_template_of(load_tokenizer(located))
    counted = _count(chosen, located, seed, template)
    passes: dict[str, list[tuple[int, float]]] = {}
    due: dict[str, int] = {}
    for corpus in chosen:
        bins = counted[corpus.name]["bins"]
        total, wanted = int(bins[0].sum()), round(weights[corpus.name] * budget)
        if wanted > MOST_EPOCHS * total:
            raise ConfigError(
                f"corpus '{corpus.name}' holds {total} tokens; {wanted} of a budget of {budget} would repeat it "
                f"{wanted / max(1, total):.1f} times, above {MOST_EPOCHS}; lower the budget."
            )
        whole, rest = divmod(wanted, max(1, total))
        taken = int(np.searchsorted(np.cumsum(bins[1]), rest)) if rest else 0
        passes[corpus.name] = [(epoch, 1.0) for epoch in range(whole)] + ([(-1, taken / BINS)] if taken else [])
        due[corpus.name] = whole * total + int(bins[1][:taken].sum())
    shards = max(1, round(budget / SHARD_TOKENS))
    store.write_json("manifest.json", {**head, "files": []})  # from here on the folder is this mixture's
    folder = store.uri

    def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        corpus, fragments = read_task(batch)
        tokenizer = load_tokenizer(located)
        rows, held = _no_rows(), 0
        for text in map(unmarked, documents(corpus, fragments, Counter())):
            tokens = None
            for epoch, share in passes[corpus.name]:
                at = place(seed, corpus.name, epoch, text)
                if at >= share * 2**63:
                    continue
                tokens = len(_tokens(tokenizer, text)) if tokens is None else tokens
                order = place(seed, "order", epoch, f"{corpus.name}/{text}")
                values = (
                    order * shards >> 63,
                    order,
                    corpus.name,
                    epoch if epoch >= 0 else len(passes[corpus.name]) - 1,
                    text,
                    tokens,
                )
                for column, value in zip(rows, values, strict=True):
                    rows[column].append(value)
                held += len(text)
            if held >= HELD:  # handed on: a task holds no more of its text, however often it is repeated
                yield _arrays(rows)
                rows, held = _no_rows(), 0
        yield _arrays(rows)

    def write(group: dict[str, np.ndarray]) -> dict[str, Any]:
        order = np.array(sorted(range(len(group["place"])), key=lambda i: (group["place"][i], group["text"][i])))
        columns = ("text", "corpus", "epoch", "tokens")
        table = pa.table({k: pa.array(group[k][order].tolist()) for k in columns})
        by_corpus = {c: int(group["tokens"][group["corpus"] == c].sum()) for c in sorted(set(group["corpus"].tolist()))}
        return {**write_shard(Store(folder), int(group["shard"][0]), table), "tokens": [json.dumps(by_corpus)]}

    written = (
        on_tasks(read_tasks(chosen, template), read).groupby("shard").map_groups(write, batch_format="numpy").take_all()
    )
    tokens: Counter = Counter()
    for part in written:
        tokens.update(json.loads(part["tokens"]))
    for name, wanted in due.items():
        if tokens[name] != wanted:
            raise CorpusError(
                f"corpus '{name}' changed while it was read ({wanted} tokens counted, {tokens[name]} written); run it "
                "again."
            )
    manifest = {
        **head,
        "tokens": {c.name: tokens[c.name] for c in chosen},
        "total_tokens": sum(tokens.values()),
        "unique_tokens": {c.name: int(counted[c.name]["bins"][0].sum()) for c in chosen},
        "files": shard_list(written),
    }
    store.write_json("manifest.json", manifest)
    return manifest


def _no_rows() -> dict[str, list]:
    return {column: [] for column in ("shard", "place", "corpus", "epoch", "text", "tokens")}


def _arrays(rows: dict[str, list]) -> dict[str, np.ndarray]:
    return {k: np.array(v, dtype=object if k in ("corpus", "text") else np.int64) for k, v in rows.items()}


def _count(corpora: list[Corpus], located: Located, seed: int, template: str | None) -> dict[str, dict[str, Any]]:
    """Tokens of every corpus by the hash of its documents, `bins` int64 [2, BINS]: in the first pass, and in a part
    of one."""

    def count(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        corpus, fragments = read_task(batch)
        tokenizer, bins, counts = load_tokenizer(located), np.zeros((2, BINS), np.int64), Counter[str]()
        for text in map(unmarked, documents(corpus, fragments, counts)):
            tokens = len(_tokens(tokenizer, text))
            for row, epoch in enumerate((0, -1)):
                bins[row, place(seed, corpus.name, epoch, text) * BINS >> 63] += tokens
        return {"name": [corpus.name], "vanished": [counts["vanished"]], "bins": [bins.ravel()]}

    total = {c.name: {"bins": np.zeros((2, BINS), np.int64)} for c in corpora}
    for row in on_tasks(read_tasks(corpora, template), count).iter_rows():
        if row["vanished"]:
            raise CorpusError(
                f"corpus '{row['name']}': {row['vanished']} parts of its files vanished while they were read; restore "
                "them and run "
                "it again."
            )
        total[row["name"]]["bins"] += np.asarray(row["bins"]).reshape(2, BINS)
    return total


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
