"""Files as people have them: tables, arrays, saved data sets, odd names, and what is no data at all."""

import bz2
import gzip
import io
import json
import lzma
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from align_ray.config import Config
from align_ray.config_corpora import Corpus
from align_ray.config_file import validated
from align_ray.corpora.rejects import BEGINNING, Counts
from align_ray.corpora.sample import sample_corpora
from align_ray.corpora.sources import check_corpus, documents, first_records, plan_fragments
from align_ray.errors import ConfigError, CorpusError
from align_ray.pipeline import open_study

TEXTS = ["one, two", 'a "quoted"\nline', "四", "last"]
TABLE = {"id": [str(i) for i in range(4)], "text": TEXTS}


def read(source, **options):
    corpus, counts = Corpus(name="c", source=str(source), **options), Counter()
    texts = list(documents(corpus, plan_fragments(corpus), counts))
    return texts, {k: v for k, v in counts.items() if k not in ("documents", "bytes") and v}


def csv_of(delimiter=",", rows=TEXTS):
    import csv

    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows([[i, text] for i, text in enumerate(rows)])
    return out.getvalue().encode()


def json_lines(rows=TEXTS):
    return "".join(json.dumps({"text": t}) + "\n" for t in rows).encode()


def arrow_of(stream):
    sink, table = io.BytesIO(), pa.table(TABLE)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def lz4(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def zstd(data):
    import zstandard

    return zstandard.compress(data)


FILES = {
    "a.csv": csv_of(), "a.CSV": csv_of(), "a.tsv": csv_of("\t"), "a.csv.gz": gzip.compress(csv_of()), "a.tsv.xz": lzma.compress(csv_of("\t")),
    "a.arrow": arrow_of(False), "stream.arrow": arrow_of(True), "a.JSONL": json_lines(), "a.jsonl.xz": lzma.compress(json_lines()),
    "a.jsonl.lz4": lz4(json_lines()), "a.jsonl.zstd": zstd(json_lines()), "a.jsonl.bz2": bz2.compress(json_lines()), "a.json.gz": gzip.compress(json.dumps([{"text": t} for t in TEXTS]).encode()),
    "part-00000": json_lines(), "blob": arrow_of(False),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_tables_arrays_and_every_compression_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name) == (TEXTS, {})
    check_corpus(Corpus(name="c", source=str(tmp_path / name)))
    assert first_records(Corpus(name="c", source=str(tmp_path / name)))[0]["text"] == TEXTS[0]


@pytest.mark.parametrize("name", ["a.pq", "a.PARQUET", "blob", "a.feather"])
def test_parquet_and_feather_by_any_name(tmp_path, name):
    write = feather.write_feather if "feather" in name else pq.write_table
    write(pa.table(TABLE), str(tmp_path / name))
    assert read(tmp_path / name) == (TEXTS, {})


def test_a_file_of_the_hubs_cache_is_what_its_given_name_says(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "0123abcd").write_bytes(gzip.compress(json_lines()))
    os.symlink(tmp_path / "blobs" / "0123abcd", tmp_path / "snapshot" / "train.jsonl.gz")
    assert read(tmp_path / "snapshot") == read(tmp_path / "snapshot" / "train.jsonl.gz") == (TEXTS, {})


def test_rows_of_a_table_that_are_broken_are_counted_alone(tmp_path):
    data = csv_of().replace(b"last", b"\xff\xfe") + b"4,too,many\n5,kept\n6,\n"
    (tmp_path / "a.csv").write_bytes(data)
    assert read(tmp_path) == ([*TEXTS[:3], "kept"], {"unreadable": 2, "empty": 1})


def test_the_columns_of_a_table_are_named_where_the_one_asked_for_is_missing(tmp_path):
    (tmp_path / "a.csv").write_bytes(csv_of())
    with pytest.raises(CorpusError, match="needs 'body', but .*a.csv has only the columns id, text"):
        check_corpus(Corpus(name="c", source=str(tmp_path / "a.csv"), column="body"))


def test_a_data_set_saved_by_datasets_is_read_and_of_several_splits_the_one_named(tmp_path):
    import datasets

    one = datasets.Dataset.from_dict(TABLE)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([3])}).save_to_disk(str(tmp_path / "both"))
    assert read(tmp_path / "one") == read(tmp_path / "both") == (TEXTS, {})
    assert read(tmp_path / "both", split="test") == (TEXTS[3:], {})
    with pytest.raises(CorpusError, match="holds the splits test, train; set the field 'split'"):
        plan_fragments(Corpus(name="c", source=str(tmp_path / "both"), split="dev"))


