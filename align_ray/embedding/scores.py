"""Alignment of single sequences with the targets: what documents are selected by, and what the report shows of a
corpus.

The score of a sequence s with a target T is 1 - d(f_s, f_T): f_s its Fisher embedding averaged over the label draws,
f_T the mean of the target's stored batch embeddings, d the scaled cosine distance, rows those of the main measure
(`coefficients.block_sets`). It is no alignment coefficient: one sequence is far noisier than a batch, so that scores
lie lower than `align` and are to be compared with each other alone. They also grow with the number of tokens, since
what a short document says of its distribution is little.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from align_ray.alignment.coefficients import main_blocks
from align_ray.alignment.distance import scaled_cosine_distance
from align_ray.config import Embedding, digest
from align_ray.context import Study
from align_ray.embedding.chunks import chunk_of, scored_schema
from align_ray.embedding.evidence import Evidence
from align_ray.embedding.pool import on_pool
from align_ray.embedding.units import Folder, head_name, unit_id
from align_ray.errors import ConfigError, ProbeError
from align_ray.fisher.estimators import pooled_rows
from align_ray.fisher.tokens import PADDING, texts_of
from align_ray.fisher.trunk import fisher_embeddings
from align_ray.store import Store

VERSION = 2
"""Version of the scores and of the files they are in; part of their key."""
DECIMALS = 6
"""Scores are rounded, so that the last bits, which depend on what shares a pass, seldom change an order."""
SAMPLES = 32
"""Sequences of a corpus of which the most and the least aligned are shown, at least (where it has so many)."""
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class SequenceScores:
    """Scores of n sequences against M targets."""

    alignment: np.ndarray
    """float64 [n, M], 1 - d; NaN where the embedding is not finite or has no token."""
    loss: np.ndarray
    """float64 [n], the probe's nats per token; NaN below two tokens."""
    step: int
    """Sequences per pass that the memory held."""


@dataclasses.dataclass(frozen=True)
class ScoreTargets:
    """What scores are taken against, and with which probe."""

    folder: str
    """In the store; names all that determines a score but the sequence."""
    dtype: str
    head: str | None
    block: str
    rows: dict[str, np.ndarray]
    """By target: batch embeddings, float32 [N, D]."""

    def means(self, corpus: str | None = None, batch: int = 0) -> np.ndarray:
        """Mean embeddings of the targets, float64 [M, D]; `corpus` without its own `batch`, where it is a target."""
        kept = {n: np.delete(r, batch, axis=0) if n == corpus else r for n, r in self.rows.items()}
        return np.stack([r.mean(0, dtype=np.float64) for r in kept.values()])


def refuse_unscorable(settings: Embedding) -> None:
    """Raise ConfigError where the estimator gives no embedding of a single sequence under one fixed probe."""
    if settings.estimator == "reference":
        raise ConfigError(
            "field 'embedding.estimator': 'reference' embeds whole batches, no documents; set it to exact or head."
        )
    if settings.head_tuning == "per_batch":
        raise ConfigError(
            "field 'embedding.head_tuning': 'per_batch' gives documents no common head; set it to none or shared."
        )


def score_targets(study: Study, evidence: Evidence) -> ScoreTargets:
    """What the embedding stage stored of the targets."""
    refuse_unscorable(study.config.embedding)
    targets = [t.name for t in study.config.targets]
    (block,) = main_blocks(evidence.units[targets[0]])
    made_from = [[name, [unit_id(b) for b in evidence.batches[name]]] for name in targets]
    key = digest([VERSION, evidence.key, study.config.sampling.sequence_length, made_from])
    head = head_name(study, evidence.dtype)
    return ScoreTargets(f"scores/{key}", evidence.dtype, head, block, {name: evidence.rows[name] for name in targets})


