"""Every format gives its documents once, and what cannot be read is counted, not raised."""

import bz2
import gzip
import json
import os
import subprocess
import sys
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from align_ray.config_corpora import Corpus
from align_ray.corpora import files, installed, limits
from align_ray.corpora.sources import check_corpus, documents, plan_fragments
from align_ray.errors import CorpusError

TEXTS = ["one", "zwei — 2", "trois\u2028three", "四\nfour"]


def lines(texts, **more):
    return "".join(json.dumps({"text": t} | more, ensure_ascii=False) + "\n" for t in texts).encode()


def read(source, **options):
    """(texts, counts) of a corpus."""
    corpus = Corpus(name="c", source=str(source), **options)
    counts = Counter()
    return list(documents(corpus, plan_fragments(corpus), counts)), counts


def refusal(source, **options):
    with pytest.raises(CorpusError) as caught:
        check_corpus(Corpus(name="c", source=str(source), **options))
    message = str(caught.value)
    assert message.startswith("corpus 'c': ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.json", bytes),
        ("a.ndjson", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("members.jsonl.gz", lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
        ("frames.jsonl.zst", lambda data: zstandard.compress(data[:50]) + zstandard.compress(data[50:])),
        ("a.jsonl.zst", zstandard.compress),
        ("a.jsonl.bz2", bz2.compress),
    ],
)
def test_json_lines_are_read_plain_and_compressed(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(lines(TEXTS)))
    texts, counts = read(tmp_path / name)
    assert texts == TEXTS
    assert counts == {"documents": 4, "bytes": sum(len(t.encode()) for t in TEXTS)}


def test_parquet_is_read_by_row_groups(tmp_path):
    pq.write_table(pa.table({"text": TEXTS, "n": range(4)}), tmp_path / "a.parquet", row_group_size=1)
    assert read(tmp_path / "a.parquet")[0] == TEXTS


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [("document", ["a\nb\n\n \nc\n"]), ("paragraph", ["a\nb\n", "c\n"]), ("line", ["a\n", "b\n", "c\n"])],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_text_is_cut_into_documents_as_asked(tmp_path, sample_by, expected, pack):
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt")
    path.write_bytes(pack(b"a\nb\n\n \nc\n"))
    assert read(path, sample_by=sample_by)[0] == expected


@pytest.mark.parametrize(
    "source",
    [
        *("d", "d/**", "d/*.jsonl", "d/*/*.jsonl*", "d/**/*.jsonl.gz", "d/**/c*"),
        *("d/s/../*.jsonl", "*/a.jsonl", "my links/link/*l", "d/s/_e.jsonl"),
    ],
)
def test_folders_and_globs_give_their_files_in_order_and_hidden_ones_only_by_name(tmp_path, monkeypatch, source):
    for name in ["a.jsonl", "b.jsonl", "s/c.jsonl", "s/t/d.jsonl.gz", "s/_e.jsonl", ".cache/x.jsonl", "_SUCCESS"]:
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((gzip.compress if name.endswith("gz") else bytes)(lines([name])))
    (tmp_path / "my links").mkdir()
    (tmp_path / "my links/link").symlink_to(tmp_path / "d")
    expected = {
        "d": ["a.jsonl", "b.jsonl", "s/c.jsonl", "s/t/d.jsonl.gz"],
        "d/**": ["a.jsonl", "b.jsonl", "s/c.jsonl", "s/t/d.jsonl.gz"],
        "d/**/c*": ["s/c.jsonl"],
        "d/s/_e.jsonl": ["s/_e.jsonl"],
        "d/*/*.jsonl*": ["s/c.jsonl"],
        "d/**/*.jsonl.gz": ["s/t/d.jsonl.gz"],
        "*/a.jsonl": ["a.jsonl"],
    }
    monkeypatch.chdir(tmp_path)
    for form in (source, str(tmp_path / source), f"file://{tmp_path / source}".replace(" ", "%20")):
        assert read(form)[0] == expected.get(source, ["a.jsonl", "b.jsonl"]), form


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("d/?.jsonl", ["1", "a", "b"]),
        ("d/[ab].jsonl", ["a", "b"]),
        ("d/[!ab].jsonl", ["1"]),
        ("d/?[0-9].jsonl", ["a1"]),
        ("[d-f]/**/?.jsonl", ["1", "a", "b"]),
        ("d/[[]1].jsonl", ["[1]"]),
        ("d/a[1].jsonl", ["a[1]"]),  # a file of that very name goes before what the pattern stands for
        ("e[1]/*.jsonl", ["e[1]"]),  # and so does a folder
        ("e[1]", ["e[1]"]),
    ],
)
def test_globs_know_single_characters_and_ranges(tmp_path, monkeypatch, source, expected):
    names = {
        "d/a": "a",
        "d/b": "b",
        "d/1": "1",
        "d/a1": "a1",
        "d/a[1]": "a[1]",
        "d/[1]": "[1]",
        "e[1]/x": "e[1]",
        "e1/x": "e1",
    }
    (here := tmp_path / "work[0]").mkdir()
    for name, text in names.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / f"{name}.jsonl").write_bytes(lines([text]))
    monkeypatch.chdir(here)
    for form in (source, str(here / source)):
        assert read(form)[0] == expected, form


