"""Fetch the corpora of the examples and studies from where they are published, into JSON lines.

    python examples/fetch_corpora.py examples/data           # for the examples: an archive from GitHub for each source
    python examples/fetch_corpora.py ../shared/corpora       # for the configurations of studies/
    python examples/fetch_corpora.py examples/data --only proofnet-lean4 --only minif2f-lean4

Each comes from a public GitHub repository at a fixed commit (`CORPORA`), and is written as NAME/SPLIT.jsonl, a record a
line with a `text` and further fields. Where the authors publish a split it is kept; else a tenth of the documents, by
the hash of their text, is `heldout`. SOURCES.md in the folder says what came from where, under which licence.
"""

import gzip
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import fsspec
import typer

ARCHIVE = "https://codeload.github.com/{repo}/tar.gz/{commit}"

Record = dict[str, Any]
Files = dict[str, str]
"""Text of the files of all archives of a corpus, by their path in the repository."""
Splits = dict[str, Iterable[Record]]


@dataclass(frozen=True)
class Source:
    """What of a repository is read: `paths` are shell patterns, `*` stands for folders too."""

    repo: str
    commit: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    sources: tuple[Source, ...]
    licence: str
    splits: Callable[[Files], Splits]


def by_hash(records: Iterable[Record], key: str = "text") -> Splits:
    """A tenth held out, whatever the order of the records."""
    splits: dict[str, list[Record]] = {"train": [], "heldout": []}
    for record in records:
        tenth = hashlib.sha256(record[key].encode()).digest()[0] < 256 / 10
        splits["heldout" if tenth else "train"].append(record)
    return dict(splits)


def lines(text: str) -> list[Record]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def named(files: Files, pattern: str) -> list[str]:
    return [text for path, text in sorted(files.items()) if fnmatch(path, pattern)]


def statement(informal: str, formal: str, informal_proof: str = "", in_text: bool = False) -> Record:
    """A statement in words and in Lean 4."""
    proof = f"Informal proof: {informal_proof}\n\n" if in_text else ""
    text = f"Informal statement: {informal}\n\n{proof}Formal statement (Lean 4):\n{formal}"
    return {"text": text, "informal": informal, "informal_proof": informal_proof, "formal": formal}


def proofnet(files: Files) -> Splits:
    """The split and the words of the original, the Lean 4 of the port."""

    def key(name: str) -> str:
        return re.sub(r"\W", "_", name)

    lean = {key(r["name"]): r["formal_statement"] for r in lines(files["proofnet_lean4.jsonl"])}

    def split(name: str) -> Iterator[Record]:
        for record in lines(files[f"benchmark/{name}.jsonl"]):
            if (found := key(record["id"])) in lean:
                proof = re.sub(r"\\(begin|end)\{proof\}", "", record["nl_proof"]).strip()
                yield {"id": found, **statement(record["nl_statement"].strip(), lean[found].strip(), proof)}

    return {"validation": split("valid"), "test": split("test")}


def minif2f(files: Files) -> Splits:
    def split(lean: str, words: str) -> Iterator[Record]:
        for path, text in sorted(files.items()):
            informal = files.get(f"informal/{words}/{Path(path).stem}.json")
            if fnmatch(path, f"MiniF2F/{lean}/*.lean") and informal:
                said, formal = json.loads(informal), text[text.index("theorem ") :].strip()
                record = statement(said["informal_statement"].strip(), formal, said["informal_proof"].strip())
                yield {"id": Path(path).stem, **record}

    return {"validation": split("Valid", "valid"), "test": split("Test", "test")}


def forml4(files: Files) -> Splits:
    records = (record for text in named(files, "data/FormL4/*.json") for record in json.loads(text))
    return by_hash(
        statement(r["nl_problem"].strip(), r["formal"].strip(), r["nl_proof"].strip(), in_text=True) for r in records
    )


def _worked(files: Files, split: str) -> Iterator[Record]:
    for record in lines(files[f"grade_school_math/data/{split}.jsonl"]):
        yield {"question": record["question"], "answer": re.sub(r"<<.*?>>", "", record["answer"])}


def gsm8k(files: Files) -> Splits:
    def split(name: str) -> Iterator[Record]:
        for r in _worked(files, name):
            yield {"text": f"Question: {r['question']}\nAnswer: {r['answer']}"}

    return {"train": split("train"), "heldout": split("test")}