@pytest.mark.parametrize(
    ("pattern", "count"), [("{a,b}.jsonl", 2), ("{a,b,c}.{jsonl,csv}", 3), ("*.{jsonl,csv}", 3), ("[ab].jsonl", 2)]
)
def test_globs_may_have_braces(tmp_path, pattern, count):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(json_lines([name]))
    (tmp_path / "c.csv").write_bytes(csv_of(rows=["c"]))
    assert len(read(tmp_path / pattern)[0]) == count


def test_a_folder_that_holds_a_link_to_itself_is_visited_once(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    os.symlink(tmp_path, tmp_path / "again")
    os.symlink(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert read(tmp_path) == (TEXTS, {})


def test_what_lies_beside_data_files_is_no_document(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(json_lines())
    for name in ("README.md", "LICENSE", "load.py", "notes.txt"):
        (tmp_path / name).write_text("not of the corpus")
    assert read(tmp_path) == (TEXTS, {})
    (tmp_path / "data.jsonl").unlink()
    assert len(read(tmp_path)[0]) == 2, "without them text is what there is, but what is about it"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.parquet", POINTER, "a pointer of Git LFS; fetch the data with git lfs pull"),
        ("a.jsonl.gz", POINTER, "git lfs pull"),
        ("a.jsonl.dvc", b"outs:\n- md5: x", "dvc pull"),
        ("a.zip", b"PK\x03\x04xxxx", "an archive; unpack it"),
        ("a.jsonl", gzip.compress(json_lines(), mtime=0), "compressed by gzip (.gz); give it that suffix"),
        ("a.csv", bz2.compress(csv_of() * 50), "compressed by bzip2 (.bz2)"),
        ("a.txt", "text of Windows".encode("utf-16"), "text in UTF-16; convert it with iconv"),
        ("a.jsonl", json_lines().decode().encode("utf-16"), "text in UTF-16"),
    ],
)  # fmt: skip
def test_what_is_something_else_is_named_with_the_remedy_and_left_out_among_good_files(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError) as caught:
        check_corpus(Corpus(name="c", source=str(tmp_path)))
    assert words in str(caught.value) and name in str(caught.value)
    (tmp_path / "good.jsonl").write_bytes(json_lines())
    texts, counts = read(tmp_path)
    assert texts == TEXTS and (counts.get("unreadable", 0) >= 1) == (name != "a.txt"), "text beside data is no data"


def test_a_list_of_sources_is_one_corpus_each_file_once_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "b.jsonl").write_bytes(json_lines(["second"]))
    (tmp_path / "a.csv").write_bytes(csv_of(rows=["first"]))
    (tmp_path / "z.parquet").write_bytes(b"not asked for")
    sources = [str(tmp_path / "old"), str(tmp_path / "*.csv"), str(tmp_path / "a.csv")]
    corpus = Corpus(name="c", source=sources)
    assert list(documents(corpus, plan_fragments(corpus), Counter())) == ["first", "second"]
    with pytest.raises(CorpusError, match="no file at .*/gone; check"):
        plan_fragments(Corpus(name="c", source=[*sources, str(tmp_path / "gone")]))


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "at least 1 item"),
        (["a.jsonl", "installed:licences"], "which installed:licences is not; make it its own corpus"),
        (["hf://owner/name", "a.jsonl"], "which hf://owner/name is not"),
        (["a.jsonl", "s3://bucket/b.jsonl"], "in one place, not local files and s3://bucket; make two corpora"),
        (["s3://one/a?anonymous=true", "s3://one/b"], "not s3://one and s3://one\\?anonymous=true"),
        (["s3://key:secret@bucket/b"], "carries a credential"),
    ],
)
def test_a_list_of_sources_is_one_of_files_in_one_place(sources, said):
    with pytest.raises(ValidationError, match=said):
        Corpus(name="c", source=sources)


