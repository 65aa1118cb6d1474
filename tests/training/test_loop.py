"""The training loop's parts that need no Ray."""

import pytest
import torch

from align_ray.training.loop import warm_up_and_decay


@pytest.mark.parametrize("rate", [1e-4, 3e-3])
@pytest.mark.parametrize(("start", "total"), [(0, 1), (0, 7), (0, 100), (50, 100), (33, 99)])
def test_the_rate_of_every_step_is_the_formulas_to_the_last_bit_also_after_a_resumption(rate, start, total):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = warm_up_and_decay(optimiser, start, total)
    for step in range(start, total):
        share = min((step + 1) / (0.1 * total + 1), 1.0, (total - step) / (0.9 * total))
        assert optimiser.param_groups[0]["lr"] == rate * share
        optimiser.step()
        schedule.step()
    assert optimiser.param_groups[0]["lr"] == 0
