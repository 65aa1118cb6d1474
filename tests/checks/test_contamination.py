"""Shared n-grams: hashing, counts over all documents, and ranks without what was leaked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from align_ray import pipeline
from align_ray.checks.contamination import PIECE, WORDS, Ngrams, _worse, compare, ngram_hashes, ngrams_of
from align_ray.config_file import load_config
from align_ray.corpora.overlap import WORD
from align_ray.pipeline import open_study
from align_ray.stages import stored
from tests.conftest import actors_here, write_jsonl

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def shared(text, target):
    """The n-grams of a text that are a target's."""
    return Ngrams.of({"target": np.unique(ngram_hashes(target))}).find(ngram_hashes(text))[1]


def test_case_and_punctuation_do_not_hide_a_run_of_words():
    hidden = (
        "Some words before: ONE, two; three (four) five -- six seven. Eight nine ten eleven twelve thirteen and after"
    )
    assert len(ngram_hashes(TEXT)) == 2
    assert len(shared(hidden, TEXT)) == 1


def test_order_matters_and_short_texts_have_no_run():
    words = TEXT.split()
    swapped = " ".join([words[1], words[0], *words[2:]])
    assert len(shared(swapped, TEXT)) == 0
    assert len(ngram_hashes(" ".join(words[: WORDS - 1]))) == 0 and len(shared(TEXT, "")) == 0


def test_a_million_runs_do_not_collide():
    words = np.random.default_rng(0).integers(0, 1000, 300_000).astype(str)
    assert len(np.unique(ngram_hashes(" ".join(words)))) == 300_000 - WORDS + 1


def slow_ngrams(text):
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def test_many_targets_in_one_pass_are_as_each_alone_by_brute_force():
    rng = np.random.default_rng(0)
    vocabulary = ["one", "Two", "three_3", "straße", "日本", "É", "x" * 40, "it's", "9"]
    texts = [" ".join(rng.choice(vocabulary, n, p=[0.6, *[0.05] * 8])) for n in rng.integers(0, 200, 120)]
    texts += ["", "...", "a\x00b " * 20, ("long " * 14 + "end. ") * (PIECE // 60), "y" * (3 * PIECE) + " one" * 20]
    targets = {f"t{i}": texts[i::9][:6] for i in range(9)} | {"none": []}
    grams = {name: set().union(*map(slow_ngrams, part)) for name, part in targets.items()}
    known = Ngrams.of(
        {
            name: np.unique(np.concatenate([np.zeros(0, np.uint64), *map(ngram_hashes, part)]))
            for name, part in targets.items()
        }
    )
    count, hits, found = compare(texts, known)
    of_texts = [slow_ngrams(text) for text in texts]
    assert count == len(texts)
    assert hits.tolist() == [sum(bool(mine & wanted) for mine in of_texts) for wanted in grams.values()]
    assert known.held(found).tolist() == [len(wanted & set().union(*of_texts)) for wanted in grams.values()]
    assert sum(hits) > 50 and len(known.keys) == len(set().union(*grams.values()))


def test_the_hashes_of_a_text_do_not_depend_on_its_neighbours():
    texts = [TEXT, "b " * 20, "", TEXT.upper() + " é", "c" * (PIECE + 5) + " " + TEXT]
    together = [hashes[of == i] for hashes, of, count in ngrams_of(texts) for i in range(count)]
    for found, text in zip(together, texts, strict=True):
        np.testing.assert_array_equal(found, ngram_hashes(text))


@pytest.mark.parametrize(("copied", "least", "most"), [(False, 0.0, 0.1), (True, 0.9, 1.0)])
def test_sequences_left_out_at_random_explain_no_rank(copied, least, most):
    """A third of a candidate's sequences is left out: of the same text as the others, or the target's own."""
    rng, found = np.random.default_rng(0), []
    p, q = rng.dirichlet(np.full(200, 1.0), 2)
    config = SimpleNamespace(counted_tokens=2 * 8 * 32)

    def batches(n, of):
        return np.stack([rng.choice(200, (8, 32), p=rng.dirichlet(2000 * of)) for _ in range(n)])

    for _ in range(100):
        left, target = batches(10, p), batches(8, q)
        whole = np.concatenate([left, batches(5, q if copied else p)])
        found.append(_worse(whole, left, target, range(200), config))
    assert least <= np.mean(found) <= most


@pytest.fixture(scope="module")
def leaky(small_config, corpora, tmp_path_factory, local_ray):
    """Licences with two thirds of the target's text hidden among them, beside clean candidates."""
    folder = tmp_path_factory.mktemp("leaky")
    read = lambda name: [json.loads(line)["text"] for line in (corpora / f"{name}.jsonl").open()]
    stolen = [
        "Copied from somewhere. " + text
        for text in read("python-stdlib-heldout")[::3] + read("python-stdlib-heldout")[1::3]
    ]
    write_jsonl(folder / "leaky.jsonl", [*read("licences")[:10], *stolen])
    data = small_config(folder / "out", ("python-stdlib", "cpp-headers"))
    data["candidates"].append({"name": "leaky", "source": str(folder / "leaky.jsonl")})
    data["sampling"] |= {"batches": 8, "sequence_length": 64}  # a sequence holds runs of 13 words
    (folder / "study.yaml").write_text(yaml.safe_dump(data))
    study = open_study(load_config(folder / "study.yaml"))
    with actors_here():
        pipeline.embed(study)
        return pipeline.contamination(study), len(stolen), study


@pytest.mark.slow
def test_leaked_documents_are_counted_among_all(leaky):
    result, stolen, _ = leaky
    found = result["overlap"]["leaky"]["target"]
    assert stolen - 3 <= found["documents"] <= stolen and found["of"] == stolen + 10, (
        "short documents have no run of words"
    )
    assert 0.4 < found["covered"] < 0.9
    assert result["overlap"]["cpp-headers"]["target"]["covered"] < 0.05


@pytest.mark.slow
def test_without_the_leak_the_candidate_loses_its_place_and_a_warning_says_so(leaky):
    result, _, study = leaky
    row = result["clean"]["leaky"]["target"]
    assert row["share"] > 0.3 and row["rank"] == 1
    assert row["explained"] == (row["rank_clean"] is not None) and row["rank_clean"] != 1
    then = "too little is left to rank it" if row["rank_clean"] is None else "leaked test data explains its rank"
    assert any(then in line and "'leaky'" in line for line in result["warnings"])
    clean = result["clean"]["cpp-headers"]["target"]
    if clean["share"] == 0:
        assert clean["alignment"] == clean["alignment_clean"]
    assert stored(study, pipeline.contamination) == result


@pytest.mark.slow
def test_of_the_first_in_the_ranking_alone_the_rest_is_as_of_all(leaky):
    whole, _, study = leaky
    with actors_here():
        ranked = [row.candidate for row in pipeline.align(study).predicted.ranking["target"]]
        part = pipeline.contamination(study, 1)
        assert stored(study, pipeline.contamination) == whole, "a part does not take the place of the whole"
        again = pipeline.contamination(study)
    assert list(part.overlap) == list(part.clean) == ranked[:1]
    assert part.overlap[ranked[0]] == whole.overlap[ranked[0]]
    mine, wanted = part.clean[ranked[0]]["target"], whole.clean[ranked[0]]["target"]
    for field in ("explained", "share", "alignment", "alignment_clean", "cross_entropy", "rank"):
        assert mine[field] == wanted[field], field  # not `rank_clean`: the others keep what they share
    assert any("Only 1 of 3 candidates" in line for line in part.warnings) and again == whole
