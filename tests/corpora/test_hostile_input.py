"""Bad data, bad probes and bad disks: each ends as docs/bad-data.md says, with a count or one sentence."""

import bz2
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
import zstandard
from safetensors.numpy import save
from typer.testing import CliRunner

from align_ray import pipeline, stages
from align_ray.checks.contamination import Ngrams, ngram_hashes
from align_ray.cli.main import app
from align_ray.config import Config, Sampling
from align_ray.config_corpora import Corpus
from align_ray.config_file import load_config
from align_ray.corpora import draw, files, limits, tables, tasks
from align_ray.corpora.draw import document_key, make_batches, smallest, tokenised
from align_ray.corpora.parquet import text_records
from align_ray.corpora.sources import Fragment, check_corpus, documents, plan_fragments
from align_ray.embedding.pool import Embed, ProbeActor
from align_ray.embedding.units import Folder, read_unit, sound_units, write_unit
from align_ray.errors import ConfigError, CorpusError, ProbeError, StoreError, UserError, mistake_behind
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.probe import Located, load_tokenizer, locate_probe
from align_ray.fisher.settings import Estimator, ProbeName
from align_ray.fisher.unit import Unit
from align_ray.handover import materialise
from align_ray.pipeline import evidence_of, open_study
from align_ray.reporting.tracking import start_tracking
from align_ray.stages import stored
from align_ray.store import Store
from align_ray.training.loop import finished
from tests.conftest import actors_here
from tests.tiny import tiny_model

# --- records and files ------------------------------------------------------------------------------------------------


def read(source, **options):
    """(texts, counts but those of what was read) of a corpus."""
    corpus = Corpus(name="c", source=str(source), **options)
    counts = Counter()
    texts = list(documents(corpus, plan_fragments(corpus), counts))
    assert counts.pop("documents", 0) == len(texts)
    counts.pop("bytes", None)
    return texts, dict(counts)


def lines(*texts):
    return b"".join(json.dumps({"text": t}).encode() + b"\n" for t in texts)


@pytest.mark.parametrize(
    ("data", "texts", "counts"),
    [
        (b"\xef\xbb\xbf" + lines("a", "b"), ["a", "b"], {}),  # a byte order mark
        (lines("a") + b"\xef\xbb\xbf" + lines("b"), ["a", "b"], {}),  # of a file that was appended
        (lines("a", "b").replace(b"\n", b"\r\n"), ["a", "b"], {}),
        (lines("a", "b").replace(b"\n", b"\r"), [], {"unreadable": 1}),
        (b'{"text": "a", "text": "b"}\n', ["b"], {}),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n" + lines("b"), ["b"], {"unreadable": 1}),
        (b'{"text": "a", "n": NaN}\n', ["a"], {}),
        (lines("a").decode().encode("utf-16") + lines("b"), [], {"unreadable": 2}),
        (b'{"text": ["a"]}\n{"text": {"a": "b"}}\n' + lines("c"), ["a", "c"], {"missing_column": 1}),
        (b'{"text": ["a", 1]}\n{"text": []}\n' + lines("c"), ["c"], {"missing_column": 2}),
        (b'{"text": "\\ud800 \xd7\xa9"}\n', ["? ש"], {}),
        (b"\x00" * 100 + b"\n" + lines("a"), ["a"], {"unreadable": 1}),  # what a crash leaves on some file systems
    ],
)
def test_odd_json_lines_are_read_or_counted(tmp_path, data, texts, counts):
    (tmp_path / "a.jsonl").write_bytes(data)
    assert read(tmp_path / "a.jsonl") == (texts, counts)


