"""What holds for any input: readers lose and invent nothing, and a configuration is valid or refused in one
sentence."""

import gzip
import io
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import given
from hypothesis import strategies as st

from align_ray.config import Config
from align_ray.config_corpora import Corpus
from align_ray.config_file import load_config
from align_ray.corpora import files as corpora
from align_ray.corpora import limits
from align_ray.corpora.sources import documents, plan_fragments
from align_ray.errors import ConfigError

LEFT_OUT = ("empty", "unreadable", "oversized", "missing_column", "vanished")


def read(path, size=2**26, **options):
    """(texts, counts) with fragments of `size` bytes."""
    whole, corpora.FRAGMENT_BYTES = corpora.FRAGMENT_BYTES, size
    try:
        corpus = Corpus(name="c", source=str(path), **options)
        counts = Counter()
        return list(documents(corpus, plan_fragments(corpus), counts)), counts
    finally:
        corpora.FRAGMENT_BYTES = whole


def kept(text):
    """A text as the readers give it."""
    return text.replace("\x00", "").encode("utf-8", errors="replace").decode()


anything = st.text(st.characters(), max_size=20)  # surrogates and NUL as well
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | anything
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3), max_leaves=6
)
records = st.one_of(
    st.fixed_dictionaries({"text": anything}, optional={"other": nested}), st.dictionaries(anything, nested, max_size=2)
)
garbage = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b" ")) | nested.map(
    lambda v: json.dumps([v]).encode()
)


def is_record(line):
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except ValueError:
        return False


@given(
    st.lists(records.map(lambda r: json.dumps(r).encode()) | garbage, max_size=12),
    st.integers(1, 200),
    st.sampled_from(["\n", "\r\n"]),
)
def test_of_any_json_lines_the_valid_documents_are_read_and_all_lines_are_counted(lines, size, end):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(end.encode().join(lines))
        texts, counts = read(path, size)
    found = [json.loads(line.decode("utf-8-sig")).get("text") for line in lines if is_record(line)]
    assert texts == [kept(t) for t in found if isinstance(t, str) and kept(t).strip()]
    assert counts["documents"] == len(texts) and counts["bytes"] == sum(len(t.encode()) for t in texts)
    assert sum(counts[name] for name in ("documents", *LEFT_OUT)) == sum(bool(line.strip()) for line in lines)


@given(
    st.lists(st.none() | plain, max_size=30),
    st.integers(1, 8),
    st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]),
    st.booleans(),
)
def test_of_any_parquet_table_the_strings_are_read_and_all_rows_are_counted(values, rows, kind, dictionary):
    with tempfile.TemporaryDirectory() as folder:
        table = pa.table({"n": range(len(values)), "text": pa.array(values, pa.string()).cast(kind)})
        pq.write_table(table, f"{folder}/a.parquet", row_group_size=rows, use_dictionary=dictionary)
        texts, counts = read(f"{folder}/a.parquet")
    assert texts == [kept(v) for v in values if v is not None and kept(v).strip()]
    assert counts["missing_column"] == values.count(None)
    assert sum(counts[name] for name in ("documents", *LEFT_OUT)) == len(values)


@given(st.lists(plain | st.sampled_from(["", " ", "\r"]), max_size=12), st.integers(1, 60), st.integers(1, 40))
def test_of_any_text_every_line_and_paragraph_is_read_once_or_counted(lines, size, most):
    data = "\n".join(lines).encode()
    split = io.BytesIO(data).readlines()
    whole, limits.MAX_RECORD_BYTES = limits.MAX_RECORD_BYTES, most
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.txt"
            path.write_bytes(data)
            by_line = read(path, size, sample_by="line")
            by_paragraph = read(path, size, sample_by="paragraph")
            as_one = read(path, size)
    finally:
        limits.MAX_RECORD_BYTES = whole
    short = [line for line in split if len(line) < most or len(line) == most and line.endswith(b"\n")]
    expected = [kept(line.decode("utf-8-sig")) for line in short]
    assert by_line[0] == [text for text in expected if text.strip()]
    assert sum(by_line[1][name] for name in ("documents", *LEFT_OUT)) == len(split)
    assert by_line[1]["oversized"] == len(split) - len(short)
    for texts, counts in (by_paragraph, as_one):
        assert all(len(text.encode()) <= most for text in texts) and not counts["unreadable"]
        if not counts["oversized"]:
            found, expected = (text.replace("\ufeff", "").split() for text in ("".join(texts), kept(data.decode())))
            assert "".join(found) == "".join(expected)


