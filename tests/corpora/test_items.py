"""Items of a task: what a record says, what a row holds, what is refused."""

import json

import numpy as np
import pytest

from align_ray.config import Config
from align_ray.config_corpora import Choices
from align_ray.corpora import sample
from align_ray.corpora.draw import Drawn, cut_rows, document_key, tokenised
from align_ray.corpora.items import item_keys, item_of, items_of, margins, read_items
from align_ray.corpora.records import Unusable
from align_ray.errors import ConfigError, CorpusError
from align_ray.pipeline import open_study
from tests.tiny import Characters


class Tokens(Characters):
    def __call__(self, text, add_special_tokens=True, **_):
        return {"input_ids": [ord(c) for c in text]}


YES_NO = ["yes", "no", "maybe"]


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (YES_NO, "no", 1),
        (YES_NO, 2, 2),
        (YES_NO, "2", 2),
        (YES_NO, "B", 1),
        ({"text": YES_NO, "label": ["x", "y", "z"]}, "z", 2),
        (["2", "1", "0"], "1", 1),  # a text before a number
    ],
)
def test_the_right_choice_is_named_by_its_text_its_number_or_its_letter(choices, answer, right):
    task = Choices(kind="choices", context="{about}\n{question}", choices="choices", answer="answer")
    record = {"about": "Cells.", "question": "Why?", "choices": choices, "answer": answer}
    text, texts, found = item_of(task, record)
    assert text == "Cells.\nWhy?" and found == right and len(texts) == 3


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"q": "Why?", "choices": YES_NO, "answer": "perhaps"}, "no_answer"),
        ({"q": "Why?", "choices": YES_NO, "answer": 3}, "no_answer"),
        ({"q": "Why?", "choices": YES_NO, "answer": True}, "no_answer"),
        ({"q": "Why?", "choices": YES_NO}, "no_answer"),
        ({"q": "Why?", "choices": YES_NO, "answer": "\u00b2"}, "no_answer"),  # a digit that is no number
        ({"q": "Why?", "choices": YES_NO, "answer": "9" * 5000}, "no_answer"),
        *(({"q": "Why?", "choices": ["yes"], "answer": a}, "no_answer") for a in ("yes", "A", "0", 0)),
        ({"q": "Why?", "choices": {"text": ["yes"], "label": ["x"]}, "answer": "x"}, "no_answer"),
        ({"q": "Why?", "choices": ["yes", "no", "yes"], "answer": "no"}, "no_answer"),
        ({"q": "Why?", "choices": {"text": YES_NO, "label": ["x", "y", "x"]}, "answer": "x"}, "no_answer"),
        ({"q": "Why?", "choices": {"text": YES_NO, "label": ["w", "x", "y", "z"]}, "answer": "z"}, "no_answer"),
        ({"q": "", "choices": YES_NO, "answer": "no"}, "missing_column"),
        ({"q": "Why?", "choices": "yes", "answer": "yes"}, "missing_column"),
        ({"q": "Why?", "choices": ["yes", ""], "answer": "yes"}, "missing_column"),
    ],
)
def test_a_record_without_an_item_says_why(record, why):
    with pytest.raises(Unusable, match=why):
        item_of(Choices(kind="choices", context="q", choices="choices"), record)


def test_rows_hold_context_and_choice_and_the_choices_tokens_alone_count():
    items = items_of([("Is it?", ["yes", "no"], 1), ("So:\n", ["a", "bcd", "é"], 0)], Tokens(), " ", 8)
    texts = ["".join(map(chr, row[row > 0])) for row in items.rows.ids]
    assert texts == [" it? yes", "s it? no", "So:\na", "So:\nbcd", "So:\né"], "a context loses its beginning"
    said = ["".join(map(chr, row[counts])) for row, counts in zip(items.rows.ids, items.rows.scored, strict=True)]
    assert said == [" yes", " no", "a", "bcd", "é"], "a separator only where the context ends in none"
    assert items.item.tolist() == [0, 0, 1, 1, 1] and items.right.tolist() == [False, True, True, False, False]
    assert items.bytes.tolist() == [3, 2, 1, 3, 2] and items.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert items.digest() != items_of([("Is it?", ["yes", "no"], 0)], Tokens(), " ", 8).digest()
    with pytest.raises(CorpusError, match="a choice of a task has 9 tokens, the model takes 8"):
        items_of([("Is it?", ["yes", "no other"], 1)], Tokens(), " ", 8)