def test_a_template_joins_columns_and_leaves_braces_of_the_text_alone(tmp_path):
    rows = [{"informal": "if {x}", "formal": "p → q", "other": 1}, {"informal": "alone", "formal": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        texts, counts = read(tmp_path / name, template="{informal}\n{formal}")
        assert texts == ["if {x}\np → q"] and counts["missing_column"] == 1


@pytest.mark.parametrize("size", [*range(1, 40), 1000])
def test_every_line_is_read_once_whatever_the_size_of_the_byte_ranges(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "FRAGMENT_BYTES", size)
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS) + b"\n\n" + lines(["no newline at the end"])[:-1])
    (tmp_path / "a.txt").write_bytes("ä\n\nbcdefghijkl\r\nm".encode())
    assert read(tmp_path / "a.jsonl")[0] == [*TEXTS, "no newline at the end"]
    assert read(tmp_path / "a.txt", sample_by="line")[0] == ["ä\n", "bcdefghijkl\r\n", "m"]
    assert len(plan_fragments(Corpus(name="c", source=str(tmp_path / "a.txt"), sample_by="line"))) == -(-18 // size)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (b'{"text": "cut off', "unreadable"),
        (b'{"text": "\xff\xfe"}', "unreadable"),
        (b'["a list"]', "unreadable"),
        (b"[" * 100_000, "unreadable"),
        (b'{"text": "' + b"x" * 500_000 + b'"}', "oversized"),
        (b'{"text": null}', "missing_column"),
        (b'{"text": 3}', "missing_column"),
        (b'{"txt": "a"}', "missing_column"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\n\\t"}', "empty"),
        (b'{"text": "\\u0000"}', "empty"),
    ],
)
def test_a_bad_record_is_counted_and_its_neighbours_are_read(tmp_path, monkeypatch, line, count):
    monkeypatch.setattr(limits, "MAX_RECORD_BYTES", 200_000)
    for size in (20_000, 2**26):
        monkeypatch.setattr(files, "FRAGMENT_BYTES", size)
        (tmp_path / "a.jsonl").write_bytes(lines(["before"]) + line + b"\n" + lines(["after"]))
        texts, counts = read(tmp_path / "a.jsonl")
        assert texts == ["before", "after"]
        assert counts == {count: 1, "documents": 2, "bytes": 11}


def test_nul_characters_are_taken_out_of_a_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(["a\x00b"]))
    assert read(tmp_path / "a.jsonl")[0] == ["ab"]


def test_plain_text_that_is_not_utf8_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\xfe bad\n")
    texts, counts = read(tmp_path / "a.txt", sample_by="line")
    assert texts == ["good\n"] and counts["unreadable"] == 1


