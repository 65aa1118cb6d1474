"""LESS and mean matching are the means over pairs of sequences that they stand for."""

import copy

import numpy as np
import pytest
import torch

from align_ray.alignment.influence import (
    BETAS,
    EPSILON,
    LEARNING_RATE,
    adam_update,
    adapted,
    corpus_influence,
    less,
    mean_matching,
    spread,
    warm_up,
)
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def corpora():
    rng = np.random.default_rng(0)
    return [rng.choice(29, (32, 16), p=rng.dirichlet(np.full(29, 0.3))) for _ in range(2)]


def model():
    return adapted(tiny_model("llama", tied=False, dtype=torch.float32))


@pytest.fixture(scope="module")
def state(corpora):
    return warm_up(model(), np.concatenate(corpora))


def gradient(m, row):
    """Of the mean loss of a row, by autograd, all adapter parameters in one vector."""
    m.zero_grad()
    logits = m(input_ids=torch.as_tensor(row)[None]).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, torch.as_tensor(row)[1:]).backward()
    return torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad])


def test_an_update_is_the_step_that_torch_takes(corpora, state):
    m = model()
    corpus_influence(m, state, corpora[0][:1])  # puts the weights after the warm-up in place
    trained = {n: p for n, p in m.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam(trained.values(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    for name, p in trained.items():
        optimiser.state[p] = {
            "step": torch.tensor(float(state["steps"][0])),
            "exp_avg": torch.as_tensor(state[f"first/{name}"]).clone(),
            "exp_avg_sq": torch.as_tensor(state[f"second/{name}"]).clone(),
        }
    before = torch.cat([p.detach().flatten().clone() for p in trained.values()])
    g = gradient(m, corpora[0][0])
    optimiser.step()
    moved = before - torch.cat([p.detach().flatten() for p in trained.values()])
    first, second = (
        torch.cat([torch.as_tensor(state[f"{k}/{n}"]).flatten() for n in trained]) for k in ("first", "second")
    )
    mine = adam_update(g, first, second, float(state["steps"][0]) + 1)
    assert torch.allclose(moved / LEARNING_RATE, mine, rtol=2e-2, atol=2e-2)


def test_less_is_the_mean_cosine_over_all_pairs_and_matching_the_distance_of_means(corpora, state):
    m = model()
    a, b = (corpus_influence(m, state, ids) for ids in corpora)
    names = [n for n, p in m.named_parameters() if p.requires_grad]
    first, second = (
        torch.cat([torch.as_tensor(state[f"{k}/{n}"]).flatten() for n in names]) for k in ("first", "second")
    )
    grads = [torch.stack([gradient(m, row) for row in ids]) for ids in corpora]
    moved = torch.stack([adam_update(g, first, second, float(state["steps"][0]) + 1) for g in grads[0]])
    unit = lambda x: torch.nn.functional.normalize(x, dim=-1)
    assert less(a, b) == pytest.approx(float((unit(moved) @ unit(grads[1]).T).mean()), abs=1e-5)
    units = [unit(g) for g in grads]
    pairs = units[0] @ units[0].T
    expected = 2 * float((units[0] @ units[1].T).mean()) - float(pairs[~np.eye(len(pairs), dtype=bool)].mean())
    assert mean_matching(a, b) == pytest.approx(expected, abs=1e-5)


def test_a_corpus_is_closest_to_itself(corpora, state):
    m = model()
    halves = [[corpus_influence(m, state, ids[i::2]) for ids in corpora] for i in (0, 1)]
    for score in (less, mean_matching):
        found = np.array([[score(c, t) for t in halves[1]] for c in halves[0]])
        assert (found.argmax(0) == [0, 1]).all(), score


def test_what_does_not_count_moves_nothing_and_an_empty_row_is_left_out(corpora, state):
    m = model()
    ids = corpora[0]
    padded = np.concatenate([ids, np.full_like(ids[:, :4], -1)], axis=1)
    empty = np.full((1, 20), -1)
    a, b = (corpus_influence(m, state, x) for x in (ids, np.concatenate([padded, empty])))
    assert np.allclose(a.gradient, b.gradient, atol=1e-5)
    context = ids.copy()
    context[:, 3:8] = -2 - context[:, 3:8]
    assert not np.allclose(corpus_influence(m, state, context).gradient, a.gradient, atol=1e-3)


def test_the_warm_up_is_the_same_twice_and_leaves_the_base_alone(corpora, state):
    base = tiny_model("llama", tied=False, dtype=torch.float32)
    was = copy.deepcopy(base.state_dict())
    again = warm_up(adapted(base), np.concatenate(corpora))
    assert all(np.array_equal(again[k], state[k]) for k in state)
    now = {n.replace("base_layer.", ""): v for n, v in base.state_dict().items() if "lora_" not in n}
    assert all(torch.equal(v, was[n]) for n, v in now.items())


def test_sequences_are_spread_over_the_sample():
    rows = np.arange(100)[:, None]
    assert spread(rows, 5).ravel().tolist() == [0, 24, 49, 74, 99]
    assert len(spread(rows, 500)) == 100
