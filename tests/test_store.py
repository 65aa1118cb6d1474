"""What a store holds is whole, is found again, and cannot be half written."""

import numpy as np
import pyarrow as pa
import pytest

from align_ray.embedding.units import read_unit, write_unit
from align_ray.errors import ConfigError
from align_ray.fisher.unit import Unit
from align_ray.store import Store


@pytest.fixture(params=["{}", "file://{}"], ids=["path", "uri"])
def store(request, tmp_path):
    return Store(request.param.format(tmp_path / "study"))


def test_an_embedding_is_read_back_as_it_was_written(store):
    rng = np.random.default_rng(0)
    trunk, variance, head = (rng.random(shape).astype(np.float32) for shape in [(3, 40), 40, (1, 7)])
    scalars = {"loss": 2.5, "sequences": 32, "skipped": (3, 30), "tokens": 4096, "seconds": 0.75}
    write_unit(store, "key", "u1", Unit({"trunk": trunk, "head": head}, {"trunk": variance}, **scalars))
    found = read_unit(store, "key", "u1")
    assert list(found.blocks) == ["trunk", "head"] and list(found.variances) == ["trunk"]
    for written, read in [
        (trunk, found.blocks["trunk"]),
        (variance, found.variances["trunk"]),
        (head, found.blocks["head"]),
    ]:
        np.testing.assert_array_equal(written, read)
        assert read.dtype == np.float32
    assert {name: getattr(found, name) for name in scalars} == scalars


def test_tables_and_json_are_read_back_as_they_were_written(store):
    table = pa.table({"ids": [[1, 2], [3]], "key": ["a", "é"]})
    store.write_table("corpora/a.parquet", table)
    store.write_json("a.json", {"x": [1.5, None, "é"]})
    assert store.read_table("corpora/a.parquet").equals(table)
    assert store.read_json("a.json") == {"x": [1.5, None, "é"]}
    assert store.exists("a.json") and not store.exists("b.json") and not store.exists("corpora")


def test_only_complete_files_of_a_folder_are_named(store, tmp_path):
    store.write_bytes("embeddings/k/a.parquet", b"1")
    (tmp_path / "study/embeddings/k/b.parquet.123.part").write_bytes(b"half")
    (tmp_path / "study/embeddings/k/folder").mkdir()
    assert store.names("embeddings/k") == {"a.parquet"}
    assert store.names("embeddings/none") == set()


def test_a_write_replaces_the_file_and_leaves_nothing_else(store, tmp_path):
    store.write_bytes("a.bin", b"old")
    store.write_bytes("a.bin", b"new")
    assert store.read_bytes("a.bin") == b"new"
    assert [p.name for p in (tmp_path / "study").iterdir()] == ["a.bin"]


def test_a_write_that_fails_leaves_the_old_file_in_place(store):
    store.write_bytes("a.bin", b"old")
    with pytest.raises(TypeError):
        store.write_bytes("a.bin", ["not bytes"])
    assert store.read_bytes("a.bin") == b"old"
    assert store.names("") == {"a.bin"}


def test_a_writable_folder_passes_and_stays_empty(store, tmp_path):
    store.check_writable()
    assert list((tmp_path / "study").iterdir()) == []


@pytest.mark.parametrize("uri", ["{}/file/study", "file://{}/file/study", "nosuchscheme://bucket/x"])
def test_an_output_that_cannot_be_written_is_refused_by_name(tmp_path, uri):
    (tmp_path / "file").write_text("a file, so that nothing can be below it")
    uri = uri.format(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Store(uri).check_writable()
    assert f"field 'output': cannot write to {uri}" in str(caught.value) and "choose a writable folder" in str(
        caught.value
    )


def test_a_local_store_tells_the_paths_of_its_files(store, tmp_path):
    assert store.local_path("report.html") == tmp_path / "study/report.html"
