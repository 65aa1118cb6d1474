"""Does choosing documents help? Trainings on what each method takes of a pool, against random and against all of it.

    pip install bm25s
    python benchmarks/documents.py studies/documents.yaml [--fraction 0.1] [--seeds 3] [--methods words alignment ...]

The pool: `finetune.tokens` tokens of whole documents (long ones cut to eight sequences) of every candidate; what is
also a target's is left out. Every method scores every document for every target from the target's embedded sample, and
takes the best until they hold the fraction of the pool's tokens. One training, one pass, on what was taken; losses of
the target's report half. `random` draws documents anew with every seed; `length` takes the longest; `all` trains on the
whole pool, once through. Differences are paired by seed and held-out row; their errors are over both. Every loss is
written to documents.parquet in the study's output. Goes on where it was stopped.
"""

import argparse
import dataclasses
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from align_ray.alignment.documents import counts_of, document_scores, log_ratios
from align_ray.alignment.intervals import Estimate, two_sample_mean
from align_ray.checks.predict import further_probe
from align_ray.config import digest
from align_ray.config_file import load_config
from align_ray.context import Study
from align_ray.corpora.draw import DOCUMENT_SEQUENCES, Document, cut_rows, draw_corpora
from align_ray.corpora.rows import Rows, report_half
from align_ray.corpora.sample import read_sample, sample_corpora
from align_ray.embedding.chunks import chunk_of
from align_ray.embedding.evidence import read_evidence
from align_ray.embedding.pool import embed_missing
from align_ray.embedding.scores import score_chunks, score_targets
from align_ray.fisher.tokens import PADDING
from align_ray.handover.documents import CHUNK_DOCUMENTS, target_keys
from align_ray.pipeline import open_study
from align_ray.runtime import connect
from align_ray.training.jobs import Job, train_jobs
from align_ray.training.rows import heldout_rows, learning_rate

FREE = ("random", "length", "all")
"""What takes the same for every target."""


@dataclasses.dataclass(frozen=True)
class Pool:
    documents: list[Document]
    corpora: list[str]
    """Which corpus each is of."""
    tokens: np.ndarray
    """int64 [n]: of what is trained on of each."""

    def first(self, length: int) -> np.ndarray:
        """int32 [n, T]: the first tokens of each, PADDING on the right."""
        ids = np.full((len(self.documents), length), PADDING, np.int32)
        for row, document in zip(ids, self.documents, strict=True):
            row[: len(document.ids)] = document.ids[:length]
        return ids

    def taken(self, scores: np.ndarray, fraction: float) -> np.ndarray:
        """Numbers of the documents with the highest scores, equal ones by key, until they hold the fraction."""
        keys = np.array([d.key.hex() for d in self.documents])
        order = np.lexsort((keys, -np.nan_to_num(scores, nan=-np.inf)))
        return order[: int(np.searchsorted(np.cumsum(self.tokens[order]), fraction * self.tokens.sum())) + 1]


def make_pool(study: Study) -> Pool:
    config, held = study.config, target_keys(study)
    wanted = [(c, config.finetune.tokens, 0) for c in config.candidates]
    most = DOCUMENT_SEQUENCES * config.sampling.sequence_length
    found: dict[bytes, tuple[str, Document]] = {}
    targets = set(held.tolist())
    for corpus, drawn in draw_corpora(wanted, config.sampling, config.seed, study.tokenizer):
        for d in drawn.documents:
            if len(d.ids) > 1 and d.key.rstrip(b"\0") not in targets:
                found.setdefault(d.key, (corpus.name, dataclasses.replace(d, ids=d.ids[:most])))
    documents = [d for _, d in found.values()]
    return Pool(documents, [c for c, _ in found.values()], np.array([len(d.ids) for d in documents]))


def samples(study: Study) -> dict[str, np.ndarray]:
    """The targets' embedded sequences, [n, T]."""
    return {t.name: np.concatenate(list(read_sample(study.store, t.name).batches)) for t in study.config.targets}


def by_words(study: Study, pool: Pool) -> np.ndarray:
    """Scores of `align-ray select --by words`, [n, M]."""
    size, documents = len(study.tokenizer), [d.ids for d in pool.documents]
    targets = np.stack([counts_of(ids, size) for ids in samples(study).values()])
    return document_scores(documents, log_ratios(counts_of(np.concatenate(documents), size), targets))


