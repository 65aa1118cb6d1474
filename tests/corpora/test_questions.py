"""Tasks whose answer is written: what a record asks, what is found in a text, what a row holds."""

import numpy as np
import pytest

from align_ray.config import Config
from align_ray.config_corpora import Corpus, ExactMatch
from align_ray.config_file import validated
from align_ray.corpora.items import read_items
from align_ray.corpora.questions import final_answer, question_of, questions_of
from align_ray.corpora.records import Unusable
from align_ray.errors import ConfigError, CorpusError
from align_ray.pipeline import open_study
from tests.corpora.test_items import Tokens

GSM8K = ExactMatch(kind="exact_match", context="Q: {question}\nA:").pattern


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("9 * 2 = $18 a day.\n#### 18", "18"),
        ("#### 70,000", "70000"),
        ("####$1,250.50.", "1250.5"),
        ("#### -3.0 apples #### 4", "-3"),
        ("#### Paris", "paris"),
        ("18", None),
        ("#### ", None),
        ("#### 1e999999", "1e999999"),
        ("#### NaN", "nan"),
    ],
)
def test_the_final_answer_is_what_follows_the_mark_and_numbers_have_one_way_of_writing(text, final):
    assert final_answer(GSM8K, text) == final


def test_a_pattern_without_a_group_gives_all_that_it_matches():
    assert final_answer(r"\b(?:yes|no)\b", "It is, yes, not no.") == "yes"
    assert final_answer(r"(\d+)|none", "none") is None, "its group matched nothing"


def test_a_record_asks_by_its_context_and_one_without_a_final_answer_says_why():
    task = ExactMatch(kind="exact_match", context="Q: {question}\nA:")
    record = {"question": "Why?", "answer": "Since.\n#### 7"}
    assert question_of(task, record) == ("Q: Why?\nA:", "Since.\n#### 7", "7")
    for changed, why in (({"answer": "Since."}, "no_answer"), ({"answer": ""}, "missing_column")):
        with pytest.raises(Unusable, match=why):
            question_of(task, record | changed)


def test_rows_hold_the_whole_answer_and_prompts_leave_room_for_another():
    task = ExactMatch(kind="exact_match", context="q", max_new_tokens=7)
    long = ("Q?", "x" * 40, "x")  # its answer alone is longer than the model's context
    asked = questions_of("t", [("Is it so?", "a #### é", "é"), long, ("So?\n", "b #### 2", "2")], Tokens(), task, 12)
    said = ["".join(map(chr, row[counts])) for row, counts in zip(asked.rows.ids, asked.rows.scored, strict=True)]
    assert said == [" a #### é", "b #### 2"] and asked.finals == ("é", "2") and asked.bytes.tolist() == [9, 8]
    assert ["".join(map(chr, prompt)) for prompt in asked.prompts] == ["t so?", "So?\n"], "twelve less seven"
    assert asked.answered(["so #### É", "#### 2.00"]).tolist() == [True, True]
    assert asked.answered(["é", "2 #### 3"]).tolist() == [False, False]
    losses = np.full((2, asked.rows.ids.shape[1] - 1), np.nan)
    losses[0, :9], losses[1, :8] = 2.0, 0.5
    np.testing.assert_allclose(asked.scores(losses), [-2.0, -0.5])
    assert asked.tokens == asked.rows.tokens + 5 + 4 + 14
    other = questions_of("t", [("Is it so?", "a #### é", "e"), ("So?\n", "b #### 2", "2")], Tokens(), task, 12)
    assert asked.digest() != other.digest() and asked.chance == 0


def test_what_cannot_be_asked_of_a_model_is_one_sentence():
    task = ExactMatch(kind="exact_match", context="q", max_new_tokens=12)
    with pytest.raises(CorpusError, match=r"'task.max_new_tokens' is 12, and the model takes 12"):
        questions_of("t", [("Q?", "#### 1", "1")] * 3, Tokens(), task, 12)
    with pytest.raises(CorpusError, match="the answers of its task are longer than the model's 5 tokens"):
        questions_of("t", [("Q?", "#### 1", "1")] * 3, Tokens(), task.model_copy(update={"max_new_tokens": 2}), 5)


def test_a_task_is_read_from_the_configuration_by_its_kind(small_config, tmp_path):
    (tmp_path / "t.jsonl").write_text(
        "".join(f'{{"text": "question {i}", "answer": "so #### {i}"}}\n' for i in range(60))
    )
    mapping = small_config(tmp_path / "out")
    task = {"kind": "exact_match", "context": "text", "items": 8, "max_new_tokens": 4}
    mapping["targets"] = [{"name": "t", "source": str(tmp_path / "t.jsonl"), "task": task}]
    study = open_study(Config.model_validate(mapping))
    (asked,) = read_items(study).values()
    assert len(asked.prompts) == 8 and set(asked.finals) < {str(i) for i in range(60)}
    again = Corpus.model_validate_json(study.config.targets[0].model_dump_json())
    assert again.task == ExactMatch(**task)
    mapping["targets"][0]["task"] = task | {"pattern": "(so"}
    with pytest.raises(ConfigError, match=r"'\(so' is no regular expression"):
        validated(Config, mapping, "study.yaml")
