"""How the work around the model grows with the corpora: synthetic units, no model, one process.

    python benchmarks/scale.py [--corpora 10 --corpora 100 --corpora 1000] [--entries 2048] [--most-units 200]
    python benchmarks/scale.py --corpora 100 --entries 133201 --least-units 20 --most-units 20     # GPT-2's size

There is a target for every ten corpora, at most 100. Every row is a process of its own. Columns: seconds of writing and
reducing the units (`embedding/evidence.py`, in one process; a study with 32 corpora and more does it in Ray tasks), of
the alignment of all pairs with its rankings, of the ranking by cross-entropy, of one optimum with its certificate, of
the search with 20 resamples, of the comparison of `--megabytes` of text with all targets, and of the report; the
report's size; seconds of telling MLflow all of it and the files beside the page (a SQLite store, after it was made);
and the most memory the process held (resident, from its start on). `--peaks` says that of every part on standard error
(Linux).
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from align_ray.alignment.coefficients import align_reduced
from align_ray.alignment.words import rank_by_cross_entropy
from align_ray.checks.contamination import Ngrams, compare, ngram_hashes
from align_ray.config import Config, digest
from align_ray.corpora.rows import Rows
from align_ray.corpora.sample import CorpusSample, read_batches, write_sample
from align_ray.embedding.evidence import Lazy, Recent, reduced_of
from align_ray.embedding.units import unit_id, write_unit
from align_ray.fisher.unit import Unit
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.goals import cross_entropy_goal
from align_ray.mixture.search import search_mixture
from align_ray.mixture.solver import solve
from align_ray.reporting import excerpt, tracking
from align_ray.reporting.headline import headline
from align_ray.reporting.page import render_report
from align_ray.reporting.results import Alignment, Corpora, Mixture
from align_ray.store import Store

VOCABULARY, SEQUENCES, LENGTH = 2048, 4, 128
"""Of a batch; a candidate's unigram model is counted on whole ones."""


def main(
    corpora: Annotated[list[int] | None, typer.Option(min=4)] = None,
    entries: Annotated[int, typer.Option(min=10)] = 2048,
    least_units: Annotated[int, typer.Option(min=2)] = 2,
    most_units: Annotated[int, typer.Option(min=2)] = 200,
    megabytes: float = 20.0,
    peaks: bool = False,
    header: bool = True,
) -> None:
    if header:
        print(
            "| corpora | targets | units | entries | write, s | reduce, s | align, s | words, s | optimum, s | gap |",
            end="",
        )
        print(
            " search, s | contamination, MB/s | report, s | report, MB | MLflow, s | memory, MB |\n" + "|---" * 16 + "|"
        )
    if corpora and len(corpora) == 1:
        print(_row(corpora[0], entries, least_units, most_units, megabytes, peaks), flush=True)
        return
    for k in corpora or [10, 100, 1000]:
        options = {"corpora": k, "entries": entries, "least-units": least_units, "most-units": most_units}
        line = [sys.executable, __file__, "--no-header", "--megabytes", str(megabytes), *(["--peaks"] if peaks else [])]
        subprocess.run([*line, *(str(x) for n, v in options.items() for x in (f"--{n}", v))], check=True)


