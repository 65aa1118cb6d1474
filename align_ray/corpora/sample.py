"""What a study uses of every corpus: batches to embed, rows to train on, rows held out; drawn once and stored."""

import dataclasses
import hashlib
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from align_ray import metrics
from align_ray.claims import RUN
from align_ray.config import Config, digest
from align_ray.config_corpora import Corpus
from align_ray.context import Study
from align_ray.corpora.draw import DOCUMENT_SEQUENCES, Document, Drawn, cut_rows, draw_corpora, make_batches
from align_ray.corpora.items import item_keys
from align_ray.corpora.overlap import SHARED, share_in
from align_ray.corpora.rejects import rejects_table
from align_ray.corpora.rows import Rows
from align_ray.errors import CorpusError
from align_ray.store import Store


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """What the study uses of one corpus; written to corpora/NAME.parquet."""

    batches: np.ndarray
    """int32 [N, B, T], embedded."""
    training: Rows
    """Rows for fine-tuning (candidates)."""
    heldout: Rows
    """Rows for a loss (targets, replay); no document in two of them, none in common with `batches` or `training`."""

    def digest(self) -> str:
        """Digest of all rows: what is computed from the sample belongs to it alone."""
        total = hashlib.sha256(f"{self.batches.shape}".encode())
        total.update(np.ascontiguousarray(self.batches, "<i4").tobytes())
        return digest([total.hexdigest(), self.training.digest(), self.heldout.digest()])


def sample_corpora(study: Study) -> dict[str, Any]:
    """Draw every corpus and write its batches; returns and stores the counts by corpus (corpora.json). What was drawn
    before is replaced when all of it is drawn, so that a source that cannot be read changes nothing.

    Documents of a target are split by their key: one half is embedded, the other is the held-out text on which
    fine-tuning is judged. A candidate's document that is also a target's (same text), drawn or of an item of its task,
    is left out and counted as `in_target`. Raises CorpusError where a corpus gives fewer than two batches.
    """
    try:
        return _sample_corpora(study)
    finally:
        study.store.remove_folder(f"drawn/{RUN}")