def aligned(study: Study, pool: Pool) -> np.ndarray:
    """Scores of `align-ray select --by alignment`, [n, M]."""
    import ray

    evidence = read_evidence(study, embed_missing(study))
    reference, ids = score_targets(study, evidence), pool.first(study.config.sampling.sequence_length)
    stored, files, todo = study.store.sound_tables(reference.folder), [], []
    for start in range(0, len(ids), CHUNK_DOCUMENTS):
        part = pool.documents[start : start + CHUNK_DOCUMENTS]
        name = f"pool-{digest([d.key.hex() for d in part], 32)}.parquet"
        files.append(f"{reference.folder}/{name}")
        if name not in stored:
            rows = ids[start : start + CHUNK_DOCUMENTS]
            todo.append(chunk_of(files[-1], "", rows, [(d.key, "") for d in part], (rows != PADDING).sum(1).tolist()))
    if todo:
        for _ in score_chunks(study, ray.data.from_arrow(todo).repartition(len(todo)), reference):
            pass
    return np.concatenate([np.array(study.store.read_table(f)["scores"].to_pylist()) for f in files])


def loss_differences(study: Study, pool: Pool) -> np.ndarray:
    """Loss of a document's first tokens before less after a short training on the target's sample, [n, M]."""
    lines = [d.ids[: study.config.sampling.sequence_length].tolist() for d in pool.documents]
    rows = Rows.ending(lines, [len(line) - 1 for line in lines])
    jobs = [Job(Rows.encoded_as(ids), learning_rate(study.config), 0) for ids in samples(study).values()]
    done = train_jobs(study, {"pool": rows}, jobs, scored=False)
    return np.stack([t.losses["pool"].before - t.losses["pool"].after for t in done], axis=1)


def bm25(study: Study, pool: Pool) -> np.ndarray:
    """Okapi BM25 of every document for the target's sample as the query, [n, M], by the library bm25s on token ids."""
    import bm25s

    index = bm25s.BM25()
    index.index([[str(i) for i in d.ids] for d in pool.documents], show_progress=False)
    return np.stack(
        [index.get_scores([str(i) for i in ids[ids >= 0]]) for ids in samples(study).values()], axis=1
    ).astype(np.float64)


def scored(study: Study, pool: Pool, methods: list[str]) -> dict[str, np.ndarray]:
    """Scores [n, M] by method."""
    found = {}
    known = {
        "words": lambda: by_words(study, pool),
        "alignment": lambda: aligned(study, pool),
        "loss difference": lambda: loss_differences(study, pool),
        "BM25": lambda: bm25(study, pool),
    }
    for name in study.config.predict.probes:
        probe = further_probe(study, name)
        known[f"alignment, probe {name}"] = lambda p=probe: aligned(dataclasses.replace(study, probe=p), pool)
    for method in methods:
        if method not in FREE:
            start = time.perf_counter()
            found[method] = known[method]()
            study.say(f"{method}: {len(pool.documents):,} documents scored in {time.perf_counter() - start:.1f} s")
    return found


def outcomes(study: Study, pool: Pool, methods: list[str], fraction: float, seeds: int) -> list[dict[str, Any]]:
    """A row a method, target and seed: what was taken, and the losses of the report half."""
    config, heldout, rate = study.config, heldout_rows(study), learning_rate(study.config)
    most = int(pool.tokens.sum())

    def job(which: np.ndarray, seed: int) -> Job:
        rows = cut_rows([pool.documents[i] for i in which], study.tokenizer, config.sampling, most)
        return Job(rows, rate, seed)

    def row(method: str, target: str, seed: int, which: np.ndarray, done: Any) -> dict[str, Any]:
        losses = done.losses[target]
        shares = Counter(np.array(pool.corpora)[which].tolist())
        return {
            "method": method,
            "target": target,
            "seed": seed,
            "documents": len(which),
            "tokens": int(pool.tokens[which].sum()),
            "corpora": dict(shares.most_common(3)),
            "before": report_half(losses.before).tolist(),
            "after": report_half(losses.after).tolist(),
        }

    scores = scored(study, pool, methods)
    takes: dict[str, Any] = {
        "random": lambda seed: pool.taken(
            np.random.default_rng([config.seed, seed]).random(len(pool.tokens)), fraction
        ),
        "length": lambda seed: pool.taken(pool.tokens.astype(float), fraction),
        "all": lambda seed: np.arange(len(pool.tokens)),
    }
    found = []
    free = [(m, s, takes[m](s)) for m in methods if m in FREE for s in range(seeds)]
    for (m, s, which), done in zip(
        free, train_jobs(study, heldout, [job(w, s) for _, s, w in free], scored=False), strict=True
    ):
        found += [row(m, t, s, which, done) for t in heldout]
    for i, t in enumerate(heldout):
        study.say(f"trainings for {t}")
        own = {m: pool.taken(scores[m][:, i], fraction) for m in methods if m not in FREE}
        jobs = [(m, s, which) for m, which in own.items() for s in range(seeds)]
        trained = train_jobs(study, {t: heldout[t]}, [job(w, s) for _, s, w in jobs], scored=False)
        found += [row(m, t, s, which, done) for (m, s, which), done in zip(jobs, trained, strict=True)]
    return found


