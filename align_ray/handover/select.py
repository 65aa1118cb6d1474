"""Choose documents of a corpus by their likeness to a target, as Parquet shards (`align-ray select`).

Every document is scored, by its words or by its alignment with the target (`documents.py`); another amount, method or
target of the same study computes no score again. Then `rule.py` says which documents are taken, and Ray Data writes
them.

- `top`: the highest scores. It collapses on what resembles the target's average most, near-duplicates of one good page
  included.
- `gumbel`: a selection whose scores are distributed as those of the target's own documents (see `rule.py`).

The target's own documents are its held-out half: none of them is in the sample that scores are taken against,
otherwise they would score too high. They are read as documents and scored as the corpus' are; the stored held-out
sequences would not do, since `pack` fills them with several documents, and a score by alignment depends on the number
of tokens.
"""

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from align_ray.config import digest
from align_ray.config_corpora import Corpus
from align_ray.context import Study
from align_ray.corpora.tasks import on_tasks
from align_ray.embedding.chunks import keys_of, scores_for
from align_ray.errors import ConfigError, ProbeError
from align_ray.handover.documents import Reference, Scored, Words, heldout_scores, read_scores, score_corpus
from align_ray.handover.rule import Amount, Method, number_taken, ranked
from align_ray.handover.shards import SHARD_TOKENS, check_free, shard_list, write_shard
from align_ray.store import Store

FILES_PER_TASK = 64
FAR = 0.1
"""Kolmogorov-Smirnov distance from which a selection is said not to match its target."""
EXAMPLES = 3
LEFT_OUT = ("duplicate", "in_target", "no_tokens", "non_finite")
"""Documents read that are not scored or not selectable; with those `scored` they make all read."""
COLUMNS = {"shard": pa.int64(), "rank": pa.int64(), "text": pa.large_string(), "score": pa.float64()}
SELECTED = pa.schema({**COLUMNS, "tokens": pa.int64(), "key": pa.string()})


