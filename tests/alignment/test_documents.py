"""Scores of documents by their words."""

import numpy as np

from align_ray.alignment.baselines import PRIOR
from align_ray.alignment.documents import counts_of, document_scores, log_ratios

POOL = np.array([60, 30, 10, 0])
TARGETS = np.array([[0, 10, 90, 0], [60, 30, 10, 0]])


def test_a_ratio_is_that_of_the_smoothed_shares():
    found = log_ratios(POOL, TARGETS)
    general = (POOL + 0.5) / 102
    for token in range(4):
        share = (TARGETS[0, token] + PRIOR * general[token]) / (100 + PRIOR)
        np.testing.assert_allclose(found[token, 0], np.log(share / general[token]))
    assert np.abs(found[:3, 1]).max() < 0.1 < found[2, 0], "a target like the pool tells nothing apart"
    np.testing.assert_array_equal(log_ratios(POOL, TARGETS[:1])[:, 0], found[:, 0])  # whatever other targets there are


def test_a_document_has_the_mean_of_its_tokens_that_count():
    ratios = log_ratios(POOL, TARGETS)
    twice, context, nothing = np.array([2, 1, 2, 1]), np.array([-2, 2, -1, 1]), np.array([-1, -5])
    found = document_scores([np.array([2, 1]), twice, context, nothing], ratios)
    np.testing.assert_allclose(found[:3], np.tile(ratios[[1, 2]].mean(0), (3, 1)))
    assert np.isnan(found[3]).all() and document_scores([], ratios).shape == (0, 2)
    assert counts_of(np.array([[-3, 2], [-1, 2]]), 4).tolist() == [0, 0, 2, 0]
