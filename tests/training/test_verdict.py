"""Verdicts: each state for its reason, and how often one is given by chance."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from align_ray.config import Config, Search
from align_ray.training.jobs import Answers, Losses
from align_ray.training.verdict import judged as judged_by
from align_ray.training.verdict import keeps_to, made_from, seeds_to_settle, verdict

HALF = np.array([0.5, 0.5])
DELTA = 0.005


def losses(rng, mean, seeds=3, rows=40, spread=0.003, seed_spread=0.001, base=None):
    """Of two targets, [seeds, rows] each: a level, the rows' own part common to all mixtures (`base`), and noise."""
    found = {}
    for k, target in enumerate("ab"):
        own = base[k] if base is not None else 0.0
        noise = rng.normal(0, spread, (1, rows)) + rng.normal(0, spread, (seeds, rows))
        found[target] = mean + own + noise + rng.normal(0, seed_spread, (seeds, 1))
    return found


def judged(rng, mixture, others, helped=-0.1, seeds=3, **options):
    base = rng.normal(0, 0.5, (2, 1, 40))
    of = lambda mean: losses(rng, mean, seeds, base=base, **options)  # noqa: E731
    changes = {"x": losses(rng, helped, seeds), "y": losses(rng, 0.2, seeds)}
    return verdict(of(mixture), {name: of(mean) for name, mean in others.items()}, changes, HALF, DELTA)


@pytest.mark.parametrize(
    ("mixture", "others", "state"),
    [
        (3.0, {"uniform": 3.05}, "confirmed"),
        (3.0, {"uniform": 2.95}, "not confirmed"),
        (3.0, {"uniform": 3.0}, "no difference"),
        (3.0, {"uniform": 3.05, "x": 3.2}, "confirmed"),
        (3.0, {"uniform": 3.05, "x": 2.95, "y": 2.9}, "not confirmed"),
    ],
)
def test_every_state_has_its_reason(mixture, others, state):
    found = judged(np.random.default_rng(0), mixture, others)
    assert found.state == state and "3 seeds" in found.why
    names = {name for name in others if f"of '{name}' less" in found.why}
    assert names == ({"y"} if others.get("y") == 2.9 else {"uniform"})
    for name, mean in others.items():
        a = found.against[name]
        assert a.low <= a.value <= a.high and a.value == pytest.approx(mean - mixture, abs=0.01)
        assert (a.p_lower > 0.5) == (a.value < 0)


def test_an_undecided_one_says_how_many_seeds_would_settle_it():
    rng = np.random.default_rng(3)
    found = judged(rng, 3.0, {"uniform": 3.02}, seed_spread=0.05)
    assert found.state == "undecided" and found.seeds_needed > 3 and f"about {found.seeds_needed} seeds" in found.why


def test_a_base_that_learns_nothing_gives_no_verdict():
    found = judged(np.random.default_rng(0), 3.0, {"uniform": 3.05}, helped=+0.01)
    assert found.state == "not tested" and "say nothing about mixtures" in found.why and not found.against


def of_candidates(sources, **sections):
    candidates = [{"name": name, "source": source} for name, source in sources.items()]
    targets = [{"name": "t", "source": "t.jsonl"}]
    return Config.model_validate({"output": "out", "targets": targets, "candidates": candidates, **sections})


def test_a_base_that_was_made_from_a_candidate_gives_no_verdict(tmp_path):
    card = "---\nlicense: mit\ndatasets:\n- Owner/Seen\n- other/data\n---\n# A model\n"
    (tmp_path / "README.md").write_text(card)
    sources = {
        "a": "hf://owner/seen",
        "b": "hf://datasets/owner/seen@main/x/*.parquet",
        "c": "hf://owner/new",
        "d": "seen.jsonl",
    }
    known = made_from(tmp_path, of_candidates(sources))
    assert known == ["a", "b"] and made_from(tmp_path / "none", of_candidates(sources)) == []
    assert made_from(tmp_path, of_candidates(sources, finetune={"scratch": {}})) == [], (
        "random weights have seen nothing"
    )
    rng = np.random.default_rng(0)
    of = lambda mean: losses(rng, mean)  # noqa: E731
    found = verdict(of(3.0), {"uniform": of(3.1)}, {"x": of(-0.1)}, HALF, DELTA, known)
    assert found.state == "not tested" and "made from a, b (its model card says so)" in found.why


