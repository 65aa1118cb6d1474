"""Trainings of a study, in this process: replay, rungs, kept weights, and the choice of a learning rate."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from align_ray.checks.outcomes import tokens_of_a_step
from align_ray.config import Config
from align_ray.corpora.sample import read_sample, sample_corpora
from align_ray.errors import ConfigError
from align_ray.fisher.probe import load_model
from align_ray.pipeline import open_study
from align_ray.training.jobs import job_keys, train_jobs
from align_ray.training.loop import weights_file
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
    general = {"general": read_sample(study.store, "general").training[:8], **heldout_rows(study)}
    jobs = candidate_jobs(study, 2048)
    without = [dataclasses.replace(job, replay=None) for job in jobs]
    assert set(job_keys(study, general, jobs)).isdisjoint(job_keys(study, general, without))
    (_, mixed), (_, alone) = (train_jobs(study, general, of) for of in (jobs, without))
    gain = lambda done: (done.losses["general"].before - done.losses["general"].after).mean()
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
