"""examples/fetch_corpora.py: from archives as GitHub gives them to what the examples read.

The archives here are made in the test, with records as the repositories have them; the real ones are not fetched."""

import gzip
import importlib.util
import io
import json
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from typer import Typer
from typer.testing import CliRunner

from align_ray.config import Config
from tests.conftest import SHARED

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_corpora", ROOT / "examples/fetch_corpora.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_corpora"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


LEAN = """import Mathlib

set_option maxHeartbeats 0

open BigOperators Real Nat Topology Rat

theorem aimeII_2001_p3 (x : ℕ → ℤ) (h₀ : x 1 = 211) (h₂ : x 2 = 375) (h₃ : x 3 = 420)
  (h₄ : x 4 = 523) (h₆ : ∀ n ≥ 5, x n = x (n - 1) - x (n - 2) + x (n - 3) - x (n - 4)) :
  x 531 + x 753 + x 975 = 898 := by sorry"""
WORDS = {
    "problem_name": "aimeII_2001_p3",
    "informal_statement": "Given that\n\n$$\n\\begin{align*}x_{1}&=211,\\\\\nx_{2}&=375,\\\\\nx_{3}&=420,\\\\\nx_{4}&=523,\\ \\text{and}\\\\\nx_{n}&=x_{n-1}-x_{n-2}+x_{n-3}-x_{n-4}\\ \\text{when}\\ n\\geq5, \\end{align*}\n$$\n\nfind the value of $x_{531}+x_{753}+x_{975}$. Show that it is 898.",
    "informal_proof": "We find that $x_5 = 267$ by the recursive formula.",
}
TOM = {
    "question": "Tom can type 90 words a minute.  A page is 450 words.  How long would it take him to type out 10 pages?",
    "answer": "He can type out 1 page in 450/90=<<450/90=5>>5 minutes\nSo it would take 5*10=<<5*10=50>>50 minutes\n#### 50",
}
SUGAR = {
    "QUESTION": "Are sugars-free medicines more erosive?",
    "CONTEXTS": ["The aim was to assess.", "The study took the form."],
    "LABELS": ["OBJECTIVE", "METHODS"],
    "final_decision": "no",
    "LONG_ANSWER": "They were not more erosive.",
}
TURNS = [{"speaker": "USER", "utterance": "Find me a table."}, {"speaker": "SYSTEM", "utterance": "Where?"}]
FORML4 = {
    "formal": "theorem one : f 1 = 1 := by\n  simp\n",
    "gemini_output": "...",
    "nl_problem": "Prove it.",
    "nl_proof": "1. It is.",
}
WIKITEXT = " \n = Robert <unk> = \n \n Robert <unk> is an English actor , and well @-@ known . \n \n = = Career = = \n \n He had a role in 2000 . \n Another one . \n"
SECTION = (
    "% Part: first-order-logic\n\\documentclass[../../include/open-logic-section]{subfiles}\n\\begin{document}\n\\olfileid{fol}{int}{fol}\n\n\\olsection{First-Order Logic}\n\n"
    + (
        "You are probably familiar with first-order logic; 100\\% sure. % or not\n" * 5
        + "\n\n\n\\begin{explain}More.\\end{explain}\n\\end{document}\n"
    )
)


def jsonl(*records: dict) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