def _row(k: int, entries: int, least_units: int, most_units: int, megabytes: float, peaks: bool) -> str:
    rng, seconds = np.random.default_rng(0), dict[str, float]()
    targets, candidates = [f"t{i}" for i in range(min(100, max(1, k // 10)))], [f"c{i}" for i in range(k)]
    names = [*targets, *candidates]
    topics = max(3, k // 20)
    shares = dict(zip(names, rng.dirichlet(np.full(topics, 0.2), len(names)), strict=True))
    sizes = np.exp(rng.uniform(np.log(least_units), np.log(most_units + 1), len(names))).astype(int)
    counts = dict(zip(names, sizes.tolist(), strict=True))

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        if peaks:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        start = time.perf_counter()
        yield
        seconds[what] = time.perf_counter() - start
        if peaks:
            held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
            most = int(held.split()[1]) / 2**10
            print(f"{what}: {seconds[what]:.1f} s, at most {most:,.0f} MB", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        with timed("write"):
            words, profiles = (
                rng.dirichlet(np.full(VOCABULARY, 0.1), topics),
                np.exp(rng.normal(0, 1.5, (topics, entries))),
            )
            for name in names:
                _write(store, rng, name, _tokens(rng, shares[name] @ words, counts[name]), shares[name] @ profiles)
        batches = Recent(names, lambda name: read_batches(store, name))
        reduced = Lazy(names, lambda name: reduced_of(store, "simulated", batches[name], None))
        with timed("reduce"):
            for name in names:
                _ = reduced[name]
        with timed("align"):
            alignment = align_reduced(reduced, targets)
        with timed("words"):
            alignment["predicted"] = rank_by_cross_entropy(batches, targets, VOCABULARY, 2 * SEQUENCES * LENGTH)
        parsed = Alignment.parse(alignment)  # written and read again, as a stage's result is
        del alignment
        store.write_json("alignment.json", parsed.dump())
        del parsed
        search = {"method": "closed_form", "token_budget": 10**6, "resamples": 20}
        config = Config.model_validate(
            {
                "name": "simulated", "output": folder, "search": search,
                "targets": [{"name": n, "source": f"{n}.jsonl"} for n in targets],
                "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in candidates],
            }
        )  # fmt: skip
        tokens = dict.fromkeys(candidates, max(10**5, 3 * 10**7 // k))
        build, constraints = cross_entropy_goal(config, batches, VOCABULARY), constraints_of(config.search, tokens)
        goal = build(None)
        with timed("optimum"):
            optimum = solve(goal, constraints)
        gap = (optimum.gap or 0.0) / float(np.ptp(goal.singles(k)))
        rows = Lazy(names, lambda name: reduced[name].main)
        with timed("search"):
            mixture = search_mixture(config, rows, tokens, build, "", {})
        del goal, build
        found = {"alignment": Alignment.parse(store.read_json("alignment.json")), "search": Mixture.parse(mixture)}
        facts = {"documents": 1000, "estimated_tokens": 10**6}
        known = {
            n: {
                "role": "target" if n in targets else "candidate",
                "batches": counts[n],
                "sample_digest": digest(n)[:16],
                **facts,
            }
            for n in names
        }
        work: dict[str, Any] = {
            "planned": 0,
            "computed": 0,
            "tokens": 0,
            "actor_seconds": 0.0,
            "key": "",
            "dtype": "float32",
        }
        results = {"corpora": Corpora.parse({"corpora": known, "work": work}), **found}
        with timed("report"):
            size = len(render_report(config, results, {}))
            beside = excerpt.files(results)
        shares_found = found["search"].mixtures["recommended"].weights
        recipe = {"token_budget": 10**6, "objective": "cross-entropy", "targets": targets, "weights": shares_found}
        store.write_json("recipe.json", recipe)
        tracker = tracking.start_tracking(config, store)
        with timed("mlflow"):
            tracking.corpora(tracker, config, store, results["corpora"])
            tracking.alignment(tracker, config, store, found["alignment"])
            tracking.mixture(tracker, config, store, found["search"])
            for name, content in beside.items():
                tracker.text(name, content.decode())
            tracking.answer(tracker, config, results, headline(results), "")
        speed = _contamination(rng, len(targets), megabytes)
    times = [f"{seconds[name]:.1f}" for name in ("write", "reduce", "align", "words", "optimum")]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    cells = [k, len(targets), sum(counts.values()), entries, *times, f"{gap:.0e}", f"{seconds['search']:.1f}"]
    cells += [
        f"{speed:.1f}",
        f"{seconds['report']:.1f}",
        f"{size / 1e6:.2f}",
        f"{seconds['mlflow']:.1f}",
        f"{memory:,.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _tokens(rng: np.random.Generator, p: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(VOCABULARY, (count, SEQUENCES, LENGTH), p=p).astype(np.int32)


def _write(store: Store, rng: np.random.Generator, name: str, batches: np.ndarray, profile: np.ndarray) -> None:
    """A corpus' batches, and their units of two label draws around its profile [D]."""
    nothing = Rows.plain(np.zeros((0, LENGTH), np.int32))
    write_sample(store, f"corpora/{name}.parquet", CorpusSample(batches, nothing, nothing))
    for batch in batches:
        of_batch = profile * rng.gamma(20, 1 / 20, len(profile))
        trunk = (of_batch * rng.gamma(8, 1 / 8, (2, len(profile)))).astype(np.float32)
        unit = Unit({"trunk": trunk}, {"trunk": trunk[0]}, 3.0, SEQUENCES, (), SEQUENCES * LENGTH, 0.1)
        write_unit(store, "simulated", unit_id(batch), unit)


def _contamination(rng: np.random.Generator, targets: int, megabytes: float) -> float:
    """MB/s of one process, of English-like text of which one document in a hundred holds a piece of a target's."""
    vocabulary = np.array(["".join(rng.choice(list("etaoinshrdlu"), n)) for n in rng.integers(1, 12, 20_000)])
    known = [" ".join(rng.choice(vocabulary, 10_000)) for _ in range(targets)]
    table = Ngrams.of({f"t{i}": np.unique(ngram_hashes(text)) for i, text in enumerate(known)})
    texts = []
    while sum(map(len, texts[-100:])) * len(texts) / 100 < megabytes * 1e6:
        own = " ".join(rng.choice(vocabulary, 600))
        texts.append(own + known[len(texts) % targets][:500] if len(texts) % 100 == 0 else own)
    compare(texts[:10], table)
    start = time.process_time()
    _, hits, _ = compare(texts, table)
    spent = time.process_time() - start
    assert hits.sum() >= len(texts) // 100
    return sum(map(len, texts)) / 1e6 / spent


if __name__ == "__main__":
    typer.run(main)
