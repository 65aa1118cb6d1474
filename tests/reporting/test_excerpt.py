"""The page of more than 64 corpora: what it leaves out is said, and every number on it is a stored one."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from align_ray import pipeline
from align_ray.alignment.coefficients import Reduced, align_reduced
from align_ray.alignment.words import rank_by_cross_entropy
from align_ray.config import Config
from align_ray.fisher.unit import Unit
from align_ray.reporting import excerpt
from align_ray.reporting.page import render_report
from align_ray.reporting.results import Alignment, Corpora
from align_ray.store import Store

TARGETS, CANDIDATES = [f"t{i}" for i in range(10)], [f"c{i}" for i in range(60)]
CORPORA = {
    "targets": [{"name": n, "source": f"{n}.jsonl"} for n in TARGETS],
    "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in CANDIDATES],
}


@pytest.fixture(scope="module")
def results():
    rng, batches, reduced = np.random.default_rng(0), {}, {}
    for name in (*TARGETS, *CANDIDATES):
        batches[name] = rng.choice(40, (3, 2, 16), p=rng.dirichlet(np.full(40, 0.5)))
        trunk = np.exp(rng.normal(size=30)) * rng.gamma(8, 1 / 8, (3, 2, 30))
        reduced[name] = Reduced.of([Unit({"trunk": t.astype("f4")}, {}, 3.0, 2, (), 32, 0.1) for t in trunk])
    value = align_reduced(reduced, TARGETS) | {"predicted": rank_by_cross_entropy(batches, TARGETS, 40, 32)}
    counts = {
        n: {"role": "target" if n in TARGETS else "candidate", "batches": 3, "documents": 5, "estimated_tokens": 9}
        for n in batches
    }
    work = {"key": "k", "dtype": "float32", "planned": 1, "computed": 1, "tokens": 1, "actor_seconds": 1.0}
    return {"corpora": Corpora.parse({"corpora": counts, "work": work}), "alignment": Alignment.parse(value)}


def test_seventy_corpora_are_an_excerpt_a_picture_and_files(results):
    page = render_report(Config.model_validate({"name": "many", "output": "out", **CORPORA}), results, {})
    shown = excerpt.Excerpt.of(results)
    assert shown.targets == TARGETS[: excerpt.TARGETS] and len(shown.candidates) == excerpt.ROWS
    files = excerpt.files(results)
    assert sorted(files) == ["candidates.csv", "pairs.csv"] and all(name in page for name in files)
    assert "data:image/png;base64," in page and "60 candidates and 10 targets are too many" in page
    assert "ranking-t7" in page and "ranking-t8" not in page
    answer = page[page.index('id="answer"') : page.index("</section>", page.index('id="answer"'))]
    assert 'id="first-table"' in answer and "<svg" not in answer, "tables first"
    assert answer.index('id="first-table"') < answer.index('id="excerpt"')
    first = re.search(r'href="#ranking-t3">t3</a></th><td><span class="name">(\w+)</span>', answer)
    assert first[1] == results["alignment"].predicted.ranking["t3"][0].candidate
    assert page.count("<details") == page.count("</details>") and page.count('id="bars-t3"') == 1
    numbers = re.findall(r'<data value="([^"]*)" data-path="alignment/([^"]*)">', page)
    tree = results["alignment"].dump()
    for value, path in numbers:
        found = tree
        for part in path.split("/"):
            found = found[int(part)] if isinstance(found, list) else found[part]
        assert repr(found) == value
    assert len(numbers) > 1000 and any(path.startswith("alike/") for _, path in numbers)
    assert len(pd.read_csv(io.BytesIO(files["candidates.csv"]))) == 600
    table = page[page.index('id="ranking-t3"') :]
    listed = re.findall(r'<th scope="row" class="name">(\w+)</th>', table[: table.index("</table>")])
    assert listed == [row.candidate for row in results["alignment"].predicted.ranking["t3"]][: excerpt.ROWS]


def test_mlflow_has_the_files_that_stand_beside_the_page_and_a_description_of_the_first_alone(
    results, tracking, tmp_path, monkeypatch
):
    config = Config.model_validate({"name": "many", "output": str(tmp_path), "tracking": tracking, **CORPORA})
    store = Store(config.output)
    for name in ("need", "stored"):
        monkeypatch.setattr(pipeline, name, lambda study, wanted: results.get(wanted.file))
    monkeypatch.setattr(pipeline, "found_key", lambda study, wanted: None)
    store.write_json("corpora.json", results["corpora"].dump()["corpora"])
    pipeline.report(SimpleNamespace(config=config, store=store, say=lambda line: None))
    known = store.read_json("mlflow-run.json")
    client = MlflowClient(known["uri"])
    for name in ("candidates.csv", "pairs.csv"):
        place = {"run_id": known["run_id"], "artifact_path": name, "tracking_uri": known["uri"]}
        assert Path(download_artifacts(**place, dst_path=str(tmp_path / "got"))).read_bytes() == store.read_bytes(name)
    tags = client.get_run(known["run_id"]).data.tags
    best = [row.candidate for row in results["alignment"].predicted.ranking["t3"]]
    assert tags["align_ray.ranking/t3"] == ", ".join(best[:20])
    assert f"Ranking for t3 by word counts: {', '.join(best[:20])}" in tags["mlflow.note.content"].splitlines()
