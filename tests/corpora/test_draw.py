"""The sample depends on the seed and the documents' content alone; batches share no document."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from align_ray.config import Config, Sampling
from align_ray.config_corpora import Corpus
from align_ray.corpora import draw, sample, tasks
from align_ray.corpora.draw import (
    DOCUMENT_SEQUENCES,
    cut_rows,
    document_key,
    excerpt,
    make_batches,
    smallest,
    tokenised,
)
from align_ray.corpora.rows import Rows
from align_ray.corpora.sample import read_sample, sample_corpora
from align_ray.corpora.sources import Fragment
from align_ray.corpora.tasks import MOST_TASKS, TASK_BYTES, group_fragments, grouped_fragments
from align_ray.pipeline import open_study
from align_ray.store import Store
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
    return make_batches(documents_of(texts), Characters(), sampling, batches, counts), counts


def documents_of(texts, seed=0):
    return [tokenised(document_key(seed, text), text, Characters()) for text in texts]


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


def letters(document, n):
    """Text of which every character tells the document and the place."""
    return "".join(chr(1000 * (document + 1) + i) for i in range(n))


def test_a_long_document_contributes_a_bounded_number_of_sequences_from_all_over_it():
    sampling = Sampling(sequence_length=8, batch_size=DOCUMENT_SEQUENCES + 1)
    (batch,) = make_batches(documents_of([letters(0, 800), letters(1, 800)]), Characters(), sampling, 10, Counter())
    documents, places = batch // 1000, batch % 1000
    assert (documents[:-1] == 1).all() and (documents[-1] == 2).all()
    assert (np.diff(places, axis=1) == 1).all(), "a sequence is a window of its document"
    starts = places[:-1, 0]
    assert len(set(starts)) == DOCUMENT_SEQUENCES and (np.diff(starts) >= 8).all() and np.ptp(starts) > 400


def test_windows_are_at_other_places_in_every_document_and_at_the_same_ones_for_a_seed():
    sampling = Sampling(sequence_length=8, batch_size=2)
    one, again = (cut_rows(documents_of([letters(0, 800)]), Characters(), sampling, 100) for _ in range(2))
    np.testing.assert_array_equal(one.ids, again.ids)
    other_seed = cut_rows(documents_of([letters(0, 800)], seed=1), Characters(), sampling, 100)
    other = cut_rows(documents_of([letters(1, 800)]), Characters(), sampling, 100)
    places = [set(rows.places[:, 0].tolist()) for rows in (one, other_seed, other)]
    assert all(len(p) == DOCUMENT_SEQUENCES for p in places) and places[0] != places[1] and places[0] != places[2]


def test_of_a_very_long_document_any_part_is_looked_at():
    """Books that begin alike give rows that differ; `cut` takes the first tokens, as published."""
    sampling = Sampling(sequence_length=8)
    texts = [letters(0, 500) + letters(1 + i, 4500) for i in range(40)]
    keys = [document_key(0, text) for text in texts]
    starts = [text.index(excerpt(key, text, sampling)) for key, text in zip(keys, texts, strict=True)]
    assert np.ptp(starts) > 3000 and min(starts) < 1000
    rows = cut_rows(
        [tokenised(key, excerpt(key, text, sampling), Characters()) for key, text in zip(keys, texts, strict=True)],
        Characters(), sampling, 1000,
    )  # fmt: skip
    assert len(rows) == 40 * DOCUMENT_SEQUENCES and len(np.unique(rows.ids, axis=0)) > 0.95 * len(rows)
    cut = sampling.model_copy(update={"packing": "cut"})
    assert all(text.startswith(excerpt(key, text, cut)) for key, text in zip(keys, texts, strict=True))


def test_rows_hold_every_token_once_where_documents_are_not_too_long():
    sampling = Sampling(sequence_length=8, batch_size=2)
    lengths = [5, 8, 30, 64, 3, 17, 1]
    documents = documents_of([letters(i, n) for i, n in enumerate(lengths)])
    rows = cut_rows(documents, Characters(), sampling, 100)
    text = rows.ids[rows.ids > 0]
    assert len(set(text.tolist())) == len(text) > sum(lengths) - 8 - 2, "at most an unfinished row is missing"
    of_text = rows.ids > 0
    np.testing.assert_array_equal(rows.places[of_text], rows.ids[of_text] % 1000)
    names = {int.from_bytes(d.key[:8], signed=True): i + 1 for i, d in enumerate(documents)}
    assert [names[d] for d in rows.documents[of_text]] == (rows.ids[of_text] // 1000).tolist()
    assert cut_rows(documents, Characters(), sampling, 5).ids.tolist() == rows.ids[:5].tolist()
    assert cut_rows([], Characters(), sampling, 5).ids.shape == (0, 8)


def test_positions_begin_anew_with_every_document_and_its_first_token_does_not_count():
    sampling = Sampling(sequence_length=8, batch_size=2)
    rows = cut_rows(documents_of(["abc", "de", "fghijk"]), Characters(), sampling, 1)
    assert text_of(rows.ids) == "abc\0de\0f"
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert rows.scored.tolist() == [[False, True, True, True, False, True, True, False]]


def test_held_out_rows_share_no_document():
    sampling = Sampling(sequence_length=8, batch_size=2)
    texts = [letters(i, int(n)) for i, n in enumerate(np.random.default_rng(0).integers(1, 90, 60))]
    rows = cut_rows(documents_of(texts), Characters(), sampling, 100, alone=True)
    of_rows = [set(row.tolist()) for row in rows.documents]
    assert len(rows) >= 50 and sum(map(len, of_rows)) == len(set().union(*of_rows))


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
        assert len(rows) == len(np.unique(rows.ids, axis=0)) == wanted, name
    assert not [line for line in said if "note" in line]


def test_text_that_is_short_of_what_is_asked_for_is_said_with_the_numbers(small_config, local_ray, tmp_path):
    said = []
    config = small_config(tmp_path / "out", finetune={"tokens": 2_000_000, "eval_tokens": 1024})
    study = open_study(Config.model_validate(config), say=said.append)
    sample_corpora(study)
    rows = read_sample(study.store, "licences").training
    expected = (
        f"note: 'licences' gives {rows.tokens:,} of 2,000,000 training tokens: a training on it alone repeats them"
    )
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


@pytest.mark.parametrize("surplus", [draw.SURPLUS, 0.2])
@pytest.mark.parametrize("tokens, least", [(3_000, 0), (3_000, 400), (10**6, 0)])
def test_what_is_drawn_by_many_tasks_is_what_one_draws_though_each_hands_over_its_share_alone(
    tmp_path, monkeypatch, surplus, tokens, least
):
    """With too small a surplus tasks hold more of the sample than they gave, and are read again."""
    rng, read = np.random.default_rng(0), []
    texts = [chr(97 + i % 26) * int(n) + f" {i}" for i, n in enumerate(rng.integers(1, 60, 4000))]
    for i in range(40):
        write_jsonl(tmp_path / f"{i:02}.jsonl", texts[i * 100 : (i + 1) * 100] + texts[:2])
    corpus = Corpus(name="a", source=str(tmp_path))

    class Rows(list):
        def iter_rows(self):
            return iter(self)

    def here(rows, function):
        read.append(len(rows))
        made = [function({k: np.array([v], object) for k, v in row.items()}) for row in rows]
        return Rows({k: v[0] for k, v in row.items()} for row in made)

    monkeypatch.setattr(draw, "on_tasks", here)
    monkeypatch.setattr(draw, "SURPLUS", surplus)
    monkeypatch.setattr(draw, "FEWEST", 1)
    found = []
    for size in (2**30, 4_000, 20_000):
        monkeypatch.setattr(tasks, "TASK_BYTES", size)
        read.clear()
        ((_, drawn),) = draw.draw_corpora([(corpus, tokens, least)], SAMPLING, 3, Characters())
        found.append([(d.key, d.ids.tolist(), d.bytes) for d in drawn.documents] + [drawn.counts])
        ((_, kept, *_),) = draw.draw_texts([(corpus, tokens, least)], SAMPLING, 3, None)
        found[-1].append(kept)
        assert read[0] == {2**30: 1, 4_000: 40}.get(size, read[0])
        assert surplus > 1 or size == 2**30 or len(read) > 2, "some were read again"
    assert found[0] == found[1] == found[2]


def test_two_runs_of_one_configuration_draw_beside_each_other(tmp_path, small_config, monkeypatch):
    """On object storage: another process draws the same while this one is drawing."""
    config = Config.model_validate(small_config(tmp_path / "out"))
    study = SimpleNamespace(config=config, store=Store(config.output), tokenizer=None, say=lambda line: None)
    rows = Rows.plain(np.ones((1, 4), np.int32))
    monkeypatch.setattr(sample, "_embedding_batches", lambda *given: np.ones((2, 1, 4), np.int32))
    monkeypatch.setattr(sample, "cut_rows", lambda *given, **options: rows)
    counts, names = Counter(sampled_tokens=4, sampled_bytes=4, bytes=4, documents=1), [c.name for c in config.read]

    def drawing(wanted, *rest):
        for corpus, *_ in wanted:
            yield corpus, SimpleNamespace(counts=counts, rejects=[], documents=[], sketch=np.zeros(0, np.uint64))
        if sample.RUN != "other":
            with monkeypatch.context() as patch:
                patch.setattr(sample, "RUN", "other")
                sample_corpora(study)

    monkeypatch.setattr(sample, "draw_corpora", drawing)
    assert set(sample_corpora(study)) == set(names)
    assert all(len(read_sample(study.store, name).batches) == 2 for name in names)
    assert not list((tmp_path / "out" / "drawn").iterdir()), "nothing is left of what was being drawn"