@pytest.mark.parametrize("card", ["no head at all", "---\n: [\n---\n", "---\ndatasets: one/name\n---\n"])
def test_any_card_can_be_read(tmp_path, card):
    (tmp_path / "README.md").write_text(card)
    config = of_candidates({"a": "hf://one/name", "b": "b.jsonl"})
    assert made_from(tmp_path, config) == (["a"] if "one/name" in card else [])


def test_two_seeds_give_no_verdict():
    found = judged(np.random.default_rng(0), 3.0, {"uniform": 3.05}, seeds=2)
    assert found.state == "not tested" and "finetune.seeds is 2" in found.why


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.full)])
def test_where_nothing_differs_a_verdict_for_or_against_is_rare(seeds, pytestconfig):
    times = 1000 if pytestconfig.option.full else 100
    rng, states = np.random.default_rng(1), []
    for _ in range(times):
        states.append(
            judged(rng, 3.0, {"uniform": 3.0, "x": 3.0, "y": 3.0}, seeds=seeds, spread=0.02, seed_spread=0.01).state
        )
    for state in ("confirmed", "not confirmed"):
        print(seeds, state, states.count(state) / times)
    chance = 3 * (0.05 * 0.95 / times) ** 0.5
    assert states.count("confirmed") / times <= 0.05 + chance
    assert states.count("not confirmed") / times <= 0.10 + chance, "refuted by the uniform one or, adjusted, by another"


@pytest.mark.parametrize("seeds", [3, 5])
def test_its_intervals_cover(seeds, pytestconfig):
    rng, inside = np.random.default_rng(2), []
    for _ in range(1000 if pytestconfig.option.full else 150):
        a = judged(rng, 3.0, {"uniform": 3.01}, seeds=seeds, spread=0.02, seed_spread=0.01).against["uniform"]
        inside.append(a.low <= 0.01 <= a.high)
    print(seeds, np.mean(inside))
    assert np.mean(inside) >= 0.90


def test_more_seeds_settle_what_seeds_make_uncertain_and_not_what_rows_do():
    rng = np.random.default_rng(0)
    by_seed = [0.02 + rng.normal(0, 0.03, (4, 1)) + np.zeros((4, 50))]
    assert 4 < seeds_to_settle(by_seed, np.ones(1), 1e-9) < 100
    by_row = [0.001 + rng.normal(0, 0.5, (1, 50)) + rng.normal(0, 1e-4, (4, 1))]
    assert seeds_to_settle(by_row, np.ones(1), 1e-9) is None


def test_seeds_settle_that_there_is_no_difference_as_well():
    differences = [np.array([[0.005], [-0.003], [0.001]]) + np.zeros((3, 50))]
    n = seeds_to_settle(differences, np.ones(1), DELTA)
    assert 5 < n < 15 < seeds_to_settle(differences, np.ones(1), 1e-9)


@pytest.mark.parametrize("where", ["mixture", "uniform", "training"])
def test_a_training_that_diverged_gives_no_verdict(where):
    rng = np.random.default_rng(0)
    mixture, uniform, change = losses(rng, 3.0), losses(rng, 3.1), losses(rng, -0.1)
    {"mixture": mixture, "uniform": uniform, "training": change}[where]["b"][0, 0] = np.nan
    found = verdict(mixture, {"uniform": uniform}, {"x": change}, HALF, DELTA)
    assert found.state == "not tested" and "diverged" in found.why


