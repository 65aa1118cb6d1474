"""The sample depends on the seed and the documents' content alone; batches share no document."""

from collections import Counter

import numpy as np
import pytest

from align_ray.config import Config, Sampling
from align_ray.corpora import tasks
from align_ray.corpora.draw import DOCUMENT_SEQUENCES, document_key, make_batches, packed_rows, smallest
from align_ray.corpora.sample import read_sample, sample_corpora
from align_ray.corpora.sources import Fragment
from align_ray.corpora.tasks import MOST_TASKS, TASK_BYTES, group_fragments, grouped_fragments
from align_ray.pipeline import open_study
from tests.conftest import write_jsonl
from tests.tiny import Characters

SAMPLING = Sampling(sequence_length=8, batch_size=2)


def some_documents(n, seed=0):
    lengths = np.random.default_rng(seed).integers(0, 40, n)
    texts = [f"{i}" * int(length) for i, length in enumerate(lengths)]
    return [(document_key(0, t), t) for t in texts]


def smallest_by_definition(pairs, characters):
    found, total = [], 0
    for key, text in sorted(set(pairs)):
        if total >= characters:
            break
        found.append((key, text))
        total += len(text)
    return found


@pytest.mark.parametrize("characters", [1, 50, 700, 10**6])
def test_the_sample_is_the_documents_with_the_smallest_keys_until_they_are_long_enough(characters):
    for seed in range(30):
        pairs = some_documents(60, seed)
        assert smallest(iter(pairs), characters) == smallest_by_definition(pairs, characters)


@pytest.mark.parametrize("characters", [1, 50, 700, 10**6])
def test_order_duplicates_and_parts_do_not_change_the_sample(characters):
    rng = np.random.default_rng(1)
    pairs = some_documents(60)
    expected = smallest(pairs, characters)
    for _ in range(30):
        shuffled = [pairs[i] for i in rng.permutation(np.r_[0:60, 0:60, 0:20])]
        assert smallest(shuffled, characters) == expected
        cut = int(rng.integers(len(shuffled)))
        parts = [smallest(part, characters) for part in (shuffled[:cut], shuffled[cut:])]
        assert smallest(parts[1] + parts[0], characters) == expected


def test_the_key_is_the_seeds_and_the_texts():
    assert document_key(1, "a") == document_key(1, "a") != document_key(2, "a")
    assert document_key(1, "a") != document_key(1, "b")
    assert document_key(1, "\ud800") == document_key(1, "?")  # a lone surrogate is kept as "?"


def batches_of(texts, packing="pack", batches=10):
    counts = Counter()
    sampling = SAMPLING.model_copy(update={"packing": packing})
    drawn = [(bytes([i]), text) for i, text in enumerate(texts)]
    return make_batches(drawn, Characters(), sampling, batches, counts), counts


def text_of(batch):
    return "".join(map(chr, batch.ravel()))


@pytest.mark.parametrize("count", [0, 5, 12])
def test_a_wanted_number_of_documents_is_kept_however_long_they_are(count):
    pairs = [(document_key(0, f"{i}"), "x" * 100) for i in range(30)]
    kept = smallest(pairs, 300, count)
    assert [key for key, _ in kept] == sorted(key for key, _ in pairs)[: max(3, count)]
    assert smallest(smallest(pairs[:15], 300, count) + smallest(pairs[15:], 300, count), 300, count) == kept


def test_packing_joins_documents_with_the_end_of_text_token():
    found, counts = batches_of(["abcdef", "ghijkl", "mnopqr", "next"])
    assert found.shape == (1, 2, 8) and found.dtype == np.int32
    assert text_of(found[0]) == "abcdef\0ghijkl\0mn"
    assert counts == {"sampled_tokens": 22, "sampled_bytes": 22}


def test_batches_share_no_document():
    found, _ = batches_of([chr(65 + i) * 21 for i in range(8)])
    assert [text_of(b) for b in found] == [chr(65 + i) * 16 for i in range(8)]


def test_a_long_document_contributes_a_bounded_number_of_sequences():
    sampling = Sampling(sequence_length=8, batch_size=DOCUMENT_SEQUENCES + 1)
    drawn = [(b"a", "a" * 1000), (b"b", "b" * 1000)]
    found = make_batches(drawn, Characters(), sampling, 10, Counter())
    assert Counter(text_of(found[0])) == {"a": 8 * DOCUMENT_SEQUENCES, "\0": 1, "b": 7}


