"""The digests under which embeddings are stored: those of earlier versions are found again."""

from types import SimpleNamespace

import pytest

from align_ray.config import Config
from align_ray.embedding.units import embedding_key

STUDY = {
    "output": "out",
    "targets": [{"name": "t", "source": "t.jsonl"}],
    "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
}
PROBE = SimpleNamespace(digest="0" * 16)
SINGLE = {
    "dropout": False, "head_epochs": 0, "shifted_labels": False, "mini_batch": 1, "pads_counted": False, "axis_0": False,
    "vocabulary": False, "absolute_epsilon": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "05c39a04813fd319"),
        ({"pooling": "unit"}, "4afd547f1ce0e585"),
        ({"estimator": "reference"}, "41a4097517ef8b90"),
        ({"estimator": "reference", "quirks": "published"}, "41a4097517ef8b90"),
        ({"estimator": "reference", "quirks": {"dropout": False, "head_epochs": 1}}, "ecb7c1e3f980f8bb"),
        ({"estimator": "reference", "quirks": SINGLE}, "01ff9793d9b2f95b"),
        ({"estimator": "reference", "quirks": "none"}, "01ff9793d9b2f95b"),
    ],
)
def test_embeddings_that_version_0_1_stored_are_found(settings, key):
    """The digests are those of commit f9daaa1."""
    config = Config.model_validate(STUDY | {"embedding": settings})
    assert embedding_key(config, PROBE, "float32", None) == key