def _sample_corpora(study: Study) -> dict[str, Any]:
    config, store, tokenizer = study.config, study.store, study.tokenizer
    sampling, tune = config.sampling, config.finetune
    per_batch = sampling.batch_size * sampling.sequence_length
    target_tokens = 2 * max(sampling.batches * per_batch, tune.eval_tokens) + per_batch
    candidate_tokens = max(sampling.batches * per_batch, tune.tokens) + per_batch
    # a batch shares no document with another, and a long document fills no more than its share of one
    for_batches = sampling.batches * -(-sampling.batch_size // DOCUMENT_SEQUENCES)
    halves = max(for_batches, -(-tune.eval_tokens // sampling.sequence_length))  # held out: a sequence a document
    for_targets = 2 * halves + round(5 * math.sqrt(2 * halves)) + 10  # so that either half is hardly ever short
    target_keys = item_keys(study)
    report: dict[str, Any] = {}
    wanted = [
        *((c, target_tokens, for_targets) for c in config.targets),
        *((c, candidate_tokens, for_batches) for c in config.candidates),
        *((c, 2 * max(replay_tokens(config), tune.eval_tokens), 2 * halves) for c in [config.replay] if c),
    ]
    rejects: list[dict[str, str]] = []
    sketches: dict[str, np.ndarray] = {}
    for corpus, drawn in draw_corpora(wanted, sampling, config.seed, tokenizer):
        is_target, is_replay = corpus in config.targets, corpus == config.replay
        counts = Counter(drawn.counts)
        rejects += [{"corpus": corpus.name, **reject} for reject in drawn.rejects]
        store.write_table("rejects.parquet", rejects_table(rejects, config.text_in_results))
        _say_what_is_left_out(study, corpus, drawn)
        if not is_target and not is_replay:
            sketches[corpus.name] = drawn.sketch
        if is_target:
            target_keys |= {d.key for d in drawn.documents}
            embedded = [d for d in drawn.documents if d.key[-1] % 2 == 0]
            heldout = [d for d in drawn.documents if d.key[-1] % 2 == 1]
            training = []
        else:
            embedded = [d for d in drawn.documents if d.key not in target_keys]
            counts["in_target"] = len(drawn.documents) - len(embedded)
            # of general text a half shows what a training forgets
            heldout = [d for d in embedded if d.key[-1] % 2 == 1] if is_replay else []
            training = [d for d in embedded if d.key[-1] % 2 == 0] if is_replay else embedded
        wanted_tokens = replay_tokens(config) if is_replay else tune.tokens
        train, test = -(-wanted_tokens // sampling.sequence_length), -(-tune.eval_tokens // sampling.sequence_length)
        sample = CorpusSample(
            make_batches([], tokenizer, sampling, 0, counts)
            if is_replay
            else _embedding_batches(corpus, embedded, tokenizer, config, counts),
            cut_rows(training, tokenizer, sampling, train),
            cut_rows(heldout, tokenizer, sampling, test, alone=True),
        )
        if is_target and len(sample.heldout) == 0:
            raise CorpusError(
                f"target '{corpus.name}' is too small to hold out text for its loss; give more documents."
            )
        if is_replay and 0 in (len(sample.training), len(sample.heldout)):
            raise CorpusError(f"corpus '{corpus.name}' holds too little text for replay; give more documents.")
        _say_if_short(study, corpus.name, sample, is_target, wanted_tokens)
        write_sample(store, f"drawn/{RUN}/{corpus.name}.parquet", sample)
        ratio = counts["sampled_tokens"] / max(1, counts["sampled_bytes"])
        report[corpus.name] = {
            "role": "target" if is_target else "replay" if is_replay else "candidate",
            "batches": len(sample.batches),
            "estimated_tokens": round(counts["bytes"] * ratio),
            "sample_digest": digest([d.key.hex() for d in drawn.documents]),
            "rows_digest": sample.digest(),
            **counts,
        }
    for name, shared in shared_documents(sketches).items():
        report[name]["shared_with"] = shared
        _say_what_is_shared(study, name, shared)
    store.write_json("corpora.json", {})  # until all rows are there, no result belongs to them
    for name in report:
        store.move(f"drawn/{RUN}/{name}.parquet", f"corpora/{name}.parquet")
    store.write_json("corpora.json", report)
    return report


def shared_documents(sketches: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By corpus, of those that share documents: the share of its documents that another one has as well (near copies
    by how near they are, see `overlap.py`), by that one."""
    found: dict[str, dict[str, float]] = {}
    for one, other in itertools.permutations(sketches, 2):
        if (share := share_in(sketches[one], sketches[other])) > 0:
            found.setdefault(one, {})[other] = share
    return found


def _say_what_is_shared(study: Study, name: str, shared: dict[str, float]) -> None:
    for other, share in shared.items():
        if share >= SHARED:
            study.say(
                f"warning: {share:.0%} of the documents of '{name}' are in '{other}' as well (near copies by how "
                "near they are): their weights cannot be told apart, and repetition is counted too low; remove the "
                "copies"
            )


LEFT_OUT = ("missing_column", "no_completion", "unreadable", "oversized", "empty", "vanished")
SAID = 0.01
"""Share of records left out from which on it is said."""


def _say_what_is_left_out(study: Study, corpus: Corpus, drawn: Drawn) -> None:
    """A sentence where more than SAID of the records are left out; CorpusError above `allow_missing`."""
    left = {reason: n for reason in LEFT_OUT if (n := drawn.counts.get(reason, 0))}
    for reason, n in left.items():
        metrics.count("align_ray_rejected_records", n, corpus=corpus.name, reason=reason)
    total = sum(left.values()) + drawn.counts.get("documents", 0)
    share = sum(left.values()) / max(1, total)
    if share <= SAID:
        return
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in left.items())
    first = f", the first in {drawn.rejects[0]['file']}" if drawn.rejects else ""
    line = f"'{corpus.name}': {share:.1%} of {total:,} records are left out: {reasons}{first}"
    if share > corpus.allow_missing:
        raise CorpusError(
            f"corpus {line}; look at rejects.parquet in the output folder, and fix the records or raise the corpus' "
            "field 'allow_missing'."
        )
    study.say(f"warning: {line}; they are in rejects.parquet")


def replay_tokens(config: Config) -> int:
    """Tokens of general text that a training takes beside `finetune.tokens` of others."""
    return (
        0
        if config.replay is None
        else math.ceil(config.finetune.tokens * config.replay.share / (1 - config.replay.share))
    )


def _embedding_batches(
    corpus: Corpus, documents: list[Document], tokenizer: Any, config: Config, counts: Counter
) -> np.ndarray:
    batches = make_batches(documents, tokenizer, config.sampling, config.sampling.batches, counts)
    if len(batches) < 2:
        need = 2 * config.sampling.batch_size * config.sampling.sequence_length
        raise CorpusError(
            f"corpus '{corpus.name}' gives {len(batches)} batches ({counts['documents']} documents were read, "
            f"{len(documents)} "
            f"different ones drawn), an interval needs 2 ({need} tokens); give more text or lower sampling.batch_size."
        )
    return batches


def _say_if_short(study: Study, name: str, sample: CorpusSample, is_target: bool, training_tokens: int) -> None:
    """A sentence where a corpus has less text than the trainings, or the loss on a target, are to have."""
    tune = study.config.finetune
    rows, wanted = (sample.heldout, tune.eval_tokens) if is_target else (sample.training, training_tokens)
    if 0 < rows.tokens < wanted:
        then = "its loss is measured on these" if is_target else "a training on it alone repeats them"
        what = "held-out" if is_target else "training"
        study.say(f"note: '{name}' gives {rows.tokens:,} of {wanted:,} {what} tokens: {then}")


def write_sample(store: Store, file: str, sample: CorpusSample) -> None:
    """As `read_sample` reads it, where `file` is corpora/NAME.parquet."""
    parts = {"batches": sample.batches}
    for part in ROWS:
        parts |= {f"{part}.{field}": array for field, array in vars(getattr(sample, part)).items()}
    rows = {
        "part": list(parts),
        "dtype": [array.dtype.str for array in parts.values()],
        "shape": [list(array.shape) for array in parts.values()],
        "values": [np.ascontiguousarray(array).tobytes() for array in parts.values()],
    }
    store.write_table(file, pa.table(rows))


ROWS = ("training", "heldout")
"""Fields of a CorpusSample that are Rows."""


def read_batches(store: Store, name: str) -> np.ndarray:
    """Of a corpus' stored sample what is embedded alone, int32 [N, B, T]."""
    return _parts(store, name, "batches")["batches"]


def _parts(store: Store, name: str, only: str | None = None) -> dict[str, np.ndarray]:
    table, arrays = store.read_table(f"corpora/{name}.parquet"), {}
    for row in (table if only is None else table.filter(pc.field("part") == only)).to_pylist():
        flat = np.frombuffer(row["values"], row["dtype"]) if "values" in row else np.array(row["ids"], np.int32)
        arrays[row["part"]] = flat.reshape(row["shape"])
    return arrays


def read_sample(store: Store, name: str) -> CorpusSample:
    """The stored sample of a corpus, also as 0.1 has stored it (token ids alone)."""
    arrays = _parts(store, name)
    if "training" in arrays:
        return CorpusSample(arrays["batches"], *(Rows.plain(arrays[part]) for part in ROWS))
    fields = [field.name for field in dataclasses.fields(Rows)]
    return CorpusSample(arrays["batches"], *(Rows(*(arrays[f"{part}.{field}"] for field in fields)) for part in ROWS))


def token_counts(study: Study) -> dict[str, int]:
    """Tokens available by candidate: its bytes times the tokens per byte of its sample."""
    corpora = study.store.read_json("corpora.json")
    return {c.name: corpora[c.name]["estimated_tokens"] for c in study.config.candidates}
