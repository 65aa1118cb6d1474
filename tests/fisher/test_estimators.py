"""Pooling: the mean of sequences, and the mean of sequences of equal weight, which limits what one of them can do."""

import torch

from align_ray.fisher.estimators import pooled_rows

ROWS = torch.rand(2, 20, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1


def test_the_mean_leaves_sequences_as_they_are():
    assert pooled_rows(ROWS, "mean") is ROWS


def test_unit_gives_every_sequence_the_same_weight_and_is_additive():
    pooled = pooled_rows(ROWS * torch.rand(2, 20, 1), "unit")
    torch.testing.assert_close(pooled.sum(-1), torch.ones(2, 20, dtype=torch.float64))
    torch.testing.assert_close(pooled, pooled_rows(ROWS, "unit"))
    parts = [pooled_rows(ROWS[:, part], "unit").mean(1) for part in (slice(10), slice(10, 20))]
    torch.testing.assert_close(sum(parts) / 2, pooled.mean(1))


def test_an_outlier_moves_the_mean_far_more():
    outlier = ROWS.clone()
    outlier[:, 7] *= 1e6
    moved = [(pooled_rows(rows, "unit").mean(1)) for rows in (ROWS, outlier)]
    assert (moved[1] / moved[0]).max() < 1.5 and outlier.mean(1).max() > 1e4
