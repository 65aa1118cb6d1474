"""Every training of a study, as the two tables that `fit` reads and as one for people."""

from contextlib import nullcontext
from types import SimpleNamespace

from align_ray import pipeline
from align_ray.config import Config
from align_ray.handover.runs import FILES, run_files
from align_ray.mixture.runs import read_runs
from align_ray.reporting.results import Mixture
from align_ray.reporting.trained import Finetuned, Validation
from align_ray.store import Store

NAMES = ("web", "code", "books")


def results() -> dict:
    """Four trainings of `finetune`, two of `validate` (a third was trained in another's place), and five proxies."""

    def training(weights, after):
        change = {"before": 4.0, "after": after, "change": after - 4.0, "change_error": None, "overlap": 0.0}
        return {"weights": weights, "sequences": 2, "targets": {"t": change}}

    single = {n: training({n: 1.0}, 3.0 + i) for i, n in enumerate(NAMES)}
    mixed = dict(zip(NAMES, (0.5, 0.3, 0.2), strict=True))
    loss = lambda value: {t: {"value": value, "error": 0.01, "low": value, "high": value} for t in ("t", "all")}
    valid = {
        "recommended": {"weights": mixed, "same_as": None, "loss": loss(2.5)},
        "uniform": {"weights": dict.fromkeys(NAMES, 1 / 3), "same_as": None, "loss": loss(2.75)},
        "unimax": {"weights": dict.fromkeys(NAMES, 1 / 3), "same_as": "uniform", "loss": loss(2.75)},
    }
    trials = [{"weights": mixed, "loss": 3.0 + i, "losses": {"t": 3.0 + i}} for i in range(5)]
    best = {"weights": mixed, "value": 0.0, "alignment": {"value": 0, "error": 0, "low": 0, "high": 0}, "epochs": {}}
    return {
        "finetune": Finetuned.parse({"tokens": 64, "runs": {**single, "mixture": training(mixed, 2.0)}}),
        "validation": Validation.parse({"tokens": 64, "mixtures": valid, "versus": {}}),
        "search": Mixture.parse({"mixtures": {"recommended": best}, "weights": {}, "caps": {}, "trials": trials}),
    }


def config(objective="loss") -> Config:
    corpora = {"targets": [{"name": "t", "source": "t"}], "candidates": [{"name": n, "source": n} for n in NAMES]}
    section = {"objective": objective, "proxy_tokens": 32}
    return Config.model_validate({"output": "out", **corpora, "search": section, "finetune": {"tokens": 64}})


def test_the_tables_of_a_kind_are_read_back_by_fit_as_they_were(tmp_path):
    found = results()
    trials = found["search"].trials
    found["search"] = found["search"].model_copy(update={"trials": [*trials, *trials]})
    files = run_files(found, config())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert set(files) == set(FILES)
    head = (tmp_path / "ratios-search.csv").read_text().splitlines()[0]
    assert head == "run,name,index,web,code,books"
    runs = read_runs(tmp_path / "ratios-search.csv", tmp_path / "metrics-search.csv")
    assert runs.domains == NAMES and set(runs.metrics) == {"loss/t"} and not runs.renormalised
    assert runs.metrics["loss/t"].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0] * 2
    assert runs.weights[0].tolist() == [0.5, 0.3, 0.2]


def test_trainings_of_different_kinds_are_in_different_tables():
    files = run_files(results(), config())
    for name, kind, count in (("", "finetune", 4), ("-validate", "validate", 2), ("-search", "search", 5)):
        for table in ("ratios", "metrics"):
            rows = files[f"{table}{name}.csv"].decode().splitlines()[1:]
            assert [row.split(",")[1].split("/")[0] for row in rows] == [kind] * count


def test_the_table_for_people_is_sorted_and_says_what_is_not_known():
    lines = run_files(results(), config())["results.md"].decode().splitlines()
    assert lines[:3] == [
        "|Tasks: t|Tokens|Metric| |Value| |Stderr|95%|",
        "|---|---:|---|---|---:|---|---:|---|",
        "|finetune/mixture|64|loss|↓|2.0000|±|N/A|N/A|",
    ]
    assert "|validate/recommended|64|loss|↓|2.5000|±|0.0100|2.5000 to 2.5000|" in lines
    assert "|search/0004|32|loss|↓|7.0000|±|N/A|N/A|" in lines


