"""One fact has one value: what the terminal, the JSON files, the page and MLflow say is the stored result.

Every number that is printed must be the rounding of a stored one; in a table's row, of one that is stored under the
row's name."""

import json
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from align_ray.cli.show import show_ranking, show_result
from align_ray.compare import _task_rows, _tasks
from align_ray.config import Config
from align_ray.handover.runs import run_files
from align_ray.reporting import tracking as told
from align_ray.reporting.headline import headline
from align_ray.reporting.names import called
from align_ray.reporting.page import render_report
from align_ray.reporting.tables import out
from align_ray.reporting.tracking import start_tracking
from align_ray.store import Store
from tests.stored_study import TASKED, study, typed

NUMBER = re.compile(r"(?<![\w.-])[-+±]?\d[\d,]*(?:\.\d+)?%?(?![\w.]*[a-z])")


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """A command with --json before leaves the console quiet."""
    monkeypatch.setattr(out, "quiet", False)


@pytest.fixture(scope="module")
def stored():
    return study()


def leaves(value, path=()):
    """(path, number) of everything in a JSON value, names of records as parts of their path, and the halves of
    intervals."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, dict):
        path = (*path, value["candidate"]) if "candidate" in value else path
        for low, middle in (("high", "value"), ("change_high", "change")):
            if value.get(low) is not None and middle in value:
                yield (*path, "half"), value[low] - value[middle]
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from leaves(part, (*path, i))


def facts(config, results):
    """All of them, and what is shown of differences, bits and probabilities."""
    found = list(leaves({**results, "config": config.model_dump(mode="json")}))
    mixtures = results["search"]["mixtures"]
    found += [((n,), m["value"] - mixtures["uniform"]["value"]) for n, m in mixtures.items()]
    found += [((n,), max(m["epochs"].values())) for n, m in mixtures.items()]
    for name, run in results["finetune"]["runs"].items():
        found += [((name,), loss["after"] / 3.5 / 0.6931471805599453) for loss in run["targets"].values()]
    found += [(path, 1 - value) for path, value in found if path[-1] == "p_lower"]
    found += [(path, abs(value)) for path, value in found if value < 0]
    return found


def rounds_to(text, value):
    digits = text.strip("±").replace(",", "").replace("%", "")
    unit = 10.0 ** -len(digits.partition(".")[2])
    return abs(float(digits) - value * (100 if "%" in text else 1)) <= 0.5001 * unit


def strangers(printed, known, names):
    """(line, number) of what is not the rounding of a stored value: of one with the row's name in its path, where the
    line is a row."""
    found = []
    for line in re.sub(r"(?<=\d)-(?=\d)", " ", printed).splitlines():  # the ends of an interval
        first = next((n for n in sorted(names, key=len, reverse=True) if re.match(rf"{re.escape(n)}\s", line)), None)
        allowed = [v for path, v in known if first is None or names[first] in path]
        line_without = line.replace(first, "", 1) if first else line
        found += [(line, t) for t in NUMBER.findall(line_without) if not any(rounds_to(t, v) for v in allowed)]
    return found


def printed_by(show, *arguments):
    with out.capture() as captured:
        show(*arguments)
    return captured.get()


def on_the_terminal(found):
    tables = [printed_by(show_ranking, found["alignment"], found["finetune"])]
    tables += [printed_by(show_result, found[n]) for n in ("search", "finetune", "validation", "contamination")]
    return "\n".join([headline(found), *tables])


def rows_of(found):
    """What rows begin with, and the name under which their numbers are stored."""
    runs = {n: n for n in found["finetune"].runs}
    return {called(n): n for n in found["search"].mixtures} | {n: n for n in found["search"].mixtures} | runs


def test_every_number_of_the_terminal_is_a_stored_one(stored):
    config, results = stored
    config, found, _ = typed(config, results)
    text = re.sub(r"95%|13[- ]token|arXiv \S+|8,192", "", on_the_terminal(found))
    assert len(NUMBER.findall(text)) > 150
    assert strangers(text, facts(config, results), rows_of(found)) == []


def test_scores_of_tasks_are_on_the_terminal_for_every_training_with_their_intervals(stored):
    config, results = stored
    config, found, _ = typed(config, results)
    text = on_the_terminal(found)
    of = {n: run["targets"][TASKED]["task"] for n, run in results["finetune"]["runs"].items()}
    of |= {n: m["task"][TASKED] for n, m in results["validation"]["mixtures"].items() if "task" in m}
    for name, task in of.items():
        for key, form in (("score", "+.4f"), ("accuracy", ".3f")):
            cells = f"{task[key]['value']:{form}} [{task[key]['low']:{form}}, {task[key]['high']:{form}}]"
            rows = [" ".join(line.split()) for line in text.splitlines() if line.startswith(f"{name} ")]
            assert any(cells in row for row in rows), (name, cells)


def test_every_number_of_the_tables_beside_the_report_and_of_a_comparison_is_a_stored_one(stored):
    config, results = stored
    config, found, _ = typed(config, results)
    files, known = run_files(found, config), facts(config, results)
    table = [line.split("|")[1:-1] for line in files["results.md"].decode().splitlines() if "±" in line]
    for name, _, _, _, value, _, error, ends in table:
        allowed = [v for path, v in known if name.split("/")[-1] in path]
        for number in [value, error, *ends.split(" to ")]:
            assert number == "N/A" or any(rounds_to(number, v) for v in allowed), (name, number)
    assert sum("accuracy" in row[2] for row in table) == len(results["finetune"]["runs"]) + 3
    for name, kind in (("metrics.csv", "finetune"), ("metrics-validate.csv", "validation")):
        head, *rows = (line.split(",") for line in files[name].decode().splitlines())
        assert f"accuracy_low/{TASKED}" in head
        for row in rows:
            run = row[1].split("/")[1]
            allowed = {v for path, v in known if path[0] == kind and run in path}
            assert {float(cell) for cell in row[3:] if cell} <= allowed, row
    scores = {v for path, v in known if "task" in path}
    for row in _task_rows(_tasks(found), {}):
        assert {row.before, *row.ends[0]} <= scores, row
    assert len(_tasks(found)) == 2 * (len(results["finetune"]["runs"]) + 4), "unimax is the uniform one"


@pytest.mark.parametrize("where", ["finetune", "search", "validation", "alignment"])
def test_a_number_that_is_not_the_stored_one_is_found(stored, where):
    config, results = stored
    config, found, _ = typed(config, results)
    text = on_the_terminal(found)
    without = [(path, value) for path, value in facts(config, results) if path[0] != where]
    assert strangers(text, without, rows_of(found))


def test_json_holds_what_was_stored(stored):
    config, results = stored
    _, found, _ = typed(config, results)
    for name, result in found.items():
        kept, written = dict(leaves(results[name])), dict(leaves(result.dump()))
        written = {path[1:] if name == "corpora" and path[0] == "corpora" else path: v for path, v in written.items()}
        assert kept and kept.items() <= written.items(), name


def test_the_page_gives_every_number_its_stored_value(stored):
    config, results = stored
    html = render_report(*typed(config, results))
    known = dict(leaves({**results, "config": config.model_dump(mode="json")}))
    known = {"/".join(map(str, path)): value for path, value in known.items() if path[-1] != "half"}
    seen = 0
    for value, path, text in re.findall(r'<data value="([^"]*)" data-path="([^"]*)">([^<]*)</data>', html):
        if path.startswith("derived/") or "/ranking/" in path or text == "n/a":
            continue  # test_page.py has these; rankings are lists, whose paths here hold the candidate
        assert float(value) == known[path] and ("e" in text or rounds_to(text, known[path])), path
        seen += 1
    assert seen > 400


def test_mlflow_has_the_stored_losses_weights_scores_and_trials(stored, tracking_of):
    config, results = stored
    weights = results["search"]["mixtures"]["recommended"]["weights"]
    trained = [
        {"weights": dict(zip(weights, shares, strict=True)), "loss": loss, "losses": {"proofs": loss, "code": loss / 2}}
        for shares, loss in (([0.2] * 5, 3.123456789), ([0.1, 0.2, 0.3, 0.15, 0.25], 2.987654321))
    ]
    results = {**results, "search": {**results["search"], "trials": trained}}
    tracker, found = tracking_of(config, results)
    client = MlflowClient(tracker.uri)
    runs = client.search_runs(
        [tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'", max_results=1000
    )
    of = {(r.data.tags["align_ray.kind"], r.data.tags["mlflow.runName"]): r.data.metrics for r in runs}
    for name, run in results["finetune"]["runs"].items():
        for target, loss in run["targets"].items():
            assert of["finetune", name][f"loss/{target}"] == loss["after"]
            assert of["finetune", name][f"change/{target}"] == loss["change"]
            for key in ("accuracy", "score") if "task" in loss else ():
                assert of["finetune", name][f"{key}/{target}"] == loss["task"][key]["value"]
    params = {(r.data.tags["align_ray.kind"], r.data.tags["mlflow.runName"]): r.data.params for r in runs}
    for kind, stage in (("finetune", "runs"), ("validation", "mixtures")):
        for name, run in results[kind][stage].items():
            told_of = {k.removeprefix("weight/"): v for k, v in params[kind, name].items() if k.startswith("weight/")}
            assert {n: w for n, w in told_of.items() if w != "0.0" and w != "0"} == {n: f"{w:.4g}" for n, w in run["weights"].items() if w}  # fmt: skip
    for name, mixture in results["validation"]["mixtures"].items():
        assert all(of["validation", name][f"loss/{t}"] == e["value"] for t, e in mixture["loss"].items())
        for target, task in mixture["task"].items():
            assert all(of["validation", name][f"{k}/{target}"] == task[k]["value"] for k in ("score", "accuracy"))
    for target, ranking in results["alignment"]["ranking"].items():
        words = {r["candidate"]: r["value"] for r in results["alignment"]["predicted"]["ranking"][target]}
        for row in ranking:
            metrics = of["alignment", row["candidate"]]
            assert metrics[f"alignment/{target}"] == row["value"]
            assert metrics[f"cross_entropy/{target}"] == words[row["candidate"]]
    parent = client.get_run(tracker.run_id).data
    for target in results["alignment"]["targets"]:
        assert (
            parent.metrics[f"mixture_loss/{target}"]
            == results["finetune"]["runs"]["mixture"]["targets"][target]["after"]
        )
    for key in ("score", "accuracy"):
        stored_one = results["finetune"]["runs"]["uniform"]["targets"][TASKED]["task"][key]["value"]
        assert parent.metrics[f"uniform_{key}/{TASKED}"] == stored_one
    assert {n: parent.metrics[f"weight/{n}"] for n in weights} == weights
    assert parent.metrics["mixture_value"] == results["search"]["mixtures"]["recommended"]["value"]
    within = next(r.info.run_id for r in runs if r.data.tags["align_ray.kind"] == "search")
    inside = client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{within}'")
    by_name = {r.data.tags["mlflow.runName"]: r.data for r in inside}
    table = json.loads(Path(client.download_artifacts(tracker.run_id, "search_trials.json")).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(by_name) == len(rows) == len(trained)
    for i, trial in enumerate(trained):
        data = by_name[f"trial-{i:04d}"]
        assert data.metrics == {"loss": trial["loss"], **{f"loss/{t}": v for t, v in trial["losses"].items()}}
        assert data.params == {f"weight/{n}": f"{w:.4g}" for n, w in trial["weights"].items()}
        assert rows[i] == {"trial": i, "loss": trial["loss"], **trial["weights"]}
    assert parent.tags["align_ray.verdict"] == results["validation"]["verdict"]["state"]
    assert found["finetune"].verdict.state != results["validation"]["verdict"]["state"], "one verdict, that of validate"


@pytest.fixture
def tracking_of(tmp_path, tracking):
    def track(config, results):
        config = Config.model_validate(
            config.model_dump(mode="json") | {"output": str(tmp_path), "tracking": tracking, "name": "one-value"}
        )
        store = Store(config.output)
        tracker = start_tracking(config, store)
        _, found, _ = typed(config, results)
        best = results["search"]["mixtures"]["recommended"]["weights"]
        recipe = {"weights": best, "targets": ["proofs"], "token_budget": 10_000, "objective": "cross-entropy"}
        store.write_json("recipe.json", recipe)
        told.mixture(tracker, config, store, found["search"])
        told.alignment(tracker, config, store, found["alignment"])
        told.finetuned(tracker, config, store, found["finetune"])
        told.validation(tracker, config, store, found["validation"])
        return tracker, found

    return track