def write_selection(
    store: Store, files: list[str], target: int, keys: np.ndarray, tokens: np.ndarray, out: Store
) -> list[dict[str, Any]]:
    """Write the documents with these keys (S16 [k], `tokens` each), all of them in `files`, to part-NNNNN.parquet in
    this order: columns text, alignment (with the target in that place), tokens, key. Returns the manifest's list of
    shards."""
    import ray

    shards = max(1, round(tokens.sum() / SHARD_TOKENS))
    shard = np.minimum((np.cumsum(tokens) - tokens) * shards // max(1, int(tokens.sum())), shards - 1)
    by_key = np.argsort(keys)
    chosen = ray.put((keys[by_key], by_key, shard[by_key]))
    folder = out.uri

    def read(batch: dict[str, np.ndarray]) -> pa.Table:
        known, ranks, shard = ray.get(chosen)
        parts = [SELECTED.empty_table()]
        for part in store.batches(json.loads(batch["files"][0])):
            found = keys_of(part)
            at = np.minimum(np.searchsorted(known, found), len(known) - 1)
            hit = np.flatnonzero(known[at] == found)
            scores, part, at = scores_for(part, target)[hit], part.take(pa.array(hit)), at[hit]
            columns = [
                shard[at],
                ranks[at],
                part["text"],
                scores,
                part["tokens"],
                [key.hex() for key in part["key"].to_pylist()],
            ]
            parts.append(pa.table(columns, schema=SELECTED))
        return pa.concat_tables(parts)

    def write(group: pa.Table) -> dict[str, Any]:
        ordered = group.sort_by([("rank", "ascending"), ("score", "descending")])
        first = np.diff(ordered["rank"].to_numpy(), prepend=-1) > 0  # the same text may be in two chunks
        return write_shard(
            Store(folder),
            int(group["shard"][0].as_py()),
            ordered.filter(pa.array(first)).drop_columns(["shard", "rank"]),
        )

    tasks = [{"files": json.dumps(files[i : i + FILES_PER_TASK])} for i in range(0, len(files), FILES_PER_TASK)]
    return shard_list(on_tasks(tasks, read).groupby("shard").map_groups(write, batch_format="pyarrow").take_all())


def named(corpora: list[Corpus], name: str | None, option: str, kind: str) -> Corpus:
    """The corpus of that name; None stands for the only one. Raises ConfigError."""
    names = ", ".join(c.name for c in corpora)
    if name is None and len(corpora) > 1:
        raise ConfigError(f"{option} is missing; the study's {kind} are {names}.")
    for corpus in corpora:
        if name in (corpus.name, None):
            return corpus
    raise ConfigError(f"{option} {name}: the study's {kind} are {names}.")


def select(
    study: Study,
    reference: Reference,
    corpus: Corpus,
    target: Corpus,
    amount: Amount,
    out: Store,
    method: Method = "top",
) -> dict[str, Any]:
    """Write the documents of `corpus` most like `target` to `out` by one of METHODS: shards and manifest.json.
    `reference`: what scores are taken against, `documents.words_against` of this corpus or `scores.score_targets`.

    Returns the manifest: `settings`, all that determines the selection; `counts` of the documents read, of those left
    out by reason and `scored`, what remains, distinct; `available` and `selected`, documents and tokens; `score`,
    means `before` and `after` and the `lowest` taken; `threshold`, the priority of the last one taken; for `gumbel`
    also `match`, the Kolmogorov-Smirnov distance of the scores before and after to the target's; `notes`; `files`.
    Beside it `work` and `examples`, the documents with the highest and lowest scores, `taken` or not. Raises
    ConfigError for a folder that is in use, ProbeError without a finite score.
    """
    config, store = study.config, study.store
    settings = {
        "by": "words" if isinstance(reference, Words) else "alignment",
        "corpus": corpus.name,
        "target": target.name,
        "method": method,
        "amount": dataclasses.asdict(amount),
        "seed": config.seed,
        "sequence_length": config.sampling.sequence_length,
        "probe": study.probe.digest,
        "scores": reference.folder,
    }
    out.check_writable()
    check_free(out, settings)
    study.say(f"scoring every document of {corpus.name}")
    files, counts, work = score_corpus(study, reference, corpus)
    place = config.targets.index(target)
    scored, left_out = read_scores(store, files, place)
    counts += left_out
    n = len(scored.score)
    counts["duplicate"] += counts["in_chunks"] - n - counts["no_tokens"] - counts["non_finite"]
    if n == 0:
        raise ProbeError(
            f"corpus '{corpus.name}': none of its {counts['documents']} documents has a finite score to select by."
        )
    own = heldout_scores(study, reference, target) if method == "gumbel" else None
    order, priority = ranked(scored.keys, scored.score, own)
    taken = order[: number_taken(scored.tokens[order], amount)]
    settings["documents"] = digest([file.rpartition("/")[2] for file in files])
    check_free(out, settings)
    head = {"format": "align-ray selection 2", "settings": settings}
    out.write_json("manifest.json", {**head, "files": []})  # from here on the folder is this selection's
    used = [files[i] for i in np.unique(scored.file[taken])]
    study.say(f"writing {len(taken):,} documents")
    written = write_selection(store, used, place, scored.keys[taken], scored.tokens[taken], out)
    after = scored.score[taken]
    match = None
    if own is not None:
        distances = [float(stats.ks_2samp(values, own).statistic) for values in (scored.score, after)]
        match = {"documents": len(own), "before": distances[0], "after": distances[1]}
    manifest = {
        **head,
        "counts": {
            "documents": counts["documents"],
            **{k: counts[k] for k in ("unreadable", "oversized", "vanished", "missing_column", "empty", *LEFT_OUT)},
            "scored": n,
        },
        "available": {"documents": n, "tokens": int(scored.tokens.sum())},
        "selected": {"documents": len(taken), "tokens": int(scored.tokens[taken].sum())},
        "score": {
            "before": float(scored.score.mean()),
            "after": float(after.mean()),
            "lowest": float(after.min()),
        },
        "threshold": float(priority[len(taken) - 1]),
        "match": match,
        "notes": _notes(amount, corpus, n, int(scored.tokens.sum()), match),
        "files": written,
    }
    out.write_json("manifest.json", manifest)
    return {**manifest, "work": work, "examples": _examples(store, files, scored, taken)}


def _notes(amount: Amount, corpus: Corpus, documents: int, tokens: int, match: dict[str, Any] | None) -> list[str]:
    lines = []
    held = {"documents": documents, "tokens": tokens, "fraction": 1}[amount.unit]
    if amount.value > held:
        lines.append(
            f"corpus '{corpus.name}' holds {held:,} {amount.unit}, fewer than the {amount.value:,.0f} asked for: all "
            "are taken"
        )
    if match and match["after"] > FAR:
        lines.append(
            f"the selection's scores are {match['after']:.2f} from the target's (Kolmogorov-Smirnov): '{corpus.name}' "
            "has too "
            "few documents like the target's for this amount"
        )
    return lines


def _examples(store: Store, files: list[str], scored: Scored, taken: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    order = np.lexsort((scored.keys, -scored.score))
    chosen = set(taken.tolist())

    def text(i: int) -> str:
        table = store.read_table(files[scored.file[i]])
        return table["text"][table["key"].to_pylist().index(bytes(scored.keys[i]).ljust(16, b"\0"))].as_py()

    def shown(places: np.ndarray) -> list[dict[str, Any]]:
        return [{"text": text(i), "score": float(scored.score[i]), "taken": i in chosen} for i in places.tolist()]

    return {"most": shown(order[:EXAMPLES]), "least": shown(order[::-1][:EXAMPLES])}