def gsm8k_qa(files: Files) -> Splits:
    return {"gsm8k-qa.train": _worked(files, "train"), "gsm8k-qa.test": _worked(files, "test")}


def openlogic(files: Files) -> Splits:
    """A section a record, without comments and the lines that only serve LaTeX."""
    serves = r"\\(documentclass|usepackage|input|include|begin\{document\}|end\{document\}|olfileid|OLEndChapterHook)"
    sections = []
    for text in named(files, "content/*.tex"):
        kept = (re.sub(r"(?<!\\)%.*", "", line).rstrip() for line in text.split("\n"))
        section = "\n".join(line for line in kept if not re.match(rf"\s*{serves}", line)).strip()
        if len(section) >= 200:  # others only include sections
            sections.append({"text": re.sub(r"\n{3,}", "\n\n", section)})
    return by_hash(sections)


def python_problems(files: Files) -> Splits:
    found = [
        {"id": r["task_id"], "text": (r["prompt"] + r["canonical_solution"]).strip()}
        for r in lines(files["data/HumanEval.jsonl.gz"])
    ]
    for r in lines(files["data/mbpp.jsonl"]):  # in MBPP's own columns, or those that OckBench gave it later
        said, code = (r["text"], r["code"]) if "code" in r else (r["problem"], r["answer"])
        code = "\n".join(line.rstrip() for line in code.strip().splitlines())
        tests = r["test_list"] if "test_list" in r else r["metadata"]["test_list"]
        found.append(
            {"id": f"MBPP/{r.get('task_id', r.get('id'))}", "text": "\n".join([f'"""{said}"""', code, *tests])}
        )
    return by_hash(found)


def wikitext(files: Files) -> Splits:
    """A section of an article a record; the tokeniser's spaces and marks are taken back."""
    text = "\n".join(named(files, "word_language_model/data/wikitext-2/*.txt"))
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?)\]]|'s\b|n't\b)", r"\1", text)
    heads_and_bodies = re.split(r"^\s*(=(?: =)* .+? =(?: =)*)\s*$", text, flags=re.MULTILINE)[1:]
    pairs = zip(heads_and_bodies[::2], heads_and_bodies[1::2], strict=True)
    sections = (
        (head.strip("= "), "\n".join(s.strip() for s in body.splitlines() if s.strip())) for head, body in pairs
    )
    return by_hash({"text": f"{head}\n{body}"} for head, body in sections if body)


def pieces(text: str, characters: int) -> Iterator[Record]:
    """Paragraphs, so many together that a record has about so many characters; the rest at the end is left out."""
    part = ""
    for paragraph in re.split(r"\n{2,}", text.replace("\r\n", "\n")):
        part += paragraph + "\n\n"
        if len(part) >= characters:
            yield {"text": part.strip()}
            part = ""


def shakespeare(files: Files) -> Splits:
    """The last tenth is held out."""
    parts = list(pieces(files["data/tinyshakespeare/input.txt"], 2_500))
    cut = len(parts) * 9 // 10
    return {"train": parts[:cut], "heldout": parts[cut:]}


def novels(files: Files) -> Splits:
    return by_hash(piece for text in named(files, "*.txt") for piece in pieces(text, 4_000))


def web(files: Files) -> Splits:
    return by_hash({"text": r["text"]} for r in lines(files["data/c4_sample.jsonl"]))


def pubmedqa(files: Files) -> Splits:
    return by_hash(
        {"id": name, "text": "\n".join([r["QUESTION"], " ".join(r["CONTEXTS"]), r["LONG_ANSWER"]])}
        for name, r in json.loads(files["data/ori_pqal.json"]).items()
    )


def pubmedqa_choices(files: Files) -> Splits:
    """Half for training, half a test, by the hash of the question."""
    halves: dict[str, list[Record]] = {"pubmedqa-choices.train": [], "pubmedqa-choices.test": []}
    for name, r in json.loads(files["data/ori_pqal.json"]).items():
        half = "train" if hashlib.sha256(r["QUESTION"].encode()).digest()[0] < 128 else "test"
        answer = {"choices": ["yes", "no", "maybe"], "answer": r["final_decision"], "long_answer": r["LONG_ANSWER"]}
        record = {"id": name, "question": r["QUESTION"], "context": " ".join(r["CONTEXTS"]), **answer}
        halves[f"pubmedqa-choices.{half}"].append(record)
    return dict(halves)


