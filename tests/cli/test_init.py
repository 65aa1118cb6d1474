"""`align-ray init`: a commented configuration that loads and gives back what was asked, from flags or from answers."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.cli.starter import look, proposed_name, render, write
from align_ray.config import Config
from align_ray.config_corpora import Corpus
from align_ray.config_file import load_config, validated
from align_ray.corpora.sources import check_corpus
from align_ray.errors import ConfigError, CorpusError

REPOSITORY = Path(__file__).resolve().parents[2]


def jsonl(path: Path, *records: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Files in a current directory; their paths are relative to it."""
    monkeypatch.chdir(tmp_path)
    jsonl(
        Path("proofs/test.jsonl"),
        {"id": "1", "informal": None, "formal": "a = b"},
        {"id": "2", "informal": "Show", "formal": "b"},
    )
    jsonl(Path("web/train.jsonl"), {"content": "page", "url": "u"})
    jsonl(Path("books.jsonl"), {"body": "chapter", "pages": 3})
    return tmp_path


def init(*arguments: str):
    return CliRunner().invoke(app, ["init", *arguments])


TWO = ("--candidate", "web/train.jsonl", "--candidate", "books.jsonl")


def test_flags_alone_give_a_file_that_loads_with_what_was_asked(sources):
    proofs = ("--target", "proofs/test.jsonl", "--column", "proofs={informal}\\n{formal}")
    done = init(
        "s/mine.yaml", *proofs, *TWO, "--output", "s3://bucket/out", "--probe", "owner/model", "--tokens", "5_000"
    )
    assert done.exit_code == 0, done.output
    config = load_config("s/mine.yaml")
    assert config.targets == [Corpus(name="proofs", source="proofs/test.jsonl", template="{informal}\n{formal}")]
    web, books = config.candidates
    assert (web.name, web.column, books.name, books.column) == ("web", "content", "books", "body")
    assert (config.name, config.output, config.probe.model) == ("mine", "s3://bucket/out", "owner/model")
    assert config.search.token_budget == 5000
    assert "align-ray run s/mine.yaml" in done.stdout


def test_the_answer_as_json_is_the_path_and_what_was_asked(sources):
    done = init("--target", "installed:licences", *TWO, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["path"] == "study.yaml" and Config.model_validate(answer["config"]) == load_config("study.yaml")


def test_every_default_shown_is_the_default_and_can_be_switched_on(sources):
    assert init("--target", "installed:licences", *TWO).exit_code == 0
    text = Path("study.yaml").read_text()
    shown = re.sub(r"(?m)^( *)#(?! )", r"\1", text)
    assert shown.count("\n") == text.count("\n") and len(yaml.safe_load(shown)) > len(yaml.safe_load(text))
    Path("on.yaml").write_text(shown)
    assert load_config("on.yaml") == load_config("study.yaml")
    assert "# Repetition cap: no corpus is seen more often than this within the budget.\n  #max_epochs: 4.0" in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_existing_file_is_kept_unless_forced(sources):
    Path("study.yaml").write_text("mine")
    done = init("--target", "installed:licences", *TWO)
    assert done.exit_code == 2 and "--force" in done.stderr and Path("study.yaml").read_text() == "mine"
    assert init("--target", "installed:licences", *TWO, "--force").exit_code == 0
    assert load_config("study.yaml").targets[0].source == "installed:licences"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--target", "--candidate"]),
        (("--target", "books.jsonl"), ["--candidate", "two or more"]),
        (("--target", "proofs/test.jsonl", *TWO), ["'proofs'", "id, informal, formal", "--column 'proofs={id}"]),
        (("--target", "none.jsonl", *TWO), ["'none'", "no file at none.jsonl"]),
        (("--target", "books.jsonl", *TWO), ["are the same corpus"]),
        (("--target", "a b=books.jsonl", *TWO), ["'name'", "'a b'"]),
        (("--target", "installed:licences", *TWO, "--column", "web=url2"), ["'url2'", "content, url"]),
        (("--target", "installed:licences", *TWO, "--column", "wbe=url"), ["--column wbe", "books, licences, web"]),
        (("--target", "installed:licences", *TWO, "--column", "web"), ["NAME=COLUMN"]),
        (("--target", "installed:licences", *TWO, "--output", "s3://k:planted@b/x"), ["'output'", "credential"]),
        (("--target", "s3://key:planted@bucket/x", *TWO), ["--target", "'source'", "credential"]),
        (("--target", "t=https://h/x?X-Amz-Signature=planted", *TWO), ["--target", "'source'", "credential"]),
        (("/dev/null/x.yaml", "--target", "installed:licences", *TWO), ["/dev/null/x.yaml", "cannot be written"]),
    ],
)
def test_a_mistake_is_one_sentence_and_no_file(sources, arguments, words):
    done = init(*arguments)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    for word in words:
        assert word in done.stderr
    assert "planted" not in done.output and not list(Path().glob("*.yaml"))


