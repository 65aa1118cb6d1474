"""Documents that two candidates share are found while they are read."""

import random

import numpy as np
import pytest

from align_ray.config import Config
from align_ray.corpora.overlap import KEPT, Sketch, fingerprint, share_in
from align_ray.corpora.sample import sample_corpora
from align_ray.pipeline import open_study
from tests.conftest import write_jsonl


def sketch(texts):
    made = Sketch()
    for text in texts:
        made.add(text)
    return made.settle()


@pytest.mark.parametrize(("n", "m", "common"), [(50, 80, 10), (8000, 8000, 2000), (8000, 2500, 1200), (3000, 3000, 0)])
def test_the_share_of_common_documents_is_estimated(n, m, common):
    a, b = ([f"document {i}" for i in r] for r in (range(n), range(n - common, n - common + m)))
    one, other = sketch(a), sketch(b)
    assert share_in(one, other) == pytest.approx(common / n, abs=0 if n < KEPT else 0.06)
    assert share_in(other, one) == pytest.approx(common / m, abs=0 if n < KEPT else 0.06)


def test_case_punctuation_spaces_order_and_parts_make_no_difference():
    texts = [f"Some words, number {i}." for i in range(3000)]
    whole = sketch(texts)
    np.testing.assert_array_equal(whole, sketch([f"  some WORDS number\n{i}" for i in reversed(range(3000))]))
    first, second = Sketch(), sketch(texts[1500:])
    for text in texts[:1500]:
        first.add(text)
    np.testing.assert_array_equal(first.settle(second), whole)
    assert len(sketch(["the same"] * 5000)) == 1


def words(seed, count):
    start = random.Random(seed).randrange(10**9)
    return " ".join(f"{start + i:x}" for i in range(count))


@pytest.mark.parametrize("changed", [0.0, 0.01, 0.1])
def test_near_copies_count_by_the_runs_that_they_have_in_common(changed):
    rng = random.Random(1)
    documents = [[f"{rng.randrange(10**6):x}" for _ in range(rng.choice([30, 150]))] for _ in range(2000)]
    copies = [[w if rng.random() > changed else "other" for w in document] for document in documents]
    runs = [
        [set(zip(*(d[i:] for i in range(5)), strict=False)) for d in pair]
        for pair in zip(documents, copies, strict=True)
    ]
    jaccard = np.mean([len(a & b) / len(a | b) for a, b in runs])
    one, other = sketch(map(" ".join, documents)), sketch(map(" ".join, copies))
    assert share_in(one, other) == pytest.approx(jaccard, abs=0.05)
    assert share_in(sketch(words(i, 50) for i in range(2000)), one) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u201cIt\u2019s here\u201d \u2013 he said so again", "It's here - he said so again"),
        ("a\u00a0few words that stand apart", "a few words that stand apart"),
        ("\u4eca\u5929\uff0c\u5929\u6c14\u5f88\u597d\u3002", "\u4eca\u5929 \u5929\u6c14\u5f88\u597d"),
    ],
)
def test_signs_of_other_scripts_are_no_words(one, other):
    assert fingerprint(one) == fingerprint(other)


def test_in_scripts_without_spaces_near_copies_are_near():
    documents = ["".join(chr(0x4E00 + (i * 37 + j * 101) % 5000) for i in range(100)) for j in range(300)]
    changed = [d[:50] + "\u4e00" + d[51:] for d in documents]
    assert 0.75 < share_in(sketch(documents), sketch(changed)) < 1


def test_a_long_documents_fingerprint_is_no_smaller_than_a_short_ones():
    short, long = ([fingerprint(words(i, count)) / 2**64 for i in range(1000)] for count in (6, 600))
    assert np.mean(short) == pytest.approx(0.5, abs=0.04) and np.mean(long) == pytest.approx(0.5, abs=0.04)


def test_what_candidates_share_is_said_and_stored(small_config, local_ray, tmp_path):
    texts = lambda start, count: [words(i, 20) for i in range(start, start + count)]
    write_jsonl(tmp_path / "a.jsonl", texts(0, 200))
    write_jsonl(tmp_path / "b.jsonl", [t.upper() for t in texts(150, 100)])
    data = small_config(tmp_path / "out")
    data["candidates"] = [{"name": n, "source": str(tmp_path / f"{n}.jsonl")} for n in "ab"]
    said = []
    report = sample_corpora(open_study(Config.model_validate(data), say=said.append))
    assert report["a"]["shared_with"] == {"b": 0.25} and report["b"]["shared_with"] == {"a": 0.5}
    assert any(line.startswith("warning: 50% of the documents of 'b' are in 'a' as well") for line in said)
