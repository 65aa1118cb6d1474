"""The embedding stage on a real Ray: deterministic, incremental, and whole after a kill."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from align_ray.config import Config
from align_ray.corpora.sample import read_sample
from align_ray.embedding.scores import score_samples
from align_ray.embedding.units import unit_id
from align_ray.errors import ProbeError
from align_ray.fisher.probe import EMBEDDED
from align_ray.pipeline import align, embed, evidence_of, open_study
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("local_ray")


def embedded(mapping: dict):
    study = open_study(Config.model_validate(mapping))
    result = embed(study)
    return result, dict(evidence_of(study).units)


@pytest.fixture(scope="module")
def first(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    mapping = small_config(folder, cluster={"max_actors": 1})
    return mapping, *embedded(mapping)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            for block in ("trunk", "head"):
                np.testing.assert_allclose(x.blocks[block], y.blocks[block], rtol=1e-4, atol=1e-10)


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


def test_another_seed_draws_other_documents(first, no_pools, small_config, tmp_path):
    _, reference, _ = first
    result, _ = embedded(small_config(tmp_path, seed=1))
    assert result["corpora"]["target"]["sample_digest"] != reference["corpora"]["target"]["sample_digest"]


def test_a_second_run_computes_nothing_and_a_new_corpus_only_itself(first, corpora, no_pools, small_config):
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
    lost = [folder / f"{unit_id(batch)}.parquet" for batch in read_sample(study.store, "licences").batches[:2]]
    for file in lost:
        file.unlink()
    again, recomputed = embedded(mapping)
    assert again["work"]["computed"] == 2
    assert_same(embeddings, recomputed)


def test_a_document_that_is_also_in_the_target_is_left_out_and_counted(corpora, no_pools, small_config, tmp_path):
    texts = [
        json.loads(line) for name in ("licences", "python-stdlib-heldout") for line in open(corpora / f"{name}.jsonl")
    ]
    leaked = tmp_path / "leaked.jsonl"
    leaked.write_text("".join(json.dumps(t) + "\n" for t in texts))
    mapping = small_config(tmp_path / "out")
    mapping["candidates"][1] = {"name": "leaked", "source": str(leaked)}
    mapping["finetune"]["tokens"] = 16_384  # so many documents that some of each kind are among them
    result, _ = embedded(mapping)
    assert result["corpora"]["leaked"]["in_target"] > 0


def test_broken_lines_are_counted_and_the_rest_is_read(corpora, no_pools, small_config, tmp_path):
    broken = tmp_path / "broken.jsonl"
    good = (corpora / "licences.jsonl").read_bytes()
    broken.write_bytes(b'{"text": "cut off\n' + good + b'\xff\xfe{"text"}\n')
    mapping = small_config(tmp_path / "out")
    mapping["candidates"][1] = {"name": "broken", "source": str(broken)}
    result, _ = embedded(mapping)
    assert result["corpora"]["broken"]["unreadable"] == 2
    assert result["corpora"]["broken"]["documents"] == len(good.splitlines())


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({"estimator": "head"}, {"head": 1}),
        ({"estimator": "reference", "draws": 2, "quirks": {"head_epochs": 1}}, {"trunk": 2, "vocabulary": 2}),
        ({"pooling": "unit", "dtype": "bfloat16"}, {"trunk": 2, "head": 1}),
        ({"head_tuning": "shared", "draws": 1}, {"trunk": 1, "head": 1}),
        ({"head_tuning": "per_batch", "pooling": "unit"}, {"trunk": 2, "head": 1}),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if "draws" in v or "pooling" in v or "estimator" in v else None,
)
def test_every_estimator_gives_an_alignment(settings, blocks, no_pools, small_config, tmp_path):
    sampling = {"sequence_length": 32, "batch_size": 4, "batches": 3, "packing": "pad"}
    mapping = small_config(tmp_path, embedding=settings, sampling=sampling)
    study = open_study(Config.model_validate(mapping))
    embed(study)
    result = align(study)
    units = evidence_of(study).units["target"]
    assert {name: len(values) for name, values in units[0].blocks.items()} == blocks
    assert all(0 <= row["value"] <= 1 for row in result["ranking"]["target"])
    assert result["measure"] == {"reference": "published", "head": "head"}.get(settings.get("estimator"), "trunk")


def test_with_some_filters_kept_alignment_and_scores_come_near_those_of_all(no_pools, small_config, tmp_path):
    found = {}
    for filters in (None, 1024):
        settings = {"estimator": "head", "filters": filters}
        study = open_study(Config.model_validate(small_config(tmp_path / str(filters), embedding=settings)))
        embed(study)
        aligned, evidence = align(study), evidence_of(study)
        size = len(evidence.units["target"][0].blocks["head"][0])
        best = {row["candidate"]: row["value"] for row in aligned["ranking"]["target"]}
        scored = score_samples(study, evidence)["licences"]["targets"]["target"]["quantiles"]
        found[filters] = (size, [best["python-stdlib"], best["licences"], *scored])
    (size, whole), (kept, some) = found.values()
    assert size > 2 * 1024 and kept == 1024
    assert whole != some and some == pytest.approx(whole, abs=0.05)


def test_a_shared_head_is_tuned_once_and_is_part_of_the_key(no_pools, small_config, tmp_path):
    mapping = small_config(tmp_path, embedding={"head_tuning": "shared"})
    result, tuned = embedded(mapping)
    assert len(list((tmp_path / "heads").glob("*.safetensors"))) == 1
    _, plain = embedded({**mapping, "embedding": {}})
    same = np.allclose(tuned["target"][0].blocks["trunk"], plain["target"][0].blocks["trunk"], rtol=1e-3)
    assert not same


def test_a_probe_that_cannot_be_used_stops_the_stage_with_one_sentence(small_config, tmp_path):
    folder = tmp_path / "probe"
    model = tiny_model("gpt2", vocabulary=8192, dtype=torch.float32)
    model.transformer.ln_f.weight.data[0] = float("nan")
    model.save_pretrained(folder)
    for file in EMBEDDED.glob("*token*"):
        shutil.copy(file, folder)
    study = open_study(Config.model_validate(small_config(tmp_path / "out", probe={"model": str(folder)})))
    with pytest.raises(ProbeError) as caught:
        embed(study)
    assert "no finite Fisher embedding" in str(caught.value) and "Traceback" not in str(caught.value)
