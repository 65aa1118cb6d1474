"""Records as people have them, as texts with marks, and as rows in which only completions count."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_ray.config import Sampling
from align_ray.config_corpora import Corpus
from align_ray.corpora.draw import cut_rows, document_key, encode, make_batches, portable, tokenised
from align_ray.corpora.records import MARK, Unusable, counted_characters, render, unmarked
from align_ray.corpora.sources import check_corpus, documents, plan_fragments
from align_ray.errors import CorpusError
from align_ray.fisher.probe import chat_template_of, load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.fisher.tokens import PADDING, as_context, counted_positions, plain_ids, scored_positions
from tests.tiny import Characters

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "Seven."},
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2 and Qwen have it: no mark of what the assistant says."""


def corpus(**fields):
    return Corpus(name="c", source="c.jsonl", **fields)


def counted(text):
    return [piece for i, piece in enumerate(text.split(MARK)) if i % 2]


def test_a_conversation_is_written_plainly_where_there_is_no_template_and_the_assistants_turns_are_marked():
    text = render(corpus(chat="messages"), {"messages": MESSAGES})
    assert unmarked(text) == (
        "System: Be brief.\n\nUser: Two and two?\n\nAssistant: Four.\n\nUser: And three?\n\nAssistant: Seven.\n\n"
    )
    assert counted(text) == ["Four.\n\n", "Seven.\n\n"]


def test_a_template_that_marks_no_turns_has_them_found_by_rendering_what_comes_before():
    text = render(corpus(chat="messages", chat_template=CHATML), {"messages": MESSAGES})
    assert counted(text) == ["Four.<|im_end|>\n", "Seven.<|im_end|>\n"]
    assert unmarked(text).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo")


def test_a_template_that_marks_turns_is_believed():
    marked = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    text = render(corpus(chat="messages", chat_template=marked), {"messages": MESSAGES[1:]})
    assert unmarked(text) == "[user]Two and two?[assistant]Four.[user]And three?[assistant]Seven."
    assert counted(text) == ["Four.", "Seven."]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("conversations", [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]),
        ("data", ["Two and two?", "Four."]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "Two and "}, {"type": "text", "text": "two?"}]}, MESSAGES[2]]),
        ("messages", json.dumps(MESSAGES[1:3])),
        ("a.b", None),
    ],
    ids=["ShareGPT", "UltraChat", "content parts", "JSON in a string", "nested"],
)  # fmt: skip
def test_conversations_of_every_shape_are_the_same_text(column, value):
    record = {column: value} if value else {"a": {"b": MESSAGES[1:3]}}
    text = render(corpus(chat=column), record | {"id": "x1"})
    assert unmarked(text) == "User: Two and two?\n\nAssistant: Four.\n\n" and counted(text) == ["Four.\n\n"]


def test_tool_calls_are_text_where_the_template_is_the_plain_one():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    text = render(
        corpus(chat="messages"), {"messages": [MESSAGES[1], call, {"role": "tool", "content": "4"}, MESSAGES[2]]}
    )
    assert len(counted(text)) == 2 and '"name": "add"' in counted(text)[0] and "Tool: 4" in text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([{"role": "user", "content": "Alone?"}], "no_completion"),
        ([], "missing_column"),
        (None, "missing_column"),
        ("no list", "missing_column"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "missing_column"),
        ([{"text": "x"}], "missing_column"),
    ],
)
def test_what_is_no_conversation_is_counted_by_its_reason(value, reason):
    with pytest.raises(Unusable, match=reason):
        render(corpus(chat="messages"), {"messages": value})


@pytest.mark.parametrize("more", [{}, {"input": None}, {"input": ""}], ids=["absent", "null", "empty"])
def test_alpacas_input_may_be_missing(more):
    made = corpus(prompt="{instruction}\n{input}", completion="output")
    assert render(made, {"instruction": "Add 2 and 2.", "output": "4"} | more) == f"Add 2 and 2.\n{MARK}4{MARK}"
    with_input = render(made, {"instruction": "Add.", "input": "2, 2", "output": "4"})
    assert with_input == f"Add.\n2, 2\n{MARK}4{MARK}"