def scored(value: float) -> dict:
    """A task's scores, all around a value."""
    around = {"value": value, "error": 0.05, "low": value - 0.1, "high": value + 0.1}
    names = ("accuracy", "accuracy_change", "score", "score_change")
    return {"items": 9, "chance": 0.5, "accuracy_before": 0.5, "score_before": 0.0} | dict.fromkeys(names, around)


def with_tasks() -> dict:
    found = results()
    finetune, validation = found["finetune"].model_dump(), found["validation"].model_dump()
    for i, run in enumerate(finetune["runs"].values()):
        run["targets"]["t"]["task"] = scored(0.25 + 0.125 * i)
    validation["mixtures"]["recommended"]["task"] = {"t": scored(0.375)}
    return found | {"finetune": Finetuned.parse(finetune), "validation": Validation.parse(validation)}


def test_scores_of_tasks_stand_beside_the_losses_with_their_intervals(tmp_path):
    files = run_files(with_tasks(), config())
    head, first, *_ = files["metrics.csv"].decode().splitlines()
    scores = "score/t,score_low/t,score_high/t,accuracy/t,accuracy_low/t,accuracy_high/t"
    assert head == f"run,name,index,loss/t,{scores}" and first.split(",")[3:] == ["3.0", *["0.25", "0.15", "0.35"] * 2]
    head, recommended, uniform = files["metrics-validate.csv"].decode().splitlines()
    assert head.endswith(scores) and recommended.split(",")[4] == "0.375" and uniform.split(",")[4:] == [""] * 6
    assert files["metrics-search.csv"].decode().splitlines()[0] == "run,name,index,loss/t"
    lines = files["results.md"].decode().splitlines()
    of_score = [line for line in lines if "|margin, nats per byte|" in line]
    assert [line.split("|")[1] for line in of_score][:2] == ["finetune/mixture", "finetune/books"], "highest first"
    assert "|validate/recommended|64|accuracy|↑|0.3750|±|0.0500|0.2750 to 0.4750|" in lines
    assert lines.index(of_score[0]) > lines.index("|search/0004|32|loss|↓|7.0000|±|N/A|N/A|")


def test_fit_takes_the_losses_of_such_a_table_unless_a_score_is_named(tmp_path):
    found = with_tasks()
    runs = dict(found["finetune"].runs)
    many = {f"{name}-{i}": run for i in range(3) for name, run in runs.items()}
    found["finetune"] = found["finetune"].model_copy(update={"runs": many})
    paths = [tmp_path / "ratios.csv", tmp_path / "metrics.csv"]
    for path in paths:
        path.write_bytes(run_files(found, config())[path.name])
    read = read_runs(*paths)
    assert set(read.metrics) == {"loss/t"} and "--metric score/t --maximise" in " ".join(read.notes)
    by_score = read_runs(*paths, wanted=["score/t"], maximise=True)
    assert by_score.metrics["score/t"].tolist() == [-0.25, -0.375, -0.5, -0.625] * 3


def test_a_search_on_predicted_losses_has_trained_as_finetune_does():
    lines = run_files(results(), config("predicted"))["results.md"].decode().splitlines()
    assert "|search/0004|64|loss|↓|7.0000|±|N/A|N/A|" in lines


def test_without_trainings_there_are_no_tables():
    assert run_files({}, config()) == {}


def test_tables_of_another_answer_do_not_stay_beside_a_report_without_trainings(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    for name in FILES:
        store.write_bytes(name, b"of another answer")
    for name in ("need", "stored", "found_key"):
        monkeypatch.setattr(pipeline, name, lambda study, wanted: None)
    for name in ("render_report", "headline"):
        monkeypatch.setattr(pipeline, name, lambda *given: "")
    monkeypatch.setattr(pipeline.excerpt, "files", lambda found: {})
    tracker = SimpleNamespace(running=nullcontext, text=lambda name, content: None)
    monkeypatch.setattr(pipeline.tracking, "start_tracking", lambda config, store: tracker)
    monkeypatch.setattr(pipeline.tracking, "answer", lambda *given: None)
    pipeline.report(SimpleNamespace(config=config(), store=store, say=lambda line: None))
    assert (tmp_path / "report.html").exists() and not {p.name for p in tmp_path.iterdir()} & set(FILES)
