"""Surrogates of the loss, on laws that are known and on other people's published runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.config import Search
from align_ray.errors import ConfigError
from align_ray.mixture.by_loss import swarm_mixtures
from align_ray.mixture.constraints import constraints_of
from align_ray.mixture.propose import content_coordinates, propose
from align_ray.mixture.runs import read_runs
from align_ray.mixture.surrogates import SURROGATES, cross_validated, default_surrogate, fit_log_linear

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "published" / "regmix"
MEASURED = {"linear": (0.90, 0.89, 0.88), "log-linear": (0.963, 0.958, 0.985), "ridge": (0.986, 0.983, 0.923)}


def law(w):
    return 2.0 + np.exp(0.3 - w @ np.array([2.0, 1.0, 0.2, 0.0]))


def mixtures(n=60, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(4), n)


def free(k=4):
    return constraints_of(Search(token_budget=1), dict.fromkeys("abcdefghij"[:k], 1))


def test_the_mixing_law_is_found_again():
    fitted, test = fit_log_linear(mixtures(), law(mixtures())), mixtures(50, 1)
    np.testing.assert_allclose(fitted(test), law(test), atol=0.01)


def test_the_fitted_laws_objective_is_minus_the_law_with_its_gradient():
    fitted = fit_log_linear(mixtures(), law(mixtures()))
    objective, w = fitted.objective(), mixtures(1)[0]
    value, gradient = objective.gradient(w)
    assert value == pytest.approx(-fitted(w[None])[0]) == pytest.approx(objective.values(w[None])[0])
    step = 1e-6 * np.eye(4)
    np.testing.assert_allclose(
        gradient, [(fitted((w - e)[None])[0] - fitted((w + e)[None])[0]) / 2e-6 for e in step], rtol=1e-4
    )


@pytest.mark.parametrize("kind", SURROGATES)
def test_every_surrogate_ranks_runs_it_has_not_seen(kind):
    w = mixtures(80)
    assert cross_validated(w, law(w) + np.random.default_rng(0).normal(0, 0.01, 80), kind) > 0.9
    shuffled = np.random.default_rng(1).permutation(law(w))
    assert abs(cross_validated(w, shuffled, kind)) < 0.4, "and says so where there is nothing to learn"


def test_the_default_needs_few_runs_until_there_are_many():
    assert default_surrogate(32) == "log-linear" and default_surrogate(512) == "lightgbm"


@pytest.mark.parametrize("kind", SURROGATES)
def test_the_proposal_is_feasible_and_better_than_any_run(kind):
    constraints = constraints_of(Search(token_budget=100, weights={"a": {"max": 0.6}}), dict.fromkeys("abcd", 1000))
    w = mixtures(120)
    found = propose(w, {"loss": law(w)}, np.ones(1), constraints, 0.0, kind)
    assert found.weights.sum() == pytest.approx(1) and found.weights[0] <= 0.6 + 1e-9
    feasible = w[w[:, 0] <= 0.6]
    assert law(found.weights) <= law(feasible).min() + 0.02
    assert found.surrogate == kind and found.quality[kind]["loss"] > 0.9


def test_the_swarm_is_feasible_spread_and_the_same_for_the_same_seed():
    constraints = constraints_of(
        Search(token_budget=100, weights={"b": {"min": 0.1}, "c": {"max": 0.3}}), dict.fromkeys("abcd", 1000)
    )
    w = swarm_mixtures(constraints, 50, 3)
    assert w.shape == (50, 4) and (w >= constraints.lower - 1e-9).all() and (w <= constraints.upper + 1e-9).all()
    np.testing.assert_array_equal(w, swarm_mixtures(constraints, 50, 3))
    assert (w.std(0) > 0.05).all()


def test_with_content_coordinates_runs_stay_usable_when_a_corpus_is_split_and_renamed():
    rng = np.random.default_rng(0)
    old = np.exp(rng.normal(size=(4, 60)))
    new = np.stack([old[1], old[0] * rng.gamma(200, 1 / 200, 60), old[0], old[2], old[3]])  # "a" is now two corpora
    coordinates = content_coordinates(np.concatenate([old, new]))
    assert coordinates.shape[1] <= 8
    w = mixtures(80)
    found = propose(
        w, {"loss": law(w)}, np.ones(1), free(5), 0.0, "log-linear", coordinates=(coordinates[:4], coordinates[4:])
    )
    assert found.weights[1] + found.weights[2] > 0.8, "the law's best corpus was 'a'"
    assert found.predicted["loss"] == pytest.approx(law(np.eye(4)[0]), abs=0.05)


def write(folder, name, header, rows):
    path = folder / name
    path.write_text("\n".join([",".join(header), *(",".join(map(str, r)) for r in rows)]) + "\n")
    return path


@pytest.fixture
def tables(tmp_path):
    w = mixtures(40)
    ratios = write(
        tmp_path, "ratios.csv", ["run", "a", "b", "c", "d"], [[f"r{i}", *(1.002 * row)] for i, row in enumerate(w)]
    )
    losses = write(
        tmp_path, "metrics.csv", ["run", "web", "code"], [[f"r{i}", law(r), 1.0] for i, r in reversed([*enumerate(w)])]
    )
    return ratios, losses


def test_tables_are_matched_by_run_and_renormalised(tables):
    runs = read_runs(*tables)
    assert runs.domains == ("a", "b", "c", "d") and runs.renormalised == 40
    np.testing.assert_allclose(runs.weights, mixtures(40), atol=1e-12)
    np.testing.assert_allclose(runs.metrics["web"], law(mixtures(40)))


def test_fit_and_propose_print_their_answer(tables):
    call = ["--mixtures", str(tables[0]), "--metrics", str(tables[1]), "--metric", "web"]
    fitted = CliRunner().invoke(app, ["fit", *call])
    assert fitted.exit_code == 0 and "log-linear" in fitted.output and "40 runs had weights" in fitted.output
    proposed = CliRunner().invoke(app, ["propose", *call])
    assert proposed.exit_code == 0 and "mixture proposed by log-linear" in proposed.output, proposed.output


def test_fit_and_propose_give_their_answer_as_json(tables):
    call = ["--mixtures", str(tables[0]), "--metrics", str(tables[1]), "--json"]
    fitted = json.loads(CliRunner().invoke(app, ["fit", *call]).stdout)
    assert fitted["runs"] == fitted["renormalised"] == 40 and fitted["domains"] == ["a", "b", "c", "d"]
    assert fitted["rank_correlation"]["web"]["log-linear"] > 0.9 and fitted["default"] == "log-linear"
    assert fitted["rank_correlation"]["code"]["ridge"] is None, "a metric that does not vary"
    proposed = json.loads(CliRunner().invoke(app, ["propose", *call, "--metric", "web"]).stdout)
    assert proposed["surrogate"] == "log-linear" and sum(proposed["weights"].values()) == pytest.approx(1)
    assert proposed["rank_correlation"]["web"] == fitted["rank_correlation"]["web"]["log-linear"]
    assert set(proposed["predicted"]) == {"web"}


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda r: r.write_text(r.read_text().replace("r3,", "r3,x", 1)),
            "column 'a' of run 'r3' is not a finite number",
        ),
        (lambda r: r.write_text(r.read_text().replace("r3,", "r3,1,", 1)), "run 'r3' has 6 fields, the header 5"),
        (lambda r: r.write_text(r.read_text() + "r50,1,2\n"), "run 'r50' has 3 fields, the header 5"),
        (lambda r: r.write_text("run,a\nq1,1\n"), "0 runs in common"),
        (lambda r: r.write_text(r.read_text().replace("r3,", "r3,-", 1)), "run 'r3' has a negative weight"),
        (lambda r: r.unlink(), "not a readable table"),
        (lambda r: r.write_text(""), "not a readable table"),
        (lambda r: r.write_text("run\nr1\n"), "only the column 'run'"),
        (lambda r: r.write_text(r.read_text().replace("r4,", "r3,", 1)), "run 'r3' is there twice"),
        (
            lambda r: r.write_text(r.read_text().replace("r3,", "r3,nan", 1)),
            "column 'a' of run 'r3' is not a finite number",
        ),
        (
            lambda r: r.write_text("run,a\n" + "".join(f"r{i},nan\n" for i in range(40))),
            "'a' of run 'r0' is not a finite",
        ),
    ],
)
def test_a_bad_table_is_one_sentence_that_names_file_and_run(tables, spoil, words):
    spoil(tables[0])
    with pytest.raises(ConfigError, match=words) as caught:
        read_runs(*tables)
    assert str(tables[0]) in str(caught.value)


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["log-linear", "ridge", "lightgbm"])
def test_published_regmix_runs_rank_as_good_surrogates_rank_them(kind):
    """Fitted on 512 runs of 1M parameters, Pile-CC: at 1M, 60M and 1B (../shared/published/README.md)."""
    metric = "metric/the_pile_pile_cc_val_loss"
    runs = read_runs(PUBLISHED / "train_mixture_1m.csv", PUBLISHED / "train_pile_loss_1m.csv")
    fitted = SURROGATES[kind](runs.weights, runs.metrics[metric])
    found = []
    for size in ("1m", "60m", "1B"):
        test = read_runs(PUBLISHED / f"test_mixture_{size}.csv", PUBLISHED / f"test_pile_loss_{size}.csv")
        found.append(stats.spearmanr(fitted(test.weights), test.metrics[metric]).statistic)
    wanted = {**MEASURED, "lightgbm": (0.987, 0.982, 0.965)}[kind]
    np.testing.assert_allclose(found, wanted, atol=0.015)