def test_prompt_and_completion_are_kept_apart_by_white_space_once():
    made = corpus(prompt="question", completion="answer")
    assert render(made, {"question": "Why?", "answer": "So."}) == f"Why?\n{MARK}So.{MARK}"
    assert render(made, {"question": "Why? ", "answer": "So."}) == f"Why? {MARK}So.{MARK}"
    assert render(made, {"question": "Why?", "answer": " So."}) == f"Why?{MARK} So.{MARK}"
    for record, reason in (
        ({"question": "Why?"}, "missing_column"),
        ({"question": "Why?", "answer": " "}, "no_completion"),
    ):
        with pytest.raises(Unusable, match=reason):
            render(made, record)


def test_prompt_and_completion_may_be_messages():
    made = corpus(prompt="prompt", completion="completion", chat_template=CHATML)
    text = render(made, {"prompt": MESSAGES[1:2], "completion": MESSAGES[2:3]})
    assert counted(text) == ["Four.<|im_end|>\n"] and "Two and two?" in text


def test_all_counts_where_that_is_asked_for():
    text = render(corpus(prompt="q", completion="a", mask="all"), {"q": "Why?", "a": "So."})
    assert text == "Why?\nSo."


@pytest.mark.parametrize(
    ("column", "record", "text"),
    [
        ("doc.body", {"doc": {"body": "nested"}}, "nested"),
        ("doc.body", {"doc.body": "flat"}, "flat"),
        ("lines", {"lines": ["one", "two"]}, "one\ntwo"),
        ("a b: {c}!r", {"a b: {c}!r": "odd name"}, "odd name"),
    ],
)
def test_columns_may_be_nested_lists_of_strings_or_oddly_named(column, record, text):
    assert render(corpus(column=column), record) == text


def test_no_text_holds_a_mark_of_its_own():
    assert render(corpus(), {"text": "a\0b"}) == "ab"
    assert counted(render(corpus(prompt="q", completion="a"), {"q": "a\0b", "a": "c\0d"})) == ["cd"]
    assert counted(render(corpus(chat="m"), {"m": ["a\0b", "c\0d"]})) == ["cd\n\n"]


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_chat_is_read_of_files_and_what_cannot_be_is_counted(tmp_path, kind):
    records = [{"id": str(i), "messages": MESSAGES[1:3]} for i in range(5)] + [
        {"id": "x", "messages": None},
        {"id": "y", "messages": MESSAGES[:1]},
    ]
    file = tmp_path / ("c.jsonl" if kind == "json" else "c.parquet")
    if kind == "json":
        file.write_text("".join(json.dumps(r) + "\n" for r in records))
    else:
        pq.write_table(pa.Table.from_pylist(records), file)
    made, counts = Corpus(name="c", source=str(file), chat="messages"), Counter()
    check_corpus(made)
    texts = list(documents(made, plan_fragments(made), counts))
    assert len(texts) == counts["documents"] == 5 and counts["missing_column"] == 1 and counts["no_completion"] == 1
    assert counts["bytes"] == sum(len(unmarked(t)) for t in texts)
    with pytest.raises(CorpusError, match="field 'chat' needs 'talks', but .* has only the columns id, messages"):
        check_corpus(made.model_copy(update={"chat": made.chat.model_copy(update={"messages": "talks"})}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "q"}, "prompt and completion belong together"),
        ({"chat": "m", "template": "{a}"}, "two ways to make a text"),
        ({"prompt": "q", "completion": "a", "chat": "m"}, "two ways"),
    ],
)
def test_two_ways_or_half_a_way_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        corpus(**fields)


