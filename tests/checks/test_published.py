"""The published correlations come out of the published figures, and so does what they hide."""

import pytest

from align_ray.checks.published import published_points, reanalyse


def test_the_published_correlation_is_reproduced_and_comes_from_the_in_domain_sets():
    found = reanalyse()["pretraining"]
    assert found["pooled"]["points"] == 24
    assert found["pooled"]["r2"] == pytest.approx(0.837, abs=0.001)
    assert found["fit"]["intercept"] == pytest.approx(14.85, abs=0.02) and found["fit"]["slope"] == pytest.approx(
        -16.97, abs=0.02
    )
    assert found["pooled"]["spearman"] == pytest.approx(-0.653, abs=0.001)
    assert found["without_in_domain"]["points"] == 15
    assert found["without_in_domain"]["r2"] == pytest.approx(0.06, abs=0.005) and found["without_in_domain"]["r"] > 0
    assert found["within"]["r"] == pytest.approx(-0.742, abs=0.001)
    assert sum(found["picks"].values()) == 5


def test_the_published_gzip_correlations_are_reproduced():
    found = reanalyse()["gzip"]
    assert found["GPT-2, 20k tokens"]["all"]["r2"] == pytest.approx(0.907, abs=0.001)
    assert found["GPT-2, 20k tokens"]["without_own"]["r2"] == pytest.approx(0.80, abs=0.005)
    assert found["Llama-3-8B, 4k tokens"]["all"]["r2"] == pytest.approx(0, abs=0.005)
    assert found["Llama-3-8B, 4k tokens"]["without_own"]["r"] > 0.7, "the wrong sign"


def test_every_published_table_is_complete():
    points = published_points()
    table = points["pretraining"]
    for name in ("alignment", "alignment_halfwidth", "loss"):
        assert [len(row) for row in table[name]] == [8, 8, 8]
    fine = points["finetuning"]
    assert len(fine["data"]) == len(fine["tokens"]) == len(fine["alignment"])
    gzip = points["gzip"]
    assert all(len(losses) == len(gzip["data"]) == len(gzip["alignment"]) for losses in gzip["losses"].values())