def test_answers_on_a_terminal_take_the_place_of_missing_flags(sources):
    """In a real pseudo-terminal: a wrong answer is asked again, an open choice of columns is put to the user."""
    answers = [
        "nowhere.jsonl",
        "proofs/test.jsonl",
        "{informal}{nothing}",
        "{informal}\\n{formal}",
        "",
        "installed:licences",
    ]
    answers += ["lib=books.jsonl", "", "", "ten", "20,000", ""]
    ours, theirs = pty.openpty()
    code = "from align_ray.cli.main import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "init"], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    os.write(ours, "".join(a + "\n" for a in answers).encode())
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert "no file at nowhere.jsonl" in printed and "needs 'nothing'" in printed and "a whole number" in printed
    config = load_config("study.yaml")
    assert config.targets[0].template == "{informal}\n{formal}"
    assert [c.name for c in config.candidates] == ["licences", "lib"] and config.candidates[1].column == "body"
    assert (config.output, config.search.token_budget, config.probe.model) == ("runs/study", 20_000, "embedded")


def test_text_files_are_read_by_paragraph_unless_there_are_many(sources):
    Path("notes.txt").write_text("one\n\ntwo")
    for i in range(40):
        Path(f"code/{i}.py").parent.mkdir(exist_ok=True)
        Path(f"code/{i}.py").write_text("x = 1")
    assert look("notes.txt", "candidates", (), {}, None)["sample_by"] == "paragraph"
    assert look("code", "candidates", (), {}, None) == {"name": "code", "source": "code", "sample_by": "document"}


def test_the_columns_of_a_parquet_file_are_told_apart_by_their_values(sources):
    pq.write_table(pa.table({"id": [1, 2], "story": [None, "once"], "score": [0.5, 1.0]}), "x.parquet")
    assert look("x.parquet", "candidates", (), {}, None)["column"] == "story"
    pq.write_table(pa.table({"id": [1]}), "y.parquet")
    with pytest.raises(CorpusError, match="has only the columns id"):
        look("y.parquet", "candidates", (), {}, None)


def test_a_hub_data_set_gives_a_target_its_test_split_and_a_candidate_its_training_split(sources):
    for split in ("train", "test"):
        jsonl(Path(f"hub/{split}.jsonl"), {"text": split})
    source = f"hf://{sources}/hub"
    assert look(source, "targets", (), {}, None)["split"] == "test"
    assert look(source, "candidates", (), {}, None)["split"] == "train"
    jsonl(Path("odd/validation.jsonl"), {"text": "x"})
    jsonl(Path("odd/test.jsonl"), {"text": "x"})
    with pytest.raises(ConfigError, match="has the splits .*write the field 'split'"):
        look(f"hf://{sources}/odd", "candidates", (), {}, None)
    asked = []
    chosen = look(
        f"hf://{sources}/odd", "candidates", (), {}, lambda q, default, check: asked.append(q) or check("validation")
    )
    assert chosen["split"] == "validation" and "which split" in asked[0]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/mathlib/*.parquet", "mathlib"),
        ("data/gsm8k/train.jsonl.gz", "gsm8k"),
        ("hf://allenai/c4", "c4"),
        ("s3://bucket/books/?region=eu-west-1", "books"),
        ("installed:licences", "licences"),
        ("C:\\data\\my texts.jsonl", "my-texts"),
        ("données/été.jsonl", "ete"),
        ("数据.jsonl", "corpus"),
        ("*", "corpus"),
        ("train.jsonl", "train"),
    ],
)
def test_a_corpus_is_named_after_its_source(source, name):
    assert proposed_name(source) == name


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_proposed_names_are_valid_and_unique_whatever_the_sources(sources):
    taken: list[str] = []
    for source in sources:
        taken.append(proposed_name(source, taken))
        validated(Corpus, {"name": taken[-1], "source": "x"}, "here")
    assert len(set(taken)) == len(taken)


readable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
plain_sources = readable.filter(lambda s: "://" not in s)


@given(st.lists(plain_sources, min_size=3, max_size=5, unique=True), readable, readable, st.integers(1, 10**15))
def test_the_file_gives_back_whatever_was_asked(sources, template, column, budget):
    corpora = [{"name": f"c{i}", "source": s} for i, s in enumerate(sources)]
    corpora[0] |= {"template": template}
    corpora[1] |= {"column": column}
    asked = {"name": "n", "output": sources[0], "targets": corpora[:1], "candidates": corpora[1:]}
    asked |= {"probe": {"model": column}, "search": {"token_budget": budget}}
    try:
        config = Config.model_validate(asked)
    except ValueError:
        return  # two spellings of one path
    assert Config.model_validate(yaml.safe_load(render(asked))) == config
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    "file", ["a b.jsonl", "quo'te\".jsonl", "été 数据.jsonl", "C:\\data\\x.jsonl", "- #: {x}.jsonl", "year=2024.jsonl"]
)
def test_odd_file_names_are_read_back_and_found(sources, file):
    jsonl(sources / file, {"text": "x"})
    corpus = look(f"./{file}" if "=" in file else file, "targets", (), {}, None)
    others = [look(s, "candidates", (corpus["name"],), {}, None) for s in ("books.jsonl", (sources / "web").as_uri())]
    written = write(Path("odd.yaml"), {"name": "odd", "output": "out", "targets": [corpus], "candidates": others})
    assert load_config("odd.yaml") == written
    check_corpus(written.targets[0])
