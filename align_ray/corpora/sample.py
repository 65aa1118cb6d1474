"""What a study uses of every corpus: batches to embed, rows to train on, rows held out; drawn once and stored."""

import dataclasses
import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from align_ray.config import Config, Corpus, digest
from align_ray.context import Study
from align_ray.corpora.draw import DOCUMENT_SEQUENCES, draw_corpora, make_batches, packed_rows
from align_ray.errors import CorpusError
from align_ray.store import Store


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """What the study uses of one corpus; written to corpora/NAME.parquet."""

    batches: np.ndarray
    """int32 [N, B, T], embedded."""
    training: np.ndarray
    """int32 [n, T], sequences for fine-tuning (candidates)."""
    heldout: np.ndarray
    """int32 [m, T], sequences for the target's loss (targets); no document in common with `batches`."""

    def digest(self) -> str:
        """Digest of all rows: what is computed from the sample belongs to it alone."""
        total = hashlib.sha256()
        for array in (self.batches, self.training, self.heldout):
            total.update(f"{array.shape}".encode() + np.ascontiguousarray(array, "<i4").tobytes())
        return total.hexdigest()[:16]


def sample_corpora(study: Study) -> dict[str, Any]:
    """Draw every corpus and write its batches; returns and stores the counts by corpus (corpora.json).

    Documents of a target are split by their key: one half is embedded, the other is the held-out text on which
    fine-tuning is judged. A candidate's document that is also a target's (same text) is left out and counted as
    `in_target`. Raises CorpusError where a corpus gives fewer than two batches.
    """
    config, store, tokenizer = study.config, study.store, study.tokenizer
    sampling, tune = config.sampling, config.finetune
    per_batch = sampling.batch_size * sampling.sequence_length
    target_tokens = 2 * max(sampling.batches * per_batch, tune.eval_tokens) + per_batch
    candidate_tokens = max(sampling.batches * per_batch, tune.tokens) + per_batch
    # a batch shares no document with another, and a long document fills no more than its share of one
    for_batches = sampling.batches * -(-sampling.batch_size // DOCUMENT_SEQUENCES)
    halves = max(for_batches, -(-tune.eval_tokens // sampling.sequence_length))  # held out: a sequence a document
    for_targets = 2 * halves + round(5 * math.sqrt(2 * halves)) + 10  # so that either half is hardly ever short
    target_keys: set[bytes] = set()
    report: dict[str, Any] = {}
    wanted = [
        *((c, target_tokens, for_targets) for c in config.targets),
        *((c, candidate_tokens, for_batches) for c in config.candidates),
    ]
    store.write_json("corpora.json", {})  # until all rows are written, no result belongs to what is there
    for corpus, drawn in draw_corpora(wanted, sampling, config.seed):
        is_target = corpus in config.targets
        counts = Counter(drawn.counts)
        if is_target:
            target_keys |= {key for key, _ in drawn.documents}
            embedded = [d for d in drawn.documents if d[0][-1] % 2 == 0]
            heldout = [d for d in drawn.documents if d[0][-1] % 2 == 1]
            training = []
        else:
            embedded = [d for d in drawn.documents if d[0] not in target_keys]
            counts["in_target"] = len(drawn.documents) - len(embedded)
            heldout, training = [], embedded
        sample = CorpusSample(
            _embedding_batches(corpus, embedded, tokenizer, config, counts),
            packed_rows(training, tokenizer, sampling, -(-tune.tokens // sampling.sequence_length)),
            _heldout(heldout, tokenizer, config, tune.eval_tokens),
        )
        if is_target and len(sample.heldout) == 0:
            raise CorpusError(
                f"target '{corpus.name}' is too small to hold out text for its loss; give more documents."
            )
        _say_if_short(study, corpus.name, sample, is_target)
        _write_sample(store, corpus.name, sample)
        ratio = counts["sampled_tokens"] / max(1, counts["sampled_bytes"])
        report[corpus.name] = {
            "role": "target" if is_target else "candidate",
            "batches": len(sample.batches),
            "estimated_tokens": round(counts["bytes"] * ratio),
            "sample_digest": digest([k.hex() for k, _ in drawn.documents]),
            "rows_digest": sample.digest(),
            **counts,
        }
    store.write_json("corpora.json", report)
    return report


def _embedding_batches(corpus: Corpus, documents: list, tokenizer: Any, config: Config, counts: Counter) -> np.ndarray:
    batches = make_batches(documents, tokenizer, config.sampling, config.sampling.batches, counts)
    if len(batches) < 2:
        need = 2 * config.sampling.batch_size * config.sampling.sequence_length
        raise CorpusError(
            f"corpus '{corpus.name}' gives {len(batches)} batches ({counts['documents']} documents were read, "
            f"{len(documents)} "
            f"different ones drawn), an interval needs 2 ({need} tokens); give more text or lower sampling.batch_size."
        )
    return batches


def _say_if_short(study: Study, name: str, sample: CorpusSample, is_target: bool) -> None:
    """A sentence where a corpus has less text than the trainings, or the loss on a target, are to have."""
    tune = study.config.finetune
    rows, wanted = (sample.heldout, tune.eval_tokens) if is_target else (sample.training, tune.tokens)
    if 0 < rows.size < wanted:
        then = "its loss is measured on these" if is_target else "a training on it alone repeats them"
        what = "held-out" if is_target else "training"
        study.say(f"note: '{name}' gives {rows.size:,} of {wanted:,} {what} tokens: {then}")


def _heldout(documents: list, tokenizer: Any, config: Config, tokens: int) -> np.ndarray:
    """Up to `tokens` tokens as int32 [n, T]; no document is in two sequences, so that they are independent."""
    single = config.sampling.model_copy(update={"batch_size": 1, "packing": "pack"})
    rows = make_batches(documents, tokenizer, single, -(-tokens // single.sequence_length), Counter())
    return rows[:, 0]


def _write_sample(store: Store, name: str, sample: CorpusSample) -> None:
    parts: dict[str, np.ndarray] = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
    rows = {
        "part": list(parts),
        "shape": [list(array.shape) for array in parts.values()],
        "ids": pa.array([array.ravel() for array in parts.values()], pa.list_(pa.int32())),
    }
    store.write_table(f"corpora/{name}.parquet", pa.table(rows))


def read_sample(store: Store, name: str) -> CorpusSample:
    """The stored sample of a corpus."""
    table = store.read_table(f"corpora/{name}.parquet")
    arrays = {}
    for row in range(table.num_rows):
        ids = np.asarray(table["ids"][row].values.to_numpy())
        arrays[table["part"][row].as_py()] = ids.reshape(table["shape"][row].as_py())
    return CorpusSample(**arrays)


def token_counts(study: Study) -> dict[str, int]:
    """Tokens available by candidate: its bytes times the tokens per byte of its sample."""
    corpora = study.store.read_json("corpora.json")
    return {c.name: corpora[c.name]["estimated_tokens"] for c in study.config.candidates}
