"""What a model writes: batched generation against one token after the other, without padding or cache."""

import numpy as np
import pytest
import torch

from align_ray.config import Probe
from align_ray.config_corpora import ExactMatch
from align_ray.corpora.questions import questions_of
from align_ray.corpora.rows import Rows
from align_ray.fisher.probe import load_tokenizer, locate_probe
from align_ray.training import answers
from align_ray.training.answers import task_answers, written
from tests.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(params=["gpt2", "llama"])
def probe(request):
    """A model whose random weights write something else after every context, and the embedded tokenizer."""
    tokenizer = load_tokenizer(locate_probe(Probe().plain()))
    return tiny_model(request.param, len(tokenizer), dtype=torch.float32), tokenizer


def asked_of(tokenizer, texts, **fields):
    task = ExactMatch(kind="exact_match", context="q", **{"max_new_tokens": 12, **fields})
    return questions_of("t", [(text, "def #### 7", "7") for text in texts], tokenizer, task, 64)


def one_by_one(model, tokenizer, prompt, most):
    ids = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


TEXTS = ["def", "import os\n\nclass Case(unittest.TestCase):\n    def test", "Permission is hereby", "x = 1"]


def test_answers_written_together_are_those_written_alone(probe, monkeypatch):
    model, tokenizer = probe
    monkeypatch.setattr(answers, "has_bfloat16", lambda device: False)
    asked = asked_of(tokenizer, TEXTS, stop="\0")
    alone = [one_by_one(model, tokenizer, prompt, 12) for prompt in asked.prompts]
    assert written(model, asked, tokenizer, CPU) == alone and len(set(alone)) > 1
    monkeypatch.setattr(answers, "WRITTEN_AT_ONCE", 2)
    assert written(model, asked, tokenizer, CPU) == alone


def test_an_answer_ends_before_the_stop_string(probe, monkeypatch):
    model, tokenizer = probe
    monkeypatch.setattr(answers, "has_bfloat16", lambda device: False)
    (whole, *_) = written(model, asked_of(tokenizer, TEXTS, stop="\0"), tokenizer, CPU)
    stop = next(whole[i : i + 2] for i in range(3, len(whole)) if whole[i : i + 2].isascii())
    (cut, *_) = written(model, asked_of(tokenizer, TEXTS, stop=stop), tokenizer, CPU)
    assert len(stop) == 2 and cut == whole.partition(stop)[0] != whole


def test_what_a_model_asks_for_in_its_generation_settings_does_not_count(probe, monkeypatch):
    model, tokenizer = probe
    asked = asked_of(tokenizer, TEXTS)
    plain = written(model, asked, tokenizer, CPU)
    for field, value in {"do_sample": True, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1}.items():
        monkeypatch.setattr(model.generation_config, field, value)
    assert written(model, asked, tokenizer, CPU) == plain


def test_the_score_is_the_log_likelihood_of_the_right_answer_per_byte(probe, monkeypatch):
    model, tokenizer = probe
    asked = asked_of(tokenizer, TEXTS)
    monkeypatch.setattr(answers, "written", lambda *_: ["#### 7", "#### 8", "7", "so #### $7.00"])
    found = task_answers(model, asked, tokenizer, CPU)
    assert found["right"] == [True, False, False, True]
    said = tokenizer(" def #### 7", add_special_tokens=False)["input_ids"]
    for score, prompt in zip(found["score"], asked.prompts, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
        by_hand = sum(log_p[len(prompt) + j - 1, token].item() for j, token in enumerate(said))
        np.testing.assert_allclose(score, by_hand / len(b"def #### 7"), atol=0.02)  # products in bfloat16


def test_rows_of_alike_length_are_measured_together_and_come_out_in_their_order(probe, monkeypatch):
    model, _ = probe
    rng, seen = np.random.default_rng(0), []
    lines = [rng.integers(0, 100, size).tolist() for size in rng.integers(3, 40, 21)]
    rows = Rows.ending(lines, [2] * len(lines))

    def measured(model, some, device, real=answers.heldout_losses):
        seen.append(some.ids.shape)
        return real(model, some, device)

    whole = answers.heldout_losses(model, rows, CPU)
    monkeypatch.setattr(answers, "heldout_losses", measured)
    found = answers.row_losses(model, rows, CPU)
    np.testing.assert_allclose(found, whole, atol=0.05)  # products in bfloat16
    lengths = sorted(map(len, lines))
    assert seen == [(8, lengths[7]), (8, lengths[15]), (5, lengths[20])] and np.isfinite(found).sum() == 42