@given(st.data(), st.sampled_from(["a.jsonl", "a.txt", "a.parquet", "a.jsonl.gz"]))
def test_a_file_cut_or_flipped_anywhere_raises_nothing_and_a_cut_one_invents_nothing(data, name):
    texts = data.draw(st.lists(plain.filter(lambda t: kept(t).strip()), min_size=1, max_size=20))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
        if name == "a.parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=5, write_page_checksum=True)
        elif name == "a.txt":
            path.write_bytes(lines)
        else:
            path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        sound = path.read_bytes()
        whole, _ = read(path, sample_by="line")
        path.write_bytes(sound[: data.draw(st.integers(1, len(sound)))])
        found, _ = read(path, sample_by="line")
        assert found[:-1] == whole[: max(0, len(found) - 1)]
        if found:
            assert whole[len(found) - 1].startswith(found[-1])
        bent = bytearray(sound)
        bent[data.draw(st.integers(0, len(sound) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bent)
        read(path, sample_by="line")


# --- the configuration ------------------------------------------------------------------------------------------------

BASE = {
    "output": "out",
    "targets": [{"name": "goal", "source": "goal.jsonl"}],
    "candidates": [{"name": "web", "source": "web.jsonl"}, {"name": "code", "source": "code.parquet"}],
}
SECTIONS = ["probe", "sampling", "embedding", "search", "finetune", "predict", "tracking", "cluster"]
FIELDS = sorted(
    {f for s in SECTIONS for f in Config.model_fields[s].annotation.model_fields}
    | set(Config.model_fields)
    | set(Corpus.model_fields)
)
words = st.sampled_from(
    ["web", "goal", "code", "min", "max", "tune", "uniform", "loss", "s3://u:p@b/x", "://[", "~x", "", "a\nb"]
)
keys = st.sampled_from(FIELDS) | words | plain | st.integers() | st.none() | st.booleans()
leaves = st.none() | st.booleans() | st.integers() | st.floats() | plain | words | st.dates() | st.binary(max_size=3)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
sections = st.fixed_dictionaries({}, optional={s: st.dictionaries(st.sampled_from(list(Config.model_fields[s].annotation.model_fields)) | keys, values, max_size=4) for s in SECTIONS})  # fmt: skip


def loaded(text: bytes):
    """The Config of a file, or None where it is refused as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_bytes(text)
        try:
            return load_config(path)
        except ConfigError as error:
            first, *mistakes = str(error).split("\n")  # one sentence, or all mistakes at once, a line each
            assert first.startswith(str(path)) and len(first) < 1500 and len(mistakes) != 1
            if mistakes:  # twenty at most are told, then how many more there are
                more = re.fullmatch(r"\s*and (\d+) more", mistakes[-1])
                told = len(mistakes) - 1 + int(more[1]) if more else len(mistakes)
                assert first.endswith(f" {told} mistakes:") and len(mistakes) <= 21
            return None


@given(sections | st.dictionaries(keys, values, max_size=4), st.booleans())
def test_any_mapping_is_a_configuration_or_refused_in_one_sentence(mapping, with_base):
    config = loaded(
        yaml.safe_dump(BASE | mapping if with_base else mapping, allow_unicode=True).encode(
            "utf-8", errors="surrogatepass"
        )
    )
    if config:
        assert loaded(config.to_yaml().encode()) == config


@given(
    st.binary(max_size=60)
    | st.text("[]{}&*!:-?|>,'\"#% \n\t01ab_.xoe", max_size=40).map(str.encode)
    | plain.map(str.encode)
)
def test_any_file_is_a_configuration_or_refused_in_one_sentence(data):
    loaded(data)


changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0),
        "output": plain.filter(lambda t: "://" not in t and "\x00" not in t),
        "sampling": st.fixed_dictionaries({}, optional={"sequence_length": st.integers(8), "batches": st.integers(2), "packing": st.sampled_from(["pack", "cut", "pad"])}),
        "search": st.fixed_dictionaries(
            {},
            optional={
                "max_epochs": st.floats(0, 16, exclude_min=True),
                "prior_strength": st.floats(0, allow_infinity=False),
                "weights": st.dictionaries(st.sampled_from(["web", "code"]), st.floats(0, 1)),
            },
        ),
        "finetune": st.fixed_dictionaries({}, optional={"learning_rate": st.floats(0, allow_infinity=False, exclude_min=True), "scratch": st.dictionaries(plain, plain | st.integers() | st.floats(allow_nan=False), max_size=3)}),
        "tracking": st.fixed_dictionaries({}, optional={"experiment": plain.filter(str.strip)}),
    },
)  # fmt: skip


@given(changes)
def test_any_valid_configuration_survives_yaml(mapping):
    config = Config.model_validate(BASE | mapping)
    assert loaded(config.to_yaml().encode()) == config