def test_the_uniform_mixture_itself_is_no_difference():
    rng = np.random.default_rng(0)
    same = losses(rng, 3.0)
    found = verdict(same, {"uniform": same}, {"x": losses(rng, -0.1)}, HALF, DELTA)
    assert (found.state, found.why) == ("no difference", "the recommended mixture is the uniform one")
    assert found.against["uniform"].p_lower == 0.5


def test_another_mixture_refutes_by_more_than_makes_no_difference():
    rng = np.random.default_rng(0)
    base = {t: rng.normal(3, 0.5, (3, 40)) for t in "ab"}
    lower = lambda by: {t: v - by for t, v in base.items()}  # noqa: E731
    others = {"uniform": lower(-0.05), "twin": lower(0.001)}
    assert verdict(base, others, {"x": losses(rng, -0.1)}, HALF, DELTA).state == "confirmed"
    assert verdict(base, others | {"twin": lower(0.01)}, {"x": losses(rng, -0.1)}, HALF, DELTA).state == "not confirmed"


def test_targets_without_weight_do_not_count():
    rng = np.random.default_rng(0)
    mixture, uniform, change = losses(rng, 3.0), losses(rng, 3.1), losses(rng, -0.1)
    mixture["b"], uniform["b"], change["b"] = mixture["b"][:, :1], uniform["b"][:, :1] - 1, change["b"][:, :1]
    found = verdict(mixture, {"uniform": uniform}, {"x": change}, np.array([1.0, 0.0]), DELTA)
    assert found.state == "confirmed" and "mean over" not in found.why


def test_a_mixture_that_breaks_a_limit_could_not_be_recommended():
    search = Search(token_budget=100, weights={"a": {"min": 0.2, "max": 0.6}}, max_corpora=2)
    caps = {"a": 1.0, "b": 0.5, "c": 1.0}
    allowed = lambda *w: keeps_to(search, caps, dict(zip("abc", w, strict=True)))  # noqa: E731
    assert allowed(0.5, 0.5, 0) and allowed(0.2, 0, 0.8)
    assert (
        not allowed(0.1, 0, 0.9)
        and not allowed(0.7, 0.3, 0)
        and not allowed(0.4, 0.6, 0)
        and not allowed(0.4, 0.3, 0.3)
    )
    assert not keeps_to(search, caps, {"c": 1.0}), "a needs a fifth, named or not"


ROWS, ITEMS = np.linspace(-0.5, 0.5, 80), np.linspace(-1, 1, 100)
"""What is common to all trainings: of a target's rows (half of which are reported) and of its items."""


def trained(rng, loss, score, tasks=("a",), seeds=3):
    """Trainings of two targets, one a seed, that end at this loss and at this mean score of the tasks."""
    runs = []
    for _ in range(seeds):
        losses = {t: Losses(3.0 + ROWS, loss + ROWS + rng.normal(0, 0.002, 80)) for t in "ab"}
        after = score + ITEMS + rng.normal(0, 0.01, 100)
        answers = {t: Answers(ITEMS - 0.2, after, ITEMS > 0.2, after > 0) for t in tasks}
        runs.append(SimpleNamespace(losses=losses, tasks=answers, wholes={}))
    return runs


def by_task(ours, uniform, share=(1.0, 0.0), **options):
    rng = np.random.default_rng(0)
    mixture, other = trained(rng, *ours, **options), trained(rng, *uniform, **options)
    weights = dict(zip("ab", share, strict=True))
    return judged_by(mixture, {"uniform": other}, {"mixture": mixture, "uniform": other}, weights, DELTA)