def table(found: list[dict[str, Any]], own: dict[str, list[str]]) -> str:
    """By method: the mean loss, by how much it lies below random's, in how many targets by more than three standard
    errors (or above it by so much), how it compares with all of the pool, and in how many targets the 95% interval of
    that holds 0 or less; targets with their own corpus in the pool apart. Then every target."""
    ordered = sorted(found, key=lambda r: r["seed"])
    methods, targets = [list(dict.fromkeys(r[k] for r in found)) for k in ("method", "target")]
    losses = {
        (m, t): np.array([r["after"] for r in ordered if (r["method"], r["target"]) == (m, t)])
        for m in methods
        for t in targets
    }

    def less(other: str, m: str) -> dict[str, Estimate]:
        return {t: two_sample_mean(losses[m, t] - losses[other, t]) for t in targets}

    def mean(of: dict[str, Estimate], which: list[str]) -> str:
        return f"{np.mean([of[t].value for t in which]):+.3f}" if which else ""

    theirs, foreign = [t for t in targets if own.get(t)], [t for t in targets if not own.get(t)]
    head = ["method", "loss", "less random", "own in the pool", "not in it", "3 errors below", "above"]
    rows = [[*head, "less all", "no worse than all"], ["---"] * 9]
    for m in methods:
        row = [m, f"{np.mean([losses[m, t].mean() for t in targets]):.3f}"]
        if m == "random":
            row += [""] * 5
        else:
            below = less("random", m)
            row += [mean(below, targets), mean(below, theirs), mean(below, foreign)]
            row += [str(sum(sign * e.value > 3 * e.error for e in below.values())) for sign in (-1, 1)]
        whole = less("all", m) if "all" in methods and m != "all" else {}
        row += (
            [mean(whole, targets), f"{sum(e.low <= 0 for e in whole.values())} of {len(targets)}"]
            if whole
            else ["", ""]
        )
        rows.append(row)
    compared = [m for m in methods if m != "random"]
    rows += [[], ["target", *compared], ["---"] * (1 + len(compared))]
    by_method = {m: less("random", m) for m in compared}
    for t in targets:
        cells = [f"{by_method[m][t].value:+.3f} ± {by_method[m][t].error:.3f}" for m in compared]
        rows.append([t + (" (own in the pool)" if own.get(t) else ""), *cells])
    return "\n".join(f"| {' | '.join(row)} |" if row else "" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+")
    options = parser.parse_args()
    start = time.perf_counter()
    say = lambda line: print(f"{time.perf_counter() - start:6.0f} s  {line}", flush=True)
    study = open_study(load_config(options.study), say=say)
    connect(study.config.cluster)
    sample_corpora(study)
    probes = [f"alignment, probe {name}" for name in study.config.predict.probes]
    methods = options.methods or ["random", "length", "words", "BM25", "loss difference", "alignment", *probes, "all"]
    pool = make_pool(study)
    by_corpus = Counter()
    for corpus, tokens in zip(pool.corpora, pool.tokens.tolist(), strict=True):
        by_corpus[corpus] += tokens
    say(f"the pool: {len(pool.tokens):,} documents, {pool.tokens.sum():,} tokens: {dict(by_corpus)}")
    found = outcomes(study, pool, methods, options.fraction, options.seeds)
    kept = [{**r, "corpora": str(r["corpora"])} for r in found]
    study.store.write_table("documents.parquet", pa.Table.from_pylist(kept))
    for r in found:
        if r["seed"] == 0 and r["method"] not in FREE:
            say(f"{r['target']}, {r['method']}: {r['documents']} documents, {r['tokens']:,} tokens, {r['corpora']}")
    print("\n" + table(found, study.config.predict.related))


if __name__ == "__main__":
    main()
