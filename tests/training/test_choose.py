"""The stage that compares candidates by short trainings, on a real small study; trainings in this process."""

import json

import pytest

from align_ray import pipeline
from align_ray.config import Config
from align_ray.errors import CapReached, ConfigError
from align_ray.pipeline import open_study
from align_ray.stages import stored
from align_ray.training import choose as module
from align_ray.training import jobs as jobs_of_ray
from tests.conftest import actors_here, trainings_here

CANDIDATES = ("python-stdlib", "licences", "cpp-headers")


def write_records(folder, records):
    (folder / "target.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / "target.jsonl")


@pytest.fixture(scope="module")
def study(small_config, corpora, local_ray, tmp_path_factory):
    """A study after `align`, whose candidates are to be chosen by training; its target has a task."""
    tune = {"tokens": 6400, "eval_tokens": 1024, "batch_size": 4, "learning_rate": 1e-3, "seeds": 2}
    mapping = small_config(tmp_path_factory.mktemp("choose"), candidates=CANDIDATES, finetune=tune)
    texts = [json.loads(line)["text"] for line in (corpora / "python-stdlib-heldout.jsonl").open()]
    said = {"choices": ["self.assertEqual(value, other)", "Permission is hereby granted"], "answer": 0}
    target = write_records(tmp_path_factory.mktemp("target"), [{"text": t, "begins": t[:150], **said} for t in texts])
    task = {"kind": "choices", "context": "begins", "choices": "choices", "items": 12}
    mapping["targets"] = [{"name": "target", "source": target, "task": task}]
    mapping |= {"choose": {"by": "training"}, "search": {"token_budget": 10_000, "method": "closed_form"}}
    made = open_study(Config.model_validate(mapping))
    with actors_here():
        pipeline.embed(made)
        pipeline.align(made)
    return made


@pytest.fixture
def counted():
    """The trainings that are asked for: (rung, how many), in order."""
    asked = []

    def counting(study, heldout, todo, rung, real=None):
        asked.append((rung, len(todo)))
        return real(study, heldout, todo, rung)

    with trainings_here(), pytest.MonkeyPatch.context() as patch:  # undone before what it stands on is
        here = jobs_of_ray._train
        patch.setattr(jobs_of_ray, "_train", lambda *a: counting(*a, real=here))
        yield asked


def test_candidates_are_chosen_by_rungs_and_the_next_stages_use_it(study, counted):
    choice = pipeline.choose(study)
    assert choice.chosen() == ["python-stdlib"]
    found = choice.targets["target"]
    assert list(found.candidates)[0] == "python-stdlib" and found.candidates["python-stdlib"].p_best > 0.8
    assert found.candidates["python-stdlib"].value < found.before
    assert sum(row.p_best for row in found.candidates.values()) == pytest.approx(1)
    assert choice.spent < choice.exhaustive == 3 * choice.tokens == 3 * 6400
    assert counted[0] == (0, 3) and [rung for rung, _ in counted] == sorted(
        (rung for rung, _ in counted), key=lambda rung: 9 if rung is None else rung
    )
    assert choice.spent == sum(row.tokens for row in found.candidates.values())
    frame = choice.to_pandas()
    assert frame["loss"].is_monotonic_increasing and (frame["loss_low"] <= frame["loss_high"]).all()
    assert "P(within)" in str(choice) and any("trained on" in line for line in choice.notes())

    assert not [f for f in study.store.names("finetune/state") if f.endswith(".safetensors")], "no weights are left"
    scores = {name: row.task for name, row in found.candidates.items()}
    for name, score in scores.items():
        assert score.items == 12 and score.chance == 0.5 and score.score.low < score.score.value < score.score.high
        assert score.score_before == scores["licences"].score_before, name
    assert scores["python-stdlib"].score.value > scores["licences"].score.value
    assert "Task of target: margin, nats per byte; accuracy" in str(choice) and "score" in frame.columns
    assert any("intervals over items" in line for line in choice.notes())
    made = len(counted)
    assert pipeline.choose(study).dump() == choice.dump() and len(counted) == made, "nothing is trained again"
    with actors_here():
        pipeline.search(study)
    tuned = pipeline.finetune(study)
    assert set(tuned.runs) == {"python-stdlib", "uniform", "mixture"}
    page = pipeline.report(study)
    text = open(page).read()
    assert "Candidates by training" in text and "Believed loss on target" in text
    assert 'data-path="choice/targets/target/candidates/licences/task/score/value"' in text
    assert pipeline.choose(study).dump() == choice.dump(), "scores are those where a candidate was stopped"


def test_one_training_at_a_time_gives_the_same_choice(study, counted, monkeypatch):
    """The order in which workers finish decides nothing."""
    expected = pipeline.choose(study)
    for folder in ("finetune", "finetune/state"):
        for name in study.store.names(folder):
            study.store.remove(f"{folder}/{name}")
    together = jobs_of_ray._train
    alone = lambda study, heldout, todo, rung: [together(study, heldout, [job], rung) for job in reversed(todo)]
    monkeypatch.setattr(jobs_of_ray, "_train", alone)
    assert pipeline.choose(study).dump() == expected.dump()


def test_a_cap_within_the_rungs_leaves_what_is_believed_so_far(study, counted, monkeypatch):
    for folder in ("finetune", "finetune/state"):
        for name in study.store.names(folder):
            study.store.remove(f"{folder}/{name}")

    def capped(study, heldout, some, rung, real=module.train_to_rung):
        if rung > 1:
            raise CapReached("the cap of 1 USD is reached; raise cost.max_cost.")
        return real(study, heldout, some, rung)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_to_rung", capped)
        choice = pipeline.choose(study)
    assert "cap of 1 USD" in choice.stopped and choice.targets["target"].candidates
    assert choice.spent == 3 * 6400 * 3 // 50, "of 50 steps three"
    assert stored(study, pipeline.choose).stopped == choice.stopped
    assert pipeline.choose(study).stopped is None, "with more it goes on"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"choose": {"by": "words"}}, "field 'choose.by' is words: nothing is trained"),
        ({"finetune": {"batch_size": 100}}, "gives 2 steps, too few for rungs"),
        ({"finetune": {"batch_size": 100}, "sampling": {"sequence_length": 64}}, "gives 1 steps"),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(study, changed, said):
    with pytest.raises(ConfigError, match=said):
        pipeline.choose(study.changed(**changed))


