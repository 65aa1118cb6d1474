"""Selecting documents by alignment: scores, resampling, counts, resuming, shards, and the samples stage."""

import dataclasses
import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy import stats
from typer.testing import CliRunner

from align_ray import pipeline, stages
from align_ray.alignment.baselines import PRIOR
from align_ray.alignment.distance import scaled_cosine_distance
from align_ray.cli.main import app
from align_ray.config import Config, Cost, Embedding
from align_ray.corpora.draw import document_key, encode
from align_ray.corpora.sample import read_sample
from align_ray.embedding.chunks import holds, tokenised
from align_ray.embedding.scores import ScoreTargets, refuse_unscorable, score_targets, sequence_scores
from align_ray.errors import CapReached, ConfigError, StoreError
from align_ray.fisher.probe import load_model, load_tokenizer
from align_ray.fisher.trunk import fisher_embeddings
from align_ray.handover import documents as document_scores
from align_ray.handover import select as selection
from align_ray.handover.rule import Amount, distinct, gumbel_noise, log_weights, number_taken, ranked
from align_ray.pipeline import open_study
from align_ray.spending import costs
from align_ray.stages import charged, stored
from align_ray.store import Store
from tests.conftest import actors_here
from tests.tiny import tiny_model

LENGTHS = (12, 5, 9, 2)


def padded(vocabulary=29, length=12):
    rng = np.random.default_rng(0)
    ids = np.full((len(LENGTHS), length), -1, np.int32)
    for row, n in zip(ids, LENGTHS, strict=True):
        row[:n] = rng.integers(0, vocabulary, n)
    return ids


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance", "settings", "block"),
    [
        (torch.float64, 1e-10, {"draws": 3}, "trunk"),
        (torch.float32, 1e-4, {"draws": 3}, "trunk"),
        (torch.float64, 1e-10, {"draws": 2, "pooling": "unit"}, "trunk"),
        (torch.float64, 1e-10, {"estimator": "head"}, "head"),
    ],
    ids=["float64", "float32", "unit", "head"],
)
def test_the_score_is_one_minus_the_distance_to_the_target_whatever_the_padding(dtype, tolerance, settings, block):
    model, ids, settings = tiny_model("gpt2", dtype=dtype), padded(), Embedding(**settings)
    alone = []
    for row, n in zip(ids, LENGTHS, strict=True):
        made = fisher_embeddings(model, row[None, :n], settings.draws if block == "trunk" else 0, seed=7)
        draws = (made.trunk[:, 0] if block == "trunk" else made.head).double()
        alone.append((draws / draws.sum(-1, keepdim=True) if settings.pooling == "unit" else draws).mean(0).numpy())
    targets = np.stack([np.mean(alone[:2], 0), np.mean(alone[2:], 0)])
    found = sequence_scores(model, ids, settings, 7, block, targets)
    wanted = [[1 - scaled_cosine_distance(f, t) for t in targets] for f in alone]
    np.testing.assert_allclose(found.alignment, wanted, rtol=tolerance)
    assert np.ptp(found.alignment) > 0.01, "else this test could not fail"
    again = sequence_scores(model, ids[::-1].copy(), settings, 7, block, targets)
    np.testing.assert_allclose(again.alignment[::-1], found.alignment, rtol=tolerance)


def test_a_document_without_tokens_or_a_finite_embedding_has_no_score_and_the_others_keep_theirs():
    model, ids = tiny_model("gpt2"), padded()
    targets = np.random.default_rng(0).random((1, fisher_embeddings(model, ids, 1, 0).trunk.shape[-1]))
    whole = sequence_scores(model, ids, Embedding(draws=1), 0, "trunk", targets)
    broken = ids.copy()
    broken[0] = -1
    broken[3] = [28, *[-1] * 11]
    broken[1][broken[1] == 28] = 27
    without = np.isin(np.arange(4), [0, 3])
    # token 28 spoils what reads it (the head is tied: all losses too)
    model.transformer.wte.weight.data[28] = float("nan")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().nan_to_num())
    scores = sequence_scores(model, broken, Embedding(draws=1), 0, "trunk", targets)
    assert np.isnan(scores.alignment[:, 0]).tolist() == without.tolist()
    assert np.isnan(scores.loss).tolist() == without.tolist(), "one token has no next one"
    assert whole.alignment.shape == (4, 1) and np.isfinite(whole.alignment).all()


