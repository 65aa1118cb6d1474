"""The scores of a corpus' documents (Ray Data): read, cut into chunks, scored, stored chunk by chunk.

By alignment a pool of actors scores them by their first T tokens (`embedding/scores.py`); by words the tasks that read
do, after a first pass that counts the corpus' tokens (`alignment/documents.py`). A chunk that is stored is not scored
again. The driver reads the scores without the texts, about 40 bytes a document.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from align_ray.alignment.documents import counts_of, document_scores, log_ratios
from align_ray.config import digest
from align_ray.config_corpora import Corpus
from align_ray.context import Study
from align_ray.corpora.draw import document_key, draw_texts, encode
from align_ray.corpora.sample import read_sample
from align_ray.corpora.sources import documents
from align_ray.corpora.tasks import on_tasks, read_task, read_tasks
from align_ray.embedding.chunks import chunk_name, chunk_of, chunk_to_score, holds, keys_of, scores_for, word_chunk
from align_ray.embedding.scores import ScoreTargets, score_chunks
from align_ray.errors import CorpusError
from align_ray.fisher.probe import load_tokenizer
from align_ray.handover.rule import distinct
from align_ray.store import Store

CHUNK_DOCUMENTS = 64
"""Documents that are scored and stored together: what a kill can cost."""
CHUNK_CHARACTERS = 8 * 2**20
TARGET_DOCUMENTS = 1024
"""The target's held-out documents whose scores the method `gumbel` matches, about."""
FEWEST_DOCUMENTS = 20
SAY_EVERY = 30.0
WORDS_VERSION = 1
"""Version of scores by words; part of their key."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """The distinct documents of a corpus whose score is finite, in no particular order."""

    keys: np.ndarray
    """S16 [N]."""
    tokens: np.ndarray
    """int64 [N], of the whole documents."""
    score: np.ndarray
    """float64 [N], for the target asked for."""
    file: np.ndarray
    """int32 [N], which of the files the document is in."""


@dataclasses.dataclass(frozen=True)
class Words:
    """What documents of a corpus are scored against by their words."""

    folder: str
    """In the store; names all that determines a score but the document."""
    ratios: np.ndarray
    """float64 [V, M], see `alignment.documents.log_ratios`."""


Reference = Words | ScoreTargets


def words_against(study: Study, corpus: Corpus) -> Words:
    """The words of every target's embedded sample against those of the whole corpus, which is read and counted."""
    located, size, targets = study.probe, len(study.tokenizer), [t.name for t in study.config.targets]

    def count(batch: dict[str, np.ndarray]) -> dict[str, list]:
        tokenizer, found = load_tokenizer(located), np.zeros(size, np.int64)
        for text in documents(*read_task(batch), Counter()):
            found += counts_of(encode(tokenizer, text), size)
        return {"counts": [found.astype("<i8").tobytes()]}

    study.say(f"counting the words of {corpus.name}")
    pool = np.zeros(size, np.int64)
    for row in on_tasks(read_tasks([corpus], study.chat_template), count).iter_rows():
        pool += np.frombuffer(row["counts"], "<i8")
    wanted = np.stack([counts_of(read_sample(study.store, name).batches, size) for name in targets])
    key = digest(["words", WORDS_VERSION, located.digest, study.config.seed, pool.tolist(), wanted.tolist()])
    return Words(f"scores/{key}", log_ratios(pool, wanted))


def target_keys(study: Study) -> np.ndarray:
    """Keys of all documents of all targets, sorted, S16 [n]."""
    config = study.config

    def collect(batch: dict[str, np.ndarray]) -> dict[str, list]:
        found = {document_key(config.seed, text) for text in documents(*read_task(batch), Counter())}
        return {"keys": [b"".join(found)]}

    rows = on_tasks(read_tasks(config.targets, study.chat_template), collect).iter_rows()
    return np.unique(np.frombuffer(b"".join(row["keys"] for row in rows), "S16"))


