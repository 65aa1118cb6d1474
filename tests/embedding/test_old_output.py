"""An output folder of version 0.1.0 (output_0_1_0, see make.py there): its embeddings are found again, unchanged."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from align_ray.config import Config
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.units import read_unit, sound_units, stored_units, unit_folder, unit_id
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.probe import Located
from align_ray.store import Store
from tests.tiny import tiny_model

OLD = Path(__file__).parent / "output_0_1_0"
FLOAT32 = {"embedding": {"dtype": "float32"}}


@pytest.fixture
def study(tmp_path):
    """A function that gives the study of the old folder, a copy, with other sections."""
    output = shutil.copytree(OLD, tmp_path / "out", ignore=shutil.ignore_patterns("make.py"))
    mapping = {
        "output": str(output),
        "targets": [{"name": "t", "source": "t.jsonl"}],
        "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
        "sampling": {"sequence_length": 12, "batch_size": 4, "batches": 2},
    }
    probe = Located("", {}, "0123456789abcdef", 64)
    return lambda sections: Study(Config.model_validate(mapping | sections), Store(str(output)), probe)


def test_every_stored_embedding_is_found_again(study):
    old = study(FLOAT32)
    key = unit_folder(old, "float32").key
    batches = [b for c in old.config.corpora for b in read_sample(old.store, c.name).batches]
    names = {unit_id(b) for b in batches}
    assert len(names) == 6 and stored_units(old.store, key) == names == sound_units(old.store, key, names)


def test_a_stored_embedding_is_what_would_be_computed_now(study):
    old = study(FLOAT32)
    batch = read_sample(old.store, "t").batches[0]
    kept = read_unit(old.store, unit_folder(old, "float32").key, unit_id(batch))
    made, _ = embed_batch(tiny_model("gpt2"), batch, old.config.embedding.plain(), old.config.seed, 0)
    assert kept.blocks.keys() == made.blocks.keys()
    for name, values in kept.blocks.items():
        np.testing.assert_allclose(made.blocks[name], values, rtol=1e-5)
        np.testing.assert_allclose(made.variances[name], kept.variances[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("sections", "key", "head"),
    [
        (FLOAT32, "18d4916e99f4fb8e", None),
        ({"embedding": {"dtype": "bfloat16", "estimator": "head", "draws": 1}}, "e46b386d60f932f2", None),
        (
            {"embedding": {"dtype": "float32", "head_tuning": "shared", "pooling": "unit"}, "seed": 7},
            "4b7d8077a30b2c0b",
            "heads/23715751da56966d.safetensors",
        ),
    ],
)
def test_the_folder_of_the_embeddings_has_the_name_that_the_old_version_gave_it(study, sections, key, head):
    old = study(sections)
    folder = unit_folder(old, old.config.embedding.dtype)
    assert (folder.key, folder.head) == (key, head)
