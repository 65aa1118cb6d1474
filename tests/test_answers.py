"""Every answer is kept, listed and compared; a missing one is said to differ in what it differs in."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from align_ray import stages
from align_ray.answers import answer_id, answers, differences, remember
from align_ray.cli.answers import say_what_changed
from align_ray.cli.main import app
from align_ray.compare import compare
from align_ray.config import Config
from align_ray.reporting.results import Corpora, Mixture
from align_ray.reporting.tables import out
from align_ray.reporting.trained import Finetuned
from align_ray.store import Store

COUNTS = {"batches": 4, "estimated_tokens": 1000, "sample_digest": "aa"}
LOSS = {"before": 4.0, "change_error": None, "overlap": 0.0}


def study(output, candidates=("a", "b"), **sections) -> Config:
    corpora = {
        "targets": [{"name": "t", "source": "t.jsonl"}],
        "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in candidates],
    }
    return Config.model_validate({"output": str(output), **corpora, **sections})


def kept(config: Config, weights: dict[str, float], loss: float, key: str) -> None:
    """Write down an answer with a mixture and a training on it, as stages do."""
    store, alignment = Store(config.output), {"value": 0.9, "error": 0.01, "low": 0.88, "high": 0.92}
    best = {"weights": weights, "value": -6.0, "alignment": alignment, "epochs": dict.fromkeys(weights, 1.0)}
    corpora = {n: {"role": "candidate", **COUNTS} for n in weights} | {"t": {"role": "target", **COUNTS}}
    work = {"key": "k", "dtype": "float32", "planned": 3, "computed": 0, "tokens": 0, "actor_seconds": 0.0}
    runs = {
        name: {"weights": weights, "sequences": 2, "targets": {"t": {**LOSS, "after": after, "change": after - 4.0}}}
        for name, after in (("mixture", loss), ("uniform", loss + 0.5))
    }
    results = {
        "corpora": Corpora.parse({"corpora": corpora, "work": work}),
        "search": Mixture.parse({"mixtures": {"recommended": best}, "weights": {}, "caps": {}}),
        "finetune": Finetuned.parse({"tokens": 64, "runs": runs}),
    }
    for file, result in results.items():
        store.write_json(f"answers/{file}-{key}.json", result.dump())
    remember(store, config, "0", dict.fromkeys(results, key))
    store.write_bytes("config.yaml", config.to_yaml().encode())


def score(value: float) -> dict:
    around = {"value": value, "error": 0.05, "low": value - 0.1, "high": value + 0.1}
    names = ("accuracy", "accuracy_change", "score", "score_change")
    return {"items": 9, "chance": 0.5, "accuracy_before": 0.5, "score_before": 0.0} | dict.fromkeys(names, around)


def test_scores_of_tasks_are_compared_with_their_intervals(folder):
    store = Store("runs/one")
    for key, value in (("0" * 16, 0.25), ("1" * 16, 0.375)):
        found = store.read_json(f"answers/finetune-{key}.json")
        found["runs"]["mixture"]["targets"]["t"]["task"] = score(value)
        store.write_json(f"answers/finetune-{key}.json", found)
    last, first = answers(store)
    done = run("compare", f"runs/one@{first.id}", "runs/one", "--json")
    rows = {row["what"]: row for row in json.loads(done.stdout)["tasks"]}
    assert set(rows) == {"mixture, margin, nats per byte", "mixture, accuracy"}
    assert (rows["mixture, accuracy"]["before"], rows["mixture, accuracy"]["after"]) == (0.25, 0.375)
    assert rows["mixture, accuracy"]["ends"] == [[0.15, 0.35], [0.275, 0.475]]
    text = " ".join(run("compare", f"runs/one@{first.id}", "runs/one").stdout.split())
    assert "mixture, margin, nats per byte 0.2500 0.3750 +0.1250 [0.1500, 0.3500] [0.2750, 0.4750]" in text


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder in which a study with two answers, of two budgets, is `runs/one`."""
    monkeypatch.chdir(tmp_path)
    first = study("runs/one", search={"token_budget": 1000})
    kept(first, {"a": 0.75, "b": 0.25}, 3.5, "0" * 16)
    kept(study("runs/one", search={"token_budget": 500}), {"a": 0.9, "b": 0.1}, 3.25, "1" * 16)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_an_answer_is_its_configuration_without_what_says_where_and_how(tmp_path):
    one = study(tmp_path, name="one")
    for same in (
        study(tmp_path / "elsewhere", cost={"price_per_hour": 2.0}),
        study(tmp_path, finetune={"workers": 4, "keep_weights": True}),
    ):
        assert answer_id(same) == answer_id(one)
    for other in (study(tmp_path, seed=1), study(tmp_path, finetune={"seeds": 5}), study(tmp_path, ("a", "b", "c"))):
        assert answer_id(other) != answer_id(one)


def test_what_differs_is_named_by_field_and_corpora_by_their_name(tmp_path):
    one = study(tmp_path, search={"token_budget": 1000, "weights": {"a": {"min": 0.1}}}).model_dump(mode="json")
    other = study(tmp_path, ("b", "c"), search={"token_budget": 500}, finetune={"workers": 2}, seed=4)
    found = [str(d) for d in differences(one, other.model_dump(mode="json"))]
    assert found == [
        "candidates without a",
        "candidates with c",
        "seed 4 in place of 0",
        "search.token_budget 500 in place of 1,000",
        "search.weights.a none in place of {'min': 0.1, 'max': 1.0}",
    ]
    assert [d.field for d in differences(one, other.model_dump(mode="json"), ("seed",))] == ["seed"]
    source = study(tmp_path)
    renamed = source.model_dump(mode="json")
    renamed["targets"][0]["column"] = "body"
    assert [d.field for d in differences(source.model_dump(mode="json"), renamed)] == ["targets.t.column"]