def _turns(files: Files) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Of every dialogue its name and who says what."""
    for text in named(files, "train/dialogues_*.json"):
        for dialogue in json.loads(text):
            yield dialogue["dialogue_id"], [(turn["speaker"], turn["utterance"]) for turn in dialogue["turns"]]


def dialogues(files: Files) -> Splits:
    return by_hash(
        {"id": name, "text": "\n".join(f"{speaker.title()}: {said}" for speaker, said in turns)}
        for name, turns in _turns(files)
    )


def chats(files: Files) -> Splits:
    def records() -> Iterator[Record]:
        for name, turns in _turns(files):
            messages = [
                {"role": "user" if speaker == "USER" else "assistant", "content": said} for speaker, said in turns
            ]
            yield {"id": name, "messages": messages}

    return {f"sgd-chat.{split}": found for split, found in by_hash(records(), "id").items()}


GSM8K = Source(
    "openai/grade-school-math", "3101c7d5072418e28b9008a6636bde82a006892c", ("grade_school_math/data/t*.jsonl",)
)
PUBMEDQA = Source("pubmedqa/pubmedqa", "1cbae8e92f72f20c8d3747cbb3bf5bc53554d997", ("data/ori_pqal.json",))
SGD = Source(
    "google-research-datasets/dstc8-schema-guided-dialogue",
    "e852981ae34990f4358979625854259302feaa78",
    ("train/dialogues_0[0-2]*.json",),  # a quarter of them
)
NOVELS = (
    "austen-emma austen-persuasion austen-sense blake-poems chesterton-ball chesterton-brown chesterton-thursday "
    "melville-moby_dick milton-paradise whitman-leaves"
)

CORPORA = {
    "proofnet-lean4": Corpus(
        (
            Source(
                "zhangir-azerbayev/ProofNet",
                "509ad79710ed4f46ff5c282ed5640c1aa9ac3f30",
                ("benchmark/valid.jsonl", "benchmark/test.jsonl"),
            ),
            Source("rahul3613/ProofNet-lean4", "6deae98b38954dadf732746d023e8be65c56f246", ("proofnet_lean4.jsonl",)),
        ),
        "MIT",
        proofnet,
    ),
    "minif2f-lean4": Corpus(
        (
            Source("yangky11/miniF2F-lean4", "5746b7d6c47855ce1294bed87329618ff7f1bc31", ("MiniF2F/*/*.lean",)),
            Source("facebookresearch/miniF2F", "e4f113090ad82d64f8ce064d2f55b613a9b6bded", ("informal/*/*.json",)),
        ),
        "MIT",
        minif2f,
    ),
    "forml4-mathlib": Corpus(
        (
            Source(
                "rookie-joe/PDA",
                "7f65d2c27e79239d754e08af2de84a4cea58acc7",
                ("data/FormL4/basic_test.json", "data/FormL4/random_test.json"),
            ),
        ),
        "CC-BY-4.0; the Lean side is from mathlib4, Apache-2.0",
        forml4,
    ),
    "gsm8k": Corpus((GSM8K,), "MIT", gsm8k),
    "openlogic": Corpus(
        (Source("OpenLogicProject/OpenLogic", "9620cc73f9c8e0ad003c514a5d3748f29611c4c0", ("content/*.tex",)),),
        "CC-BY-4.0",
        openlogic,
    ),
    "python-problems": Corpus(
        (
            Source("openai/human-eval", "6d43fb980f9fee3c892a914eda09951f772ad10d", ("data/HumanEval.jsonl.gz",)),
            Source("OckBench/OckBench", "b72752a0ba5989d3c212675ec60d3eedcd838628", ("data/mbpp.jsonl",)),
        ),
        "MIT (HumanEval), CC-BY-4.0 (MBPP)",
        python_problems,
    ),
    "wikitext-2": Corpus(
        (
            Source(
                "pytorch/examples",
                "77f55b912142e11fcfdf5b530231fb9c52f181e8",
                ("word_language_model/data/wikitext-2/valid.txt", "word_language_model/data/wikitext-2/test.txt"),
            ),
        ),
        "CC-BY-SA-3.0 (Wikipedia)",
        wikitext,
    ),
    "tiny-shakespeare": Corpus(
        (Source("karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e", ("data/tinyshakespeare/input.txt",)),),
        "public domain",
        shakespeare,
    ),
    "pubmedqa": Corpus((PUBMEDQA,), "MIT", pubmedqa),
    "instruction/gsm8k-qa": Corpus((GSM8K,), "MIT", gsm8k_qa),
    "instruction/pubmedqa-choices": Corpus((PUBMEDQA,), "MIT", pubmedqa_choices),
    "instruction/sgd-chat": Corpus((SGD,), "CC-BY-SA-4.0", chats),
    "sgd-dialogues": Corpus((SGD,), "CC-BY-SA-4.0", dialogues),
    "gutenberg-novels": Corpus(
        (
            Source(
                "nltk/nltk",
                "4dc39fbf6965509f7b74316eff239bd110a03b49",
                tuple(f"nltk_data/corpora/gutenberg/{name}.txt" for name in NOVELS.split()),
            ),
        ),
        "public domain (Project Gutenberg)",
        novels,
    ),
    "c4-sample": Corpus(
        (
            Source(
                "Diffusion-bachelor/diffusion-data-constraint-rare-events",
                "3305ae85ae51f4882f291ff894d49946af655a11",
                ("data/c4_sample.jsonl",),
            ),
        ),
        "ODC-BY-1.0; subject to Common Crawl's terms of use",
        web,
    ),
}
"""By name, as the folder of its files; of `instruction/NAME` the folder is `instruction`."""


def decoded(raw: bytes) -> str:
    """UTF-8; some of the novels are Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def read(source: Source, archives: str) -> Files:
    """The files of an archive that `paths` name, without its top folder.

    Raises: FileNotFoundError where a pattern names none."""
    found: Files = {}
    address = archives.format(repo=source.repo, commit=source.commit)
    with fsspec.open(address, "rb") as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
        for member in archive:
            _, _, path = member.name.partition("/")
            if member.isfile() and any(fnmatch(path, pattern) for pattern in source.paths):
                content = archive.extractfile(member)
                assert content is not None
                raw = content.read()
                found[path] = decoded(gzip.decompress(raw) if path.endswith(".gz") else raw)
    for pattern in source.paths:
        if not named(found, pattern):
            raise FileNotFoundError(f"{address} has no file {pattern}")
    return found


