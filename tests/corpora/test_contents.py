"""What is said of a source before a run."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_ray.config_corpora import Corpus
from align_ray.corpora import contents as looked
from align_ray.corpora.contents import contents, size_of, splits_of
from align_ray.corpora.files import files_left_out, fragments_of_files
from tests.conftest import write_jsonl


def corpus(source, **fields) -> Corpus:
    return Corpus(name="c", source=str(source), **fields)


def test_files_records_and_bytes_are_counted_and_what_is_no_data_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "b.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "LICENSE").write_text("free")
    found = contents(corpus(tmp_path))
    size = (tmp_path / "a.jsonl").stat().st_size + (tmp_path / "b.parquet").stat().st_size
    assert (found.files, found.records, found.bytes, found.text_bytes) == (2, 3, size, len("onetwothree"))
    assert found.left_out == ("LICENSE", "README.md") and found.splits == () and found.mixed() == ""
    assert str(found) == f"2 files, 3 records, {size_of(size)}; left out: LICENSE, README.md"


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "license-MIT.txt", "COPYING.txt", "Readme"])
def test_of_a_folder_of_texts_a_readme_and_a_licence_are_no_data(tmp_path, name):
    for other in ("page.txt", "licences.txt", "readme_writers_guide_of_2020.rst"[7:]):
        (tmp_path / other).write_text("text")
    (tmp_path / name).write_text("about")
    assert files_left_out(corpus(tmp_path)) == [name]
    assert len(fragments_of_files(corpus(tmp_path))) == 3
    assert files_left_out(corpus(tmp_path / name)) == [], "named, it is what is meant"
    assert files_left_out(corpus(f"{tmp_path}/*")) == []


def test_a_folder_of_licences_alone_is_a_corpus_of_them(tmp_path):
    for name in ("LICENSE", "LICENSE-MIT"):
        (tmp_path / name).write_text("free")
    assert len(fragments_of_files(corpus(tmp_path))) == 2


def test_files_of_several_splits_in_one_source_are_pointed_out(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        write_jsonl(tmp_path / name, ["x"])
    assert "(test and train)" in contents(corpus(tmp_path)).mixed()
    assert contents(corpus(f"{tmp_path}/train-*")).mixed() == ""
    assert splits_of(["d/train/a.jsonl", "d/val/a.jsonl"]) == ("train", "validation")
    assert splits_of(["constraints.txt", "latest.txt", "attestation.txt"]) == ()


def test_of_a_large_source_a_part_is_read_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(looked, "MOST_RECORDS", 5)
    write_jsonl(tmp_path / "a.jsonl", ["word"] * 20)
    found = contents(corpus(tmp_path))
    assert not found.whole and "more than 5 records" in str(found)
    assert found.text_bytes == found.bytes == (tmp_path / "a.jsonl").stat().st_size
