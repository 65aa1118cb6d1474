"""Trainings of a study, in this process: replay, rungs, kept weights, and the choice of a learning rate."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from align_ray.checks.outcomes import tokens_of_a_step
from align_ray.config import Config
from align_ray.corpora.rows import FILLED
from align_ray.corpora.sample import read_sample, sample_corpora
from align_ray.errors import ConfigError
from align_ray.fisher.probe import load_model
from align_ray.pipeline import open_study
from align_ray.reporting.trained import Finetuned
from align_ray.training import loop
from align_ray.training.finetune import Run, finetune_runs
from align_ray.training.jobs import job_keys, train_jobs, train_to_rung
from align_ray.training.loop import RUNGS, weights_file
from align_ray.training.rows import candidate_jobs, heldout_rows, replay_text, with_rate
from align_ray.training.step import heldout_losses, learned, sequence_losses


@pytest.fixture(scope="module")
def sampled(small_config, corpora, local_ray, tmp_path_factory):
    """A function that gives a study whose corpora are drawn, with general text for replay and other settings."""
    out = tmp_path_factory.mktemp("training")

    def make(said=None, **finetune):
        mapping = small_config(out)
        mapping["replay"] = {"name": "general", "source": str(corpora / "cpp-headers.jsonl"), "share": 0.5}
        mapping["finetune"] |= {"tokens": 2048, "eval_tokens": 1024, "batch_size": 4, "learning_rate": 1e-3, **finetune}
        study = open_study(Config.model_validate(mapping), say=(said if said is not None else []).append)
        if not study.store.find_json("corpora.json"):
            sample_corpora(study)
        return study

    return make


def test_replay_is_read_but_is_no_candidate(sampled):
    study = sampled()
    report = study.store.read_json("corpora.json")
    assert report["general"]["role"] == "replay" and report["general"]["batches"] == 0
    assert len(replay_text(study)) == 2048 // 32 and [c.name for c in study.config.corpora] == [
        "target",
        "python-stdlib",
        "licences",
    ]
    with pytest.raises(ConfigError, match="the name 'licences' is used twice"):
        replay = {"name": "licences", "source": "x.jsonl"}
        from align_ray.config_file import validated

        validated(Config, {**study.config.model_dump(mode="json"), "replay": replay}, "study.yaml")


def test_with_replay_the_general_text_is_learned_as_well(sampled, no_trainings):
    study = sampled()
    heldout, jobs, sample = heldout_rows(study), candidate_jobs(study, 2048), read_sample(study.store, "general")
    assert not set(sample.heldout.documents.ravel()) & set(sample.training.documents.ravel()) - {FILLED}
    without = [dataclasses.replace(job, replay=None) for job in jobs]
    assert set(job_keys(study, heldout, jobs)).isdisjoint(job_keys(study, heldout, without))
    (_, mixed), (_, alone) = (train_jobs(study, heldout, of) for of in (jobs, without))
    assert set(mixed.losses) == {"target"} and len(mixed.general.after) == len(sample.heldout)
    gain = lambda done: (done.general.before - done.general.after).mean()
    assert gain(mixed) > gain(alone) + 0.05
    assert len(mixed.training) == 2 * len(alone.training) == 2 * 2048 // 32 // 4


def test_a_run_has_its_losses_at_every_rung_and_ends_with_those_it_reports(sampled, no_trainings):
    study = sampled()
    heldout = heldout_rows(study)
    done, _ = train_jobs(study, heldout, candidate_jobs(study, 2048))
    steps = [rung.steps for rung in done.rungs]
    assert steps == sorted(steps) and steps[0] == 2 and steps[-1] == len(done.training) == 32
    half = len(heldout["target"]) // 2
    np.testing.assert_array_equal(done.rungs[-1].losses["target"], done.losses["target"].after[:half])
    means = [rung.losses["target"].mean() for rung in done.rungs]
    assert means[-1] < means[0] < done.losses["target"].before[:half].mean() + 0.05


def test_a_training_in_parts_is_the_training_in_one(sampled, no_trainings, monkeypatch):
    """To a rung, further, broken off between two steps, and to its end; the model has dropout."""
    study = sampled(scratch={"resid_pdrop": 0.2}, epochs=2)
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 2048)
    whole = train_jobs(study, heldout, jobs)
    ends = {f"{key}.json" for key in job_keys(study, heldout, jobs)}
    assert ends < study.store.names("finetune")
    for name in ends:
        study.store.remove(f"finetune/{name}")
    for rung in (1, 3):
        parts = train_to_rung(study, heldout, jobs, rung)
        for so_far, expected in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(so_far.before["target"], expected.losses["target"].before)
            assert [r.steps for r in so_far.rungs] == [r.steps for r in expected.rungs[: rung + 1]]
            for mine, theirs in zip(so_far.rungs, expected.rungs, strict=False):
                np.testing.assert_allclose(mine.losses["target"], theirs.losses["target"], atol=1e-6)
    assert not ends & study.store.names("finetune"), "no losses of an end are written"

    steps = []

    def dies(*arguments, real=loop.add_gradients, **named):
        steps.append(1)
        if len(steps) == 20:
            raise SystemExit
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "add_gradients", dies)
        with pytest.raises(SystemExit):
            train_jobs(study.changed(finetune={"checkpoint_every": 1e-9}), heldout, jobs)
    steps.clear()
    monkeypatch.setattr(
        loop, "add_gradients", lambda *a, real=loop.add_gradients, **n: steps.append(1) or real(*a, **n)
    )
    again = train_jobs(study, heldout, jobs)
    total = len(whole[0].training)
    rest = total - round(RUNGS[3] * total)
    assert 2 * rest - 19 - loop.ASKED_EVERY <= len(steps) < 2 * rest, "what was trained before the end is kept"
    for mine, theirs in zip(again, whole, strict=True):
        np.testing.assert_allclose(mine.losses["target"].after, theirs.losses["target"].after, atol=1e-6)
        np.testing.assert_allclose(mine.training, theirs.training, atol=1e-6)
        assert [r.steps for r in mine.rungs] == [r.steps for r in theirs.rungs]
    assert not study.store.names("finetune/state"), "what was under way is removed at the end"


def test_kept_weights_and_the_base_are_the_model_whose_losses_are_reported(sampled, no_trainings):
    study = sampled(keep_weights=True, tokens=1024)
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 1024)
    done, _ = train_jobs(study, heldout, jobs)
    changed = load_file(Path(study.store.uri) / weights_file(job_keys(study, heldout, jobs)[0]))
    model = load_model(study.model)
    assert set(changed) == set(learned(model)) and all(v.dtype == torch.bfloat16 for v in changed.values())
    for name, parameter in learned(model).items():
        parameter.data += changed[name].float()
    again = sequence_losses(heldout_losses(model.eval(), heldout["target"], torch.device("cpu")))
    np.testing.assert_allclose(again, done.losses["target"].after, atol=0.01)
    assert abs(again - done.losses["target"].before).mean() > 0.02


def test_the_best_of_several_rates_is_chosen_on_validation_text_and_an_end_is_said(sampled, no_trainings):
    said = []
    study = sampled(said, learning_rate=[1e-5, 1e-3, 3e-1], tokens=1024)
    assert with_rate(study).config.finetune.learning_rate == [1e-3]
    assert any(line.startswith("learning rate 0.001: the uniform mixture's validation loss is") for line in said)
    assert not any("end of the list" in line for line in said)
    said.clear()
    assert with_rate(sampled(said, learning_rate=[1e-5, 1e-3], tokens=1024)).config.finetune.learning_rate == [1e-3]
    assert any("end of the list 'finetune.learning_rate'" in line for line in said)
    assert with_rate(sampled(learning_rate=2e-4)).config.finetune.learning_rate == [2e-4]


def test_tokens_of_a_rung_are_those_of_the_candidate_without_replay(sampled):
    study = sampled()
    assert tokens_of_a_step(study) == 2 * 32, "half of four rows"
    without = dataclasses.replace(study, config=study.config.model_copy(update={"replay": None}))
    assert tokens_of_a_step(without) == 4 * 32


def finetuned(study, tokens: int) -> Finetuned:
    """Each of two candidates, which hold so many tokens, alone, and mixed in equal parts."""
    half = {"python-stdlib": 0.5, "licences": 0.5}
    runs = [Run(name, {name: 1.0}) for name in half] + [Run("uniform", half), Run("mixture", half)]
    return Finetuned.parse(finetune_runs(study, dict.fromkeys(half, tokens), runs, dict.fromkeys(half, 1.0)))


def test_finetune_says_what_every_run_forgets_and_would_come_to_at_the_budget(sampled, no_trainings):
    study = sampled()
    found = finetuned(study, 2_000)
    for run in found.runs.values():
        assert set(run.targets) == {"target"} and run.general.change_low < run.general.change < run.general.change_high
        assert run.general.after == pytest.approx(run.general.before + run.general.change)
    assert len(found.forgets()) == 2 and set(found.front("target")) <= set(found.runs)

    beyond = found.extrapolation["target"]
    assert set(beyond.runs) == set(found.runs) and beyond.token_budget == study.config.search.token_budget
    for name, course in beyond.runs.items():
        target, end = found.runs[name].targets["target"], course.measured[-1]
        assert end.tokens == found.tokens == 2048 and end.value == pytest.approx(target.after)
        assert (end.low, end.high) == pytest.approx(
            (target.before + target.change_low, target.before + target.change_high)
        )
        assert [p.tokens for p in course.measured] == [
            64 * s for s in sorted({r.steps for r in found.runs[name].rungs})
        ]
        assert course.expected[-1].tokens == beyond.token_budget
    assert [run.epochs_at_budget for run in found.runs.values()] == [5.0, 5.0, 2.5, 2.5]
    assert len(found.beyond()) == 2 and "'mixture' 2.5 times" in found.beyond()[1]


def test_a_task_of_choices_is_scored_beside_the_loss_in_the_same_run(
    small_config, corpora, local_ray, no_trainings, tmp_path
):
    """Python goes on after Python, a licence does not; margins are those of each choice alone, by hand."""
    import json

    from align_ray.corpora.items import read_items

    texts = [json.loads(line)["text"] for line in (corpora / "python-stdlib-heldout.jsonl").open()]
    choices = ["self.assertEqual(value, other)", "Permission is hereby granted"]
    with (tmp_path / "target.jsonl").open("w") as file:
        for i, text in enumerate(texts):
            record = {"text": text, "begins": text[:150], "choices": choices[:: 1 - 2 * (i % 2)], "answer": choices[0]}
            file.write(json.dumps(record) + "\n")
    mapping = small_config(tmp_path / "out")
    mapping["targets"] = [{"name": "target", "source": str(tmp_path / "target.jsonl")}]
    mapping["finetune"] |= {"tokens": 1024, "eval_tokens": 512, "batch_size": 4, "learning_rate": 3e-3}
    without = open_study(Config.model_validate(mapping))
    sample_corpora(without)
    task = {"kind": "choices", "context": "begins", "choices": "choices", "items": 12}
    mapping["targets"][0]["task"] = task
    study = open_study(Config.model_validate(mapping))
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 1024)
    assert set(job_keys(study, heldout, jobs)).isdisjoint(job_keys(without, heldout, jobs))

    found = finetuned(study, 10**6)
    python, licences = (found.runs[name].targets["target"].task for name in ("python-stdlib", "licences"))
    assert python.items == 12 and python.chance == 0.5
    assert python.score.low < python.score.value < python.score.high
    assert python.score.value > licences.score.value and python.score_before == licences.score_before
    assert python.score_change.value == pytest.approx(python.score.value - python.score_before)
    frame = found.to_pandas()
    assert {"accuracy", "accuracy_low", "score", "score_before"} <= set(frame.columns)
    assert any(note.startswith("target, task after 'mixture': accuracy ") for note in found.notes())

    (items,) = read_items(study).values()
    model, documents = load_model(study.model), {t[:150]: t for t in texts}
    by_hand = []
    for n in range(12):
        scores = {}
        for row in np.flatnonzero(items.item == n):
            ids = items.rows.ids[row, : (items.rows.documents[row] != FILLED).sum()]
            log_p = model(torch.as_tensor(ids[None], dtype=torch.long)).logits[0].log_softmax(-1)
            said = int(items.rows.scored[row].sum())
            text = study.tokenizer.decode(ids)
            assert any(text.startswith(begins) for begins in documents) and text.endswith(choices[not items.right[row]])
            ll = sum(log_p[len(ids) - said + j - 1, ids[len(ids) - said + j]].item() for j in range(said))
            scores[bool(items.right[row])] = ll / len(choices[not items.right[row]].encode())
        by_hand.append(scores[True] - scores[False])
    trained, _ = train_jobs(study, heldout, jobs)
    np.testing.assert_allclose(trained.tasks["target"].before, by_hand, atol=0.02)  # products in bfloat16


def test_answers_are_written_and_scored_in_the_same_run_as_the_loss(
    small_config, corpora, local_ray, no_trainings, tmp_path
):
    """The tiny probe writes no right answer: its accuracy is at the floor, and the score tells the runs apart."""
    import json

    texts = [json.loads(line)["text"] for line in (corpora / "python-stdlib-heldout.jsonl").open()]
    with (tmp_path / "target.jsonl").open("w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"text": text, "begins": text[:150], "answer": f"{text[150:250]} #### {i}"}) + "\n")
    mapping = small_config(tmp_path / "out")
    task = {"kind": "exact_match", "context": "begins", "items": 8, "max_new_tokens": 6}
    mapping["targets"] = [{"name": "target", "source": str(tmp_path / "target.jsonl"), "task": task}]
    mapping["finetune"] |= {"tokens": 1024, "eval_tokens": 512, "batch_size": 4, "learning_rate": 3e-3}
    study = open_study(Config.model_validate(mapping))
    sample_corpora(study)
    found = finetuned(study, 10**6)
    python, licences = (found.runs[name].targets["target"].task for name in ("python-stdlib", "licences"))
    assert python.measure == "log-likelihood" and python.items == 8 and python.chance == 0.0
    assert python.accuracy.value == 0.0 and 0.3 < python.accuracy.high < 0.4, "none of eight is no certainty"
    assert python.score.value > licences.score.value and python.score_before == licences.score_before < 0
    floor = "target: no training's accuracy is for certain above its floor, 0.000: the log-likelihood says more"
    assert floor in found.notes() and found.verdict.by == "task"


@pytest.fixture
def tasked(small_config, corpora, local_ray, tmp_path):
    """A study whose target has a task, with its corpora drawn, and other settings."""
    import json

    texts = [json.loads(line)["text"] for line in (corpora / "python-stdlib-heldout.jsonl").open()]
    with (tmp_path / "target.jsonl").open("w") as file:
        for text in texts:
            file.write(json.dumps({"text": text, "begins": text[:60], "answer": "yes"}) + "\n")
    task = {"kind": "choices", "context": "begins", "choices": ["yes", "no"], "items": 6}

    def make(**sections):
        mapping = small_config(tmp_path / "out")
        mapping["targets"] = [{"name": "target", "source": str(tmp_path / "target.jsonl"), "task": task}]
        mapping["finetune"] |= {"tokens": 512, "eval_tokens": 512, "batch_size": 4, "learning_rate": 1e-3}
        for name, fields in sections.items():
            mapping[name] = mapping.get(name, {}) | fields
        study = open_study(Config.model_validate(mapping))
        if not study.store.find_json("corpora.json"):
            sample_corpora(study)
        return study

    return make


def test_what_reports_no_task_does_not_score_it(tasked, no_trainings, monkeypatch):
    from align_ray.checks.loss_difference import loss_difference
    from align_ray.checks.outcomes import measure_outcomes
    from align_ray.mixture.by_loss import run_swarm
    from align_ray.mixture.constraints import constraints_of
    from align_ray.mixture.mixmin import candidate_probabilities

    asked = []
    monkeypatch.setattr(loop, "task_answers", lambda *a, real=loop.task_answers: asked.append(1) or real(*a))
    tokens = {"python-stdlib": 10_000, "licences": 10_000}
    study = tasked(predict={"tokens": 256, "seeds": 2}, search={"proxy_tokens": 256, "trials": 2})
    with_rate(tasked(finetune={"learning_rate": [1e-4, 1e-3]}))
    measure_outcomes(study)
    loss_difference(study)
    run_swarm(study, tokens, constraints_of(study.config.search, tokens))
    candidate_probabilities(tasked(choose={"by": "training"}))
    assert not asked
    candidate_probabilities(study)  # finetune takes these
    assert len(asked) == 3, "before both trainings, and after each"
    finetuned(study, 10_000)
    assert len(asked) == 3 + 5, "before, both second seeds, and two of the mixture, which is the uniform one"


def test_a_training_with_scores_serves_where_losses_alone_are_wanted(tasked, no_trainings, monkeypatch):
    study = tasked()
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 512)
    (without, _), alone = train_jobs(study, heldout, jobs, scored=False), job_keys(study, heldout, jobs, scored=False)
    (scored, _), keys = train_jobs(study, heldout, jobs), job_keys(study, heldout, jobs)
    assert not without.tasks and set(scored.tasks) == {"target"} and set(alone).isdisjoint(keys)
    np.testing.assert_array_equal(without.losses["target"].after, scored.losses["target"].after)
    assert job_keys(study, heldout, jobs, scored=False) == keys
    monkeypatch.setattr(loop, "train_model", None)
    again, _ = train_jobs(study, heldout, jobs, scored=False)
    assert again.losses["target"].after.tolist() == scored.losses["target"].after.tolist()
