"""Every training of a study, as the two tables that `fit` reads and as one for people."""

from contextlib import nullcontext
from types import SimpleNamespace

from align_ray import pipeline
from align_ray.config import Config
from align_ray.handover.runs import FILES, run_files
from align_ray.mixture.runs import read_runs
from align_ray.reporting.results import Finetuned, Mixture, Validation
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
        "|Tasks: t|Tokens|Metric| |Value| |Stderr|",
        "|---|---:|---|---|---:|---|---:|",
        "|finetune/mixture|64|loss|↓|2.0000|±|N/A|",
    ]
    assert "|validate/recommended|64|loss|↓|2.5000|±|0.0100|" in lines
    assert "|search/0004|32|loss|↓|7.0000|±|N/A|" in lines


def test_a_search_on_predicted_losses_has_trained_as_finetune_does():
    lines = run_files(results(), config("predicted"))["results.md"].decode().splitlines()
    assert "|search/0004|64|loss|↓|7.0000|±|N/A|" in lines


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
    tracker = SimpleNamespace(running=nullcontext, text=lambda name, content: None)
    monkeypatch.setattr(pipeline.tracking, "start_tracking", lambda config, store: tracker)
    monkeypatch.setattr(pipeline.tracking, "answer", lambda *given: None)
    pipeline.report(SimpleNamespace(config=config(), store=store, say=lambda line: None))
    assert (tmp_path / "report.html").exists() and not {p.name for p in tmp_path.iterdir()} & set(FILES)
