"""Tables of runs as people have them: Olmix's, trackers' exports, and what cannot be meant."""

import numpy as np
import pytest
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.errors import ConfigError
from align_ray.mixture.runs import read_runs

N = 20


def write(path, header, rows):
    path.write_text("\n".join([",".join(header), *(",".join(map(str, r)) for r in rows)]) + "\n")
    return path


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), N)
    return weights, 2 + weights @ [0.5, 1.0, 0.1]


def tables(folder, ratios, metrics, domains=("web", "code", "books"), measured=("loss",), lead=("run",), ids=None):
    """Both tables; `lead`: the columns before the numbers, by `ids(i)`."""
    ids = ids or (lambda i: [f"r{i}"])
    mix = write(folder / "ratios.csv", [*lead, *domains], [[*ids(i), *row] for i, row in enumerate(ratios)])
    out = write(
        folder / "metrics.csv", [*lead, *measured], [[*ids(i), *np.atleast_1d(row)] for i, row in enumerate(metrics)]
    )
    return mix, out


def test_olmixs_tables_with_an_unnamed_first_column_are_read_as_they_are(tmp_path, data):
    lead, ids = ("", "run", "name", "index"), lambda i: [i, f"run{i:03d}", f"mix-{i}", 100 - i]
    runs = read_runs(*tables(tmp_path, *data, lead=lead, ids=ids))
    assert runs.domains == ("web", "code", "books") and set(runs.metrics) == {"loss"} and runs.ids[0] == "run000"
    np.testing.assert_allclose(runs.weights, data[0], atol=1e-9)
    np.testing.assert_allclose(runs.metrics["loss"], data[1])


def test_ids_match_without_blanks_and_case_and_rows_without_a_partner_are_counted(tmp_path, data):
    mix, out = tables(tmp_path, *data)
    out.write_text(out.read_text().replace("r3,", " R3 ,").replace("r4,", "other,"))
    runs = read_runs(mix, out)
    assert len(runs.ids) == N - 1 and "r3" in runs.ids
    assert any(note.startswith("2 rows of ratios.csv and metrics.csv find no partner") for note in runs.notes)


def test_a_trackers_export_with_constant_columns_and_holes_is_read_for_the_metric_asked_for(tmp_path, data):
    weights, losses = data
    rows = [[loss, "finished" if i else "finished", "" if i == 2 else loss] for i, loss in enumerate(losses)]
    mix, out = tables(
        tmp_path,
        weights,
        rows,
        measured=("loss", "state", "other"),
        lead=("run_id", "created"),
        ids=lambda i: [f"x{i}", "2026"],
    )
    runs = read_runs(mix, out, ["loss"])
    assert set(runs.metrics) == {"loss"}
    with pytest.raises(
        ConfigError, match="column 'other' of run 'x2' is not a finite number; fix it, ask for other metrics"
    ):
        read_runs(mix, out)
    with pytest.raises(ConfigError, match="--metric speed: .*metrics.csv has loss, state, other"):
        read_runs(mix, out, ["speed"])


def test_a_domain_that_no_run_used_gets_no_weight(tmp_path, data):
    weights = np.c_[data[0], np.zeros(N)]
    mix, out = tables(tmp_path, weights, data[1], domains=("web", "code", "books", "law"))
    assert read_runs(mix, out).unused == ("law",)
    done = CliRunner().invoke(app, ["propose", "--mixtures", str(mix), "--metrics", str(out), "--json"])
    assert done.exit_code == 0, done.output
    import json

    assert json.loads(done.stdout)["weights"]["law"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("maximise", [True, False])
def test_metrics_that_are_better_when_higher_are_turned_or_warned_of(tmp_path, data, maximise):
    weights, losses = data
    mix, out = tables(tmp_path, weights, 1 - losses / 10, measured=("mmlu_acc",))
    flags = ["--maximise"] if maximise else []
    done = CliRunner().invoke(
        app, ["propose", "--mixtures", str(mix), "--metrics", str(out), "--surrogate", "ridge", *flags]
    )
    assert done.exit_code == 0, done.output
    assert ("add --maximise" in done.output) == (not maximise)
    best = [line.split() for line in done.output.splitlines() if "%" in line][0][0]
    assert (best == "books") == maximise, done.output


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda w, y: tables_of(w * np.linspace(1, 3, N)[:, None], y),
            "sum to 1 up to 3; they must be shares of tokens",
        ),
        (lambda w, y: tables_of(w[:, :1], y, domains=("web",)), "the runs use one domain alone"),
        (lambda w, y: tables_of(w, y, domains=("web", "code", "web")), "the column 'web' is there twice"),
        (lambda w, y: tables_of(w[:6], y[:6]), "6 runs in common by 'run', 0 rows find no partner; at least 10"),
        (lambda w, y: tables_of(w, ["good"] * N), "no column is a metric"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path, data, spoil, words):
    make = spoil(*data)
    with pytest.raises(ConfigError, match=words):
        read_runs(*make(tmp_path))


def tables_of(*given, **more):
    return lambda folder: tables(folder, *given, **more)
