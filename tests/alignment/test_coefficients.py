"""Intervals over batches cover what they should, and corpora are ranked by what was put in."""

import numpy as np
import pytest

from align_ray.alignment import coefficients as al
from align_ray.alignment.distance import distance_matrix, scaled_cosine_distance
from align_ray.alignment.intervals import two_sample_mean
from align_ray.alignment.margins import CHUNK, Margins, chunks
from align_ray.alignment.noise import corrected_distances
from align_ray.fisher.unit import Unit

DIMENSION = 4000


def batches(n, seed, profile=1.0, v=0.2):
    """n embeddings around a profile, with Gamma noise of relative variance v."""
    return profile * np.random.default_rng(seed).gamma(1 / v, v, (n, DIMENSION))


def units(n, draws, v, seed=0):
    """n batches whose trunk rows differ by Gamma noise of relative variance v a draw, and whose head rows do not."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 2, (n, 1, DIMENSION)))
    trunk = (scale * rng.gamma(1 / v, v, (n, draws, DIMENSION))).astype(np.float32)
    head = np.ones((1, 5), np.float32)
    return [
        Unit({"trunk": t, "head": head}, {}, 2.0 + i, sequences=8, skipped=(1,), tokens=8, seconds=0.0)
        for i, t in enumerate(trunk)
    ]


def coverage(estimates, truth):
    return np.mean([e.low <= truth <= e.high for e in estimates])


@pytest.mark.parametrize("n", [8, 32])
def test_two_sample_intervals_cover_the_mean_of_a_matrix_with_row_and_column_effects(n):
    rng = np.random.default_rng(n)
    estimates = [
        two_sample_mean(3 + rng.normal(0, 1, (n, 1)) + rng.normal(0, 0.6, (1, n)) + rng.normal(0, 0.5, (n, n)))
        for _ in range(2000)
    ]
    assert 0.93 < coverage(estimates, 3) < 0.975


def test_a_t_interval_over_pairs_would_be_far_too_narrow():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (32, 1)) + rng.normal(0, 1, (1, 32)) + rng.normal(0, 0.3, (32, 32))
    assert two_sample_mean(values).error > 4 * values.std() / 32


@pytest.mark.parametrize("n", [8, 32])
def test_one_sample_intervals_cover_the_mean_distance_within_a_corpus(n):
    rng = np.random.default_rng(n)
    estimates = []
    for _ in range(2000):
        effects, noise = rng.normal(0, 1, n), rng.normal(0, 0.5, (n, n))
        estimates.append(al.one_sample_mean(5 + np.add.outer(effects, effects) + noise + noise.T))
    assert 0.93 < coverage(estimates, 5) < 0.975


def test_the_diagonal_of_a_distance_matrix_does_not_count():
    values = np.array([[9.0, 1, 2], [1, 9, 3], [2, 3, 9]])
    assert al.one_sample_mean(values).value == 2


def test_two_batches_give_a_diversity_without_an_interval():
    estimate = al.one_sample_mean(np.array([[0, 0.25], [0.25, 0]]))
    assert estimate.value == 0.25 and np.isnan(estimate.low)


def test_pooled_alignment_of_one_distribution_with_itself_is_one_while_pairs_keep_their_noise():
    a, b = batches(16, 1), batches(16, 2)
    assert two_sample_mean(1 - distance_matrix(a, b)).value == pytest.approx(1 - 0.2 / 1.2, abs=0.01)
    assert 1 - scaled_cosine_distance(a.mean(0), b.mean(0)) == pytest.approx(1 - 0.0125 / 1.0125, abs=0.003), (
        "plain: biased"
    )
    assert al.pooled_alignment(a, b).value == pytest.approx(1, abs=0.002)
    assert al.one_sample_mean(distance_matrix(a, a)).value == pytest.approx(0.2 / 1.2, abs=0.01)


@pytest.mark.parametrize("n", [8, 32])
def test_pooled_intervals_cover_the_alignment_of_the_expected_embeddings(n):
    rng = np.random.default_rng(n)
    means = np.exp(rng.normal(0, 0.7, (2, 300)))
    load = rng.normal(0, 0.15, (2, 4, 300))

    def sample(k, size):
        return means[k] * np.exp(rng.normal(size=(size, 4)) @ load[k]) * rng.gamma(4, 0.25, (size, 300))

    truth = al.pooled_alignment(sample(0, 4000), sample(1, 4000)).value
    found = [al.pooled_alignment(sample(0, n), sample(1, n)) for _ in range(600)]
    assert 0.93 < coverage(found, truth) < 0.975
    assert np.mean([e.value for e in found]) == pytest.approx(truth, abs=0.002)


def test_pooled_alignment_has_the_standard_error_that_repetition_shows():
    profile = np.exp(np.random.default_rng(0).normal(0, 1, (2, 50)))
    rng = np.random.default_rng(3)
    found = [al.pooled_alignment(*(p * rng.gamma(5, 0.2, (24, 50)) for p in profile)) for _ in range(400)]
    assert np.mean([e.error for e in found]) == pytest.approx(np.std([e.value for e in found]), rel=0.2)


def test_align_corpora_ranks_candidates_by_their_alignment_with_the_target():
    corpora = {"goal": units(4, 2, 0.1, seed=1), "same": units(4, 2, 0.1, seed=1), "other": units(4, 2, 0.1, seed=2)}
    result = al.align_corpora(corpora, ["goal"])
    first, last = result["ranking"]["goal"]
    assert (first["candidate"], last["candidate"]) == ("same", "other")
    assert first["p_above_next"] > 0.5 and last["p_above_next"] is None
    assert first["p_best"] > 0.5 and first["adjusted"] <= first["p_above_next"] and first["separate"] >= 1
    assert (
        first["corrected"]["value"] > first["value"] and result["ceiling"]["goal"] == result["matrix"]["goal"]["goal"]
    )
    assert result["diversity"]["goal"]["corrected"]["value"] < result["diversity"]["goal"]["value"]
    assert result["matrix"]["goal"]["same"] == result["matrix"]["same"]["goal"]
    assert result["matrix"]["goal"]["goal"]["value"] == 1 - result["diversity"]["goal"]["value"]
    assert result["loss"]["goal"] == 3.5 and result["skipped"]["goal"] == [[0, 1], [1, 1], [2, 1], [3, 1]]
    assert result["measure"] == "trunk" and result["others"]["head"]["matrix"]["goal"]["other"][
        "value"
    ] == pytest.approx(1)


def test_the_published_coefficient_takes_all_rows_and_its_parts_are_given_apart():
    blocks = {"trunk": np.ones((1, 3), np.float32), "vocabulary": np.full((1, 2), 7, np.float32)}
    unit = Unit(blocks, {}, 2.0, sequences=8, skipped=(), tokens=8, seconds=0.0)
    kinds = al.block_sets([unit])
    assert list(kinds) == ["published", "trunk", "vocabulary"]
    assert al.batch_matrix([unit], kinds["published"]).tolist() == [[1, 1, 1, 7, 7]]


def reduced(names, most=9, dimension=60, draws=2, seed=0):
    """Corpora of 2 to `most` batches around profiles of their own."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        n, profile = int(rng.integers(2, most + 1)), np.exp(rng.normal(0, 1, dimension))
        trunk = (profile * rng.gamma(5, 0.2, (n, 1, dimension)) * rng.gamma(8, 1 / 8, (n, draws, dimension))).astype(
            "f4"
        )
        units = [Unit({"trunk": t}, {}, 2.0, sequences=8, skipped=(), tokens=8, seconds=0.0) for t in trunk]
        found[name] = al.Reduced.of(units)
    return found


