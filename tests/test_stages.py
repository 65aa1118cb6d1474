"""Results are kept by what determines them, the rows on disk included: another answer does not replace the first,
and none is found beside a sample it was not made from."""

import dataclasses
import json
import os

import pytest

from align_ray import pipeline, stages
from align_ray.answers import answer_id, answers, remember
from align_ray.config import Config
from align_ray.config_corpora import Replay
from align_ray.errors import CapReached, UserError
from align_ray.pipeline import open_study
from align_ray.spending import costs
from align_ray.stages import answer_key, need, stored

SEARCH = {"token_budget": 10_000, "method": "closed_form", "resamples": 20}


@pytest.fixture(scope="module")
def study_of(small_config, tmp_path_factory, local_ray):
    """A function that opens the study with some sections changed, always in the same output folder."""
    out = tmp_path_factory.mktemp("answers") / "out"

    def make(**sections):
        mapping = small_config(out, search=SEARCH)
        changed = {name: {**mapping.get(name, {}), **fields} for name, fields in sections.items()}
        return open_study(Config.model_validate(mapping | changed))

    return make


@pytest.fixture
def finished(study_of, no_pools):
    study = study_of()
    for stage in (pipeline.embed, pipeline.align, pipeline.search):
        if stored(study, stage) is None:
            stage(study)
    return study


def test_another_budget_is_another_answer_beside_the_first(study_of, finished):
    first = need(finished, pipeline.search)
    other = study_of(search={"token_budget": 9_000})
    assert stored(other, pipeline.search) is None and stored(other, pipeline.align) is not None
    second = pipeline.search(other)
    assert need(finished, pipeline.search) == first and need(other, pipeline.search) == second
    assert second.caps != first.caps
    last = json.loads(finished.store.read_bytes("search.json"))
    assert last["caps"] == second.caps, "the file for people is the last answer"
    pipeline.report(finished)
    assert json.loads(finished.store.read_bytes("search.json"))["caps"] == first.caps, (
        "beside a report are its own files"
    )
    assert finished.store.read_json("recipe.json")["token_budget"] == 10_000


@pytest.mark.parametrize("fields", [{"sampling": {"batch_size": 2}}, {"finetune": {"tokens": 512}}])
def test_no_answer_is_found_beside_the_rows_of_another_configuration(study_of, finished, fields):
    """The documents drawn are the same: only the rows that are cut from them differ."""
    pipeline.embed(study_of(**fields))
    for stage in (pipeline.embed, pipeline.align, pipeline.search):
        assert stored(finished, stage) is None
    for refused in (pipeline.finetune, pipeline.report):
        with pytest.raises(UserError, match="no result of the stage"):
            refused(finished)
    pipeline.embed(finished)
    assert need(finished, pipeline.search).weights, "back with its rows, the answer is there again"


def test_nothing_belongs_to_a_sample_that_is_being_drawn(finished):
    corpora = finished.store.read_json("corpora.json")
    finished.store.write_json("corpora.json", {})  # what a kill in the middle of drawing leaves
    assert stored(finished, pipeline.embed) is None and stored(finished, pipeline.search) is None
    finished.store.write_json("corpora.json", corpora)
    assert stored(finished, pipeline.search) is not None


def test_a_finished_study_whose_cap_is_used_up_is_reported_and_keeps_all(study_of, finished):
    spent = sum(row.get("spent", 0.0) for row in costs(finished.store).values())
    capped = study_of(cost={"price_per_hour": 3600.0, "max_cost": max(spent, 1e-3) / 2})
    finished.store.local_path("report.html").unlink(missing_ok=True)
    with pytest.raises(CapReached):
        pipeline.run(capped)
    assert finished.store.exists("report.html")
    for stage in (pipeline.embed, pipeline.align, pipeline.search):
        assert stored(finished, stage) is not None


def test_an_answer_from_fewer_batches_is_not_found_beside_more(study_of, finished):
    store, name = finished.store, f"answers/corpora-{answer_key(finished, pipeline.embed)}.json"
    whole = store.read_json(name)
    store.write_json(name, {**whole, "work": {**whole["work"], "used": dict.fromkeys(whole["corpora"], 2)}})
    try:
        assert stored(finished, pipeline.embed) is not None
        for stage in (pipeline.align, pipeline.search):
            assert stored(finished, stage) is None
    finally:
        store.write_json(name, whole)
    assert stored(finished, pipeline.align) is not None


def test_a_result_of_another_format_counts_as_not_there(finished, monkeypatch):
    assert stored(finished, pipeline.align) is not None
    monkeypatch.setattr(stages, "FORMAT", stages.FORMAT + 1)
    assert stored(finished, pipeline.align) is None
    monkeypatch.undo()
    assert stored(finished, pipeline.align) is not None


