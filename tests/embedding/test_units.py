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
REFERENCE = {"estimator": "reference"}
SINGLE = {
    "dropout": False, "head_epochs": 0, "shifted_labels": False, "mini_batch": 1, "pads_counted": False, "axis_0": False,
    "vocabulary": False, "absolute_epsilon": False,
}  # fmt: skip


def key_of(settings):
    return embedding_key(Config.model_validate(STUDY | {"embedding": settings}), PROBE, "float32", None)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "05c39a04813fd319"),
        ({"pooling": "unit"}, "4afd547f1ce0e585"),
        ({"pooling": "unit", "quirks": "none"}, "4afd547f1ce0e585"),
    ],
)
def test_embeddings_that_version_0_1_stored_are_found(settings, key):
    """The digests are those of commit f9daaa1."""
    assert key_of(settings) == key


def test_where_not_all_filters_are_kept_it_is_another_folder():
    assert len({key_of({}), key_of({"filters": 1024}), key_of({"filters": 2048})}) == 3


def test_embeddings_of_the_published_procedure_of_version_0_1_are_not_taken_for_todays():
    """Its labels came from another place in the random stream."""
    earlier = {"41a4097517ef8b90", "ecb7c1e3f980f8bb", "01ff9793d9b2f95b"}
    found = [key_of(REFERENCE | {"draws": 2, "quirks": q}) for q in ({}, {"dropout": False, "head_epochs": 1}, SINGLE)]
    assert not earlier & set(found) and len(set(found)) == 3


def test_the_key_of_the_published_procedure_is_that_of_its_quirks_but_the_one_of_the_distance():
    plain = key_of(REFERENCE)
    assert plain == key_of(REFERENCE | {"quirks": "published"}) == key_of(REFERENCE | {"draws": 1})
    assert plain == key_of(REFERENCE | {"quirks": {"absolute_epsilon": False}})
    assert key_of(REFERENCE | {"quirks": "none"}) == key_of(REFERENCE | {"quirks": SINGLE})
    others = ({"seed_by_batch": True}, {"mini_batch": 1}, "none")
    assert len({plain, *(key_of(REFERENCE | {"quirks": quirks}) for quirks in others)}) == 4