PRETTY = '{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n'


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '\ufeff [\n{"text": "a"},\n{"text": "b"}\n]\n',
        PRETTY,
        '{"text":\n"a"} {"text": "b"}',
    ],
)
def test_a_json_array_and_objects_over_several_lines_are_read(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read(tmp_path) == (["a", "b"], {})


def test_an_array_that_breaks_off_holds_other_things_or_an_endless_object_is_read_up_to_there(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('[{"text": "a"}, 1, "x", {"text": "b"}, {"text": "c')
    assert read(tmp_path) == (["a", "b"], {"unreadable": 3})
    monkeypatch.setattr(limits, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(tables, "PIECE", 100)
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"text": "' + "x" * 5000 + '"}, {"text": "b"}]')
    assert read(tmp_path) == (["a"], {"oversized": 1})


def test_a_large_array_is_read_in_parts_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FRAGMENT_BYTES", 1000)
    monkeypatch.setattr(tables, "PIECE", 100)
    texts = [f"{i} {'x' * (i % 300)}" for i in range(500)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": t} for t in texts]))
    assert read(tmp_path) == (texts, {})


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1], [2], None]),
        pa.array([{"x": "a"}, None, {"x": "c"}]),
        pa.nulls(3),
        pa.array([1, 2, 3]),
        pa.array([b"a", b"b", b"c"]),
    ],
    ids=lambda c: str(c.type),
)
def test_parquet_columns_that_hold_no_strings_are_counted_by_row(tmp_path, column):
    pq.write_table(pa.table({"text": column, "id": range(3)}), tmp_path / "a.parquet")
    assert read(tmp_path) == ([], {"missing_column": 3})
    with pytest.raises(CorpusError, match="needs a text in every column, but .* has only the columns id, text;"):
        check_corpus(Corpus(name="c", source=str(tmp_path)))


def test_a_parquet_row_that_is_not_utf8_is_counted_alone(tmp_path):
    column = pa.array([b"a", b"\xff\xfe", None, b"\xd7\xa9"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path) == (["a", "ש"], {"unreadable": 1, "missing_column": 1})


def test_a_broken_row_group_costs_its_own_rows_alone(tmp_path):
    texts = [f"{i} {np.random.default_rng(i).bytes(200).hex()}" for i in range(300)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=100)
    at = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0).dictionary_page_offset
    with open(tmp_path / "a.parquet", "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 2000)
    assert read(tmp_path) == (texts[:100] + texts[200:], {"unreadable": 100})


def test_a_parquet_file_cut_in_the_middle_is_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    assert read(tmp_path) == ([], {"unreadable": 1})


def test_archives_are_counted_and_not_taken_for_text(tmp_path):
    for name in ("a.zip", "b.tar.gz", "c.tgz", "d.7z"):
        (tmp_path / name).write_bytes(b"text that could be read")
    (tmp_path / "e.txt").write_text("read")
    assert read(tmp_path) == (["read"], {"unreadable": 4})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_file_that_is_gone_when_it_is_read_is_counted(tmp_path, name):
    for file in (name, "b.jsonl"):
        (tmp_path / file).write_bytes(lines("kept"))
    corpus, counts = Corpus(name="c", source=str(tmp_path)), Counter()
    planned = plan_fragments(corpus)
    (tmp_path / name).unlink()
    assert list(documents(corpus, planned, counts)) == ["kept"] and counts["vanished"] == 1


def test_a_file_that_shrinks_while_it_is_read_is_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines("x" * 1000) * 5000)
    corpus, counts = Corpus(name="c", source=str(tmp_path)), Counter()
    texts = documents(corpus, plan_fragments(corpus), counts)
    next(texts)
    os.truncate(tmp_path / "a.jsonl", 3_000_000)
    assert 2000 < len(list(texts)) < 4000
    assert counts["vanished"] == 1 and counts["unreadable"] <= 1


def test_files_that_became_empty_after_the_check_leave_a_corpus_without_documents(tmp_path, local_ray):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(lines("b"))
    wanted = [(Corpus(name=n, source=str(tmp_path / f"{n}.jsonl")), 100, 0) for n in ("a", "b")]
    tokenizer = load_tokenizer(locate_probe(load_config().probe.plain()))
    drawn = {corpus.name: found for corpus, found in draw.draw_corpora(wanted, Sampling(), 0, tokenizer)}
    assert drawn["a"].documents == [] and drawn["a"].counts == {} and len(drawn["b"].documents) == 1


def test_a_file_that_is_there_but_cannot_be_read_is_one_sentence():
    corpus = Corpus(name="c", source="/proc/self/mem")
    with pytest.raises(
        CorpusError, match=r"^corpus 'c': cannot read /proc/self/mem \(.*\); fix that and run it again\.$"
    ):
        list(documents(corpus, [Fragment("text", "/proc/self/mem", 0, 10, 10)], Counter()))