def test_a_targets_own_batch_is_left_out_of_its_mean_alone():
    rows = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones((2, 2), np.float32)}
    reference = ScoreTargets("", "float32", None, "trunk", rows)
    np.testing.assert_array_equal(reference.means(), [[2, 3], [1, 1]])
    np.testing.assert_array_equal(reference.means("a", 2), [[1, 2], [1, 1]])
    np.testing.assert_array_equal(reference.means("candidate", 2), reference.means())


def test_text_is_cut_to_the_sequence_and_counted_whole():
    class Characters:
        def __call__(self, text, **_):
            return {"input_ids": [ord(c) for c in text]}

    ids, counts = tokenised(["abcdef", "a", ""], Characters(), 4)
    assert ids.tolist() == [[97, 98, 99, 100], [97, -1, -1, -1], [-1] * 4] and counts == [6, 1, 0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"estimator": "reference"}, "embedding.estimator"), ({"head_tuning": "per_batch"}, "embedding.head_tuning")],
)
def test_an_estimator_without_embeddings_of_single_documents_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        refuse_unscorable(Embedding(**settings))


# --- resampling -------------------------------------------------------------------------------------------------------


def keys_for(n, seed=0):
    return np.array([document_key(seed, str(i)) for i in range(n)], "S16")


def test_gumbel_noise_depends_on_seed_and_document_alone_and_is_gumbel():
    keys = keys_for(20_000)
    noise = gumbel_noise(keys)
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 0.01
    shuffled = np.random.default_rng(0).permutation(len(keys))
    np.testing.assert_array_equal(gumbel_noise(keys[shuffled]), noise[shuffled])
    assert abs(np.corrcoef(noise, gumbel_noise(keys_for(20_000, seed=1)))[0, 1]) < 0.03
    first = np.frombuffer(keys.tobytes(), ">u8").reshape(-1, 2)[:, 0].astype(float)
    assert abs(np.corrcoef(noise, first)[0, 1]) < 0.03, "what the corpus' sample was drawn by must not decide again"
    assert gumbel_noise(np.array([b"x" * 8 + bytes(8)], "S16")).shape == (1,), "keys may end in zero bytes"


def test_gumbel_matches_the_targets_scores_where_the_highest_ones_collapse():
    rng = np.random.default_rng(1)
    corpus = np.concatenate([rng.beta(4, 8, 30_000), rng.beta(16, 8, 2_000)])
    target = rng.beta(16, 8, 500)
    keys = keys_for(len(corpus))
    distance = {}
    for method, own in (("top", None), ("gumbel", target)):
        order, priority = ranked(keys, corpus, own)
        assert (np.diff(priority) <= 0).all()
        distance[method] = stats.ks_2samp(corpus[order[:1000]], target).statistic
    assert distance["gumbel"] < 0.06 and distance["top"] > 0.4
    taken = corpus[ranked(keys, corpus, target)[0][:1000]]
    assert (taken < target.min()).mean() < 0.01, "most of the corpus lies below all of the target's scores"


def test_near_duplicates_of_one_good_document_do_not_take_over():
    rng = np.random.default_rng(2)
    target = rng.normal(0.7, 0.05, 500)
    cluster = rng.normal(0.85, 1e-4, 3_000)
    corpus = np.concatenate([rng.normal(0.6, 0.1, 27_000), cluster])
    keys = keys_for(len(corpus))
    share = {
        method: (ranked(keys, corpus, own)[0][:1000] >= 27_000).mean()
        for method, own in (("top", None), ("gumbel", target))
    }
    assert share["top"] > 0.5 and share["gumbel"] < 0.05
    # where the target has most of its documents
    middle = np.concatenate([corpus[:27_000], rng.normal(0.7, 1e-4, 3_000)])
    assert (ranked(keys, middle, target)[0][:1000] >= 27_000).mean() < 2.5 / np.sqrt(500)


def test_weights_give_every_bin_the_targets_share():
    rng = np.random.default_rng(3)
    target, corpus = rng.normal(0, 1, 400), rng.normal(-1, 2, 50_000)
    weights = np.exp(log_weights(corpus, target)) / len(corpus)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    for low, high in ((0.1, 0.35), (0.5, 0.9)):
        inside = (corpus >= np.quantile(target, low)) & (corpus < np.quantile(target, high))
        assert weights[inside].sum() == pytest.approx(high - low, abs=0.02)
    assert weights[corpus < target.min()].sum() == pytest.approx(1 / 401)
    same = log_weights(np.array([0.2, 0.5, 0.9]), np.full(30, 0.5))
    assert same[1] > max(same[0], same[2]), "a target of equal scores"


