"""What records are is told by their columns; where those do not tell, nothing is guessed."""

import json

import pytest
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.config_file import load_config
from align_ray.corpora.formats import recognise
from align_ray.corpora.sources import check_corpus
from align_ray.errors import ConfigError
from tests.conftest import SHARED

TURN = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]
SHAREGPT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]
KNOWN = {
    "messages": ({"messages": TURN}, {"chat": {"messages": "messages"}}),
    "ShareGPT with an id": ({"id": "a1", "conversations": SHAREGPT}, {"chat": {"messages": "conversations"}}),
    "UltraChat": ({"id": "a1", "data": ["Hi?", "Ho."]}, {"chat": {"messages": "data"}}),
    "another name": ({"id": "a1", "talk": TURN}, {"chat": {"messages": "talk"}}),
    "Alpaca": ({"instruction": "Add.", "input": "1, 2", "output": "3"}, {"prompt": "{instruction}\n{input}", "completion": "output"}),
    "Alpaca without input": ({"instruction": "Add.", "output": "3"}, {"prompt": "instruction", "completion": "output"}),
    "Dolly": ({"instruction": "Add.", "context": "1, 2", "response": "3", "category": "qa"}, {"prompt": "{instruction}\n{context}", "completion": "response"}),
    "prompt and completion": ({"prompt": "Hi?", "completion": "Ho."}, {"prompt": "prompt", "completion": "completion"}),
    "both as messages": ({"prompt": TURN[:1], "completion": TURN[1:]}, {"prompt": "prompt", "completion": "completion"}),
    "question and answer": ({"id": "1", "question": "Hi?", "answer": "Ho.", "final": "o"}, {"prompt": "question", "completion": "answer"}),
    "preferred conversations": ({"chosen": TURN, "rejected": TURN}, {"chat": {"messages": "chosen"}}),
    "preferred completions": ({"prompt": "Hi?", "chosen": "Ho.", "rejected": "Hu."}, {"prompt": "prompt", "completion": "chosen"}),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_formats_are_recognised(name):
    record, fields = KNOWN[name]
    found = recognise([record] * 5, "c")
    assert found is not None and found.fields == fields and found.why


@pytest.mark.parametrize(
    "record",
    [{"text": "plain"}, {"title": "a", "sections": ["b", "c"]}, {"id": "1", "tags": ["x", "y"]}, {"doc": {"body": "x"}}, {"question": "only"}],
)  # fmt: skip
def test_what_is_none_of_them_is_not_taken_for_one(record):
    assert recognise([record] * 5, "c") is None


def test_preference_data_with_labels_is_refused():
    with pytest.raises(ConfigError, match="some completions are wanted and some are not"):
        recognise([{"prompt": "a", "completion": "b", "label": i % 2 == 0} for i in range(4)], "c")


def write(file, records):
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


def init(folder, *files, more=()):
    flags = [f"--{'target' if i == 0 else 'candidate'}={name}={file}" for i, (name, file) in enumerate(files)]
    return CliRunner().invoke(app, ["init", str(folder / "s.yaml"), *flags, *more])


def test_init_writes_what_it_recognised_and_shows_examples_with_what_counts(tmp_path):
    numbered = lambda record: [record | {"n": i} for i in range(30)]
    files = [
        ("qa", write(tmp_path / "qa.jsonl", numbered(KNOWN["question and answer"][0]))),
        ("chat", write(tmp_path / "chat.jsonl", numbered(KNOWN["ShareGPT with an id"][0]))),
        ("alpaca", write(tmp_path / "alpaca.jsonl", numbered(KNOWN["Alpaca"][0]))),
    ]
    done = init(tmp_path, *files)
    assert done.exit_code == 0, done.output
    config = load_config(tmp_path / "s.yaml")
    qa, chat, alpaca = config.corpora
    assert (qa.prompt, qa.completion) == ("question", "answer") and chat.chat.messages == "conversations"
    assert (alpaca.prompt, alpaca.completion) == ("{instruction}\n{input}", "output")
    for corpus in config.corpora:
        check_corpus(corpus)
    assert "what counts stands in \u00ab\u00bb" in done.output and "Assistant: \u00abHo.\u00bb" in done.output
    assert "chat: 'conversations' holds conversations" in done.output


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (lambda i: {"title": f"t{i}", "sections": [f"a {i}", "b"]}, "lists or structures (sections)"),
        (lambda i: {"id": f"x{i}", "n": i}, "short and all different, as 'x0'"),
        (lambda i: {"id": f"x{i}", "doc": {"body": f"A long text, number {i}, in a structure."}}, "doc.body"),
    ],
    ids=["titles", "ids", "nested"],
)
def test_init_asks_instead_of_taking_ids_or_titles_for_the_text(tmp_path, record, word):
    odd = write(tmp_path / "odd.jsonl", [record(i) for i in range(30)])
    plain = write(tmp_path / "plain.jsonl", [{"text": f"text {i}"} for i in range(30)])
    done = init(tmp_path, ("t", plain), ("odd", odd), ("plain", plain))
    assert done.exit_code == 2 and word in done.output and "--column" in done.output
    if "body" in word:
        done = init(
            tmp_path,
            ("t", plain),
            ("odd", odd),
            ("other", odd),
            more=["--column", "odd=doc.body", "--column", "other={doc.body} {id}"],
        )
        assert done.exit_code in (0, 2) and load_config(tmp_path / "s.yaml").candidates[0].column == "doc.body"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("gsm8k-qa.train.jsonl", {"prompt": "question", "completion": "answer"}),
        ("sgd-chat.train.jsonl", {"chat": {"messages": "messages"}}),
    ],
)
def test_real_instruction_data_is_recognised(file, fields):
    lines = (SHARED / "instruction" / file).read_text().splitlines()[:100]
    assert recognise([json.loads(line) for line in lines], "c").fields == fields