def test_the_nearest_answer_is_said_to_have_what_it_has(folder, monkeypatch):
    config = study("runs/one", ("a", "b", "c"), search={"token_budget": 1000})
    asked = SimpleNamespace(store=Store("runs/one"), config=config)
    monkeypatch.setattr(stages, "_fields", lambda study, wanted: ("candidates", "search"))
    said = stages._nearest(asked, SimpleNamespace(file="search"))
    assert said.endswith("has candidates without c"), said


def test_values_with_brackets_are_printed_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, template = {"a": 0.5, "b": 0.5}, "[INST] {q} [/INST] :smile:"
    kept(one := study("runs/[/x]"), weights, 3.0, "0" * 16)
    data = one.model_dump(mode="json")
    data["targets"][0]["template"] = template
    kept(Config.model_validate(data), weights, 3.0, "1" * 16)
    now, before = answers(Store("runs/[/x]"))
    compared = ("compare", f"runs/[/x]@{before.id}", "runs/[/x]")
    for done in (run("list", "runs/[/x]"), run(*compared)):
        text = " ".join(done.stdout.split())
        assert done.exit_code == 0 and "[INST]" in text and "[/INST] :smile:" in text, done.output
        assert "runs/[/x]" in text
    with out.capture() as printed:
        say_what_changed(before, now)
    assert f"{template} in place of none" in " ".join(printed.get().split())


def test_both_answers_are_listed_with_what_tells_them_apart(folder):
    done = run("list", "--json")
    assert done.exit_code == 0, done.output
    last, first = json.loads(done.stdout)
    assert last["differs"] == ["search.token_budget 500 in place of 1,000"] and first["differs"] == []
    assert (first["weights"], last["weights"]) == ({"a": 0.75, "b": 0.25}, {"a": 0.9, "b": 0.1})
    shown = run("list", "runs/one").stdout
    assert last["answer"] in shown and first["answer"] in shown and "runs/one" in shown
    empty = run("list", "nowhere")
    assert empty.exit_code == 2 and "nowhere: no answers" in empty.stderr


def test_two_answers_of_one_study_stand_beside_each_other(folder):
    last, first = answers(Store("runs/one"))
    done = run("compare", f"runs/one@{first.id[:6]}", "runs/one", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [a["answer"] for a in found["answers"]] == [first.id, last.id]
    assert found["configuration"] == [{"field": "search.token_budget", "before": 1000, "after": 500}]
    assert {r["what"]: (r["before"], r["after"]) for r in found["weights"]} == {"a": (0.75, 0.9), "b": (0.25, 0.1)}
    measured = {r["what"]: (r["before"], r["after"]) for r in found["measured"]}
    assert measured == {"mixture": (3.5, 3.25), "uniform": (4.0, 3.75)}
    text = " ".join(run("compare", f"runs/one@{first.id}", "runs/one").stdout.split())
    assert "search.token_budget 1,000 500" in text and "+15.0%" in text and "-0.2500" in text


@pytest.mark.parametrize(
    ("place", "words"),
    [("runs/one@zz", "no answer 'zz'; there are"), ("runs", "holds no answers"), ("x.yaml", "cannot")],
)
def test_an_answer_that_is_not_there_is_one_sentence(folder, place, words):
    done = run("compare", place, "runs/one")
    assert done.exit_code == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_further_corpus_changes_what_is_a_share_of_the_whole_and_it_is_said_why(folder):
    kept(study("runs/two", ("a", "b", "c")), {"a": 0.5, "b": 0.25, "c": 0.25}, 3.0, "2" * 16)
    (after,), (_, before) = answers(Store("runs/two")), answers(Store("runs/one"))
    found = compare(before, after)
    assert "candidates with c" in [str(d) for d in found.configuration]
    assert "weights: shares of one whole, of which c takes a part" in found.why
    assert "loss of 'uniform': the mixture of all candidates, 2 before and 3 now" in found.why
    added = next(row for row in found.weights if row.what == "c")
    assert (added.before, added.after, added.difference) == (None, 0.25, None)


def test_a_torn_record_is_no_answer(folder):
    last, first = answers(Store("runs/one"))
    Path(f"runs/one/answers/{last.id}.json").write_text("{")
    assert [a.id for a in answers(Store("runs/one"))] == [first.id]


def test_an_output_folder_is_opened_from_anywhere_and_read_where_it_was_started(folder, monkeypatch, tmp_path_factory):
    from align_ray.cli.common import config_of

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move("runs/one", elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    config = config_of(Path("moved"), {"seed": 3})
    assert (config.output, config.seed) == (str(elsewhere / "moved"), 3)
    assert Path.cwd() == folder, "its sources are relative to where it was started"
    monkeypatch.chdir(elsewhere)
    (elsewhere / "study.yaml").write_text(yaml.safe_dump({"x": 1}))
    done = run("embed", elsewhere)
    assert done.exit_code == 2 and "no output folder of a study" in done.stderr