@pytest.mark.parametrize("keep", [10, -100])
def test_a_truncated_file_is_counted_and_the_other_files_are_read(tmp_path, keep):
    sound = [f"{i} {os.urandom(40).hex()}" for i in range(2000)]
    pq.write_table(pa.table({"text": sound}), tmp_path / "whole")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "whole").read_bytes()[:keep])
    (tmp_path / "whole").unlink()
    for suffix, pack in {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress}.items():
        (tmp_path / f"b.jsonl.{suffix}").write_bytes(pack(lines(sound))[:keep])
    (tmp_path / "c.jsonl").write_bytes(lines(["whole"]))
    texts, counts = read(tmp_path)
    assert texts[-1] == "whole" and set(texts[:-1]) <= set(sound)
    assert 3 <= counts["unreadable"] <= 7


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_folder_is_read_as_a_hub_data_set(tmp_path, monkeypatch, streaming):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"train-{i}.jsonl").write_bytes(lines([text], n=i))
    (folder / "test-0.jsonl").write_bytes(lines(["held out"], n=0))
    source = f"hf://{folder}"
    assert sorted(read(source, streaming=streaming)[0]) == sorted(TEXTS)
    assert len(plan_fragments(Corpus(name="c", source=source, streaming=streaming))) == (4 if streaming else 1)
    assert read(source, streaming=streaming, split="test")[0] == ["held out"]
    assert "split 'dev'" in refusal(source, streaming=streaming, split="dev")
    assert "needs 'body', but" in refusal(source, streaming=streaming, column="body")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": "none.jsonl"}, "no file at none.jsonl; check the field 'source'."),
        ({"source": "none/*.jsonl"}, "no file at none/*.jsonl; check the field 'source'."),
        ({"source": "none/?[a-z].jsonl"}, "no file at none/?[a-z].jsonl; check the field 'source'."),
        ({"source": "a**.jsonl"}, "not for a part of a name as in a**.jsonl; write **/* in the field 'source'."),
        ({"source": "nosuchscheme://x/y"}, "cannot open nosuchscheme://x/y"),
        ({"source": "installed:none"}, "no installed corpus 'none'; choose one of python-stdlib, "),
        ({"source": "hf://no-owner/no-set"}, "cannot open the data set no-owner/no-set, split 'train'"),
        (
            {"source": "a.jsonl", "column": "body"},
            "field 'column' needs 'body', but a.jsonl has only the columns n, text; n",
        ),
        (
            {"source": "a.parquet", "column": "body"},
            "field 'column' needs 'body', but a.parquet has only the columns n, text",
        ),
        (
            {"source": "a.jsonl", "template": "{text}{b}"},
            "field 'template' needs 'b', but a.jsonl has only the columns n",
        ),
        ({"source": "a.jsonl", "column": "n"}, "field 'column' needs a text in every column, but a.jsonl has"),
        ({"source": "a.jsonl", "template": "{text"}, "field 'template' is not a format string"),
        ({"source": "a.jsonl", "template": "{0}"}, "field 'template' must name columns in braces"),
        ({"source": "a.jsonl", "template": "constant"}, "field 'template' must name columns in braces"),
        ({"source": "empty.jsonl"}, "empty.jsonl is empty; give a source with at least one document."),
        ({"source": "blank.jsonl"}, "blank.jsonl is empty; give"),
        ({"source": "broken.jsonl"}, "broken.jsonl is empty (2 unreadable records); give"),
    ],
)
def test_a_corpus_without_a_document_is_refused_with_the_field_and_the_remedy(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS, n=1))
    pq.write_table(pa.table({"text": TEXTS, "n": range(4)}), "a.parquet")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "blank.jsonl").write_bytes(lines([" "]))
    (tmp_path / "broken.jsonl").write_bytes(b"{\n}\n")
    assert sentence in refusal(**options)


def test_a_corpus_whose_first_files_are_unusable_passes_the_check(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{\n" + lines([" "]))
    (tmp_path / "b.jsonl").write_bytes(lines(["a document"]))
    check_corpus(Corpus(name="c", source=str(tmp_path)))


def test_training_and_held_out_files_of_the_standard_library_are_disjoint_and_three_to_one():
    training, held_out = (set(installed._stdlib_files(heldout)) for heldout in (False, True))
    assert not training & held_out
    assert 0.15 < len(held_out) / len(training | held_out) < 0.35


@pytest.mark.parametrize("name", installed.INSTALLED)
def test_every_installed_corpus_has_documents(name):
    corpus = Corpus(name="c", source=f"installed:{name}")
    check_corpus(corpus)
    assert next(documents(corpus, plan_fragments(corpus), Counter())).strip()


def test_pieces_of_a_file_are_bounded_and_lose_nothing():
    text = "short\n" * 2000 + "x" * 10_000 + "\nend"
    pieces = list(installed._pieces(text))
    assert "".join(pieces) == text and max(map(len, pieces)) <= installed.PIECE


def test_the_installed_corpora_are_the_same_before_and_after_ray_is_imported():
    """Ray puts a folder with packages of its own on the path: a driver and its workers must not read other texts."""
    script = """
import hashlib, sys
from align_ray.corpora.installed import licences, package_descriptions
for name in sys.argv[1:]:
    __import__(name)
print([hashlib.sha256("".join(texts()).encode()).hexdigest() for texts in (licences, package_descriptions)])
"""
    found = [
        subprocess.run([sys.executable, "-c", script, *first], capture_output=True, text=True, check=True).stdout
        for first in ((), ("ray",))
    ]
    assert found[0] == found[1] and len(found[0]) > 100
