"""Every training of a study, as the two tables that `fit` reads and as one for people."""

from align_ray.handover.runs import run_files
from align_ray.mixture.runs import read_runs
from align_ray.reporting.results import Finetuned, Mixture, Validation

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


def test_the_tables_are_read_back_by_fit_as_they_were(tmp_path):
    for name, content in run_files(results(), 32).items():
        (tmp_path / name).write_bytes(content)
    head = (tmp_path / "ratios.csv").read_text().splitlines()[0]
    assert head == "run,name,index,web,code,books"
    runs = read_runs(tmp_path / "ratios.csv", tmp_path / "metrics.csv")
    assert runs.domains == NAMES and set(runs.metrics) == {"loss/t"} and len(runs.ids) == 11 and not runs.renormalised
    assert runs.metrics["loss/t"].tolist() == [3.0, 4.0, 5.0, 2.0, 2.5, 2.75, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert runs.weights[3].tolist() == [0.5, 0.3, 0.2] and runs.weights[1].tolist() == [0, 1, 0]


def test_the_table_for_people_is_sorted_and_says_what_is_not_known():
    lines = run_files(results(), 32)["results.md"].decode().splitlines()
    assert lines[:3] == [
        "|Tasks: t|Tokens|Metric| |Value| |Stderr|",
        "|---|---:|---|---|---:|---|---:|",
        "|finetune/mixture|64|loss|↓|2.0000|±|N/A|",
    ]
    assert "|validate/recommended|64|loss|↓|2.5000|±|0.0100|" in lines
    assert "|search/0004|32|loss|↓|7.0000|±|N/A|" in lines


def test_without_trainings_there_are_no_tables():
    assert run_files({}, 32) == {}