@pytest.mark.parametrize("chunk", [7, CHUNK])
def test_pairs_by_their_margins_are_what_every_pairs_own_matrix_gives(monkeypatch, chunk):
    """By brute force, at 1e-12: the mean with its interval, that without label noise, the pooled one."""
    monkeypatch.setattr("align_ray.alignment.margins.CHUNK", chunk)
    corpora = reduced([*(f"t{i}" for i in range(3)), *(f"c{i}" for i in range(9))])
    targets = ["t0", "t1", "t2"]
    found = al.align_reduced(corpora, targets)
    rows = {name: one.rows["trunk"] for name, one in corpora.items()}

    def same(one, other):
        wanted = vars(other)
        np.testing.assert_allclose([one[k] for k in wanted], list(wanted.values()), rtol=1e-12, atol=1e-12)

    for i, a in enumerate(corpora):
        for b in list(corpora)[i + 1 :]:
            raw = distance_matrix(rows[a][0], rows[b][0])
            same(found["matrix"][a][b], two_sample_mean(1 - raw))
            same(found["matrix"][b][a], two_sample_mean(1 - raw.T))
            if a in targets and b not in targets:
                (row,) = [r for r in found["ranking"][a] if r["candidate"] == b]
                without = [distance_matrix(x, y) for x, y in zip(rows[b][1:], rows[a][1:], strict=True)]
                same({k: row[k] for k in vars(two_sample_mean(raw))}, two_sample_mean(1 - raw.T))
                same(row["corrected"], two_sample_mean(1 - corrected_distances(raw.T, without)))
                same(row["pooled"], al.pooled_alignment(rows[b][0], rows[a][0]))