def write(folder: Path, name: str, corpus: Corpus, archives: str) -> dict[str, int]:
    """Fetch a corpus and write it; how many records each file has."""
    files: Files = {}
    for source in corpus.sources:
        files |= read(source, archives)
    place = folder / (Path(name).parent if "/" in name else name)
    place.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, records in corpus.splits(files).items():
        written = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (place / f"{split}.jsonl").write_text("".join(written), encoding="utf-8")
        counts[f"{place.relative_to(folder)}/{split}.jsonl"] = len(written)
    return counts


def main(
    folder: Annotated[Path, typer.Argument(help="Where the corpora are written.")],
    only: Annotated[list[str] | None, typer.Option(help="A corpus; can be repeated. Default: all.")] = None,
    archives: Annotated[str, typer.Option(help="Where archives lie, with {repo} and {commit}: a mirror.")] = ARCHIVE,
) -> None:
    """Fetch the corpora of the examples from GitHub, at fixed commits."""
    if unknown := set(only or ()) - set(CORPORA):
        raise typer.BadParameter(f"no corpus {', '.join(sorted(unknown))}; there are {', '.join(CORPORA)}")
    for name in only or CORPORA:
        for file, count in write(folder, name, CORPORA[name], archives).items():
            print(f"{file}: {count:,} records")
    about = [
        f"- {name} ({corpus.licence}): " + ", ".join(f"github.com/{s.repo} at {s.commit}" for s in corpus.sources)
        for name, corpus in CORPORA.items()
        if (folder / name).is_dir() or list(folder.glob(f"{name}.*.jsonl"))
    ]
    (folder / "SOURCES.md").write_text("# Sources\n\n" + "\n".join(about) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
