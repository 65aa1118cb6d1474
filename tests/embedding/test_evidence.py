"""What is kept of a corpus' units is what the units give, and is made anew where it is not whole."""

from types import SimpleNamespace

import numpy as np
import pytest

from align_ray.alignment.coefficients import Reduced, align_corpora, align_reduced, batch_matrix, main_blocks
from align_ray.alignment.noise import corpus_noise
from align_ray.corpora.rows import Rows
from align_ray.corpora.sample import CorpusSample, write_sample
from align_ray.embedding import evidence
from align_ray.embedding.evidence import reduced_of
from align_ray.embedding.units import unit_id, write_unit
from align_ray.errors import StoreError
from align_ray.fisher.unit import Unit
from align_ray.store import Store


def plain(reduced):
    """All fields, for a comparison to the last digit."""
    return vars(reduced) | {"noise": vars(reduced.noise)}


DRAWS = {"one draw": 1, "three draws": 3}


def corpus(seed, draws, n=4):
    rng = np.random.default_rng(seed)
    batches = rng.integers(0, 100, (n, 2, 8), dtype=np.int32)
    make = lambda: rng.gamma(3, 1, (draws, 50)).astype(np.float32)
    head = rng.gamma(3, 1, (n, 1, 9)).astype(np.float32)
    return batches, [
        Unit({"trunk": make(), "head": h}, {}, 2.0 + i, 2, (1,) if i == 2 else (), 16, 0.1) for i, h in enumerate(head)
    ]


@pytest.fixture(params=DRAWS.values(), ids=DRAWS)
def stored(request, tmp_path):
    store, made = Store(str(tmp_path)), {name: corpus(i, request.param) for i, name in enumerate(("t", "a", "b"))}
    for batches, units in made.values():
        for batch, unit in zip(batches, units, strict=True):
            write_unit(store, "key", unit_id(batch), unit)
    return store, {n: b for n, (b, _) in made.items()}, {n: u for n, (_, u) in made.items()}


def test_alignment_from_what_is_kept_is_that_of_the_units_to_the_last_digit(stored):
    store, batches, units = stored
    for _ in range(2):  # made, then read back
        kept = {name: reduced_of(store, "key", b, None) for name, b in batches.items()}
        np.testing.assert_equal(align_reduced(kept, ["t"]), align_corpora(units, ["t"]))
        assert all(isinstance(rows, np.memmap) for one in kept.values() for rows in one.rows.values())
    for name, one in kept.items():
        np.testing.assert_array_equal(one.main, batch_matrix(units[name], main_blocks(units[name])))
    own = align_corpora(units, ["t"])
    for name, of_corpus in units.items():
        noise = corpus_noise(of_corpus, main_blocks(of_corpus), own["diversity"][name]["value"])
        np.testing.assert_equal(own["noise"][name], noise)


def test_units_are_read_once_and_what_is_torn_is_made_again(stored, monkeypatch):
    store, batches, units = stored
    wanted = reduced_of(store, "key", batches["a"], None)
    monkeypatch.setattr(evidence, "units_of", lambda *_: pytest.fail("read again"))
    reduced_of(store, "key", batches["a"], None)
    monkeypatch.undo()
    for name in sorted(store.names("evidence/key")):
        whole = store.read_bytes(f"evidence/key/{name}")
        for torn in (whole[: len(whole) // 2], b""):
            store.write_bytes(f"evidence/key/{name}", torn)
            np.testing.assert_equal(plain(reduced_of(store, "key", batches["a"], None)), plain(wanted))
            assert store.read_bytes(f"evidence/key/{name}") == whole


def test_other_batches_another_epsilon_or_a_missing_unit_are_not_taken_for_what_is_kept(stored):
    store, batches, units = stored
    reduced_of(store, "key", batches["a"], None)
    assert reduced_of(store, "key", batches["a"][:3], None).main.shape == (3, 50)
    other = reduced_of(store, "key", batches["a"], 0.5)
    np.testing.assert_equal(plain(other), plain(Reduced.of(units["a"], 0.5)))
    with pytest.raises(StoreError, match="missing"):
        reduced_of(store, "key", batches["a"] + 1, None)
    assert reduced_of(store, "key", batches["b"], 0.1, keep=False).main.shape == (4, 50)
    assert len([n for n in store.names("evidence/key") if n.endswith(".json")]) == 3


def test_token_ids_beyond_what_is_held_are_let_go_and_read_again(monkeypatch):
    made = []

    def make(name):
        made.append(name)
        return np.full(10, ord(name), np.int32)

    monkeypatch.setattr(evidence, "HELD_BYTES", 80)
    corpora = evidence.Recent([*"abc"], make)
    assert [corpora[n][0] for n in "abab"] == [ord(n) for n in "abab"] and made == [*"ab"]
    assert corpora["c"][0] == ord("c") and corpora["b"][0] == ord("b") and made == [*"abc"], "the oldest goes"
    assert corpora["a"][0] == ord("a") and made == [*"abca"]
    with pytest.raises(KeyError):
        corpora["d"]


def test_many_corpora_are_reduced_in_tasks_and_what_they_keep_is_what_is_read(stored, monkeypatch, local_ray):
    store, batches, units = stored
    nothing = Rows.plain(np.zeros((0, 8), np.int32))
    for name, rows in batches.items():
        write_sample(store, f"corpora/{name}.parquet", CorpusSample(rows, nothing, nothing))
    monkeypatch.setattr(evidence, "TOGETHER", 3)
    corpora = [SimpleNamespace(name=name) for name in batches]
    config = SimpleNamespace(corpora=corpora, embedding=SimpleNamespace(epsilon=None))
    study, done = SimpleNamespace(config=config, store=store), {"key": "key", "dtype": "float32", "used": {"a": 3}}
    evidence.reduce_corpora(study, done)
    monkeypatch.setattr(evidence, "units_of", lambda *_: pytest.fail("read again"))
    kept = evidence.read_evidence(study, done)
    for name, of_corpus in units.items():
        np.testing.assert_equal(plain(kept.reduced[name]), plain(Reduced.of(of_corpus[: done["used"].get(name)], None)))
    np.testing.assert_array_equal(kept.batches["a"], batches["a"][:3])