def test_rows_for_training_are_cut_from_all_of_a_document_up_to_the_bound():
    sampling = Sampling(sequence_length=8, batch_size=2)
    texts = ["".join(chr(200 + 100 * d + i) for i in range(80)) for d in range(3)]
    drawn = [(bytes([i]), text) for i, text in enumerate(texts)]
    rows = packed_rows(drawn, Characters(), sampling, 100)
    assert text_of(rows) == "\0".join(text[: 8 * DOCUMENT_SEQUENCES] for text in texts)[: rows.size]
    assert len(np.unique(rows, axis=0)) == len(rows) == 3 * DOCUMENT_SEQUENCES
    assert packed_rows(drawn, Characters(), sampling, 5).tolist() == rows[:5].tolist()
    assert packed_rows([], Characters(), sampling, 5).shape == (0, 8)


@pytest.mark.parametrize("characters", [400, 4_000, 12_000])
def test_a_study_gets_the_tokens_it_asks_for_whatever_the_length_of_documents(
    small_config, local_ray, tmp_path, characters
):
    """So many documents that the text is there, in few or many of them."""
    words, rng = [f"w{i}" for i in range(5000)], np.random.default_rng(0)
    for name, count in (("target", 400), ("a", 400), ("b", 400)):
        drawn = rng.choice(words, (count, characters // 5))
        write_jsonl(tmp_path / f"{name}.jsonl", [" ".join(row) for row in drawn])
    data = small_config(tmp_path / "out", finetune={"tokens": 16_000, "eval_tokens": 4096})
    data["sampling"] = {"sequence_length": 64, "batch_size": 8, "batches": 8}
    data["targets"][0]["source"] = str(tmp_path / "target.jsonl")
    data["candidates"] = [{"name": n, "source": str(tmp_path / f"{n}.jsonl")} for n in "ab"]
    said = []
    study = open_study(Config.model_validate(data), say=said.append)
    sample_corpora(study)
    for name in ("target", "a", "b"):
        sample = read_sample(study.store, name)
        assert len(sample.batches) == 8
        rows, wanted = (sample.heldout, 64) if name == "target" else (sample.training, 250)
        assert len(rows) == len(np.unique(rows, axis=0)) == wanted, name
    assert not [line for line in said if "note" in line]


def test_text_that_is_short_of_what_is_asked_for_is_said_with_the_numbers(small_config, local_ray, tmp_path):
    said = []
    config = small_config(tmp_path / "out", finetune={"tokens": 2_000_000, "eval_tokens": 1024})
    study = open_study(Config.model_validate(config), say=said.append)
    sample_corpora(study)
    rows = read_sample(study.store, "licences").training
    expected = f"note: 'licences' gives {rows.size:,} of 2,000,000 training tokens: a training on it alone repeats them"
    assert expected in said


def test_cutting_takes_the_start_of_each_document_and_counts_the_short_ones():
    found, counts = batches_of(["abcdefghij", "short", "klmnopqr", "stuvwxyz"], packing="cut")
    assert [text_of(b) for b in found] == ["abcdefghklmnopqr"]
    assert counts == {"sampled_tokens": 31, "sampled_bytes": 31, "shorter_than_sequence": 1}


def test_padding_keeps_short_documents_and_fills_them_up():
    found, counts = batches_of(["abcdefghij", "short"], packing="pad")
    assert text_of(found[0][:1]) == "abcdefgh"
    assert found[0, 1].tolist() == [*map(ord, "short"), -1, -1, -1]
    assert "shorter_than_sequence" not in counts


@pytest.mark.parametrize("packing", ["pack", "cut", "pad"])
def test_no_more_batches_are_made_than_asked_for_and_no_more_text_is_tokenised(packing):
    found, counts = batches_of(["x" * 8] * 12, packing, batches=2)
    assert found.shape == (2, 2, 8)
    assert counts["sampled_tokens"] == 32


def test_a_corpus_too_small_for_a_batch_gives_none():
    found, _ = batches_of(["abc"])
    assert found.shape == (0, 2, 8)


def test_sampled_bytes_are_bytes_and_not_characters():
    assert batches_of(["é" * 20])[1] == {"sampled_tokens": 20, "sampled_bytes": 40}


def test_small_files_share_a_task_and_large_or_foreign_ones_do_not():
    def fragment(size, kind="json"):
        return Fragment(kind, f"{size}", 0, size, size)

    small, large, hub = fragment(TASK_BYTES // 3), fragment(TASK_BYTES), fragment(0, "hub")
    assert group_fragments([small, small, small, small, large, hub, hub], TASK_BYTES) == [
        [small] * 3,
        [small],
        [large],
        [hub],
        [hub],
    ]


def test_corpora_of_terabytes_are_read_in_thousands_of_tasks_together(monkeypatch):
    pieces = [Fragment("json", "x", i, i + 1, TASK_BYTES) for i in range(50_000)]
    monkeypatch.setattr(tasks, "plan_fragments", lambda corpus: pieces)
    groups = [group for of_corpus in grouped_fragments([None, None, None]) for group in of_corpus]
    assert MOST_TASKS // 2 < len(groups) <= 2 * MOST_TASKS
    assert sum(map(len, groups)) == 150_000