def test_of_very_many_corpora_the_same_is_said_of_targets_and_means_alone_of_candidates(monkeypatch):
    corpora, targets = reduced([*"ab", *(f"c{i}" for i in range(5))], most=60), ["a", "b"]
    every = al.align_reduced(corpora, targets)
    monkeypatch.setattr(al, "EVERY_PAIR", 6)
    found = al.align_reduced(corpora, targets)
    assert "alike" not in every
    for part in ("ranking", "diversity", "ceiling", "noise"):
        np.testing.assert_equal(found[part], every[part])
    for t in targets:
        np.testing.assert_equal(found["matrix"][t], every["matrix"][t])
    candidates, few = found["candidates"], [corpora[c].main[: al.FEW] for c in found["candidates"]]
    assert max(len(corpora[c].main) for c in candidates) > al.FEW
    for i, c in enumerate(candidates):
        assert list(found["matrix"][c]) == [c]
        assert found["alike"][i][i] == pytest.approx(1 - found["diversity"][c]["value"], abs=1e-5)
        for j in range(i):
            wanted = 1 - distance_matrix(few[j], few[i]).mean()
            assert found["alike"][i][j] == found["alike"][j][i] == pytest.approx(wanted, abs=1e-5)


def test_chunks_keep_whole_corpora_in_their_order():
    rows = [np.full((3, n, 4), i, np.float32) for i, n in enumerate((700, 400, 1, 2000, 3))]
    parts = list(chunks(rows, draws=True))
    assert [(c.first, c.counts.tolist()) for c in parts] == [(0, [700]), (1, [400, 1]), (3, [2000]), (4, [3])]
    assert all(np.unique(c.rows[:, : c.counts[0]]) == c.first for c in parts) and parts[1].starts.tolist() == [0, 400]
    (short,) = chunks(rows, draws=False, most=5)
    assert short.rows.shape == (1, 19, 4)


def test_margins_of_matrices_are_their_means_with_intervals():
    rng = np.random.default_rng(5)
    values = [rng.normal(size=(n, 6)) for n in (2, 5, 9)]
    margins = Margins.of(values)
    for row, matrix in zip(margins.estimates(), values, strict=True):
        np.testing.assert_allclose(row, list(vars(two_sample_mean(matrix)).values()), rtol=1e-12)
    assert margins.part([2, 0]).mean.tolist() == margins.mean[[2, 0]].tolist()