def test_too_few_held_out_rows_are_refused_before_anything_is_trained(study, counted, monkeypatch):
    few = {name: rows[:6] for name, rows in module.heldout_rows(study).items()}
    monkeypatch.setattr(module, "heldout_rows", lambda _: few)
    with pytest.raises(ConfigError, match="target 'target' has 6 held-out sequences, and a choice by training needs 8"):
        pipeline.choose(study)
    assert not counted


def test_a_run_is_refused_before_its_first_stage_where_a_later_one_cannot_be(study):
    with pytest.raises(ConfigError, match="too few for rungs"):
        pipeline.run(study.changed(finetune={"batch_size": 100}))
    with pytest.raises(ConfigError, match="too few for rungs"):
        pipeline.plan(study.changed(finetune={"batch_size": 100}))


def test_a_rung_that_was_left_behind_is_not_taken_for_a_later_one(study, counted):
    """A worker died between the losses of the end and the removal of an earlier rung's."""
    heldout, jobs = module.heldout_rows(study), module.candidate_jobs(module.with_rate(study), 6400)
    (key, *_), (job, *_) = module.job_keys(study, heldout, jobs), jobs
    module.train_to_rung(study, heldout, [job], 0)
    old = (
        study.store.read_bytes(f"finetune/state/{key}.json")
        if study.store.exists(f"finetune/state/{key}.json")
        else b""
    )
    (whole,) = module.train_jobs(study, heldout, [job])
    study.store.write_bytes(f"finetune/state/{key}.json", old or b'{"before": {}, "rungs": [], "seconds": 0}')
    (so_far,) = module.train_to_rung(study, heldout, [job], 3)
    assert [r.steps for r in so_far.rungs] == [r.steps for r in whole.rungs[:4]]


def test_what_ray_tune_has_finished_and_the_store_has_lost_is_trained_again(study, counted, monkeypatch):
    """Ray Tune takes a finished experiment for done, whatever became of its results."""
    heldout, jobs = module.heldout_rows(study), module.candidate_jobs(module.with_rate(study), 6400)[:1]
    (key,) = module.job_keys(study, heldout, jobs)
    module.train_jobs(study, heldout, jobs)
    study.store.remove(f"finetune/{key}.json")
    trains, asked = jobs_of_ray._train, []

    def as_tune(study, heldout, todo, rung, resume=True):
        asked.append(resume)
        if not resume:
            trains(study, heldout, todo, rung)

    monkeypatch.setattr(jobs_of_ray, "_train", as_tune)
    assert module.train_jobs(study, heldout, jobs)[0].losses["target"].after.size and asked == [True, False]