def score_corpus(study: Study, reference: Reference, corpus: Corpus) -> tuple[list[str], Counter, dict[str, Any]]:
    """Score every document of a corpus that the store does not have yet.

    Returns the files of its chunks in the store, the counts of what was read (those of `documents`; `in_target`, left
    out because a target holds the same text; `duplicate`, exact ones met by one task; `in_chunks`, the others) and the
    work: documents `computed` in how many `chunks`, actor `seconds`, `wall_seconds`.
    """
    import ray

    config, located = study.config, study.probe
    shared = ray.put((target_keys(study), study.store.sound_tables(reference.folder)))
    seed, length, folder = config.seed, config.sampling.sequence_length, reference.folder
    most, characters, store = CHUNK_DOCUMENTS, CHUNK_CHARACTERS, study.store
    ratios = ray.put(reference.ratios) if isinstance(reference, Words) else None

    def read(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        in_targets, stored = ray.get(shared)
        tokenizer, size = load_tokenizer(located), 0
        against = None if ratios is None else ray.get(ratios)
        counts: Counter = Counter()

        def scored(pending: list[tuple[bytes, str]]) -> pa.Table:
            if against is None:
                return chunk_to_score(folder, pending, stored, tokenizer, length)
            name, start = chunk_name(pending), time.perf_counter()
            if name not in stored:
                store.write_table(f"{folder}/{name}", word_chunk(pending, tokenizer, against))
            computed = 0 if name in stored else len(pending)
            return _receipt(f"{folder}/{name}", len(pending), computed, time.perf_counter() - start)

        seen: set[bytes] = set()
        pending: list[tuple[bytes, str]] = []
        for text in documents(*read_task(batch), counts):
            key = document_key(seed, text)
            if key in seen or holds(in_targets, key):
                counts["duplicate" if key in seen else "in_target"] += 1
                continue
            seen.add(key)
            pending.append((key, text))
            size += len(text)
            if len(pending) == most or size >= characters:
                yield scored(pending)
                pending, size = [], 0
        if pending:
            yield scored(pending)
        if against is None:
            yield chunk_of("", "", np.zeros(0, np.int32), [], [], json.dumps(counts))
        else:
            yield _receipt("", 0, 0, 0.0, json.dumps(counts))

    tasks = read_tasks([corpus], study.chat_template)
    chunks = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    chunks.context.target_max_block_size = 1  # a block a chunk: it goes to the next free actor as soon as it is read
    if isinstance(reference, Words):
        receipts = chunks.map_batches(read, batch_size=1).iter_rows()
    else:  # another share of a CPU, or Ray makes it part of the actors
        receipts = score_chunks(study, chunks.map_batches(read, batch_size=1, num_cpus=0.5), reference)
    files: set[str] = set()
    counts: Counter = Counter()
    work = {"computed": 0, "chunks": 0, "seconds": 0.0}
    start = said = time.perf_counter()
    for receipt in receipts:
        counts.update(json.loads(receipt["counts"]))
        counts["in_chunks"] += receipt["documents"]
        work["computed"] += receipt["computed"]
        work["chunks"] += receipt["computed"] > 0
        work["seconds"] += receipt["seconds"]
        files |= {receipt["file"]} - {""}
        if time.perf_counter() - said > SAY_EVERY:
            said = time.perf_counter()
            study.say(f"scored {work['computed']:,} documents, {work['computed'] / (said - start):.0f} a second")
    return sorted(files), counts, {**work, "wall_seconds": time.perf_counter() - start}


def _receipt(file: str, documents: int, computed: int, seconds: float, counts: str = "{}") -> pa.Table:
    row = {"file": file, "documents": documents, "computed": computed, "seconds": seconds, "counts": counts}
    return pa.table({name: [value] for name, value in row.items()})


def heldout_scores(study: Study, reference: Reference, target: Corpus) -> np.ndarray:
    """Scores of the target's held-out documents for it, float64 [m]: about TARGET_DOCUMENTS (or all it has),
    drawn by their keys, odd ones alone, which are never embedded (see `sample_corpora`). Raises CorpusError below
    FEWEST_DOCUMENTS."""
    import ray

    config, store, tokenizer = study.config, study.store, study.tokenizer
    length = config.sampling.sequence_length
    by_document = config.sampling.model_copy(update={"packing": "pad"})
    ((_, drawn, *_),) = draw_texts(
        [(target, 2 * TARGET_DOCUMENTS * length, 0)], by_document, config.seed, study.chat_template
    )
    heldout = [d for d in drawn if d[0][-1] % 2 == 1]
    place = config.targets.index(target)
    if isinstance(reference, Words):
        scores = document_scores([encode(tokenizer, text) for _, text in heldout], reference.ratios)[:, place]
        scores = scores[np.isfinite(scores)]
    else:
        stored = store.sound_tables(reference.folder)
        parts = [heldout[i : i + CHUNK_DOCUMENTS] for i in range(0, len(heldout), CHUNK_DOCUMENTS)]
        rows = [chunk_to_score(reference.folder, part, stored, tokenizer, length) for part in parts]
        files = [row["file"][0].as_py() for row in rows]
        todo = [row for row, file in zip(rows, files, strict=True) if file.rpartition("/")[2] not in stored]
        if todo:
            for _ in score_chunks(study, ray.data.from_arrow(todo), reference):
                pass
        scores = read_scores(store, files, place)[0].score
    if len(scores) < FEWEST_DOCUMENTS:
        raise CorpusError(
            f"target '{target.name}' has {len(scores)} held-out documents, and --method gumbel needs "
            f"{FEWEST_DOCUMENTS} to match; give it more documents or use --method top."
        )
    return scores


def read_scores(store: Store, files: list[str], target: int) -> tuple[Scored, Counter]:
    """The scores in chunks, with the target in that place of the configuration, without their texts, one of each
    key; counted are `no_tokens` (the tokenizer makes none of the text) and `non_finite`, left out."""
    parts = [(np.zeros(0, "S16"), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int32))]
    columns = ["key", "tokens", "scores", "__fragment_index"]
    for batch in store.batches(files, columns) if files else ():
        parts.append(
            (
                keys_of(batch),
                batch["tokens"].to_numpy(),
                scores_for(batch, target),
                batch["__fragment_index"].to_numpy(),
            )
        )
    keys, tokens, score, file = (np.concatenate(column) for column in zip(*parts, strict=True))
    once = distinct(keys, np.nan_to_num(score, nan=-np.inf))
    counts: Counter = Counter()
    bad = ~np.isfinite(score[once])
    counts["no_tokens"] = int((bad & (tokens[once] == 0)).sum())
    counts["non_finite"] = int(bad.sum()) - counts["no_tokens"]
    kept = once[~bad]
    return Scored(keys[kept], tokens[kept], score[kept], file[kept]), counts