def test_a_target_that_is_among_the_sources_of_a_candidate_is_refused(tmp_path):
    candidates = [{"name": "a", "source": ["one.jsonl", "./two.jsonl"]}, {"name": "b", "source": "three.jsonl"}]
    targets = [{"name": "t", "source": str(Path("two.jsonl").resolve())}]
    data = {"output": "out", "targets": targets, "candidates": candidates}
    with pytest.raises(ValidationError, match="target 't' and candidate 'a' are the same corpus .*two.jsonl"):
        Config.model_validate(data)


def test_what_is_wrong_with_one_source_of_a_list_is_said_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match="field 'source.1': the URI carries a credential"):
        validated(Corpus, {"name": "c", "source": ["a.jsonl", "s3://key:secret@bucket/b"]}, "here")
    with pytest.raises(ConfigError, match="field 'source' is 5: input should be a valid string"):
        validated(Corpus, {"name": "c", "source": 5}, "here")


def test_records_left_out_are_kept_aside_with_file_and_reason(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        json_lines(["kept"]) + b'{"text": 1}\n{"broken": \n' + json.dumps({"other": "y" * 500}).encode() + b"\n"
    )
    corpus, counts = Corpus(name="c", source=str(tmp_path)), Counts()
    assert list(documents(corpus, plan_fragments(corpus), counts)) == ["kept"]
    assert [r["reason"] for r in counts.rejects] == ["missing_column", "unreadable", "missing_column"]
    assert all(r["file"].endswith("a.jsonl") and len(r["begins"]) <= BEGINNING for r in counts.rejects)
    assert counts.rejects[1]["begins"].startswith('{"broken"')


def with_bad_lines(file, good, bad):
    texts = [f"document {i} with some words of its own, and more of them, so that it fills rows" for i in range(good)]
    file.write_bytes(json_lines(texts) + b'{"body": "no text here"}\n' * bad)
    return str(file)


@pytest.mark.parametrize("text_in_results", [True, False])
def test_a_share_of_records_left_out_is_said_with_reason_file_and_count(
    small_config, local_ray, tmp_path, text_in_results
):
    data = small_config(tmp_path / "out", text_in_results=text_in_results)
    data["candidates"][1] = {"name": "holes", "source": with_bad_lines(tmp_path / "holes.jsonl", 400, 40)}
    said = []
    study = open_study(Config.model_validate(data), say=said.append)
    sample_corpora(study)
    (line,) = [line for line in said if "left out" in line]
    assert (
        line.startswith("warning: 'holes': 9.1% of 440 records are left out: 40 missing_column, the first in ")
        and "holes.jsonl" in line
    )
    rows = study.store.read_table("rejects.parquet").to_pylist()
    assert len(rows) == 40 and {r["corpus"] for r in rows} == {"holes"} and rows[0]["reason"] == "missing_column"
    assert all(("no text here" in r["begins"]) == text_in_results for r in rows)


def test_a_corpus_that_loses_a_fifth_of_its_records_stops_the_run_unless_it_may(small_config, local_ray, tmp_path):
    data = small_config(tmp_path / "out")
    data["candidates"][1] = {"name": "holes", "source": with_bad_lines(tmp_path / "holes.jsonl", 400, 200)}
    with pytest.raises(CorpusError, match="33.3% of 600 records are left out.*rejects.parquet.*'allow_missing'"):
        sample_corpora(open_study(Config.model_validate(data)))
    data["candidates"][1]["allow_missing"] = 0.5
    sample_corpora(open_study(Config.model_validate(data)))
