"""Every exporter's file, read back in the trainer's own terms; recipes and other tokenizers; materialised shards."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from align_ray.cli.main import app
from align_ray.config_corpora import Corpus
from align_ray.errors import ConfigError
from align_ray.fisher.probe import load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.handover.export import EXPORTERS, REMOVED
from align_ray.handover.materialise import materialise, place
from align_ray.handover.recipe import FORMAT, check_tokenizer, read_recipe, row_shares, vocabulary_digest
from align_ray.store import Store
from tests.conftest import write_jsonl

WEIGHTS = {"web": 0.5, "code": 0.3, "books": 0.2, "none": 0.0}


@pytest.fixture(scope="module")
def recipe():
    corpora = {
        "web": {"documents": 1000, "tokens": 100_000, "epochs": 0.5},  # 100 tokens a document
        "code": {"documents": 300, "tokens": 60_000, "epochs": 2.5},  # 200
        "books": {"documents": 10, "tokens": 40_000, "epochs": 1.0},  # 4,000
        "none": {"documents": 10, "tokens": 1000, "epochs": 0.0},
    }
    embedded = {"model": "embedded", "vocabulary": vocabulary_digest(load_tokenizer(locate_probe(ProbeName())))}
    return {
        "format": FORMAT,
        "weights": WEIGHTS,
        "corpora": corpora,
        "token_budget": 100_000,
        "seed": 3,
        "targets": ["t"],
        "tokenizer": embedded,
    }


def written(kind, recipe, data="/data"):
    return EXPORTERS[kind].write(recipe, data)


ROWS = {"web": 0.5 / 100, "code": 0.3 / 200, "books": 0.2 / 4000}
ROWS = {n: r / sum(ROWS.values()) for n, r in ROWS.items()}
TOKENS = {n: w for n, w in WEIGHTS.items() if w}


def test_documents_are_drawn_by_tokens_over_mean_length(recipe):
    assert row_shares(recipe) == pytest.approx({**ROWS, "none": 0.0})


def test_the_hugging_face_export_runs_and_gives_the_tokens_wanted(recipe, tmp_path, monkeypatch):
    """On local Parquet files, of which one must be repeated and another is longer than the budget."""
    lengths, sizes = {"web": 100, "code": 200, "books": 400}, {"web": 1000, "code": 60, "books": 40}
    for name, length in lengths.items():
        (tmp_path / name).mkdir()
        texts = [f"{name} {i} " + "w " * (length - 2) for i in range(sizes[name])]
        pq.write_table(pa.table({"text": texts, "other": [0] * len(texts)}), tmp_path / name / "part.parquet")
    budget, corpora = 100_000, {n: {"documents": 10, "tokens": 10 * length} for n, length in lengths.items()}
    found = {**recipe, "token_budget": budget, "corpora": {**recipe["corpora"], **corpora}}
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # else 5 s whenever a reader ends
    names: dict = {}
    exec(written("huggingface", found, str(tmp_path)), names)
    counted = dict.fromkeys(lengths, 0)
    for row in names["mixture"]:
        assert set(row) == {"text"}
        counted[row["text"].split(" ", 1)[0]] += len(row["text"].split())
    assert sum(counted.values()) == pytest.approx(budget, rel=0.1), "the budget ends it, not the smallest corpus"
    for name, count in counted.items():
        assert count / sum(counted.values()) == pytest.approx(WEIGHTS[name], abs=0.08)


@pytest.mark.full
def test_the_hugging_face_export_reads_corpora_as_the_study_did(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "web.jsonl", ["one", "two"], column="body")
    Path("code").mkdir()
    pq.write_table(pa.table({"q": ["a"], "a": ["b"]}), "code/x.parquet")
    Path("books.txt").write_text("para one\n\npara two\n")
    how = {
        "web": {"source": "web.jsonl", "column": "body"},
        "code": {"source": "code", "template": "{q}\n{a}"},
        "books": {"source": "books.txt", "sample_by": "paragraph"},
        "none": {"source": "x"},
    }
    full = {**recipe, "token_budget": 4000, "corpora": {n: {**c, **how[n]} for n, c in recipe["corpora"].items()}}
    names: dict = {}
    exec(written("huggingface", full, ""), names)
    assert {row["text"] for row in names["mixture"]} >= {"one", "two", "a\nb"}
    how["web"] = {"source": "web.jsonl", "prompt": "q", "completion": "a"}
    chat = {**recipe, "corpora": {n: {**c, **how[n]} for n, c in recipe["corpora"].items()}}
    with pytest.raises(ConfigError, match="'web' holds conversations"):
        written("huggingface", chat, "")


def test_the_hugging_face_export_leaves_out_what_the_study_left_out(recipe):
    names: dict = {}
    code = written("huggingface", recipe).partition("CORPORA")[0].partition("import interleave")[2]
    exec("from string import Formatter\n" + code.partition("\n")[2], names)
    row = {"doc": {"title": "T", "lines": ["a", "b"], "none": None}, "x.y": "flat", "n": 3}
    assert names["filled"](row, "{{{doc.title}}}: {doc.lines}") == "{T}: a\nb"
    assert names["value"](row, "x.y") == "flat" and names["value"](row, "doc.title") == "T"
    for missing in ("doc.none", "doc.other.deeper", "n", "gone"):
        assert names["value"](row, missing) is None and names["filled"](row, f"{{doc.title}} {{{missing}}}") is None


def test_sources_that_datasets_cannot_read_as_one_are_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("web-2.0").mkdir()
    Path("notes.raw").write_text("plain")

    def export(*sources):
        found = dict(recipe["corpora"], web={**recipe["corpora"]["web"], "source": list(sources)})
        found |= {n: {**found[n], "source": f"{n}.jsonl"} for n in ("code", "books")}
        code = written("huggingface", {**recipe, "corpora": found}, "")
        return next(line for line in code.splitlines() if line.startswith("    'web': texts"))

    assert "load_dataset('web-2.0', split" in export("web-2.0")
    assert "load_dataset('text'" in export("notes.raw")
    assert "data_files=['a.v1.jsonl', 'b.jsonl.gz']" in export("a.v1.jsonl", "b.jsonl.gz")
    assert r"load_dataset('csv', data_files=['a.tsv'], split='train', streaming=True, sep='\t')" in export("a.tsv")
    for sources in (("web-2.0", "a.jsonl"), ("a.jsonl", "b.parquet"), ("web-2.0", "other"), ("hf://a/b", "hf://a/c")):
        with pytest.raises(ConfigError, match="corpus 'web' has several sources"):
            export(*sources)
    for source in ("elsewhere-3.1", "some/*"):
        with pytest.raises(ConfigError, match="does not say whether it is a folder"):
            export(source)


def test_an_export_makes_the_folder_it_is_to_be_in(recipe, tmp_path):
    (file := tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["export", str(file), "--format", "regmix", "--out", str(tmp_path / "new/folder/x")])
    assert done.exit_code == 0 and yaml.safe_load((tmp_path / "new/folder/x").read_text())["train"] == WEIGHTS
    done = CliRunner().invoke(app, ["export", str(file), "--format", "regmix", "--out", str(file / "x")])
    assert done.exit_code == 2 and "cannot be written" in done.stderr


def example(folder, recipe, monkeypatch):
    """The names that the example of docs/recipes.md for trainers without an exporter leaves, run on a recipe."""
    page = (Path(__file__).resolve().parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("### Other trainers")[2], re.DOTALL)
    (folder / "runs/pretraining").mkdir(parents=True)
    (folder / "runs/pretraining/recipe.json").write_text(json.dumps(recipe))
    monkeypatch.chdir(folder)
    names = {}
    exec(code, names)
    return names


def test_the_documented_lines_for_other_trainers_give_what_their_exporters_gave(recipe, tmp_path, monkeypatch):
    found = example(tmp_path, recipe, monkeypatch)
    assert found["tokens"] == pytest.approx(TOKENS) and found["documents"] == pytest.approx(ROWS)
    assert found["names"] == list(TOKENS)


@pytest.mark.parametrize("kind", REMOVED)
def test_a_removed_format_is_refused_with_the_one_that_takes_its_place(recipe, tmp_path, kind):
    (file := tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["export", str(file), "--format", kind])
    sentence = " ".join(done.stderr.split())
    assert (
        done.exit_code == 2
        and f"--format {kind} was removed in 0.2.0: use --format {REMOVED[kind][0]}, its" in sentence
    )
    assert REMOVED[kind][0] in EXPORTERS
    assert "choose one of huggingface, " in CliRunner().invoke(app, ["export", str(file), "--format", "none"]).stderr


def test_trainers_of_fixed_lengths_get_shares_of_tokens(recipe):
    parts = written("megatron", recipe).split()
    assert {p.removeprefix("/data/"): float(w) for w, p in zip(parts[::2], parts[1::2], strict=True)} == pytest.approx(
        TOKENS
    )
    levanter = yaml.safe_load(written("levanter", recipe))["data"]
    assert levanter["train_weights"] == pytest.approx(TOKENS) and set(levanter["configs"]) == set(TOKENS)
    olmo = yaml.safe_load(written("olmo", recipe))["source_mixture_config"]
    assert {s["source_name"]: s["target_ratio"] for s in olmo["source_configs"]} == pytest.approx(TOKENS)
    assert [s["max_repetition_ratio"] for s in olmo["source_configs"]] == pytest.approx([1.0, 2.625, 1.05])
    assert olmo["requested_tokens"] == 100_000


def test_regmix_and_doremi_files_are_as_their_projects_publish_them(recipe):
    assert yaml.safe_load(written("regmix", recipe)) == {"train": WEIGHTS, "valid": {"t": 1.0}}
    doremi = json.loads(written("doremi", recipe))
    assert doremi["train_domain_weights"] == WEIGHTS and sum(doremi["eval_domain_weights"].values()) == pytest.approx(1)


def test_a_recipe_for_another_tokenizer_is_refused_unless_forced(recipe, tmp_path):
    check_tokenizer(recipe, "embedded", force=False)
    other = {**recipe, "tokenizer": {"model": "gpt2", "vocabulary": "0" * 16}}
    with pytest.raises(ConfigError, match="shares of tokens of 'gpt2', which has another vocabulary"):
        check_tokenizer(other, "embedded", force=False)
    check_tokenizer(other, "embedded", force=True)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(other))
    call = ["export", str(file), "--format", "megatron", "--tokenizer", "embedded"]
    assert CliRunner().invoke(app, call).exit_code == 2
    done = CliRunner().invoke(app, [*call, "--force"])
    assert done.exit_code == 0 and (tmp_path / "megatron_blend.txt").read_text().startswith("0.5")


def test_the_answer_as_json_is_the_file_or_the_manifest(recipe, tmp_path, small_config, monkeypatch):
    (file := tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = CliRunner().invoke(app, ["export", str(file), "--format", "huggingface", "--data", "x", "--json"])
    answer = json.loads(done.stdout)
    assert answer == {"path": str(tmp_path / "interleave.py"), "format": "huggingface", "weights_count": "documents"}

    manifest = {"total_tokens": 1000, "files": [], "tokens": {"web": 1000}, "unique_tokens": {"web": 500}}
    monkeypatch.setattr("align_ray.pipeline.recipe", lambda _: recipe)
    monkeypatch.setattr("align_ray.runtime.connect", lambda _: None)
    monkeypatch.setattr("align_ray.handover.materialise.materialise", lambda *_: manifest)
    (study := tmp_path / "study.yaml").write_text(yaml.safe_dump(small_config(tmp_path / "out")))
    done = CliRunner().invoke(app, ["materialise", str(study), "--out", str(tmp_path / "shards"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == manifest, done.output


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}'])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.json: not a"):
        read_recipe(tmp_path / "r.json")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    words = "the a of in to value model loss token data batch mean".split()
    for name, n in (("a", 400), ("b", 150)):
        texts = [f"{name} {i} " + " ".join(rng.choice(words, rng.integers(5, 40))) for i in range(n)]
        write_jsonl(folder / f"{name}.jsonl", texts)
        for part in range(3):  # the same documents in another order and other files
            (folder / "shuffled" / name).mkdir(parents=True, exist_ok=True)
            write_jsonl(folder / "shuffled" / name / f"{part}.jsonl", texts[::-1][part::3])
    return folder


@pytest.mark.slow
def test_shards_hold_exactly_the_mixture_whatever_the_files(sources, tmp_path, local_ray, monkeypatch):
    located = locate_probe(ProbeName())
    tokenizer = load_tokenizer(located)
    manifests = {}
    for label, source in (("plain", "{}.jsonl"), ("shuffled", "shuffled/{}/*.jsonl")):
        corpora = [Corpus(name=n, source=str(sources / source.format(n))) for n in ("a", "b")]
        if label == "shuffled":  # tasks hand on a few documents at a time
            monkeypatch.setattr("align_ray.handover.materialise.HELD", 500)
        manifests[label] = materialise(
            corpora, {"a": 0.25, "b": 0.75}, 12_000, located, 1, Store(str(tmp_path / label))
        )
    made = manifests["plain"]
    assert made["tokens"] == manifests["shuffled"]["tokens"] and made["files"] == manifests["shuffled"]["files"]
    assert made["tokens"]["a"] == pytest.approx(3000, abs=60) and made["tokens"]["b"] == pytest.approx(9000, abs=60)
    (file,) = made["files"]
    table = pq.read_table(tmp_path / "plain" / file["file"])
    assert hashlib.sha256((tmp_path / "plain" / file["file"]).read_bytes()).hexdigest() == file["sha256"]
    rows = table.to_pylist()
    assert len(rows) == file["rows"] and all(len(tokenizer(r["text"])["input_ids"]) == r["tokens"] for r in rows)
    assert sum(r["tokens"] for r in rows) == made["total_tokens"]
    times = {}
    for r in rows:
        times[r["text"]] = times.get(r["text"], 0) + 1
    whole, part = divmod(9000, made["unique_tokens"]["b"])
    assert {n for t, n in times.items() if t.startswith("b ")} == ({whole, whole + 1} if part else {whole})
    assert {n for t, n in times.items() if t.startswith("a ")} == {1}, "a part of one pass: no document twice"
    order = [r["corpus"] for r in rows]
    assert 0.2 < np.mean([x != y for x, y in zip(order, order[1:], strict=False)]) < 0.6, (
        "corpora are mixed, not one by one"
    )
    assert place(1, "a", 0, "text") != place(2, "a", 0, "text"), "another seed, another order and choice"
    with pytest.raises(ConfigError, match="lower the budget"):
        materialise(corpora, {"a": 0.0, "b": 1.0}, 10**7, located, 1, Store(str(tmp_path / "none")))
