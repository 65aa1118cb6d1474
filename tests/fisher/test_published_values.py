"""The published procedure, number by number: float64, every weight and every label given, so that nothing is drawn.

The values are those of the published program's algebra on the same model and rows, computed beside this project.
"""

import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from align_ray.fisher.reference import reference_embedding
from align_ray.fisher.settings import Quirks

PAD = 28
PUBLISHED = Quirks(dropout=False, head_epochs=2)
NONE = Quirks(False, 2, False, 1, False, False, False)
"""All quirks off but tuning."""


def model_of_sines():
    """A GPT-2 whose k-th parameter is 0.3 sin(0.7 i + 1.3 k + 0.1) at the flat index i, plus 1 for the weights of
    layer norms."""
    shape = {
        "vocab_size": 29,
        "n_positions": 16,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).double().eval()
    with torch.no_grad():
        for k, (name, parameter) in enumerate(model.named_parameters()):
            i = torch.arange(parameter.numel(), dtype=torch.float64)
            values = 0.3 * torch.sin(0.7 * i + 1.3 * k + 0.1) + (".ln_" in name and name.endswith("weight"))
            parameter.copy_(values.view_as(parameter))
    return model


def padded_rows():
    """Ids and mask [12, 10]: every third row ends after six tokens; one pad token is real."""
    r, t = torch.arange(12)[:, None], torch.arange(10)
    ids = (7 * r + 3 * t + r * t) % 28
    mask = torch.ones_like(ids)
    ids[1, 4] = PAD
    ids[2::3, 6:], mask[2::3, 6:] = PAD, 0
    return ids, mask


@pytest.fixture
def labels_by_inversion(monkeypatch):
    """torch.multinomial takes the first token whose cumulative probability is above frac(0.618034 (t + 1) + 0.37 c),
    c the call."""
    calls = []

    def multinomial(p, count):
        above = (0.618034 * torch.arange(1, len(p) + 1, dtype=torch.float64) + 0.37 * len(calls)) % 1
        calls.append(count)
        return (p.cumsum(-1) > above[:, None]).int().argmax(-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    yield
    assert calls == [1] * 12, "once a row"


@pytest.mark.parametrize(
    ("epochs", "total", "first"),
    [
        (0, 1.58344735025, 0.0447903174351),
        (1, 1.5610897149, 0.0455461045926),
        (2, 1.53342457061, 0.0464730509869),
        (5, 1.47029595356, 0.0495946464962),
    ],
)
def test_the_embedding_after_tuning_is_the_published_one(labels_by_inversion, epochs, total, first):
    quirks = dataclasses.replace(PUBLISHED, head_epochs=epochs)
    found = reference_embedding(model_of_sines(), *padded_rows(), PAD, 0, quirks)
    assert len(found) == 197
    assert found.sum().item() == pytest.approx(total, rel=1e-9) and found[0].item() == pytest.approx(first, rel=1e-9)


@pytest.mark.parametrize(
    ("quirks", "entries", "total"),
    [
        (dataclasses.replace(PUBLISHED, shifted_labels=False), 197, 2.57396938446),
        (dataclasses.replace(PUBLISHED, mini_batch=1), 197, 9.54456410665),
        (dataclasses.replace(PUBLISHED, mini_batch=5), 197, 3.36474157161),
        (dataclasses.replace(PUBLISHED, pads_counted=False), 197, 2.54035008824),
        (dataclasses.replace(PUBLISHED, axis_0=False), 229, 1.54179858886),
        (dataclasses.replace(PUBLISHED, vocabulary=False), 112, 0.0404466821319),
        (NONE, 144, 0.228866739411),
    ],
    ids=["labels", "mini-batch 1", "mini-batch 5", "pads", "axis", "vocabulary", "none"],
)
def test_every_quirk_alone_is_what_it_says(labels_by_inversion, quirks, entries, total):
    """After two epochs of tuning, by 8 rows a step whatever the mini-batch is."""
    found = reference_embedding(model_of_sines(), *padded_rows(), PAD, 0, quirks)
    assert len(found) == entries and found.sum().item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("epochs", [0, 1, 2, 5])
def test_the_first_label_is_drawn_where_the_published_program_draws_it(monkeypatch, epochs):
    """It seeds, and takes one integer for each iterator over its rows: 2 E + 3 of them before the first label."""
    draw, states = torch.multinomial, []

    def multinomial(*arguments):
        states.append(torch.get_rng_state())
        return draw(*arguments)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    reference_embedding(model_of_sines(), *padded_rows(), PAD, 7, dataclasses.replace(PUBLISHED, head_epochs=epochs))
    torch.manual_seed(7)
    for _ in range(2 * epochs + 3):
        torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(states[0], torch.get_rng_state())