REPOSITORIES = {
    "zhangir-azerbayev/ProofNet": {
        f"benchmark/{split}.jsonl": jsonl(
            *(
                {
                    "id": name,
                    "formal_statement": "lean 3",
                    "nl_statement": "Prove it.\n",
                    "nl_proof": "\\begin{proof}\n\nSo.\n\n\\end{proof}",
                }
                for name in names
            )
        )
        for split, names in {
            "valid": ["Rudin|exercise_1_1b"],
            "test": ["Dummit-Foote|exercise_11_1_13", "Artin|unported"],
        }.items()
    },
    "rahul3613/ProofNet-lean4": {
        "proofnet_lean4.jsonl": jsonl(
            {"name": "Rudin_exercise_1_1b", "formal_statement": "theorem a : 1 = 1 := sorry"},
            {"name": "Dummit_Foote_exercise_11_1_13", "formal_statement": "theorem b : 2 = 2 := sorry"},
        )
    },
    "yangky11/miniF2F-lean4": {"MiniF2F/Valid/aimeII_2001_p3.lean": LEAN, "MiniF2F/Test/other.lean": LEAN},
    "facebookresearch/miniF2F": {
        "informal/valid/aimeII_2001_p3.json": json.dumps(WORDS),
        "informal/test/other.json": json.dumps(WORDS),
    },
    "rookie-joe/PDA": {
        f"data/FormL4/{part}_test.json": json.dumps([{**FORML4, "nl_problem": f"{part} {i}"} for i in range(20)])
        for part in ("basic", "random", "real")
    },
    "openai/grade-school-math": {
        f"grade_school_math/data/{n}.jsonl": jsonl(TOM) for n in ("train", "test", "example_model_solutions")
    },
    "OpenLogicProject/OpenLogic": {
        **{f"content/fol/int/part{i}.tex": f"{SECTION}\n{i}" for i in range(40)},
        "content/fol/fol.tex": "\\olimport{int}",
    },
    "openai/human-eval": {
        "data/HumanEval.jsonl.gz": jsonl(
            {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n"}
        )
    },
    "OckBench/OckBench": {
        "data/mbpp.jsonl": jsonl(
            {
                "task_id": 1,
                "text": "Add.",
                "code": "def add(a, b): \r\n  return a + b",
                "test_list": ["assert add(1, 2) == 3"],
            },
            {"id": 2, "problem": "One.", "answer": "one = 1", "metadata": {"test_list": ["assert one"]}},
        )
    },
    "pytorch/examples": {f"word_language_model/data/wikitext-2/{n}.txt": WIKITEXT for n in ("valid", "test", "train")},
    "karpathy/char-rnn": {"data/tinyshakespeare/input.txt": "\n\n".join(["First Citizen:\nSpeak, speak."] * 2_000)},
    "pubmedqa/pubmedqa": {
        "data/ori_pqal.json": json.dumps({str(i): {**SUGAR, "QUESTION": f"Question {i}?"} for i in range(40)})
    },
    "google-research-datasets/dstc8-schema-guided-dialogue": {
        "train/dialogues_001.json": json.dumps([{"dialogue_id": f"1_{i:05}", "turns": TURNS} for i in range(40)]),
        "train/schema.json": "[]",
    },
    "nltk/nltk": {
        f"nltk_data/corpora/gutenberg/{name}.txt": "\n\n".join(
            f"{name} caf\xe9 {i} " + "and so on " * 20 for i in range(100)
        )
        for name in (
            "austen-emma austen-persuasion austen-sense blake-poems chesterton-ball chesterton-brown chesterton-thursday "
            "melville-moby_dick milton-paradise whitman-leaves carroll-alice"
        ).split()
    },
    "Diffusion-bachelor/diffusion-data-constraint-rare-events": {
        "data/c4_sample.jsonl": jsonl(*({"text": f"Page {i}.", "url": "..."} for i in range(60)))
    },
}


@pytest.fixture(scope="module")
def archives(script, tmp_path_factory) -> str:
    """A folder of tar.gz files, each with one top folder, as GitHub makes them; the pattern of their addresses."""
    folder = tmp_path_factory.mktemp("archives")
    for source in {s for corpus in script.CORPORA.values() for s in corpus.sources}:
        file = folder / f"{source.repo}-{source.commit}.tar.gz"
        file.parent.mkdir(exist_ok=True)
        with tarfile.open(file, "w:gz") as archive:
            for path, text in REPOSITORIES[source.repo].items():
                raw = text.encode("latin-1" if "gutenberg" in path else "utf-8")
                content = gzip.compress(raw) if path.endswith(".gz") else raw
                info = tarfile.TarInfo(f"{source.repo.split('/')[1]}-{source.commit}/{path}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return f"file://{folder}/{{repo}}-{{commit}}.tar.gz"


def run(script, *arguments):
    app = Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(script, archives, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    done = run(script, folder, "--archives", archives)
    assert done.exit_code == 0, done.output
    return folder


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_statements_in_words_and_lean_keep_their_split(data):
    (validation,) = records(data / "proofnet-lean4/validation.jsonl")
    assert validation["informal_proof"] == "So." and validation["formal"] == "theorem a : 1 = 1 := sorry"
    assert [r["id"] for r in records(data / "proofnet-lean4/test.jsonl")] == ["Dummit_Foote_exercise_11_1_13"]
    (olympiad,) = records(data / "minif2f-lean4/validation.jsonl")
    assert olympiad["formal"].startswith("theorem aimeII_2001_p3") and "Mathlib" not in olympiad["text"]
    mathlib = records(data / "forml4-mathlib/train.jsonl") + records(data / "forml4-mathlib/heldout.jsonl")
    assert {r["informal"].split()[0] for r in mathlib} == {"basic", "random"} and len(mathlib) == 40
    assert "Informal proof: 1. It is.\n\nFormal statement (Lean 4):\ntheorem one" in mathlib[0]["text"]


def test_the_marks_of_the_published_form_are_taken_out(data):
    assert records(data / "gsm8k/train.jsonl")[0]["text"].endswith("5*10=50 minutes\n#### 50")
    sections = [r for split in ("train", "heldout") for r in records(data / f"openlogic/{split}.jsonl")]
    assert len(sections) == 40
    section = sections[0]
    assert section["text"].startswith("\\olsection{First-Order Logic}") and "100\\% sure." in section["text"]
    assert "or not" not in section["text"] and "document" not in section["text"] and "\n\n\n" not in section["text"]
    articles = [r["text"] for split in ("train", "heldout") for r in records(data / f"wikitext-2/{split}.jsonl")]
    assert "Robert <unk>\nRobert <unk> is an English actor, and well-known." in articles
    assert "Career\nHe had a role in 2000.\nAnother one." in articles and len(articles) == 4
    problems = [r["text"] for split in ("train", "heldout") for r in records(data / f"python-problems/{split}.jsonl")]
    assert sorted(problems) == [
        '"""Add."""\ndef add(a, b):\n  return a + b\nassert add(1, 2) == 3',
        '"""One."""\none = 1\nassert one',
        "def f():\n    return 1",
    ]


def test_instructions_keep_their_fields(data):
    folder = data / "instruction"
    assert records(folder / "gsm8k-qa.test.jsonl") == [
        {**TOM, "answer": TOM["answer"].replace("<<450/90=5>>", "").replace("<<5*10=50>>", "")}
    ]
    halves = [records(folder / f"pubmedqa-choices.{half}.jsonl") for half in ("train", "test")]
    assert sum(map(len, halves)) == 40 and min(map(len, halves)) > 5
    assert (
        halves[0][0]["context"] == "The aim was to assess. The study took the form." and halves[0][0]["answer"] == "no"
    )
    chats = [records(folder / f"sgd-chat.{split}.jsonl") for split in ("train", "heldout")]
    assert sum(map(len, chats)) == 40 and len(chats[0]) > len(chats[1]) > 0
    assert chats[0][0]["messages"] == [
        {"role": "user", "content": "Find me a table."},
        {"role": "assistant", "content": "Where?"},
    ]


def test_books_pages_and_dialogues_are_documents(data):
    novels = [r["text"] for split in ("train", "heldout") for r in records(data / f"gutenberg-novels/{split}.jsonl")]
    assert len(novels) > 40 and all(4_000 <= len(text) < 4_500 and "café" in text for text in novels)
    assert not any("alice" in text for text in novels)
    (turns,) = {r["text"] for r in records(data / "sgd-dialogues/train.jsonl")}
    assert turns == "User: Find me a table.\nSystem: Where?"
    pages = [records(data / f"c4-sample/{split}.jsonl") for split in ("train", "heldout")]
    assert sum(map(len, pages)) == 60 and set(pages[0][0]) == {"text"}


def test_every_corpus_that_a_study_reads_is_written(data):
    read = {
        s
        for file in (ROOT / "studies").glob("*.yaml")
        for s in re.findall(r"shared/corpora/([\w./-]+jsonl)", file.read_text())
    }
    assert len(read) > 15 and not [file for file in read if not (data / file).is_file()]


def test_what_came_from_where_is_written_beside_it(script, data):
    about = (data / "SOURCES.md").read_text()
    assert all(f"- {name} ({corpus.licence})" in about for name, corpus in script.CORPORA.items())
    assert "github.com/openai/grade-school-math at 3101c7d5" in about


def test_every_file_that_an_example_reads_is_written(data):
    """With the columns that it names."""
    sources = []
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        for cell in nbformat.read(notebook, as_version=4).cells:
            if cell.cell_type == "code" and "Config.model_validate(" in cell.source:
                values: dict = {}
                exec(cell.source.partition("\nstudy = ")[0], values)  # noqa: S102
                config: Config = values["config"]
                sources += [*config.targets, *config.candidates, *([config.replay] if config.replay else [])]
    fetched = [s for s in sources if str(s.source).startswith("data/")]
    assert len(fetched) > 10
    for corpus in fetched:
        files = list(data.parent.glob(str(corpus.source).replace("data/", f"{data.name}/", 1)))
        assert files, corpus.source
        record = next(r for file in files for r in records(file))
        columns = "".join(filter(None, [corpus.template, corpus.prompt, corpus.completion])) or corpus.column
        wanted = corpus.chat.messages if corpus.chat else columns
        assert any(name in wanted for name in record), (corpus.name, wanted, list(record))


def test_an_unknown_corpus_and_a_missing_file_are_named(script, archives, tmp_path):
    assert "no corpus gsm9k" in run(script, tmp_path, "--only", "gsm9k").output
    absent = script.Source("pubmedqa/pubmedqa", script.PUBMEDQA.commit, ("data/absent.json",))
    with pytest.raises(FileNotFoundError, match="no file data/absent.json"):
        script.read(absent, archives)


@pytest.mark.shared
def test_a_published_record_becomes_that_of_the_copy_the_studies_used(data):
    def of(file: Path, value: str, key: str) -> dict:
        return next(r for r in records(file) if r[key] == value)

    mine, theirs = (of(d / "minif2f-lean4/validation.jsonl", "aimeII_2001_p3", "id") for d in (data, SHARED))
    assert mine["text"] == theirs["text"] and mine["formal"] == theirs["formal"]
    (tom,) = records(data / "gsm8k/train.jsonl")
    assert tom["text"] in {r["text"] for r in records(SHARED / "gsm8k/train.jsonl")}