def test_another_model_under_the_same_name_makes_other_trainings(finished, monkeypatch):
    keys = [answer_key(finished, stage) for stage in (pipeline.search, pipeline.finetune, pipeline.validate)]
    changed = dataclasses.replace(finished.model, digest="of other weights")
    monkeypatch.setattr(type(finished), "model", changed)
    fresh = dataclasses.replace(finished)  # a Study looks its model up once
    after = [answer_key(fresh, stage) for stage in (pipeline.search, pipeline.finetune, pipeline.validate)]
    assert [a == b for a, b in zip(keys, after, strict=True)] == [True, False, False]


def test_fields_that_say_how_work_is_done_keep_a_result_and_replay_does_not(study_of, tmp_path):
    study = study_of()
    key = answer_key(study, pipeline.finetune)
    how = {"workers": 4, "gpus_per_worker": 0.5, "keep_weights": True, "checkpoint_every": 1.0, "shard": True}
    for field, value in how.items():
        assert answer_key(study.changed(finetune={field: value}), pipeline.finetune) == key, field
    for field, value in {"tokens": 512, "seeds": 5, "lora_rank": 2}.items():
        assert answer_key(study.changed(finetune={field: value}), pipeline.finetune) != key, field

    def replayed(share):
        replay = Replay(name="general", source=str(tmp_path / "general.jsonl"), share=share)
        return dataclasses.replace(study, config=study.config.model_copy(update={"replay": replay}))

    keys = {answer_key(replayed(share), pipeline.finetune) for share in (0.5, 0.1)}
    assert len({*keys, key}) == 3, "the share of replay is part of every training"
    assert len({answer_key(replayed(share), pipeline.align) for share in (0.5, 0.1)}) == 1


def test_the_nearest_answer_is_named_with_the_field_that_differs(study_of, finished):
    other = study_of(search={"token_budget": 8_000})
    with pytest.raises(UserError) as refused:
        need(other, pipeline.search)
    assert "holds no result of the stage 'search' for this configuration" in str(refused.value)
    assert "search.token_budget " in str(refused.value) and "in place of 8,000" in str(refused.value)


def test_trainings_over_other_seeds_are_found_where_those_asked_for_are_not_there(study_of, finished):
    """A result by hand: the trainings themselves are tested in training/."""
    trained = {"tokens": 64, "seeds": 2, "runs": {}}
    key = answer_key(finished, pipeline.finetune)
    finished.store.write_json(f"answers/finetune-{key}.json", trained)
    more, rate = study_of(finetune={"seeds": 5}), study_of(finetune={"learning_rate": [1e-3]})
    assert answer_key(more, pipeline.finetune) != key, "another number of seeds is another result"
    assert answer_key(more, pipeline.search) == answer_key(finished, pipeline.search)
    assert need(more, pipeline.finetune).seeds == 2 and stored(rate, pipeline.finetune) is None
    finished.store.remove(f"answers/finetune-{key}.json")


def test_a_result_over_other_seeds_does_not_spare_a_run_its_trainings(small_config, tmp_path):
    study = open_study(Config.model_validate(small_config(tmp_path / "out")))
    key = answer_key(study, pipeline.finetune)
    study.store.write_json(f"answers/finetune-{key}.json", {"tokens": 64, "seeds": 2, "runs": {}})
    remember(study.store, study.config, "0", {"finetune": key})
    more = study.changed(finetune={"seeds": study.config.finetune.seeds + 2})
    assert stored(more, pipeline.finetune) is not None, "for the report"
    assert pipeline.to_make(study, [pipeline.finetune]) == []
    assert pipeline.to_make(more, [pipeline.finetune]) == ["finetune"], "for the time that is left"


def test_an_answer_is_written_down_with_its_results_and_the_recipe_says_which_it_belongs_to(finished):
    last = next(a for a in answers(finished.store) if a.id == answer_id(finished.config))
    assert last.results["search"] == answer_key(finished, pipeline.search)
    assert pipeline.recipe(finished)["answer"] == last.id
    assert last.config["search"]["token_budget"] == 10_000 and last.started_in == os.getcwd()


def test_embedding_and_alignment_need_no_budget_and_a_run_is_refused_before_it_trains(study_of, finished):
    huge = study_of(search={"token_budget": 10**12})
    pipeline.embed(huge)
    assert pipeline.align(huge).targets == ["target"]
    with pytest.raises(UserError, match="'search.token_budget' is 1000000000000"):
        pipeline.run(huge)


def test_a_source_that_cannot_be_read_leaves_the_answers_found(study_of, finished, tmp_path):
    (tmp_path / "broken.jsonl").write_text("not json\n" * 50)
    before = {p: p.read_bytes() for p in finished.store.local_path().glob("*.json")}
    corpora = [c.model_dump() for c in finished.config.candidates]
    broken = {"name": "broken", "source": str(tmp_path / "broken.jsonl")}
    config = Config.model_validate({**finished.config.model_dump(), "candidates": [*corpora, broken]})
    with pytest.raises(UserError):
        pipeline.embed(dataclasses.replace(finished, config=config))
    changed = {p.name for p, content in before.items() if p.read_bytes() != content}
    assert changed <= {"cost.json", "mlflow-run.json"}, "what was spent is written down, nothing else"
    assert need(finished, pipeline.search).weights
