"""The memory of a training, by formula, against what its steps keep."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align_ray import pipeline
from align_ray.config import Config, Probe
from align_ray.context import Study
from align_ray.errors import CapacityError
from align_ray.estimate import estimate
from align_ray.fisher.probe import load_model, locate_probe
from align_ray.store import Store
from align_ray.training import memory, step
from align_ray.training.memory import check_memory, in_four_bits, training_memory
from align_ray.training.step import Average, add_gradients, give_weights, losses_of, master_weights, prepared
from tests.conftest import ROOT
from tests.training.test_loop import CPU
from tests.training.test_step import SHAPES, no_dropout, some_rows


def kept_for_backward(model, rows):
    """Bytes of the tensors that a forward pass keeps for the backward pass, parameters left out."""
    parameters, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage()._cdata not in parameters:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step.step_loss(losses_of(model), rows, 1, CPU)
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("low", [True, False], ids=["bfloat16", "float32"])
def test_what_a_pass_keeps_is_within_the_formula_and_not_far_below(name, rank, low, monkeypatch):
    if low and not step.has_bfloat16(CPU):
        pytest.skip("no bfloat16 here")
    monkeypatch.setattr(step, "has_bfloat16", lambda device: low)
    rows = some_rows(4, 64)
    for checkpointed in (False, True):
        model = prepared(SHAPES[name](), rank, "all-linear", checkpointed).train()
        no_dropout(model)
        of = training_memory(model, 4, 64, checkpointed, 2 if low else 4)
        kept = kept_for_backward(model, rows)
        if not checkpointed:
            assert kept <= of.activations + of.logits <= 4 * kept
        else:
            assert kept <= of.activations + of.logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [None, 2])
def test_weights_gradients_and_states_are_counted_to_the_byte(dtype, rank):
    model = prepared(SHAPES["llama"]().to(dtype), rank, "all-linear", False)
    of, rows, weights = training_memory(model, 2, 12, False, 4), some_rows(2), master_weights(model)
    optimiser, average = torch.optim.AdamW(weights.values()), Average(model, weights)
    add_gradients(losses_of(model), weights, [rows], 1, CPU)
    optimiser.step()
    give_weights(model, weights)
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    assert of.weights == size(model.parameters())
    own = [w for name, w in weights.items() if w is not model.get_parameter(name)]
    moments = [v for state in optimiser.state.values() for name, v in state.items() if name != "step"]
    assert of.optimiser == size(moments) + size(own) and of.average == size(average.values.values())
    passing = 2 * sum(w.numel() for w in own)  # a bfloat16 gradient, before it is added up in float32
    assert of.gradients == size(w.grad for w in weights.values()) + passing


def test_a_training_that_cannot_fit_is_refused_with_its_parts_and_ways_out(small_config, tmp_path, monkeypatch):
    config = Config.model_validate(small_config(tmp_path / "out"))
    study = Study(config, Store(config.output), locate_probe(config.probe.plain()))
    needed = check_memory(study, False, None)
    assert estimate(study, False)["memory"]["total"] == needed.total < memory.memory_here(False)
    with pytest.raises(CapacityError, match=r"needs 0\.\d GB of a worker \(weights .*set finetune.micro_batch_size: 1"):
        check_memory(study, False, needed.total)
    monkeypatch.setattr(memory, "memory_here", lambda gpu: needed.total)
    with pytest.raises(CapacityError, match="finetune.checkpoint_layers: true or finetune.lora_rank: 16"):
        estimate(study, False)
    elsewhere = study.changed(cluster={"address": "ray://head:10001"})
    assert estimate(elsewhere, True)["memory"]["there"] is None
    spared = {"micro_batch_size": 1, "checkpoint_layers": True, "lora_rank": 2, "dtype": "bfloat16"}
    less = check_memory(study.changed(finetune=spared), False, None)
    assert less.total < needed.total and less.weights < 0.6 * needed.weights
    with pytest.raises(CapacityError, match="choose a smaller model"):
        check_memory(study.changed(finetune=spared), False, 1.0)


def test_of_a_gpu_that_is_too_small_the_number_of_workers_that_could_share_is_named(small_config, tmp_path):
    """The fewest, and so many are enough; on a CPU, whose memory is one, none are named."""
    study = Study(
        Config.model_validate(small_config(tmp_path)),
        Store(str(tmp_path)),
        locate_probe(Probe(model="embedded").plain()),
    )
    study = study.changed(finetune={"scratch": {"n_layer": 30}, "batch_size": 64, "micro_batch_size": 1})
    alone, of = check_memory(study, True, None), {}
    for workers in (2, 4, 8):
        of[workers] = check_memory(study.changed(finetune={"shard": True, "workers": workers}), True, None)
        assert of[workers].optimiser == alone.optimiser / workers and 0 < of[workers].gathered < alone.weights / 2
    room = of[4].total / memory.USABLE
    with pytest.raises(CapacityError, match="or finetune.shard: true with finetune.workers: 4[.]$"):
        check_memory(study, True, room)
    assert check_memory(study.changed(finetune={"shard": True, "workers": 4}), True, room) == of[4]
    two = study.changed(finetune={"shard": True, "workers": 2})
    with pytest.raises(CapacityError, match="gathered 0[.].*or finetune.shard: true with finetune.workers: 4[.]$"):
        check_memory(two, True, room)
    with pytest.raises(CapacityError) as refused:
        check_memory(study, False, room)
    assert "shard" not in str(refused.value)


def test_stages_that_cannot_fit_are_refused_before_ray_is_started(small_config, tmp_path, monkeypatch):
    study = pipeline.open_study(Config.model_validate(small_config(tmp_path / "out")), write=False)
    monkeypatch.setattr("align_ray.stages.connect", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr(memory, "memory_here", lambda gpu: 1e5)
    with pytest.raises(CapacityError, match="^the probe '.*' needs 0.0 GB of a worker in"):
        pipeline.embed(study)
    for stage in (pipeline.finetune, pipeline.validate):
        with pytest.raises(CapacityError, match="^a training of '.*' needs 0.0 GB of a worker"):
            stage(study)
    with pytest.raises(CapacityError, match="^a training of '.*'"):
        pipeline.choose(study.changed(choose={"by": "training"}))


def test_the_recipes_table_for_seven_billion_weights_is_the_formula():
    page = (ROOT / "docs" / "recipes.md").read_text()
    sizes = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    totals = []
    for dtype, rank in (("bfloat16", None), ("float32", None), ("bfloat16", 16)):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(num_attention_heads=32, tie_word_embeddings=False, **sizes))
            model = prepared(model.to(getattr(torch, dtype)), rank, "all-linear", True)
        totals.append([training_memory(model, 1, 2048, True, 2, shares).total / 1e9 for shares in (1, 2, 4, 8)])
    for workers, row in zip(("1 (not shared)", 2, 4, 8), zip(*totals, strict=True), strict=True):
        assert f"| {workers} | {' | '.join(f'{value:.1f}' for value in row)} |\n" in page
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=32, tie_word_embeddings=False, **sizes))
        model = prepared(model, 16, "all-linear", True)
    four = in_four_bits(training_memory(model, 1, 2048, True, 2), model, 2)
    assert f"{four.total / 1e9:.1f} GB in all" in page


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_probe_that_cannot_fit_is_refused_with_the_number_of_bytes(small_config, tmp_path, dtype, size):
    config = Config.model_validate(small_config(tmp_path / "out", embedding={"dtype": dtype}))
    study = Study(config, Store(config.output), locate_probe(config.probe.plain()))
    model = load_model(study.probe)
    weights = size * sum(p.numel() for p in model.parameters())
    needed = memory.check_probe_memory(study, False, None)
    assert weights < needed < 1.5 * weights + 1e6
    reference = study.changed(embedding={"dtype": "float32", "estimator": "reference"})
    assert memory.check_probe_memory(reference, False, None) > 2 * needed
    with pytest.raises(CapacityError, match=f"the probe '.*' needs 0.0 GB of a worker in {dtype}, 0.0 of them weights"):
        memory.check_probe_memory(study, False, float(weights))