@pytest.mark.parametrize(
    ("sample_by", "texts"), [("document", ["small"]), ("paragraph", ["first\n", "last\n", "small"])]
)
def test_a_plain_text_document_above_the_limit_is_left_out(tmp_path, monkeypatch, sample_by, texts):
    monkeypatch.setattr(limits, "MAX_RECORD_BYTES", 1000)
    (tmp_path / "a.txt").write_text("first\n\n" + 300 * "many lines\n" + "\nlast\n")
    (tmp_path / "b.txt").write_text("small")
    assert read(tmp_path, sample_by=sample_by) == (texts, {"oversized": 1})


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", lambda d: gzip.compress(d, 9)), ("bz2", bz2.compress), ("zst", zstandard.compress)]
)
@pytest.mark.parametrize("sample_by", ["line", "document"])
def test_a_compressed_file_that_inflates_without_end_is_left_at_the_limit(
    tmp_path, monkeypatch, suffix, pack, sample_by
):
    monkeypatch.setattr(limits, "BOMB_FLOOR", 2**20)
    (tmp_path / f"a.txt.{suffix}").write_bytes(pack(b"the same line again\n" * 500_000))
    sound = b"".join(np.random.default_rng(i).bytes(30).hex().encode() + b"\n" for i in range(40_000))
    (tmp_path / f"b.txt.{suffix}").write_bytes(pack(sound))
    texts, counts = read(tmp_path, sample_by=sample_by)
    assert counts == {"oversized": 1}
    assert (
        texts[-1].endswith(sound[-61:].decode()) and len(texts) < (1 if sample_by == "document" else 300_000) + 40_001
    )
    bomb = [text for text in texts if text.startswith("the same line")]
    most = max(2**20, limits.BOMB_RATIO * (tmp_path / f"a.txt.{suffix}").stat().st_size)
    assert sum(map(len, bomb)) <= most if sample_by == "line" else not bomb


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}],
    ids=["dictionary", "delta"],
)
def test_a_small_parquet_file_of_many_large_values_is_read_in_bounded_memory(tmp_path, monkeypatch, options):
    monkeypatch.setattr(limits, "BATCH_BYTES", 2**25)
    value = "x" * (4 * 2**20)
    pq.write_table(pa.table({"text": pa.array([value] * 60)}), tmp_path / "a.parquet", compression="zstd", **options)
    assert (tmp_path / "a.parquet").stat().st_size < 20_000  # and 240 MB of text
    before, rows, most = pa.total_allocated_bytes(), 0, 0
    with pa.OSFile(str(tmp_path / "a.parquet")) as file:
        for record in text_records(file, ["text"], ["text"], Counter()):
            rows, most = rows + (len(record["text"]) == len(value)), max(most, pa.total_allocated_bytes() - before)
    assert rows == 60 and most < 2 * limits.BATCH_BYTES


def test_parquet_pages_that_inflate_without_end_and_values_above_the_limit_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BOMB_FLOOR", 2**20)
    table = pa.table({"text": ["x" * 2**22, "small"]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=1)
    assert read(tmp_path) == (["small"], {"oversized": 1})
    monkeypatch.setattr(limits, "MAX_RECORD_BYTES", 2**20)
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    assert read(tmp_path) == (["small"], {"oversized": 1})


MEASURED = """
import resource, sys
from collections import Counter
from align_ray.config_corpora import Corpus
from align_ray.corpora.sources import documents, plan_fragments
from align_ray.corpora.draw import document_key, smallest

corpus, counts = Corpus(name="c", source=sys.argv[1]), Counter()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
found = smallest(((document_key(0, t), t) for t in documents(corpus, plan_fragments(corpus), counts)), 10**6)
print(len(found), counts["documents"], counts["oversized"], peak() - before)
"""


def drawn_in_a_process_of_its_own(path):
    """Documents drawn, documents read, oversized, and by how many MiB the process grew."""
    result = subprocess.run([sys.executable, "-c", MEASURED, path], capture_output=True, text=True, check=True)
    return [int(number) for number in result.stdout.split()]


def test_a_line_of_300_mb_is_refused_alone_in_bounded_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("before") + b'{"text": "')
    os.truncate(path, 300_000_000)  # a hole, which takes no disk
    with open(path, "ab") as file:
        file.write(b'"}\n' + lines("after"))
    drawn, count, oversized, grown = drawn_in_a_process_of_its_own(path)
    assert (drawn, count, oversized) == (2, 2, 1) and grown < 250


