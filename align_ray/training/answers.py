"""What a model makes of the items of a task: torch and transformers alone, without Ray."""

from typing import Any

import numpy as np

from align_ray.corpora.harness import HarnessTask
from align_ray.corpora.items import Asked, Items, margins
from align_ray.corpora.questions import Questions
from align_ray.corpora.rows import FILLED, Rows
from align_ray.fisher.probe import has_bfloat16
from align_ray.training.harness import harness_answers
from align_ray.training.step import heldout_losses

ROWS_AT_ONCE, WRITTEN_AT_ONCE = 8, 16
"""Rows that are measured together, and answers that are written together."""


def task_answers(model: Any, asked: Asked, tokenizer: Any, device: Any) -> dict[str, Any]:
    """By item the continuous `score`, nats per byte, higher is better, and whether it is answered (`right`); of
    lm-eval's tasks see `harness_answers`."""
    if isinstance(asked, HarnessTask):
        return harness_answers(model, asked, tokenizer, device)
    losses = row_losses(model, asked.rows, device)
    if isinstance(asked, Items):
        scores = margins(losses, asked)
        right = scores > 0
    else:
        scores = asked.scores(losses)
        right = asked.answered(written(model, asked, tokenizer, device))
    return {"score": scores.tolist(), "right": right.tolist()}


def row_losses(model: Any, rows: Rows, device: Any) -> np.ndarray:
    """`step.heldout_losses` of rows of many lengths, [n, T-1]: those of alike length together, none longer than it
    must be."""
    lengths = (rows.documents != FILLED).sum(1)
    order = np.argsort(lengths, kind="stable")
    losses = np.full((len(rows), rows.ids.shape[1] - 1), np.nan, np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = order[start : start + ROWS_AT_ONCE]
        length = int(lengths[some].max())
        losses[some, : length - 1] = heldout_losses(model, rows[some][:, :length], device)
    return losses


def written(model: Any, asked: Questions, tokenizer: Any, device: Any) -> list[str]:
    """What the model writes after every context, each token its likeliest, without the stop string and what follows:
    transformers' `generate`. Nothing of it is executed."""
    import torch

    end = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end or 0
    order = sorted(range(len(asked.prompts)), key=lambda i: len(asked.prompts[i]))  # alike lengths: little padding
    texts = [""] * len(order)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        for start in range(0, len(order), WRITTEN_AT_ONCE):
            some = order[start : start + WRITTEN_AT_ONCE]
            length = max(len(asked.prompts[i]) for i in some)
            ids = np.full((len(some), length), padding)
            there = np.zeros(ids.shape, np.int64)
            for r, i in enumerate(some):  # padding on the left: what is written goes on from the last column
                ids[r, length - len(asked.prompts[i]) :], there[r, length - len(asked.prompts[i]) :] = (
                    asked.prompts[i],
                    1,
                )
            out = model.generate(
                input_ids=torch.as_tensor(ids, dtype=torch.long, device=device),
                attention_mask=torch.as_tensor(there, device=device),
                max_new_tokens=asked.task.max_new_tokens,
                stop_strings=[asked.task.stop],
                tokenizer=tokenizer,
                pad_token_id=padding,
                eos_token_id=end,
                # greedy, whatever the model's own generation_config.json asks for
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
            )
            for i, line in zip(some, out[:, length:].tolist(), strict=True):
                texts[i] = tokenizer.decode(line, skip_special_tokens=True).partition(asked.task.stop)[0]
    return texts