def test_the_amount_is_whole_documents_up_to_all_there_are():
    tokens = np.array([5, 5, 10])
    for value, taken in ((1, 1), (5, 1), (6, 2), (20, 3), (99, 3)):
        assert number_taken(tokens, Amount("tokens", value)) == taken
    assert number_taken(tokens, Amount("documents", 2)) == 2 and number_taken(tokens, Amount("documents", 9)) == 3
    assert number_taken(tokens, Amount("fraction", 0.34)) == 2 and number_taken(tokens, Amount("fraction", 1.0)) == 3


def test_a_fraction_is_not_rounded_up_by_the_arithmetic():
    assert number_taken(np.ones(100, np.int64), Amount("fraction", 0.07)) == 7
    assert number_taken(np.ones(100, np.int64), Amount("fraction", 0.071)) == 8


def test_a_key_that_ends_in_zeros_is_found():
    keys = np.unique(np.array([b"a" * 15 + b"\0", b"b" * 14 + b"\0\0", b"c" * 16], "S16"))
    assert holds(keys, b"a" * 15 + b"\0") and holds(keys, b"b" * 14 + b"\0\0") and holds(keys, b"c" * 16)
    assert not holds(keys, b"a" * 16) and not holds(keys, b"z" * 16) and not holds(keys[:0], b"c" * 16)