def test_a_million_copies_of_a_line_are_one_document_in_bounded_memory(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines("the same text, over and over") * 1_000_000)
    drawn, count, _, grown = drawn_in_a_process_of_its_own(tmp_path / "a.jsonl")
    assert (drawn, count) == (1, 1_000_000) and grown < 100


BENT = """
import sys
from collections import Counter
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from align_ray.config_corpora import Corpus
from align_ray.corpora.sources import documents, plan_fragments
path = Path(sys.argv[1])
pq.write_table(pa.table({"text": ["0", "hello", "text"], "n": [1, 2, 3]}), path, row_group_size=2, write_page_checksum=True)
sound, corpus = path.read_bytes(), Corpus(name="c", source=str(path))
for place in range(len(sound)):
    for bit in range(8) if sys.argv[2] == "all" else [place % 8]:
        bent = bytearray(sound)
        bent[place] ^= 1 << bit
        path.write_bytes(bent)
        try:
            list(documents(corpus, plan_fragments(corpus), Counter()))
        except Exception as error:
            raise RuntimeError(f"bit {bit} of byte {place}") from error
print("read", len(sound))
"""


@pytest.mark.parametrize("bits", ["one a byte", pytest.param("all", marks=pytest.mark.full)])
def test_no_single_bent_bit_of_a_parquet_file_ends_the_reader(tmp_path, bits):
    """In a process of its own: pyarrow 25 throws through Python where the sizes in a footer contradict each other."""
    done = subprocess.run(
        [sys.executable, "-c", BENT, str(tmp_path / "a.parquet"), bits], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("read"), done.stderr[-2000:]


# --- scripts ----------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "Arabic": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם כולם חוננו בתבונה ובמצפון לפיכך חובה עליהם לנהוג איש ברעהו ברוח של אחווה",
    "Chinese": "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待",
    "Japanese": "すべての人間は生まれながらにして自由でありかつ尊厳と権利とについて平等である",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាពនិងសមភាពក្នុងសេចក្ដីថ្លៃថ្នូរនិងសិទ្ធិ",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_planted_leak_is_found_in_any_script(script):
    known = Ngrams.of({"target": np.unique(ngram_hashes(SCRIPTS[script]))})
    hidden = f"前面的话 {SCRIPTS[script]}。 and words after it"
    assert len(known.keys) >= 6
    assert len(known.find(ngram_hashes(hidden))[0]) == len(known.keys)
    others = " ".join(text for name, text in SCRIPTS.items() if name != script)
    assert len(known.find(ngram_hashes(others))[0]) == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_of_any_script_is_drawn_whole_and_fills_its_batches(tmp_path, script):
    words = [SCRIPTS[script][i:] + f" {i}" for i in range(30)]
    (tmp_path / "a.jsonl").write_bytes(lines(*words))
    texts, counts = read(tmp_path)
    assert texts == words and counts == {}
    wanted = Sampling(sequence_length=32, batch_size=4)
    tokens = 2 * 4 * 32
    drawn = smallest(((document_key(0, t), t) for t in texts), tokens * draw.CHARACTERS_PER_TOKEN)
    tokenizer = load_tokenizer(locate_probe(load_config().probe.plain()))
    documents = [tokenised(key, text, tokenizer) for key, text in drawn]
    found = make_batches(documents, tokenizer, wanted, 2, Counter())
    assert found.shape == (2, 4, 32)
    assert all(tokenizer.decode(d.ids.tolist()) == text for d, (_, text) in zip(documents, drawn, strict=True))


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_probe(tmp_path_factory):
    """A folder with a tiny GPT-2 and a tokenizer without any special token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("probe")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("abcdefghijklmnopqrstuvwxyz.,")}, unk_token="."))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    model = tiny_model("gpt2", dtype=torch.float32)
    model.config.eos_token_id = model.config.bos_token_id = None
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("packing", ["pack", "cut", "pad"])
@pytest.mark.parametrize("estimator", ["exact", "head", "reference"])
def test_a_tokenizer_without_pad_and_end_of_text_tokens_serves(bare_probe, tmp_path, packing, estimator):
    tokenizer = load_tokenizer(Located(str(bare_probe), {}, "d", 64))
    assert tokenizer.eos_token_id is None and tokenizer.pad_token_id is None
    texts = ["a b c d e f g h i j", "k l m", *(f"{a} {b} o p q r s t u v" for a in "abc" for b in "xyz")]
    found = make_batches(
        [tokenised(b"%d" % i, t, tokenizer) for i, t in enumerate(texts)],
        tokenizer,
        Sampling(sequence_length=8, batch_size=4, packing=packing),
        2,
        Counter(),
    )
    assert len(found) == 2 and (found[0] < 0).any() == (packing == "pad")
    if packing == "pack":
        # a window of the first document; its end and the others', with nothing between
        rows = tokenizer.batch_decode(found.reshape(-1, 8).tolist())
        assert rows[0] == "a b c d e f g h" and "i j k l m u v u" in rows
    store = Store(str(tmp_path))
    settings = Estimator(estimator, draws=1)
    located, folder = Located(str(bare_probe), {}, "d", 64), Folder("key", "float32", None)
    actor = ProbeActor(located, folder, store, Embed(store, "key", settings, 0, 0))
    ids = found[0]
    row = {"ids": ids.astype("<i4").tobytes(), "shape": list(ids.shape), "unit": "u", "number": 0}
    receipt = actor(pa.Table.from_pylist([row]))
    assert receipt["error"] == [""] and receipt["tokens"] == [(ids >= 0).sum()]
    assert all(np.isfinite(values).all() for values in read_unit(store, "key", "u").blocks.values())


def some_ids(n=4):
    return np.random.default_rng(0).integers(0, 29, (n, 8)).astype(np.int32)


@pytest.mark.parametrize("which", ["all", "one layer"])
@pytest.mark.parametrize(
    "settings", [{}, {"estimator": "head"}, {"estimator": "reference"}, {"head_tuning": "per_batch"}], ids=str
)
def test_weights_that_are_no_numbers_are_one_sentence(which, settings):
    model = tiny_model("gpt2", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if which == "all" or name == "transformer.h.1.mlp.c_fc.weight":
            parameter.data.fill_(float("nan"))
    with pytest.raises(ProbeError) as caught:
        embed_batch(model, some_ids(), Estimator(**settings), 0, 0)
    assert "finite" in str(caught.value) and "\n" not in str(caught.value)


def test_a_sequence_of_infinite_loss_is_left_out_and_named():
    model = tiny_model("gpt2", dtype=torch.float32)
    ids = some_ids()
    ids[ids == 5] = 6
    clean, _ = embed_batch(model, ids, Estimator(), 0, 0)
    bias = torch.zeros(29)
    bias[5] = -torch.inf  # the probe holds this token for impossible
    model.lm_head.bias = torch.nn.Parameter(bias)
    ids[2, 4] = 5
    unit, _ = embed_batch(model, ids, Estimator(), 0, 0)
    assert clean.skipped == () and unit.skipped == (2,) and np.isfinite(unit.loss)
    assert all(np.isfinite(values).all() for values in [*unit.blocks.values(), *unit.variances.values()])


# --- the output folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a tmpfs with the options given and returns its folder."""
    folders = []

    def mount(options):
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("no right to mount a file system here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def some_unit(n=50, seed=0):
    rng = np.random.default_rng(seed)
    blocks = {"trunk": rng.random((2, n)).astype(np.float32), "head": rng.random((1, n)).astype(np.float32)}
    return Unit(blocks, {"trunk": rng.random(n).astype(np.float32)}, 2.5, 4, (1,), 32, 0.5)


def test_a_full_disk_is_one_sentence_and_leaves_old_files_whole_and_no_new_ones(mounted):
    folder = mounted("size=256k")
    store = Store(str(folder))
    store.write_bytes("a.bin", b"old")
    with pytest.raises(
        StoreError, match=rf"^cannot write to {folder} \(No space left on device\); fix that and run it again"
    ):
        store.write_bytes("a.bin", bytes(10**6))
    with pytest.raises(StoreError):
        write_unit(store, "key", "u", some_unit(100_000))
    assert files_below(folder) == ["a.bin"] and store.read_bytes("a.bin") == b"old"
    store.write_bytes("b.bin", bytes(10**5))


def test_a_full_disk_under_workers_ends_a_run_with_exit_status_2_and_one_sentence(
    mounted, small_config, tmp_path, local_ray
):
    folder = mounted("size=700k")
    path = tmp_path / "study.yaml"
    elsewhere = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    path.write_text(yaml.safe_dump(small_config(folder / "out", tracking=elsewhere, probe={}, cluster={})))
    result = CliRunner().invoke(app, ["embed", str(path)])
    assert result.exit_code == 2, result.output
    assert (
        result.stderr.startswith(f"error: cannot write to {folder}/out (No space left on device); ")
        and result.stderr.count("\n") == 1
    )
    assert not [name for name in files_below(folder) if name.endswith(".part")]
    units = list((folder / "out/embeddings").glob("*/*.parquet"))
    assert units and sound_units(Store(str(folder / "out")), units[0].parent.name, [u.stem for u in units]) == {
        u.stem for u in units
    }


def test_a_full_disk_is_seen_through_the_wrappers_of_ray_and_mlflow():
    import ray
    from mlflow.exceptions import MlflowException

    full = OSError(28, "No space left on device")
    wrapped = ray.exceptions.RayTaskError("f", "a traceback", full).as_instanceof_cause()
    later = RuntimeError("fine-tuning failed")
    later.__cause__ = wrapped
    for error in (full, wrapped, later, MlflowException("(sqlite3.OperationalError) database or disk is full")):
        assert isinstance(mistake_behind(error), StoreError) and "\n" not in str(mistake_behind(error))
    mistake = CorpusError("one sentence.")
    assert (
        str(mistake_behind(ray.exceptions.RayTaskError("f", "a traceback", mistake).as_instanceof_cause()))
        == "one sentence."
    )
    assert mistake_behind(ValueError("a bug")) is None


def test_a_mistake_that_a_worker_meets_is_one_sentence(local_ray, small_config, tmp_path):
    mapping = small_config(tmp_path / "out")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(mapping))
    plan = lambda corpus: [*plan_fragments(corpus), Fragment("text", "/proc/self/mem", 0, 10, 10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "plan_fragments", plan)
        result = CliRunner().invoke(app, ["embed", str(path)])
    assert result.exit_code == 2 and result.stderr.startswith("error: corpus 'target': cannot read /proc/self/mem (")


def test_a_read_only_output_is_refused_before_anything_is_read(mounted, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "connect", lambda _: pytest.fail("a cluster was asked for"))
    for folder in (mounted("ro"), "/proc/here", "/sys/here"):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(small_config(folder)))
        result = CliRunner().invoke(app, ["run", str(path)])
        assert result.exit_code == 2, result.output
        assert (
            f"field 'output': cannot write to {folder} (" in result.stderr
            and "choose a writable folder" in result.stderr
        )


HOLDER = """
import sys, time
from align_ray.store import Store
with Store(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_run_is_refused_with_the_first_ones_process_and_a_killed_run_holds_nothing(small_config, tmp_path):
    study = open_study(Config.model_validate(small_config(tmp_path / "out")))
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(small_config(tmp_path / "out", seed=7)))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        in_use = (
            f"{tmp_path / 'out'} is in use by process {holder.pid} on {socket.gethostname()}; wait for it, stop it, or"
        )
        for stage in (pipeline.embed, pipeline.align, pipeline.report, pipeline.run):
            with pytest.raises(StoreError) as caught:
                stage(study)
            assert in_use in str(caught.value)
        result = CliRunner().invoke(app, ["report", str(path)])
        assert result.exit_code == 2 and in_use in result.stderr and result.stderr.count("\n") == 1
        assert not (tmp_path / "out/config.yaml").exists(), "what fails changes nothing"
    finally:
        holder.kill()
        holder.wait()
    with pytest.raises(UserError, match="holds no result of the stage 'embed'"):
        pipeline.report(study)


def test_stages_nest_within_a_run_but_threads_and_object_storage_do_not_share_a_lock(tmp_path, monkeypatch):
    store, refused = Store(str(tmp_path)), []

    def other():
        try:
            with Store(str(tmp_path)).locked():
                pass
        except StoreError as error:
            refused.append(str(error))

    with store.locked(), Store(str(tmp_path)).locked():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    other()
    assert len(refused) == 1
    monkeypatch.setattr(Store, "local_path", lambda self, name="": None)
    with Store("s3://bucket/x").locked():
        pass


def test_an_mlflow_store_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(
        StoreError, match=r"mlflow\.db cannot be opened \(.*not a database\); fix it, or move it away"
    ) as caught:
        start_tracking(load_config(None, {"output": str(tmp_path)}), Store(str(tmp_path)))
    assert "\n" not in str(caught.value)


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


TORN = {
    "of no length": lambda data: b"",
    "cut in the middle": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-1],
    "of zeros": lambda data: bytes(len(data)),
    "of something else": lambda data: b"PAR1 garbage PAR1",
    "with a bent value": lambda data: flipped(data, len(data) // 3),
}


@pytest.mark.parametrize("how", TORN)
def test_a_torn_unit_is_not_taken_for_a_whole_one(tmp_path, how):
    store = Store(str(tmp_path))
    for name in ("torn", "whole"):
        write_unit(store, "key", name, some_unit())
    path = store.local_path("embeddings/key/torn.parquet")
    path.write_bytes(TORN[how](path.read_bytes()))
    assert sound_units(store, "key", ["torn", "whole", "not there"]) == {"whole"}
    with pytest.raises(StoreError, match="torn.parquet is damaged; run the stages from 'embed' on again"):
        read_unit(store, "key", "torn")


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("data", [b"", b'{"targets"', b"\xff" * 20])
def test_a_training_whose_files_are_torn_is_not_finished(tmp_path, suffix, data):
    store = Store(str(tmp_path))
    assert not finished(store, "key")
    store.write_json("finetune/key.json", {"targets": {}, "seconds": 1.0})
    store.write_bytes("finetune/key.safetensors", save({"target": np.ones((2, 3), np.float32)}))
    assert finished(store, "key")
    store.write_bytes(f"finetune/key.{suffix}", data)
    assert not finished(store, "key")


def test_whichever_bit_of_a_unit_is_bent_it_is_found_or_makes_no_difference(tmp_path):
    store = Store(str(tmp_path))
    write_unit(store, "key", "u", some_unit(4))
    path = store.local_path("embeddings/key/u.parquet")
    sound, expected = path.read_bytes(), read_unit(store, "key", "u")
    found = 0
    for at in range(0, len(sound), 3):
        path.write_bytes(flipped(sound, at))
        if sound_units(store, "key", ["u"]):
            unit = read_unit(store, "key", "u")
            assert unit.loss == expected.loss and unit.skipped == expected.skipped
            for name, values in expected.blocks.items():
                np.testing.assert_array_equal(unit.blocks[name], values)
        else:
            found += 1
    assert found > len(sound) / 3 / 2


@pytest.fixture(scope="module")
def embedded(small_config, tmp_path_factory, local_ray):
    """A study that is embedded and aligned, one of whose files vanished between planning and reading."""
    folder = tmp_path_factory.mktemp("hostile")
    mapping = small_config(folder / "out", embedding={"estimator": "head"})
    licences = mapping["candidates"][1]
    sources = folder / "licences"
    sources.mkdir()
    (sources / "a.jsonl").write_bytes(open(licences["source"], "rb").read())
    licences["source"] = str(sources)
    study = open_study(Config.model_validate(mapping))
    with vanishing(sources / "b.jsonl"), actors_here():
        result = pipeline.embed(study)
    pipeline.align(study)
    return study, result


@contextmanager
def vanishing(file):
    """A file that is there while the reading of its corpus is planned, and gone when it is read."""

    def plan(corpus):
        if corpus.source == str(file.parent):
            file.write_bytes(lines("gone"))
        found = plan_fragments(corpus)
        file.unlink(missing_ok=True)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "plan_fragments", plan)
        yield


def test_a_file_that_vanished_during_the_run_is_counted_in_its_corpus(embedded):
    _, result = embedded
    assert result["corpora"]["licences"]["vanished"] == 1
    assert "vanished" not in result["corpora"]["python-stdlib"] and result["corpora"]["licences"]["documents"] > 10


def test_a_file_that_vanished_before_the_comparison_is_named_in_a_warning(embedded):
    study, _ = embedded
    with vanishing(Path(study.config.candidates[1].source) / "b.jsonl"):
        result = pipeline.contamination(study)
    assert [w for w in result["warnings"] if "vanished" in w] == [
        "1 parts of the files of 'licences' vanished before they were compared: what they held is left out."
    ]


def test_a_mixture_of_files_that_vanish_is_not_written(embedded, tmp_path):
    study, _ = embedded
    licences = study.config.candidates[1]
    with (
        vanishing(Path(licences.source) / "b.jsonl"),
        pytest.raises(CorpusError, match="'licences': 1 parts .* vanished"),
    ):
        materialise.materialise([licences], {"licences": 1.0}, 1000, study.probe, 0, Store(str(tmp_path / "mixture")))
    assert not (tmp_path / "mixture").exists()


def test_a_corpus_that_shrinks_between_the_passes_of_a_mixture_is_refused(tmp_path, monkeypatch, local_ray):
    source, count = tmp_path / "a.jsonl", materialise._count
    source.write_bytes(lines(*(f"document {i} of many" for i in range(50))))

    def then_shorten(*args):
        counted = count(*args)
        source.write_bytes(lines("document 1 of many"))
        return counted

    monkeypatch.setattr(materialise, "_count", then_shorten)
    store, corpora = Store(str(tmp_path / "mixture")), [Corpus(name="a", source=str(source))]
    with pytest.raises(CorpusError, match="'a' changed while it was read"):
        materialise.materialise(corpora, {"a": 1.0}, 300, locate_probe(ProbeName()), 0, store)
    assert store.read_json("manifest.json")["files"] == [], "the folder is marked, and not as finished"
    with pytest.raises(ConfigError, match="shards of something else"):
        materialise.materialise(corpora, {"a": 1.0}, 10, locate_probe(ProbeName()), 0, store)


@pytest.mark.parametrize("kind", [StoreError, CorpusError, UserError])
def test_a_mistake_met_in_a_function_of_ray_data_is_still_one_sentence(local_ray, kind):
    def fail(batch):
        raise kind("cannot write to s3://b/x (No space left on device); fix that and run it again.")

    with pytest.raises(Exception, match="No space left") as caught:
        local_ray.data.from_items([1]).map_batches(fail).take_all()
    found = mistake_behind(caught.value)
    assert (
        type(found) is kind
        and str(found) == "cannot write to s3://b/x (No space left on device); fix that and run it again."
    )


def test_a_store_that_does_not_answer_is_not_an_empty_one(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write_json("cost.json", {"embed": {"spent": 3.0}})
    monkeypatch.setattr(
        Store, "read_bytes", lambda *_: (_ for _ in ()).throw(OSError("When reading information: timeout"))
    )
    with pytest.raises(OSError, match="timeout"):
        store.find_mappings("cost.json")


def test_torn_units_are_computed_again_and_equal_the_first(embedded, no_pools):
    study, result = embedded
    folder = study.store.local_path(f"embeddings/{result['work']['key']}")
    before = dict(evidence_of(study).units)
    files = sorted(folder.glob("*.parquet"))
    for file, tear in zip(files, TORN.values(), strict=False):
        file.write_bytes(tear(file.read_bytes()))
    with pytest.raises(StoreError, match="is damaged; run the stages from 'embed' on again"):
        dict(evidence_of(study).units)
    again = pipeline.embed(study)
    assert again["work"]["computed"] == len(TORN)
    after = dict(evidence_of(study).units)
    for name in before:
        for a, b in zip(before[name], after[name], strict=True):
            np.testing.assert_allclose(a.blocks["head"], b.blocks["head"], rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize(
    "garbage",
    [b"", b'{"targets": ["t', b"\x00\xff", b"[]", b"3", b'{"embed": 3, "align": [1]}'],
    ids=["empty", "cut", "binary", "a list", "a number", "other values"],
)
@pytest.mark.parametrize("name", ["cost.json", "corpora.json", "alignment.json", "answer"])
def test_torn_and_foreign_results_count_as_not_there_and_an_answer_is_made_anew(embedded, name, garbage):
    study, _ = embedded
    answer = f"answers/alignment-{stages.answer_key(study, pipeline.align)}.json"
    path = study.store.local_path(answer if name == "answer" else name)
    sound, result = path.read_bytes(), stored(study, pipeline.align)
    assert result is not None
    path.write_bytes(garbage)
    try:
        # what things cost, and the copy for people: no result depends on them
        if name in ("cost.json", "alignment.json"):
            assert stored(study, pipeline.align) == result
            return
        assert stored(study, pipeline.align) is None
        with pytest.raises(
            UserError, match="holds no result of the stage '(align|embed)' for this configuration(: .*)?; run that"
        ):
            pipeline.report(study)
        if name == "answer":
            assert pipeline.align(study) == result
    finally:
        path.write_bytes(sound)