def sequence_scores(
    model: nn.Module,
    ids: np.ndarray,
    settings: Embedding,
    seed: int,
    block: str,
    targets: np.ndarray,
    step: int | None = None,
) -> SequenceScores:
    """Score sequences `ids` (int32 [n, T], see `fisher/tokens.py`) against mean embeddings `targets` (float64 [M,
    D]) of the rows `block` ("trunk" or "head"). With the pooling `unit` a sequence is scaled to unit sum, as in a
    batch."""
    real = ids != PADDING
    longest = max(1, int(real.sum(1).max()))
    result = fisher_embeddings(
        model, ids[:, :longest], settings.draws if settings.estimator == "exact" else 0, seed, step
    )
    rows = result.trunk if block == "trunk" else result.head[None]
    means = pooled_rows(rows, settings.plain()).mean(0, dtype=torch.float64).cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # a sequence without a token has an embedding of zeros
        alignment = np.stack([1 - scaled_cosine_distance(mean, targets, settings.epsilon) for mean in means])
    finite = np.isfinite(alignment) & result.finite().cpu().numpy()[:, None]
    loss = result.loss.double().cpu().numpy()
    return SequenceScores(np.where(finite, alignment, np.nan), np.where(real.sum(1) > 1, loss, np.nan), result.step)


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores the chunk of a row (see `chunks.CHUNK`) and writes its file; a row without ids is scored already."""

    store: Store
    settings: Embedding
    seed: int
    block: str
    against: dict[str, np.ndarray]
    """Target embeddings, float64 [M, D], by name."""

    def receipt(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"file": row["file"], "documents": len(row["keys"]), "counts": row["counts"]}

    def __call__(
        self, probe: Callable[[], Any], row: dict[str, Any], step: int | None
    ) -> tuple[dict[str, Any], int | None]:
        if not row["ids"]:
            return {}, step
        n, targets = len(row["keys"]), self.against[row["against"]]
        ids = np.frombuffer(row["ids"], "<i4").reshape(n, -1).copy()  # torch wants it writable
        scores = sequence_scores(probe(), ids, self.settings, self.seed, self.block, targets, step)
        if n > 1 and not np.isfinite(scores.alignment).any() and (ids != PADDING).any():
            raise ProbeError(
                "the probe gives no finite Fisher embedding for a whole chunk of documents; its weights or dtype are "
                "unusable."
            )
        columns = [row["keys"], row["texts"], row["tokens"], scores.loss, list(np.round(scores.alignment, DECIMALS))]
        self.store.write_table(row["file"], pa.table(columns, schema=scored_schema(len(targets))))
        return {"computed": n}, scores.step


def score_chunks(
    study: Study, chunks: Any, reference: ScoreTargets, against: dict[str, np.ndarray] | None = None
) -> Iterator[dict[str, Any]]:
    """Score a Ray Data set with the columns CHUNK on a pool of actors; yields a receipt a chunk: `file`,
    `documents`, how many of them were `computed`, `counts` and actor `seconds`. `against`: target embeddings [M, D]
    by name; default: their means as "". Raises ProbeError, StoreError, and CapReached where `cost.max_cost` is used
    up."""
    config = study.config
    work = Score(study.store, config.embedding, config.seed, reference.block, against or {"": reference.means()})
    return on_pool(study, chunks, Folder("", reference.dtype, reference.head), work)


def score_samples(study: Study, evidence: Evidence) -> dict[str, Any]:
    """The most and least aligned of each corpus' first sequences: samples.json, by corpus.

    `role`, and by target: `of`, sequences scored (the first batches, SAMPLES sequences at least); `quantiles` of their
    alignment (minimum, quartiles, maximum); `most` and `least`, SHOWN each with `text`, `alignment` and `loss` (None
    below two tokens). A target's own sequences are scored against the mean of its other batches.
    """
    import ray

    config, store, tokenizer = study.config, study.store, study.tokenizer
    reference = score_targets(study, evidence)
    stored, against, todo = store.sound_tables(reference.folder), {"": reference.means()}, []
    files: dict[str, list[str]] = {}
    for corpus in config.corpora:
        batches = evidence.batches[corpus.name]
        files[corpus.name] = []
        for i, ids in enumerate(batches[: -(-SAMPLES // batches.shape[1])]):
            without = f"{corpus.name}/{i}" if corpus.name in reference.rows else ""
            name = f"{digest([unit_id(ids), without])}.parquet"
            files[corpus.name].append(f"{reference.folder}/{name}")
            if name in stored:
                continue
            if without:
                against[without] = reference.means(corpus.name, i)
            texts = texts_of(ids, tokenizer)
            documents = [(j.to_bytes(16), text) for j, text in enumerate(texts)]
            todo.append(chunk_of(files[corpus.name][-1], without, ids, documents, (ids != PADDING).sum(1).tolist()))
    if todo:
        study.say(f"scoring the sequences of {len(todo)} batches one by one")
        for _ in score_chunks(study, ray.data.from_arrow(todo), reference, against):
            pass
    return {
        corpus.name: {
            "role": "target" if corpus in config.targets else "candidate",
            "targets": _samples(
                pa.concat_tables([store.read_table(file) for file in files[corpus.name]]),
                list(reference.rows),
                config.text_in_results,
            ),
        }
        for corpus in config.corpora
    }


def _samples(table: pa.Table, targets: list[str], with_text: bool) -> dict[str, dict[str, Any]]:
    rows = table.to_pylist()
    result = {}
    for j, target in enumerate(targets):
        ranked = sorted((r for r in rows if np.isfinite(r["scores"][j])), key=lambda r: (-r["scores"][j], r["text"]))
        shown = [
            {
                "text": r["text"] if with_text else "",
                "alignment": r["scores"][j],
                "loss": r["loss"] if np.isfinite(r["loss"]) else None,
            }
            for r in ranked
        ]
        values = [r["alignment"] for r in shown]
        result[target] = {
            "of": len(shown),
            "quantiles": [float(q) for q in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])] if values else [],
            "most": shown[:SHOWN],
            "least": shown[::-1][:SHOWN],
        }
    return result