def test_of_equal_documents_one_is_kept_whatever_the_order():
    keys, scores = np.array([b"b", b"a", b"b", b"c"], "S16"), np.array([0.1, 0.2, 0.3, -np.inf])
    assert distinct(keys, scores).tolist() == [1, 2, 3]
    assert distinct(keys[::-1], scores[::-1]).tolist() == [2, 1, 0]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--corpus", "licences"], "one of --documents, --tokens and --fraction"),
        (["--corpus", "licences", "--tokens", "9", "--documents", "1"], "one of --documents, --tokens and --fraction"),
        (["--corpus", "web", "--documents", "1"], "--corpus web: the study's candidates are python-stdlib, licences"),
        (["--corpus", "licences", "--documents", "1", "--target", "t"], "--target t: the study's targets are target"),
        (["--corpus", "licences", "--documents", "1", "--method", "best"], "--method best: choose one of top, gumbel"),
        (["--corpus", "licences", "--documents", "1", "--by", "size"], "--by size: choose words or alignment"),
        (
            ["--corpus", "licences", "--documents", "1", "--by", "alignment", "--set", "embedding.estimator=reference"],
            "embedding.estimator",
        ),
        (["--corpus", "licences", "--documents", "1"], "no result of the stage 'embed'"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_status_2(options, says, small_config, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(small_config(tmp_path / "out")))
    done = CliRunner().invoke(app, ["select", str(file), "--out", str(tmp_path / "chosen"), *options])
    assert done.exit_code == 2 and says in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_several_targets_must_be_named(small_config, tmp_path):
    targets = Config.model_validate(small_config(tmp_path)).targets
    assert selection.named(targets, None, "--target", "targets") == targets[0]
    with pytest.raises(ConfigError, match="--target is missing; the study's targets are target, target"):
        selection.named(targets * 2, None, "--target", "targets")


def test_a_folder_with_other_shards_is_refused_and_ones_own_unfinished_selection_goes_on(tmp_path):
    out = Store(str(tmp_path))
    selection.check_free(out, {"corpus": "a"})
    out.write_json("manifest.json", {"settings": {"corpus": "a", "documents": "d"}, "files": []})
    out.write_bytes("part-00000.parquet", b"")
    selection.check_free(out, {"corpus": "a"})
    for settings in ({"corpus": "b"}, {"corpus": "a", "documents": "changed"}):
        with pytest.raises(ConfigError, match="name another folder or empty it"):
            selection.check_free(out, settings)


def test_no_job_script_hides_a_module_of_the_standard_library():
    jobs = {file.stem for file in (Path(__file__).resolve().parents[2] / "jobs").glob("*.py")}
    assert "select_documents" in jobs and not jobs & sys.stdlib_module_names, "a script's folder is first on its path"


# --- on Ray -----------------------------------------------------------------------------------------------------------


TEXTS = ("python-stdlib", "licences", "python-stdlib-heldout")


@pytest.fixture(scope="module")
def study(small_config, corpora, tmp_path_factory, local_ray):
    """A study whose candidate `mixed` has known good, doubled, leaked and unreadable records, embedded."""
    folder = tmp_path_factory.mktemp("select")
    texts = {n: [json.loads(line)["text"] for line in (corpora / f"{n}.jsonl").open()] for n in TEXTS}
    leaked = texts.pop("python-stdlib-heldout")
    good = [t for of_corpus in texts.values() for t in [t for t in dict.fromkeys(of_corpus) if t not in leaked][:24]]
    broken = ["{broken", json.dumps({"other": 1}), json.dumps({"text": "  "})]
    lines = [*(json.dumps({"text": t}) for t in [*good, *good[:4], *leaked[:3]]), *broken]
    (folder / "mixed.jsonl").write_text("".join(line + "\n" for line in lines))
    mapping = small_config(folder / "out", ("licences",), embedding={"dtype": "float32"}, probe={})
    mapping["candidates"].append({"name": "mixed", "source": str(folder / "mixed.jsonl")})
    opened = open_study(Config.model_validate(mapping))
    with actors_here():
        pipeline.embed(opened)
    return opened, good


def run_select(study, out, amount=Amount("documents", 20), method="top", by="alignment", **config):
    changed = dataclasses.replace(study, config=study.config.model_copy(update=config))
    mixed, target = changed.config.candidates[-1], changed.config.targets[0]
    if by == "words":
        against = document_scores.words_against(changed, mixed)
    else:
        against = score_targets(changed, pipeline.evidence_of(study))
    return selection.select(changed, against, mixed, target, amount, Store(str(out)), method)


def rows_of(out):
    return [row for file in sorted(out.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def selected(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("chosen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_scores, "CHUNK_DOCUMENTS", 8)
        return run_select(study[0], out), out


def test_the_most_aligned_documents_are_written_with_their_scores(study, selected):
    (opened, good), (result, out) = study, selected
    config = opened.config
    assert result["counts"] == {
        "documents": 55, "unreadable": 1, "oversized": 0, "vanished": 0, "missing_column": 1, "empty": 1, "duplicate": 4, "in_target": 3, "no_tokens": 0,
        "non_finite": 0, "scored": 48,
    }  # fmt: skip
    reference = score_targets(opened, pipeline.evidence_of(opened))
    tokenizer, model = load_tokenizer(opened.probe), load_model(opened.probe)
    ids, tokens = tokenised(good, tokenizer, config.sampling.sequence_length)
    scores = sequence_scores(model, ids, config.embedding, config.seed, "trunk", reference.means()).alignment[:, 0]
    rows = rows_of(out)
    best = np.array([good.index(r["text"]) for r in rows])  # scores are stored rounded: near ties in any order
    assert len(set(best)) == 20 and (np.diff(scores[best]) < 2e-5).all()
    assert scores[best].min() > np.sort(scores)[-21] - 2e-5
    np.testing.assert_allclose([r["score"] for r in rows], scores[best], atol=1e-5)
    assert [r["tokens"] for r in rows] == [tokens[i] for i in best]
    assert [r["key"] for r in rows] == [document_key(config.seed, r["text"]).hex() for r in rows]
    assert result["selected"] == {"documents": 20, "tokens": sum(tokens[i] for i in best)}
    assert result["available"] == {"documents": 48, "tokens": sum(tokens)}
    assert result["score"]["before"] == pytest.approx(scores.mean(), abs=1e-5)
    assert result["score"]["after"] == pytest.approx(scores[best].mean(), abs=1e-5)
    assert result["threshold"] == result["score"]["lowest"] == rows[-1]["score"]
    assert result["examples"]["most"][0] == {"text": rows[0]["text"], "score": rows[0]["score"], "taken": True}
    assert (
        result["examples"]["least"][0]["text"] == good[np.argmin(scores)]
        and not result["examples"]["least"][0]["taken"]
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == {k: v for k, v in result.items() if k not in ("work", "examples")}
    (file,) = manifest["files"]
    assert file["rows"] == 20 and file["sha256"] == hashlib.sha256((out / file["file"]).read_bytes()).hexdigest()


def test_by_words_the_mean_log_ratio_of_the_targets_and_the_corpus_tokens_decides(study, no_pools, tmp_path):
    opened, good = study
    tokenizer, size = load_tokenizer(opened.probe), len(opened.tokenizer)
    texts = [
        json.loads(line).get("text", "") for line in Path(opened.config.candidates[-1].source).open() if line[1] == '"'
    ]
    everything = [encode(tokenizer, text) for text in texts if text.strip()]  # doubled and leaked ones as they are read
    pool = np.bincount(np.concatenate(everything), minlength=size)
    target = read_sample(opened.store, "target").batches
    wanted = np.bincount(target[target >= 0], minlength=size)
    general = (pool + 0.5) / (pool + 0.5).sum()
    ratio = np.log((wanted + PRIOR * general) / (wanted.sum() + PRIOR) / general)
    scores = np.array([ratio[encode(tokenizer, text)].mean() for text in good])
    result = run_select(opened, tmp_path / "words", by="words")
    rows = rows_of(tmp_path / "words")
    assert [r["text"] for r in rows] == [good[i] for i in np.argsort(-scores)[:20]]
    np.testing.assert_allclose([r["score"] for r in rows], np.sort(scores)[::-1][:20], rtol=1e-12)
    assert result["settings"]["by"] == "words" and result["work"]["computed"] == 48
    assert result["counts"]["scored"] == 48 and result["counts"]["duplicate"] == 4
    matched = run_select(opened, tmp_path / "matched", Amount("documents", 12), "gumbel", by="words")
    assert matched["work"]["computed"] == 0 and matched["match"]["after"] < matched["match"]["before"]


def test_a_lost_and_a_torn_chunk_alone_are_scored_again_and_the_other_method_needs_no_other_scores(
    study, selected, no_pools, tmp_path, monkeypatch
):
    opened, (first, _) = study[0], selected
    folder = opened.store.local_path(first["settings"]["scores"])
    chunks = sorted(folder.glob("*.parquet"))
    assert first["work"]["computed"] == 48 and first["work"]["chunks"] == len(chunks) == 6
    rows = sum(pq.read_table(chunk).num_rows for chunk in chunks[2:4])
    chunks[2].write_bytes(chunks[2].read_bytes()[:-20])
    chunks[3].unlink()
    monkeypatch.setattr(document_scores, "CHUNK_DOCUMENTS", 8)
    wanted = first["available"]["tokens"] // 3
    result = run_select(opened, tmp_path, Amount("tokens", wanted), "gumbel")
    assert result["work"]["computed"] == rows and result["work"]["chunks"] == 2 and chunks[3].exists()
    assert result["counts"] == first["counts"]
    written = rows_of(tmp_path)
    total = sum(r["tokens"] for r in written)
    assert total >= wanted > total - written[-1]["tokens"], "whole documents up to the amount"
    assert result["match"]["documents"] >= 20 and result["match"]["after"] < result["match"]["before"]
    assert len({r["key"] for r in written}) == len(written) == result["selected"]["documents"]


def test_two_workers_shuffled_files_and_other_chunks_give_the_same_scores_and_order(
    study, selected, tmp_path, monkeypatch
):
    opened, (first, _) = study[0], selected
    config, store = opened.config, opened.store
    lines = open(config.candidates[-1].source).read().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "mixed").mkdir()
    for part in range(3):
        (tmp_path / "mixed" / f"{part}.jsonl").write_text("".join(lines[part::3]))
    mixed = config.candidates[-1].model_copy(update={"source": str(tmp_path / "mixed")})
    two = opened.changed(cluster={"max_actors": 2})
    monkeypatch.setattr(document_scores, "CHUNK_DOCUMENTS", 7)
    reference = score_targets(opened, pipeline.evidence_of(opened))
    apart = dataclasses.replace(reference, folder="scores/apart")
    files, counts, work = document_scores.score_corpus(two, apart, mixed)
    assert work["computed"] == 48 and counts["documents"] == first["counts"]["documents"]
    folder = first["settings"]["scores"]
    before = [f"{folder}/{name}" for name in sorted(store.names(folder))]
    mine, reference = (document_scores.read_scores(store, names, 0)[0] for names in (files, before))
    known = np.isin(reference.keys, mine.keys)  # the folder has the target's held-out documents too
    assert known.sum() == len(mine.keys) == 48
    np.testing.assert_allclose(mine.score, reference.score[known], atol=1e-5)
    order, _ = ranked(mine.keys, mine.score, None)
    other, _ = ranked(reference.keys[known], reference.score[known], None)
    assert set(order[:20]) == set(other[:20])


def test_scores_that_are_damaged_in_the_middle_are_one_sentence(study, selected, tmp_path):
    opened, (first, _) = study[0], selected
    folder = first["settings"]["scores"]
    name = max(opened.store.names(folder))
    bent = bytearray(opened.store.read_bytes(f"{folder}/{name}"))
    bent[4:60] = bytes(56)
    (tmp_path / "bent.parquet").write_bytes(bent)
    with pytest.raises(StoreError, match="damaged .*delete that folder"):
        document_scores.read_scores(Store(str(tmp_path)), ["bent.parquet"], 0)


@pytest.mark.full
def test_a_selection_stops_at_the_cap_and_is_charged(study, selected, tmp_path):
    opened, (first, _) = study[0], selected
    priced = {
        "price_per_hour": 3600.0,
        "max_cost": sum(row.get("spent", 0.0) for row in costs(opened.store).values()) + 0.2,
    }
    capped = dataclasses.replace(opened, config=opened.config.model_copy(update={"cost": Cost(**priced)}))
    for chunk in opened.store.local_path(first["settings"]["scores"]).glob("*.parquet"):
        chunk.unlink()
    with pytest.raises(CapReached), charged(capped, "select"):
        run_select(capped, tmp_path)
    assert not list(tmp_path.glob("part-*")) and costs(opened.store)["select"]["spent"] > 0.2
    with actors_here(), charged(opened, "select"):
        assert run_select(opened, tmp_path)["counts"] == first["counts"]


def test_samples_show_the_most_and_least_aligned_sequences_of_every_corpus(study, no_pools, monkeypatch):
    opened, _ = study
    result = pipeline.samples(opened)
    assert list(result) == ["target", "licences", "mixed"]
    assert [row.role for _, row in result.items()] == ["target", "candidate", "candidate"]
    reference = score_targets(opened, pipeline.evidence_of(opened))
    model, settings, seed = load_model(opened.probe), opened.config.embedding, opened.config.seed
    for corpus, own in (("target", True), ("licences", False)):
        batches = read_sample(opened.store, corpus).batches[:8]
        means = [reference.means(corpus, i) if own else reference.means() for i in range(len(batches))]
        scores = [sequence_scores(model, b, settings, seed, "trunk", m) for b, m in zip(batches, means, strict=True)]
        aligned, loss = (np.concatenate([getattr(s, field).ravel() for s in scores]) for field in ("alignment", "loss"))
        found = result[corpus]["targets"]["target"]
        assert found["of"] == len(aligned) == 16
        np.testing.assert_allclose(found["quantiles"], np.quantile(aligned, [0, 0.25, 0.5, 0.75, 1]), atol=1e-5)
        np.testing.assert_allclose([r["alignment"] for r in found["most"]], np.sort(aligned)[::-1][:3], atol=1e-5)
        np.testing.assert_allclose([r["alignment"] for r in found["least"]], np.sort(aligned)[:3], atol=1e-5)
        np.testing.assert_allclose([r["loss"] for r in found["most"]], loss[np.argsort(-aligned)[:3]], atol=1e-3)
        text = load_tokenizer(opened.probe).decode(
            np.concatenate(batches)[np.argmax(aligned)], skip_special_tokens=True
        )
        assert found["most"][0]["text"] == text
    assert stored(opened, pipeline.samples) == result
    monkeypatch.setattr("align_ray.embedding.scores.score_chunks", None)  # a second run scores nothing
    assert pipeline.samples(opened) == result


def test_samples_are_left_out_with_one_line_where_the_estimator_has_none(small_config, tmp_path, monkeypatch):
    said = []
    mapping = small_config(tmp_path, embedding={"estimator": "reference"})
    opened = open_study(Config.model_validate(mapping), said.append)
    monkeypatch.setattr(stages, "need", lambda study, stage: {})
    assert not list(pipeline.samples(opened)) and any("embedding.estimator" in line for line in said)
