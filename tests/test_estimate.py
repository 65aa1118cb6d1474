"""The estimate before a run, and the cap that stops it."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from align_ray import pipeline, stages
from align_ray.cli.main import app
from align_ray.config import Config
from align_ray.context import Study
from align_ray.corpora.sample import read_sample
from align_ray.embedding.units import unit_id
from align_ray.errors import CapReached, ConfigError
from align_ray.estimate import estimate, passes, planned_work
from align_ray.fisher.probe import load_model, locate_probe, parameters
from align_ray.fisher.settings import ProbeName
from align_ray.pipeline import open_study
from align_ray.spending import costs
from align_ray.stages import stored
from align_ray.store import Store
from tests.conftest import actors_here

PRICED = {"price_per_hour": 3600.0}
"""One unit of money for a second of a worker."""
DISTINCT = ("python-stdlib", "cpp-headers")
"""Candidates without two equal batches, which would share a unit (licences begin alike)."""


def test_parameters_are_counted_without_loading_weights_and_embeddings_are_left_out():
    probe = locate_probe(ProbeName())
    model = load_model(probe)
    trunk, head = parameters(probe)
    assert head == model.get_output_embeddings().weight.numel()
    # tied: the head is the embedding
    assert trunk + head == model.num_parameters() - model.transformer.wpe.weight.numel()


def study(config):
    return Study(config, Store(config.output), locate_probe(config.probe.plain()))


def test_the_work_follows_from_the_configuration(small_config, tmp_path):
    config, probe = Config.model_validate(small_config(tmp_path / "out", probe={})), locate_probe(ProbeName())
    work = planned_work(study(config))
    assert work["embed"].tokens == 3 * 4 * 4 * 32  # corpora, batches, sequences, tokens
    assert work["embed"].flops == pytest.approx(work["embed"].tokens * 2 * sum(parameters(probe)) * passes(config))
    assert work["finetune"].tokens == (2 + 2) * 2 * 1024  # candidates, uniform and mixture; seeds
    # a swarm fits losses: any other objective is refused
    by_loss = {"objective": "loss", "method": "swarm", "proxy_tokens": 512}
    swarm = config.model_copy(update={"search": config.search.model_copy(update=by_loss)})
    assert planned_work(study(swarm))["search"].tokens - work["search"].tokens == 6 * 512
    mixmin = config.model_copy(
        update={"search": config.search.model_copy(update={"objective": "mixmin", "proxy_tokens": 512})}
    )
    assert planned_work(study(mixmin))["search"].tokens - work["search"].tokens == 2 * 1024, (
        "as fine-tuned on each alone"
    )


def test_the_work_of_a_task_is_where_its_scores_are_reported(small_config, tmp_path, corpora):
    by_loss = {"objective": "loss", "proxy_tokens": 512}
    task = {"kind": "choices", "context": "text", "choices": ["yes", "no"], "answer": "right", "items": 4}
    texts = [json.loads(line)["text"] for line in (corpora / "python-stdlib-heldout.jsonl").open()]
    lines = [json.dumps({"text": text[:100], "right": "yes"}) for text in texts]
    (tmp_path / "target.jsonl").write_text("\n".join(lines))

    def work(task, by="words", **search):
        mapping = small_config(tmp_path / "out", choose={"by": by})
        mapping["targets"] = [{"name": "target", "source": str(tmp_path / "target.jsonl"), "task": task}]
        mapping["search"] |= search
        return planned_work(study(Config.model_validate(mapping)))

    def more(stage, **settings):
        return work(task, **settings)[stage].flops - work(None, **settings)[stage].flops

    assert more("finetune") > 0 and more("search", **by_loss) == 0
    experts = {"objective": "mixmin", "proxy_tokens": 512}
    assert more("search", **experts) > 0 and more("search", by="training", **experts) == 0
    assert more("validate", by="training") < more("validate")


def test_the_samples_of_the_report_are_as_many_batches_as_hold_32_sequences(small_config, tmp_path):
    for batch_size, batches, scored in ((4, 4, 4), (4, 20, 8), (12, 20, 3), (64, 20, 1)):  # 4: there are no more
        sampling = {"sequence_length": 32, "batch_size": batch_size, "batches": batches}
        config = Config.model_validate(small_config(tmp_path / "out", sampling=sampling))
        assert planned_work(study(config))["samples"].tokens == 3 * scored * batch_size * 32


def test_a_dry_run_shows_the_plan_starts_nothing_and_writes_nothing(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "connect", lambda *_: pytest.fail("a cluster was asked for"))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_config(tmp_path / "out", cost={"price_per_hour": 2.0})))
    shown = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml"), "--dry-run"])
    assert shown.exit_code == 0 and "finetune" in shown.stdout and "assumed" in shown.stdout, shown.output
    plan = json.loads(CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml"), "--dry-run", "--json"]).stdout)
    stage = plan["stages"]["embed"]
    assert stage["cost"] == pytest.approx(stage["worker_seconds"] / 3600 * 2)
    assert all(size > 0 for size in plan["corpora"].values())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_hours_by_rung_bytes_of_kept_weights_and_how_long_it_takes_here(small_config, tmp_path):
    tune = {"tokens": 4096, "eval_tokens": 1024, "learning_rate": 1e-4, "seeds": 2, "keep_weights": True}
    config = Config.model_validate(small_config(tmp_path / "out", choose={"by": "training"}, finetune=tune))
    plan = estimate(study(config), gpu=False)
    rungs = plan["rungs"]
    assert [r["tokens"] for r in rungs] == [82, 246, 655, 1638, 4096]
    assert sum(r["worker_seconds"] for r in rungs) == pytest.approx(plan["stages"]["choose"]["worker_seconds"])
    parameters = load_model(study(config).model).num_parameters()
    # the best candidate, uniform and mixture with two seeds each, and the other candidate's choice
    assert plan["kept"] == {
        "weights": 3 * 2 + 1,
        "bytes": 2 * parameters * 7,
        "states": 2,
        "state_bytes": 16 * parameters * 2,
    }
    assert plan["workers"] == 1 and plan["seconds"] == pytest.approx(
        sum(row["worker_seconds"] for name, row in plan["stages"].items() if name != "validate")
    )
    plain = Config.model_validate(small_config(tmp_path / "out"))
    assert estimate(study(plain), gpu=False)["kept"] == {}
    lora = config.model_copy(update={"finetune": config.finetune.model_copy(update={"lora_rank": 2})})
    assert 0 < estimate(study(lora), gpu=False)["kept"]["bytes"] < plan["kept"]["bytes"] / 10


def test_without_a_price_there_is_no_column_of_money(small_config, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_config(tmp_path / "out")))
    shown = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml"), "--dry-run"]).stdout
    assert "USD" not in shown and "worker-hours" in shown and "(1 worker)" in shown


def test_a_cap_without_a_price_is_refused(small_config, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_config(tmp_path / "out", cost={"max_cost": 1.0})))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml")])
    assert result.exit_code == 2 and "price_per_hour" in result.stderr


def test_the_cap_stops_the_run_keeps_what_is_finished_and_a_higher_one_goes_on(local_ray, small_config, tmp_path):
    def study(**cost):
        return open_study(Config.model_validate(small_config(tmp_path / "out", DISTINCT, cost={**PRICED, **cost})))

    with pytest.raises(CapReached, match="max_cost"):
        pipeline.embed(study(max_cost=0.5))
    spent = costs(study().store)["embed"]
    assert spent["spent"] > 0.5
    assert stored(study(), pipeline.embed) is None
    with pytest.raises(CapReached):  # used up: nothing is started
        pipeline.embed(study(max_cost=0.5))
    result = pipeline.embed(study(max_cost=10_000))
    assert result["work"]["planned"] == 12
    after = costs(study().store)["embed"]
    assert after["spent"] == pytest.approx(spent["spent"] + after["worker_seconds"], rel=0.05)
    assert after["cost"] == pytest.approx(after["worker_seconds"])
    plan = pipeline.plan(study())
    assert plan["rate"]["source"] == "measured in this study"


def test_an_alignment_of_the_batches_that_were_embedded_before_the_cap(local_ray, small_config, tmp_path):
    study = open_study(Config.model_validate(small_config(tmp_path / "out", DISTINCT)))
    with actors_here():
        key = pipeline.embed(study)["work"]["key"]
    for corpus in study.config.corpora:  # the last round
        last = unit_id(read_sample(study.store, corpus.name).batches[-1])
        (tmp_path / "out" / "embeddings" / key / f"{last}.parquet").unlink()
    capped = {**PRICED, "max_cost": costs(study.store)["embed"]["spent"] + 1.0}
    study = open_study(Config.model_validate(small_config(tmp_path / "out", DISTINCT, cost=capped)))
    with pytest.raises(CapReached):
        pipeline.run(study)
    used = study.store.read_json("embedding.json")["used"]
    assert 9 <= sum(used.values()) < 12 and min(used.values()) >= 2
    assert len(stored(study, pipeline.align)["ranking"]["target"]) == 2
    assert (tmp_path / "out" / "report.html").exists() and stored(study, pipeline.finetune) is None


def test_a_negative_price_is_refused(small_config, tmp_path):
    from align_ray.config_file import load_config

    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small_config(tmp_path / "out", cost={"price_per_hour": -1})))
    with pytest.raises(ConfigError, match="cost.price_per_hour"):
        load_config(tmp_path / "study.yaml")
