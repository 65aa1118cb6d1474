"""What stages return: typed values, written and read as JSON, with a table, a figure and a readable form."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from align_ray.reporting import tracking as told
from align_ray.reporting.choices import Choice
from align_ray.reporting.result import WIDTH, Result
from align_ray.reporting.results import Alignment, Contamination, Corpora, Mixture, Samples
from align_ray.reporting.trained import Finetuned, Validation


def estimate(value, half=0.01):
    return {"value": value, "error": half / 2, "low": value - half, "high": value + half}


def ranked(candidates):
    rows = []
    for name, value in candidates.items():
        tests = {"p_best": 0.9, "p_above_next": 0.8, "adjusted": 0.7, "separate": 12}
        rows.append({"candidate": name, **estimate(value), **tests, "corrected": None, "pooled": estimate(0.99)})
    rows[-1] |= {"p_above_next": None, "adjusted": None, "separate": None}
    return rows


WORK = {"key": "k", "dtype": "float32", "planned": 8, "computed": 8, "tokens": 1, "actor_seconds": 1.0}
LONG = "a-corpus-whose-name-is-much-longer-than-any-column-of-a-table-has-room-for"


@pytest.fixture
def alignment():
    fisher = {"t1": ranked({"a": 0.9, LONG: 0.8}), "t2": ranked({LONG: 0.7, "a": 0.6})}
    head = {"t1": ranked({"a": 0.5, LONG: 0.4}), "t2": ranked({LONG: 0.3, "a": 0.2})}
    entropy = {"t1": ranked({"a": 6.0, LONG: 7.0}), "t2": ranked({"a": 8.0, LONG: 8.5})}
    return Alignment(
        targets=["t1", "t2"],
        ranking=fisher,
        others={"head": {"ranking": head}},
        predicted={"measure": "unigram cross-entropy", "ranking": entropy},
        ceiling={"t1": estimate(0.95), "t2": estimate(0.85)},
    )


@pytest.fixture
def finetuned():
    def run(after, error):
        change = {"before": 4.0, "after": after, "change": after - 4.0, "change_error": error, "overlap": 0.0}
        change |= {"change_low": after - 4.0 - 3 * error, "change_high": after - 4.0 + 3 * error}
        return {"weights": {"a": 1.0}, "sequences": 8, "training": [[1, 4.0]], "targets": {"t1": change}}

    return Finetuned(tokens=1024, bytes_per_token={"t1": 3.5}, runs={"a": run(3.9, 0.01), "b": run(3.5, 0.02)})


@pytest.fixture
def mixture():
    def described(weights, value):
        return {"weights": weights, "value": value, "alignment": estimate(0.9), "epochs": {"a": 0.5, "b": 4.0}}

    found = {"low": 0.1, "high": 0.8, "more_tokens": 0, "gain_of_more": 0.0, "price_of_bound": 0.0}
    return Mixture(
        mixtures={
            "recommended": described({"a": 0.3, "b": 0.7}, -6.0),
            "uniform": described({"a": 0.5, "b": 0.5}, -7.0),
        },
        weights={"a": {"weight": 0.2, "binds": None, **found}, "b": {"weight": 0.8, "binds": "repetition", **found}},
        caps={"a": 1.3, "b": 0.8},
    )


@pytest.fixture
def validation():
    def trained(loss, twin=None):
        return {"weights": {"a": 1.0}, "same_as": twin, "loss": {"t1": estimate(loss), "all": estimate(loss)}}

    against = {"t1": {**estimate(0.2), "p_lower": 0.03}, "all": {**estimate(0.2), "p_lower": 0.03}}
    return Validation(
        mixtures={"recommended": trained(3.0), "uniform": trained(3.2), "unimax": trained(3.2, "uniform")},
        versus={"uniform": {"recommended": against}, "unimax": {"recommended": against}, "recommended": {}},
    )


@pytest.fixture
def contamination():
    def clean(rank):
        values = {
            "alignment": estimate(0.9),
            "alignment_clean": None,
            "cross_entropy": 6.0,
            "cross_entropy_clean": None,
        }
        return {"share": 1.0, **values, "rank": rank, "rank_clean": None}

    overlap = {"documents": 3, "of": 10, "covered": 0.25}
    return Contamination(
        words=13,
        overlap={"b": {"t1": overlap}, "a": {"t1": overlap}},
        clean={"b": {"t1": clean(2)}, "a": {"t1": clean(1)}},
        warnings=[],
    )


@pytest.fixture
def corpora():
    a = {
        "role": "target",
        "batches": 4,
        "estimated_tokens": 1000,
        "sample_digest": "0a",
        "documents": 10,
        "bytes": 4000,
    }
    b = {**a, "role": "candidate", "in_target": 2, "unreadable": 1}
    return Corpora(corpora={"a": a, "b": b}, work=WORK)


@pytest.fixture(params=["alignment", "finetuned", "mixture", "validation", "contamination", "corpora"])
def result(request):
    return request.getfixturevalue(request.param)


def test_a_result_is_written_and_read_as_json_and_gives_its_fields_by_name(result):
    plain = json.loads(json.dumps(result.dump()))
    assert type(plain) is dict and type(result).parse(plain) == result
    field = next(iter(type(result).model_fields))
    assert result[field] == getattr(result, field)
    with pytest.raises(KeyError):
        result["no such field"]


def test_the_text_form_fits_a_terminal_and_carries_no_escape_codes(result):
    text = repr(result)
    assert text.startswith(result.TITLE) and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_table_has_one_plain_value_a_cell_and_everything_that_is_shown_and_drawn(result):
    frame = result.to_pandas()
    assert not frame.map(lambda cell: isinstance(cell, dict | list)).any(axis=None)
    assert {*result.DRAWN} <= set(frame) and {*result.SHOWN} <= set(frame)


def test_the_figure_shows_every_row_once_with_its_interval(result):
    frame, (label, value) = result.to_pandas(), result.DRAWN
    figure = result.plot()
    assert [n for trace in figure.data for n in trace.y] == list(frame[label])
    assert [x for trace in figure.data for x in trace.x] == list(frame[value])
    if f"{value}_low" in frame:
        lows = [x - down for trace in figure.data for x, down in zip(trace.x, trace.error_x.arrayminus, strict=True)]
        assert lows == pytest.approx(list(frame[f"{value}_low"]))


def test_a_name_cannot_become_markup_in_a_notebook(corpora):
    hostile = Corpora(corpora={"<script>alert(1)</script>": corpora.corpora["a"]}, work=WORK)
    assert "<script>" not in hostile._repr_html_() and "&lt;script&gt;" in hostile._repr_html_()


def test_alignment_is_a_row_a_target_and_candidate_in_the_order_of_cross_entropy(alignment):
    frame = alignment.to_pandas()
    assert list(zip(frame["target"], frame["candidate"], strict=True)) == [
        ("t1", "a"),
        ("t1", LONG),
        ("t2", "a"),
        ("t2", LONG),
    ]
    assert list(frame["rank"]) == [1, 2, 1, 2]
    row = frame[(frame["target"] == "t2") & (frame["candidate"] == "a")].iloc[0]
    assert (row["cross_entropy"], row["alignment"], row["head"], row["ceiling"]) == (8.0, 0.6, 0.2, 0.85)
    assert row["alignment_low"] == pytest.approx(0.59) and pd.isna(row["alignment_corrected"])
    assert len(alignment.plot().data) == 2, "a panel a target"


def test_a_candidate_that_does_better_alone_than_the_mixture_is_said(finetuned):
    plain = finetuned.dump()
    assert finetuned.better_alone() == []
    for mixture, said in (("a", True), ("b", False)):  # b has the lower loss
        runs = plain["runs"] | {"mixture": plain["runs"][mixture]}
        lines = Finetuned.parse(plain | {"runs": runs}).better_alone()
        assert len(lines) == said and (
            not said or "'b' alone comes to 3.5000, lower than the mixture's 3.9000" in lines[0]
        )
    seen = {
        e: plain["runs"] | {"mixture": plain["runs"]["a"], "b": plain["runs"]["b"] | {"epochs": e}} for e in (1.0, 2.5)
    }
    once, again = (Finetuned.parse(plain | {"runs": runs}).better_alone()[0] for runs in seen.values())
    assert "There is enough of it" in once and "Its text was seen 2.50 times for" in again and "enough" not in again


def test_a_change_of_loss_has_an_interval_only_where_its_error_is_known(finetuned):
    frame = finetuned.to_pandas().set_index("run")
    assert list(frame.index) == ["b", "a"], "lowest loss first"
    assert frame.loc["b", "change_high"] == pytest.approx(-0.5 + 3 * 0.02)
    plain = finetuned.dump()
    plain["runs"] = {"a": plain["runs"]["a"]}
    plain["runs"]["a"]["targets"]["t1"] |= {"change_error": None, "change_low": None, "change_high": None}
    single = Finetuned.parse(plain)
    assert "change_low" not in single.to_pandas() and "95%" not in repr(single)


def test_a_mixture_is_a_row_a_corpus_and_is_compared_in_a_row_a_mixture(mixture):
    frame = mixture.to_pandas()
    assert (
        list(frame["corpus"]) == ["b", "a"]
        and list(frame["weight"]) == [0.7, 0.3]
        and list(frame["optimum"]) == [0.8, 0.2]
    )
    assert list(mixture.comparison()["most_epochs"]) == [4.0, 4.0]
    assert list(mixture.comparison()["mixture"]) == ["recommended", "uniform"]


def test_validation_says_how_probably_a_mixtures_loss_is_lower_than_the_recommended_ones(validation):
    frame = validation.to_pandas().set_index("mixture")
    assert set(frame["target"]) == {"t1"}, "the mean over one target is left out"
    assert frame.loc["unimax", "p_lower"] == pytest.approx(0.03) and frame.loc["unimax", "same_as"] == "uniform"
    assert pd.isna(frame.loc["recommended", "p_lower"])


def test_counts_that_a_corpus_does_not_have_are_zero(corpora):
    frame = corpora.to_pandas().set_index("corpus")
    assert frame.loc["a", "unreadable"] == 0 and frame.loc["b", "in_target"] == 2


def test_samples_without_a_finite_score_are_left_out_and_none_at_all_are_an_empty_figure():
    scores = {"of": 32, "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5], "most": [], "least": []}
    nothing = {"of": 0, "quantiles": [], "most": [], "least": []}
    samples = Samples.parse({n: {"role": "candidate", "targets": {"t": s}} for n, s in (("a", scores), ("b", nothing))})
    assert list(samples.to_pandas()["corpus"]) == ["a"] and list(samples.plot().data[0].x) == [0.3]
    for empty in (Samples.parse({}), Samples.parse({"b": samples["b"]})):
        assert empty.to_pandas().empty and not empty.plot().data and repr(empty) == ""


def test_the_stages_are_those_of_the_python_interface_the_commands_and_the_jobs():
    import align_ray
    from align_ray.cli.main import app
    from align_ray.pipeline import STAGES

    assert tuple(stage.name for stage in STAGES) == align_ray.STAGE_NAMES
    assert all(issubclass(stage.result, Result) for stage in STAGES)
    assert all(getattr(align_ray, name) in STAGES for name in align_ray.STAGE_NAMES) and set(
        align_ray.STAGE_NAMES
    ) <= set(dir(align_ray))
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    jobs = {file.stem for file in (Path(__file__).resolve().parents[2] / "jobs").glob("*.py")}
    for name in set(align_ray.STAGE_NAMES) - {"predict"} | {"study"}:  # `predict` is the command `study`
        assert name in commands and name in jobs


def test_the_headline_says_what_to_train_on_and_what_that_gave():
    from types import SimpleNamespace

    from align_ray.reporting.headline import headline, shares_of
    from align_ray.reporting.values import Against, Verdict

    assert shares_of({"a": 0.6, "b": 0.4, "c": 0.001}) == "60% a and 40% b"
    many = {"a": 0.5, "b": 0.2, "c": 0.1, "d": 0.1, "e": 0.06, "f": 0.04}
    assert shares_of(many) == "50% a, 20% b, 10% d, 10% c and 10% of 2 others"
    assert shares_of({"a": 1.0}) == "100% a"
    search = SimpleNamespace(mixtures={"recommended": SimpleNamespace(weights={"a": 0.6, "b": 0.4})})

    def said(state, why="because", sizes=None, by="loss", accuracy=None, **against):
        found = {name: Against(value=v, low=v - 0.01, high=v + 0.01, p_lower=p) for name, (v, p) in against.items()}
        verdict = Verdict(state=state, why=why, against=found, by=by, accuracy=accuracy)
        return headline({"search": search, "finetune": SimpleNamespace(verdict=verdict, bytes_per_token=sizes or {})})

    assert said("confirmed", sizes={"t": 4.0}, uniform=(0.08, 0.02)) == (
        "Train on 60% a and 40% b; measured 0.0800 nats per token (0.0289 bits per byte) below uniform, P(lower) = "
        "0.980: confirmed."
    )
    assert said("not confirmed", uniform=(-0.05, 0.99)) == (
        "Do not train on 60% a and 40% b; measured 0.0500 nats per token above uniform, P(lower) = 0.010: not confirmed."
    )
    refuted = said("not confirmed", "the loss of 'a' less", uniform=(0.05, 0.01), a=(-0.02, 1.0))
    assert refuted.endswith("and 'a' is lower: not confirmed.")
    assert said("not tested") == "Found, untested: 60% a and 40% b: not tested."
    assert said("undecided", sizes={"t": 4.0, "u": 3.0}, uniform=(0.01, 0.3)).startswith(
        "Found: 60% a and 40% b; measured"
    )
    assert said("confirmed", sizes={"t": 4.0}, by="task", uniform=(0.08, 0.02)) == (
        "Train on 60% a and 40% b; measured 0.0800 nats per byte of the task's score above uniform, P(higher) = "
        "0.980: confirmed."
    )
    assert "below uniform, P(higher) = 0.010" in said("not confirmed", by="task", uniform=(-0.05, 0.99))
    with_accuracy = said("confirmed", by="task", accuracy=estimate(0.0312), uniform=(0.08, 0.02))
    assert "of the task's score (accuracy +0.031) above uniform" in with_accuracy
    assert headline({}) is None


def test_what_trainings_forget_is_said_and_the_front_of_target_and_general_text_is_kept():
    from align_ray.reporting.trained import Finetuned

    def run(loss, general):
        ends = {"change_error": 0.01, "change_low": general - 0.02, "change_high": general + 0.02}
        target = {"before": 3.0, "after": loss, "change": loss - 3.0, "overlap": 0.0, **ends}
        forgotten = {"before": 2.0, "after": 2.0 + general, "change": general, **ends}
        return {"weights": {"a": 1.0}, "sequences": 8, "targets": {"t": target}, "general": forgotten}

    runs = {"a": run(2.5, 0.3), "b": run(2.7, 0.1), "mixture": run(2.6, 0.2), "uniform": run(2.8, 0.25)}
    found = Finetuned.parse({"tokens": 100, "seeds": 3, "runs": runs})
    assert found.front("t") == ["a", "mixture", "b"], "uniform is worse than the mixture on both"
    assert "general text after 'mixture': 2.2000, +0.2000 [+0.1800, +0.2200]" in found.conditions()
    without = {name: {k: v for k, v in row.items() if k != "general"} for name, row in runs.items()}
    plain = Finetuned.parse({"tokens": 100, "seeds": 3, "runs": without})
    assert plain.front("t") == [] and not plain.forgets()


def test_task_scores_are_columns_and_a_best_run_by_the_loss_alone_is_warned_of(finetuned, validation):
    def task(margin):
        change = {"accuracy_change": estimate(0.1), "score_change": estimate(0.0)}
        first = {"items": 200, "chance": 1 / 3, "accuracy_before": 0.4, "score_before": -0.2}
        return {**first, **change, "accuracy": estimate(0.5), "score": estimate(margin)}

    def with_tasks(margins):
        runs = finetuned.model_dump()["runs"]
        # 3.9 and 3.5 nats: uniform is best by the loss
        named = {"mixture": runs["a"], "uniform": runs["b"], "alone": finetuned.model_dump()["runs"]["a"]}
        for name, margin in margins.items():
            named[name]["targets"]["t1"] = named[name]["targets"]["t1"] | {"task": task(margin)}
        return Finetuned.parse({"tokens": 1024, "runs": named})

    agreed, apart = with_tasks({"mixture": 0.1, "uniform": 0.3}), with_tasks({"mixture": 0.3, "uniform": 0.1})
    assert not any("WARNING" in line for line in agreed.tasks())
    assert "WARNING: t1: 'uniform' is best by the loss, 'mixture' by the task (scores +0.1000 and +0.3000)" in (
        apart.conditions()
    )
    near = with_tasks({"mixture": 0.305, "uniform": 0.3}).task_remarks()
    assert near[-1].endswith("(scores +0.3000 and +0.3050; their intervals overlap)")
    assert not any("for certain above its floor" in line for line in apart.tasks()), "0.49 is above a third"
    said = "t1, task after 'mixture': accuracy 0.500 ["
    assert any(line.startswith(said) and "0.400 before, 0.333 by chance" in line for line in apart.tasks())
    assert apart.to_pandas().set_index("run")["score"].dropna().to_dict() == {"uniform": 0.1, "mixture": 0.3}
    assert not finetuned.tasks() and "score" not in finetuned.to_pandas().columns

    mixtures = validation.model_dump()["mixtures"]
    mixtures["recommended"]["task"], mixtures["uniform"]["task"] = {"t1": task(0.1)}, {"t1": task(0.2)}
    found = Validation.parse(validation.model_dump() | {"mixtures": mixtures, "before": {"t1": 4.0, "all": 4.0}})
    assert any("'recommended' is best by the loss, 'uniform' by the task" in note for note in found.notes())
    assert "accuracy_low" in found.to_pandas().columns


def test_accuracies_at_the_floor_are_said_where_all_are():
    from align_ray.reporting.tasks import remarks
    from align_ray.reporting.values import TaskScore

    def score(accuracy):
        of = {"accuracy": estimate(accuracy, 0.1), "score": estimate(-0.2)}
        changes = {"accuracy_change": estimate(0.0), "score_change": estimate(0.0)}
        before = {"items": 200, "chance": 1 / 3, "accuracy_before": 0.3, "score_before": -0.2}
        return TaskScore.model_validate({**of, **changes, **before})

    low, high = score(0.4), score(0.45)
    assert low.at_floor and not high.at_floor
    (line,) = remarks("t", {"a": low, "b": low}, {"a": 3.0, "b": 3.1})
    assert line == "t: no training's accuracy is for certain above its floor, 0.333: the margin says more"
    assert list(remarks("t", {"a": low, "b": high}, {"a": 3.0, "b": 3.1})) == []


def test_a_candidate_without_a_rank_comes_after_those_with_one(contamination):
    of_t1 = {n: {**contamination.clean[n]["t1"].model_dump(), "rank": rank} for n, rank in (("a", None), ("b", 2))}
    found = contamination.model_dump() | {"clean": {n: {"t1": row} for n, row in of_t1.items()}}
    assert list(Contamination.parse(found).to_pandas()["candidate"]) == ["b", "a"]


def test_a_result_of_some_candidates_is_covered_by_one_of_more(contamination):
    part = contamination.model_copy(update={"overlap": {"a": contamination.overlap["a"]}})
    assert contamination.covers(part) and not part.covers(contamination) and not contamination.covers(contamination)


def test_a_candidate_whose_training_diverged_is_not_tracked():
    row = {"value": 3.0, "error": 0.1, "low": 2.9, "high": 3.1, "tokens": 64, "p_best": 1, "p_within": 1, "regret": 0}
    standings = {"state": "settled", "why": "", "before": 4.0, "candidates": {"a": row}}
    spent = {"tokens": 64, "spent": 128, "exhaustive": 128, "learning_rate": 1e-4, "delta": 0.01, "diverged": ["b"]}
    tracked, candidates = [], [SimpleNamespace(name=n) for n in "ab"]
    tracker = SimpleNamespace(children=lambda kind, runs: tracked.extend(runs), metrics=lambda values: None)
    told.choice(
        tracker, SimpleNamespace(candidates=candidates), None, Choice.parse({"targets": {"t": standings}, **spent})
    )
    assert tracked == ["a"]


def test_a_candidate_alone_that_did_better_is_named_by_what_decides(finetuned):
    change = {"accuracy_change": estimate(0.1), "score_change": estimate(0.0), "accuracy": estimate(0.5)}
    first = {"items": 200, "chance": 1 / 3, "accuracy_before": 0.4, "score_before": -0.2}
    run = finetuned.model_dump()["runs"]["a"]

    def said(by, scores, losses):
        runs = {}
        for name, score in scores.items():
            task = {**first, **change, "score": estimate(score)}
            runs[name] = {**run, "targets": {"t1": run["targets"]["t1"] | {"after": losses[name], "task": task}}}
        verdict = {"state": "undecided", "why": "because", "by": by}
        return Finetuned.parse({"tokens": 1024, "runs": runs, "verdict": verdict}).better_alone()

    scores, losses = {"a": 0.3, "b": 0.1, "mixture": 0.2}, {"a": 3.9, "b": 3.4, "mixture": 3.5}
    (by_task,), (by_loss,) = (said(by, scores, losses) for by in ("task", "loss"))
    assert by_task.startswith("t1: 'a' alone comes to a score of +0.3000, higher than the mixture's +0.2000. There is")
    assert by_loss.startswith("t1: 'b' alone comes to 3.4000, lower than the mixture's 3.5000. There is")
    assert said("task", scores | {"mixture": 0.4}, losses) == []