def test_a_verdict_is_by_the_task_where_there_is_one_and_the_loss_alone_is_said_beside():
    found = by_task((2.9, 0.1), (2.8, 0.0))
    assert (found.state, found.by, found.by_loss) == ("confirmed", "task", "not confirmed")
    assert found.measure == "minus the task's score, nats per byte" and "by the loss: not confirmed" in found.why
    uniform = found.against["uniform"]
    assert uniform.value == pytest.approx(0.1, abs=0.005) and uniform.p_lower < 0.001
    assert found.why.startswith(
        f"the task's score after the mixture less that after 'uniform' is {uniform.value:+.4f} nats per byte ["
    )
    assert "P('uniform' is higher) < 0.001; 3 seeds" in found.why
    assert found.accuracy.value == pytest.approx(0.05, abs=0.011), "a tenth of the items' range of two"
    assert f"accuracy less that of 'uniform' {found.accuracy.value:+.3f} [" in found.why
    worse = by_task((2.8, 0.0), (2.9, 0.1))
    assert (worse.state, worse.by_loss) == ("not confirmed", "confirmed") and worse.accuracy.value < 0
    agreed = by_task((2.8, 0.1), (2.9, 0.0))
    assert agreed.by_loss is None and "by the loss" not in agreed.why


def test_without_a_task_that_counts_the_verdict_is_by_the_loss():
    for options in ({"tasks": ()}, {"tasks": ("b",)}):
        found = by_task((2.9, 0.1), (2.8, 0.0), **options)
        assert (found.state, found.by, found.accuracy) == ("not confirmed", "loss", None)


def test_a_target_without_a_task_is_named_beside_those_that_have_one():
    found = by_task((2.9, 0.1), (2.8, 0.0), share=(0.5, 0.5))
    assert found.state == "confirmed" and found.why.endswith("targets without a task do not count: b")
    both = by_task((2.9, 0.1), (2.8, 0.0), share=(0.5, 0.5), tasks="ab")
    assert "mean over 2 targets" in both.why and "do not count" not in both.why


def test_a_task_that_no_training_helps_gives_no_verdict():
    found = by_task((2.8, -0.3), (2.9, -0.4))
    assert (found.state, found.by, found.by_loss) == ("not tested", "task", "confirmed")
    assert "no training raises the score of a target's task for certain" in found.why and found.accuracy is None


def test_accuracies_that_differ_on_no_item_have_no_interval_of_no_width():
    found = by_task((2.9, 2.0), (2.9, 1.9))  # all are right
    assert found.state == "confirmed" and found.accuracy is None and "accuracies do not differ on any item" in found.why


def test_a_metric_that_is_no_score_in_nats_decides_alone_and_never_beside_one():
    rng = np.random.default_rng(0)

    def runs(score, units):
        made = trained(rng, 2.9, score, tasks=tuple(units))
        for run in made:
            run.tasks = {t: dataclasses.replace(of, unit=units[t]) for t, of in run.tasks.items()}
        return made

    def found(units, share=(0.5, 0.5)):
        ours, uniform = runs(0.3, units), runs(0.1, units)
        weights = dict(zip("ab", share, strict=True))
        return judged_by(ours, {"uniform": uniform}, {"mixture": ours, "uniform": uniform}, weights, DELTA)

    alone = found({"a": ""}, (1.0, 0.0))
    assert (alone.state, alone.by, alone.measure, alone.accuracy) == (
        "confirmed",
        "task",
        "minus the task's metric",
        None,
    )
    assert (
        "the task's metric after the mixture less that after 'uniform' is +" in alone.why
        and "accuracy" not in alone.why
    )
    mixed = found({"a": "", "b": "nats per byte"})
    assert mixed.measure == "minus the task's score, nats per byte"
    assert mixed.why.endswith("targets whose task has no items in nats per byte do not count: a")


def test_a_metric_of_all_items_leaves_the_verdict_to_the_loss_and_is_named():
    rng = np.random.default_rng(0)
    ours, uniform = trained(rng, 2.8, 0.0, tasks=()), trained(rng, 2.9, 0.0, tasks=())
    for run in (*ours, *uniform):
        run.wholes = {"a": None}
    both = {"mixture": ours, "uniform": uniform}
    found = judged_by(ours, {"uniform": uniform}, both, {"a": 1.0, "b": 0.0}, DELTA)
    assert found.by == "loss" and found.why.endswith(
        "by the loss, since the metric of the task of a is not one of single items"
    )
