"""The training loop's parts that need no Ray."""

import dataclasses

import numpy as np
import pytest
import torch

from align_ray.corpora.rows import Rows
from align_ray.training.loop import batches, rung_steps, share_of, warm_up
from align_ray.training.step import (
    AVERAGE,
    Average,
    heldout_losses,
    learned,
    losses_of,
    sequence_losses,
    step_loss,
    token_losses,
)
from tests.tiny import MODELS, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [1e-4, 3e-3])
@pytest.mark.parametrize(("start", "total"), [(0, 1), (0, 7), (0, 100), (50, 100), (33, 99), (0, 1000)])
def test_the_rate_rises_over_two_steps_or_more_and_then_stays(rate, start, total):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = warm_up(optimiser, start, total)
    rise = max(2, round(0.02 * total))
    for step in range(start, total):
        assert optimiser.param_groups[0]["lr"] == rate * min(1.0, (step + 1) / (rise + 1))
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("total", [1, 2, 3, 20, 1000])
def test_rungs_are_never_under_two_steps_nor_beyond_the_end(total):
    steps = rung_steps((0.02, 0.06, 0.16, 0.40), total)
    assert steps == sorted(steps) and steps[0] >= min(2, total) and steps[-1] <= total
    if total == 1000:
        assert steps == [20, 60, 160, 400]


def some_rows(n=6, length=12, seed=0):
    """Rows of one to four documents, of which some tokens count."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 29, (n, length)).astype(np.int32)
    documents = np.sort(rng.integers(0, 4, (n, length)), axis=1) + 10 * np.arange(n)[:, None]
    rows = dataclasses.replace(Rows.plain(ids), documents=documents)
    return dataclasses.replace(rows, scored=(rows.positions > 0) & (rng.random(ids.shape) < 0.7))


def gradient(model, shares, scored):
    """What data-parallel workers come to: the mean over them of their parts' gradients."""
    model.zero_grad()
    for share in shares:
        (step_loss(losses_of(model), share, scored, CPU, len(shares)) / len(shares)).backward()
    return torch.cat([p.grad.flatten() for p in learned(model).values()])


@pytest.mark.parametrize("rows", [8, 5, 3])
def test_workers_by_rows_make_no_difference_to_the_gradient(rows):
    """One worker of eight rows, two of four, four of two; also where some have fewer rows, or none."""
    model, batch = tiny_model("gpt2", dtype=torch.float64).eval(), some_rows(rows)
    scored = int(batch.scored[:, 1:].sum())
    alone = gradient(model, [batch], scored)
    for world in (2, 4):
        np.testing.assert_allclose(
            gradient(model, [share_of(batch, r, world) for r in range(world)], scored), alone, rtol=1e-6, atol=1e-9
        )
    by_token = token_losses(model, torch.as_tensor(batch.ids, dtype=torch.long), torch.as_tensor(batch.positions))
    mean = by_token[torch.as_tensor(batch.scored[:, 1:])].mean()
    assert step_loss(losses_of(model), batch, scored, CPU).item() == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_documents_in_one_row_do_not_see_each_other(kind):
    """A row of three documents has the losses that each has alone."""
    model = tiny_model(kind, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(0, 29, (1, 12)).astype(np.int32)
    rows = dataclasses.replace(Rows.plain(ids), documents=np.array([[0] * 3 + [1] * 5 + [2] * 4]))
    rows = dataclasses.replace(rows, scored=rows.positions > 0)
    together = heldout_losses(model, rows, CPU)[0]
    parts = [heldout_losses(model, Rows.plain(ids[:, a:b]), CPU)[0] for a, b in ((0, 3), (3, 8), (8, 12))]
    np.testing.assert_allclose(together[np.isfinite(together)], np.concatenate(parts), rtol=1e-4)
    assert np.isnan(together).sum() == 2 and sequence_losses(together[None])[0] == pytest.approx(
        np.concatenate(parts).mean()
    )


def test_a_model_that_is_wrapped_for_several_workers_keeps_documents_apart_as_well():
    class Wrapped(torch.nn.Module):  # as DistributedDataParallel: any arguments, the model inside
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs, **more):
            return self.module(*inputs, **more)

    model, batch = tiny_model("gpt2").eval(), some_rows()
    scored = int(batch.scored[:, 1:].sum())
    alone, wrapped = losses_of(model), Wrapped(losses_of(model))
    assert step_loss(wrapped, batch, scored, CPU).item() == step_loss(alone, batch, scored, CPU).item()


def test_every_batch_has_its_share_of_replay_and_every_row_comes_once():
    rows, replay = (
        Rows.plain(np.arange(20)[:, None] + np.zeros((1, 4))),
        Rows.plain(100 + np.arange(7)[:, None] + np.zeros((1, 4))),
    )
    job, settings = {"rows": rows, "replay": replay, "seed": 0}, {"batch_size": 8, "replay_share": 0.5}
    made = [batch.ids[:, 0] for batch in batches(job, settings, 0)]
    assert [len(b) for b in made] == [8] * 5 and all((b >= 100).sum() == 4 for b in made)
    own = np.concatenate([b[b < 100] for b in made])
    assert sorted(own) == list(range(20)) and len(set(np.concatenate(made)) - set(own)) == 7
    without = [batch.ids[:, 0] for batch in batches(job | {"replay": None}, settings, 0)]
    assert [len(b) for b in without] == [8, 8, 4]
    assert [b.tolist() for b in made] != [batch.ids[:, 0].tolist() for batch in batches(job, settings, 1)]


def test_the_average_is_of_the_last_quarter_of_the_steps_and_leaves_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    average, total = Average(model), 400
    for step in range(1, total + 1):
        model.weight.data.fill_(float(step))
        average.update()
    with average.in_place():
        mean = model.weight.item()
    # a weight of the step to the power of AVERAGE: its mean is at (1 + a) / (2 + a) of all steps
    assert mean == pytest.approx(total * (1 + AVERAGE) / (2 + AVERAGE), rel=0.01) and model.weight.item() == total