def test_a_chat_template_with_a_mistake_is_refused_by_its_name(tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")
    made = Corpus(
        name="c", source=str(tmp_path / "c.jsonl"), chat="messages", chat_template="{% for m in messages %}{{ m"
    )
    with pytest.raises(CorpusError, match="field 'chat_template' is no Jinja template .*; fix its syntax"):
        check_corpus(made)
    check_corpus(made.model_copy(update={"chat_template": CHATML}))


def test_an_option_of_anonymous_storage_that_is_not_known_is_one_sentence():
    with pytest.raises(CorpusError, match="cannot open s3://b/x.*nonsense.*check the URI"):
        check_corpus(Corpus(name="c", source="s3://b/x?anonymous=true&nonsense=1"))


# --- tokens and rows --------------------------------------------------------------------------------------------------


def test_ids_tell_context_and_padding_apart():
    ids = np.array([[5, 0, -1], [-2 - 5, 0, 7]])
    assert as_context(np.array([5, 0, PADDING])).tolist() == [-7, -2, -1]
    assert plain_ids(ids).tolist() == [[5, 0, 0], [5, 0, 7]]
    assert counted_positions(ids).tolist() == [[True, True, False], [True, True, True]]
    assert scored_positions(ids).tolist() == [[True, False, False], [True, True, False]]
    assert counted_positions(np.array([[-4, -3, 6, -1]])).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("fast", [True, False])
def test_a_token_counts_where_its_first_character_does(fast):
    tokenizer = load_tokenizer(locate_probe(ProbeName()))
    text = f"What is two and two? 前面{MARK} It is four, as ever.{MARK} Thanks.{MARK} Bye.{MARK}"
    ids = encode(portable(tokenizer) if fast else tokenizer, text)
    assert tokenizer.decode(plain_ids(ids).tolist()) == unmarked(text)
    kept = [tokenizer.decode(run.tolist()) for run in np.split(plain_ids(ids), np.flatnonzero(np.diff(ids >= 0)) + 1)]
    assert [k.strip() for k in kept[1::2]] == ["It is four, as ever.", "Bye."]
    assert counted_characters(text).sum() == len(" It is four, as ever. Bye.")


def document(prompt, completion):
    text = f"{prompt}{MARK}{completion}{MARK}"
    return tokenised(document_key(0, text), text, Characters())


def test_the_prompt_is_cut_from_the_left_and_a_completion_that_is_too_long_at_its_end():
    sampling = Sampling(sequence_length=8, batch_size=1)
    counts = Counter()
    documents = [document("abcdefghij", "XYZ"), document("abc", "ABCDEFGHIJKL"), document("ab", "C")]
    found = make_batches(documents, Characters(), sampling, 9, counts)[:, 0]
    assert ["".join(map(chr, plain_ids(row[row != PADDING]))) for row in found] == ["fghijXYZ", "cABCDEFG", "abC"]
    assert ["".join(map(chr, row[row >= 0])) for row in found] == ["XYZ", "ABCDEFG", "C"]
    assert counts["completion_cut"] == 1


def test_records_share_a_row_while_they_fit_and_only_completions_count():
    sampling = Sampling(sequence_length=12, batch_size=1)
    documents = [document("ab", "CD"), document("ef", "G"), document("hijklmn", "OPQ"), document("r", "S")]
    rows = cut_rows(documents, Characters(), sampling, 10)
    texts = ["".join(chr(c) if c else "." for c in row) for row in rows.ids]
    assert texts == ["abCD.efG....", "hijklmnOPQ..", "rS.........."]
    marks = ["".join("x" if s else " " for s in row) for row in rows.scored]
    assert marks == ["  xxx  xx   ", "       xxxx ", " xx         "]
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    assert (rows.encoded >= 0).sum() == rows.scored.sum()


def test_the_template_of_a_tokenizer_comes_with_its_special_tokens():
    tokenizer = load_tokenizer(locate_probe(ProbeName()))
    assert chat_template_of(tokenizer) is None
    tokenizer.chat_template = "{{ eos_token }}" + CHATML
    text = render(corpus(chat="messages", chat_template=chat_template_of(tokenizer)), {"messages": MESSAGES})
    assert text.startswith(tokenizer.eos_token + "<|im_start|>") and len(counted(text)) == 2
