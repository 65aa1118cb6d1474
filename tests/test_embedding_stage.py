"""The embedding stage on a real Ray: deterministic, incremental, and whole after a kill."""

import json
import random

import numpy as np
import pytest

from align_ray.config import Config
from align_ray.embedding import read_embeddings
from align_ray.pipeline import embed, open_study

pytestmark = pytest.mark.usefixtures("local_ray")


def embedded(mapping: dict):
    study = open_study(Config.model_validate(mapping))
    result = embed(study)
    return result, read_embeddings(study.config, study.store, study.probe)


@pytest.fixture(scope="module")
def first(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    mapping = small_config(folder, cluster={"max_actors": 1})
    return mapping, *embedded(mapping)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_allclose(x.trunk, y.trunk, rtol=1e-4, atol=1e-10)
            np.testing.assert_allclose(x.head, y.head, rtol=1e-4, atol=1e-10)


def test_two_workers_and_shuffled_files_give_the_same_documents_and_embeddings(first, corpora, small_config, tmp_path):
    _, reference, embeddings = first
    mapping = small_config(tmp_path / "out", cluster={"max_actors": 2})
    for corpus in [*mapping["targets"], *mapping["candidates"]]:
        lines = open(corpus["source"]).read().splitlines(keepends=True)
        lines += lines[:5]  # exact duplicates count once
        random.Random(1).shuffle(lines)
        folder = tmp_path / corpus["name"]
        folder.mkdir()
        for part in range(3):
            (folder / f"part{part}.jsonl").write_text("".join(lines[part::3]))
        corpus["source"] = str(folder)
    result, shuffled = embedded(mapping)
    for name, counts in reference["corpora"].items():
        assert result["corpora"][name]["sample_digest"] == counts["sample_digest"]
    assert_same(embeddings, shuffled)


def test_another_seed_draws_other_documents(first, small_config, tmp_path):
    _, reference, _ = first
    result, _ = embedded(small_config(tmp_path, seed=1))
    assert result["corpora"]["target"]["sample_digest"] != reference["corpora"]["target"]["sample_digest"]


def test_a_second_run_computes_nothing_and_a_new_corpus_only_itself(first, corpora, small_config):
    mapping, reference, _ = first
    again, _ = embedded(mapping)
    assert again["work"]["computed"] == 0 and again["work"]["planned"] == reference["work"]["planned"]
    more = small_config(mapping["output"], candidates=("python-stdlib", "licences", "cpp-headers"))
    added, _ = embedded(more)
    assert added["work"]["computed"] == added["corpora"]["cpp-headers"]["batches"]


def test_a_lost_unit_is_computed_again_and_equals_the_first(first, small_config):
    mapping, reference, embeddings = first
    study = open_study(Config.model_validate(mapping))
    folder = study.store.local_path(f"embeddings/{reference['work']['key']}")
    lost = sorted(folder.glob("*.parquet"))[:2]
    for file in lost:
        file.unlink()
    again, recomputed = embedded(mapping)
    assert again["work"]["computed"] == 2
    assert_same(embeddings, recomputed)


def test_a_document_that_is_also_in_the_target_is_left_out_and_counted(corpora, small_config, tmp_path):
    texts = [json.loads(line) for name in ("licences", "python-stdlib-heldout") for line in open(corpora / f"{name}.jsonl")]
    leaked = tmp_path / "leaked.jsonl"
    leaked.write_text("".join(json.dumps(t) + "\n" for t in texts))
    mapping = small_config(tmp_path / "out")
    mapping["candidates"][1] = {"name": "leaked", "source": str(leaked)}
    result, _ = embedded(mapping)
    assert result["corpora"]["leaked"]["in_target"] > 0


def test_broken_lines_are_counted_and_the_rest_is_read(corpora, small_config, tmp_path):
    broken = tmp_path / "broken.jsonl"
    good = (corpora / "licences.jsonl").read_bytes()
    broken.write_bytes(b'{"text": "cut off\n' + good + b'\xff\xfe{"text"}\n')
    mapping = small_config(tmp_path / "out")
    mapping["candidates"][1] = {"name": "broken", "source": str(broken)}
    result, _ = embedded(mapping)
    assert result["corpora"]["broken"]["unreadable"] == 2
    assert result["corpora"]["broken"]["documents"] == len(good.splitlines())
