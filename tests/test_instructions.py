"""A study whose target is question and answer, with a conversation, instructions and plain text to choose from: only
completions count, from the batches to the losses."""

import json

import numpy as np
import pytest

from align_ray import pipeline
from align_ray.config import Config
from align_ray.corpora.sample import read_sample
from align_ray.fisher.tokens import PADDING, plain_ids
from align_ray.pipeline import open_study
from align_ray.training.jobs import Job, train_jobs
from align_ray.training.rows import heldout_rows
from tests.conftest import write_jsonl


def sums(rng, n):
    pairs = rng.integers(1, 99, (n, 2)).tolist()
    return [(f"What is {a} plus {b}?", f"The sum of {a} and {b} is {a + b}.") for a, b in pairs]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, corpora):
    folder, rng = tmp_path_factory.mktemp("instructions"), np.random.default_rng(0)

    def write(name, records):
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
        return str(folder / name)

    chat = lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    prose = [json.loads(line)["text"][:900] for line in (corpora / "licences.jsonl").open()]
    return {
        "qa": write("qa.jsonl", [{"question": q, "answer": a} for q, a in sums(rng, 400)]),
        "chat": write("chat.jsonl", [chat(q, a) for q, a in sums(rng, 300)]),
        "alpaca": write(
            "alpaca.jsonl", [{"instruction": "Say it again.", "input": p[:300], "output": p[300:600]} for p in prose]
        ),
        "plain": str(write_jsonl(folder / "plain.jsonl", prose)),
    }


@pytest.mark.slow
def test_a_study_of_answers_ranks_and_trains_by_answers_alone(sources, small_config, no_pools, no_trainings, tmp_path):
    mapping = small_config(tmp_path / "out") | {
        "targets": [{"name": "qa", "source": sources["qa"], "prompt": "question", "completion": "answer"}],
        "candidates": [
            {"name": "chat", "source": sources["chat"], "chat": "messages"},
            {"name": "alpaca", "source": sources["alpaca"], "prompt": "{instruction}\n{input}", "completion": "output"},
            {"name": "plain", "source": sources["plain"]},
        ],
        "sampling": {"sequence_length": 64, "batch_size": 4, "batches": 6},
        "finetune": {"tokens": 2048, "eval_tokens": 1024, "learning_rate": 1e-3, "seeds": 2},
        "search": {"token_budget": 10_000, "method": "closed_form", "resamples": 20},
    }
    study = open_study(Config.model_validate(mapping))
    pipeline.embed(study)
    batches = read_sample(study.store, "qa").batches
    tokenizer = study.tokenizer
    for row in batches[0]:
        text = tokenizer.decode(plain_ids(row[row != PADDING]).tolist(), skip_special_tokens=True)
        counted = tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=True)
        assert (
            text.startswith("What is") and counted.strip().startswith("The sum of") and counted.rstrip().endswith(".")
        )
    ranking = pipeline.align(study).predicted.ranking["qa"]
    assert ranking[0].candidate == "chat"
    pipeline.search(study)
    tuned = pipeline.finetune(study)
    changes = {name: run.targets["qa"].change for name, run in tuned.runs.items()}
    assert min(changes, key=changes.get) == "chat" and changes["chat"] < changes["plain"] - 0.1
    assert 1 < tuned.bytes_per_token["qa"] < 6
    table = tuned.to_pandas()
    np.testing.assert_allclose(table["bits_per_byte"] * tuned.bytes_per_token["qa"] * np.log(2), table["after"])

    heldout = heldout_rows(study)["qa"]
    (done,) = train_jobs(study, {"qa": heldout}, [Job(read_sample(study.store, "chat").training, 1e-3, 0)])
    import torch

    from align_ray.fisher.probe import load_model
    from align_ray.training.step import on_device, token_losses

    losses = (
        token_losses(model := load_model(study.model), *on_device(heldout, model, torch.device("cpu"))).detach().numpy()
    )
    by_hand = [row[marks].mean() for row, marks in zip(losses, heldout.scored[:, 1:], strict=True)]
    np.testing.assert_allclose(done.losses["qa"].before, by_hand, rtol=1e-3)
