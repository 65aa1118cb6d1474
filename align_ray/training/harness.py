"""What a model makes of a task of lm-eval: its Hugging Face class takes the model as it is, in this process."""

import copy
from typing import Any

import numpy as np

from align_ray.corpora.harness import FEWSHOT_SEED, HarnessTask, load_task, quietly, right_ones
from align_ray.fisher.probe import has_bfloat16
from align_ray.training.step import causal_model

ROWS_AT_ONCE = 8
"""Requests that are answered together."""
RESAMPLES = 1000
"""Of lm-eval's bootstrap, for the standard error of a metric that is no mean."""


def harness_answers(model: Any, asked: HarnessTask, tokenizer: Any, device: Any) -> dict[str, Any]:
    """By item the continuous `score` and the metric (`right`), where the metric is a mean over items; else the metric
    of all together (`whole`), higher is better, and its standard `error`."""
    with quietly(asked.task.trust_remote_code):
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        task = load_task(asked.file, asked.data, asked.task.trust_remote_code, asked.requests)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # the same examples in the prompts before and after
        lm = HFLM(
            pretrained=causal_model(model),
            tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token
            batch_size=ROWS_AT_ONCE,
            mixed_precision_dtype="bfloat16" if has_bfloat16(device) else None,
            softmax_dtype="float32",
        )
        found = evaluate(
            lm,
            {"tasks": {task.task_name: task}},
            limit=asked.task.items,
            bootstrap_iters=0 if asked.by_item else RESAMPLES,
            confirm_run_unsafe_code=asked.task.trust_remote_code,
        )
        assert found is not None  # a rank that is not the first; here each is alone
        sign = 1.0 if asked.higher else -1.0
        if not asked.by_item:
            of_all = found["results"][task.task_name]
            value, error = (float(of_all[f"{asked.metric}{what},{asked.filter}"]) for what in ("", "_stderr"))
            return {"whole": sign * value, "error": error}
        samples = [s for s in found["samples"][task.task_name] if s["filter"] == asked.filter]
        samples.sort(key=lambda sample: sample["doc_id"])
        values = [sign * float(sample[asked.metric]) for sample in samples]
        by_likelihood = {"margin": _margin, "log-likelihood": _log_likelihood}.get(asked.measure)
        scores = [by_likelihood(task, sample) for sample in samples] if by_likelihood else values
        return {"score": scores, "right": values, "unit": asked.unit}


def _margin(task: Any, sample: dict[str, Any]) -> float:
    """As `items.margins`: of the best right choice less that of the best wrong one, per byte."""
    choices, right = task.doc_to_choice(sample["doc"]), right_ones(task, sample["doc"])
    by_byte = np.array([r[0] / len(c.encode()) for r, c in zip(sample["filtered_resps"], choices, strict=False)])
    wrong = np.delete(by_byte, right)
    return float(by_byte[right].max() - (wrong.max() if len(wrong) else 0.0))


def _log_likelihood(task: Any, sample: dict[str, Any]) -> float:
    """Of what goes on after the context, per byte."""
    said = sample["arguments"][0][1]
    return float(sample["filtered_resps"][0][0]) / max(1, len(said.strip().encode()))