def test_the_margin_is_of_the_right_choice_over_the_best_wrong_one_per_byte():
    items = items_of([("q:", ["yes", "no"], 1), ("q:", ["a", "bcd", "ef"], 0)], Tokens(), "", 8)
    nan = np.nan
    losses = np.array([  # by row, of the tokens after the first
        [nan, 1.0, 1.0, 4.0], [nan, 1.0, 0.0, nan],  # yes: 6 nats in 3 bytes; no: 1 in 2
        [nan, 3.0, nan, nan], [nan, 1.0, 1.0, 1.0], [nan, 4.0, 0.0, nan],  # a: 3 in 1; bcd: 3 in 3; ef: 4 in 2
    ])  # fmt: skip
    np.testing.assert_allclose(margins(losses, items), [-0.5 + 2.0, -3.0 + 1.0])


def test_no_candidate_is_embedded_or_trained_on_what_is_asked(small_config, tmp_path, monkeypatch):
    """A candidate that is a copy of the target, of which more is drawn than of the target."""
    texts = [f"question {i}: " + "why so " * 20 for i in range(200)]
    records = [{"text": t, "q": t, "choices": ["yes", "no"], "answer": "no"} for t in texts]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = small_config(tmp_path / "out")
    task = {"kind": "choices", "context": "q", "choices": "choices", "items": 40}
    data["targets"] = [{"name": "t", "source": str(tmp_path / "t.jsonl"), "task": task}]
    study = open_study(Config.model_validate(data))
    keyed = sorted((document_key(study.config.seed, t), t) for t in texts)
    asked = [key for key, _ in keyed if key[-1] % 2 == 1][:40]
    assert item_keys(study) == set(asked) and len(next(iter(read_items(study).values())).rows) == 2 * 40

    def draw(wanted, sampling, *_):  # of the target 30 documents, of a candidate all
        for corpus, *_ in wanted:
            taken = keyed[: 30 if corpus.name == "t" else None]
            found = [tokenised(key, t, study.tokenizer) for key, t in taken]
            yield corpus, Drawn(found, {"documents": 200, "sampled_bytes": 1}, [], np.zeros(0, np.uint64))

    trained = []

    def cut(documents, *given, **how):
        trained.append({d.key for d in documents})
        return cut_rows(documents, *given, **how)

    monkeypatch.setattr(sample, "draw_corpora", draw)
    monkeypatch.setattr(sample, "cut_rows", cut)
    report = sample.sample_corpora(study)
    left_out = {key for key, _ in keyed[:30]} | set(asked)
    assert trained[2::2] == [{key for key, _ in keyed} - left_out] * 2
    assert report["python-stdlib"]["in_target"] == len(left_out) > 30


def test_a_task_is_for_targets_alone_and_its_absence_leaves_the_configuration_as_it_was():
    from align_ray.config_file import validated

    task = {"kind": "choices", "context": "q", "choices": ["yes", "no"]}
    mapping = {
        "output": "out",
        "targets": [{"name": "t", "source": "t.jsonl"}],
        "candidates": [{"name": n, "source": f"{n}.jsonl"} for n in "ab"],
    }
    assert "task" not in Config.model_validate(mapping).model_dump()["targets"][0]
    mapping["targets"][0]["task"] = task
    again = Config.model_validate(Config.model_validate(mapping).model_dump(mode="json"))
    assert again.targets[0].task == Choices(**task)
    mapping["candidates"][0]["task"] = task
    with pytest.raises(ConfigError, match="'a' has a task, which is for targets alone"):
        validated(Config, mapping, "study.yaml")


def test_items_are_read_once_and_again_where_the_file_has_changed(small_config, tmp_path):
    file = tmp_path / "target.jsonl"

    def write(count):
        records = [{"text": f"Question {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(count)]
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

    mapping = small_config(tmp_path / "out")
    task = {"kind": "choices", "context": "text", "choices": "choices", "answer": "answer"}
    mapping["targets"] = [{"name": "target", "source": str(file), "task": task}]
    write(40)
    study = open_study(Config.model_validate(mapping))
    first, again = read_items(study)["target"], read_items(study)["target"]
    assert again is first
    write(80)
    assert len(read_items(study)["target"].rows) > len(first.rows)
