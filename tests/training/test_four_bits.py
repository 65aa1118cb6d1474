"""LoRA over a base of four bits a weight (`finetune.dtype: nf4`): bitsandbytes itself, which has a CPU's arithmetic too."""

import importlib.util

import numpy as np
import pytest
import torch

from align_ray.config import Config, Finetune
from align_ray.config_file import validated
from align_ray.corpora.sample import sample_corpora
from align_ray.errors import ConfigError
from align_ray.fisher import probe
from align_ray.fisher.probe import four_bit_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from align_ray.pipeline import open_study
from align_ray.training import memory, step
from align_ray.training.jobs import job_keys, train_jobs, train_to_rung
from align_ray.training.memory import check_training_fits, study_memory
from align_ray.training.rows import candidate_jobs, heldout_rows
from align_ray.training.step import learned, trainable_model
from tests.training.test_loop import CPU, some_rows
from tests.training.test_step import SHAPES, gradients, shaped


@pytest.fixture(autouse=True)
def arithmetic_of_a_gpu(monkeypatch):
    """By formed weights: kernels for this CPU take weights of some shapes alone, and no gradient after an evaluation."""
    if importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes.nn.modules

        monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


there = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="the extra nf4 is absent")


def dequantised(module):
    """A linear module with the weights that the four bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    plain = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None)
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = torch.nn.Parameter(module.bias.data.float(), requires_grad=False)
    return plain


@there
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_over_the_weights_that_the_four_bits_stand_for(name, tiny_probe, tmp_path, monkeypatch):
    for module in (probe, step):  # products are not rounded, so that two ways can be told to be one
        monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    shaped(name).save_pretrained(tmp_path)
    load_tokenizer(locate_probe(ProbeName(model=tiny_probe))).save_pretrained(tmp_path)
    settings = Finetune(dtype="nf4", lora_rank=2).model_dump() | {
        "located": locate_probe(ProbeName(model=str(tmp_path)))
    }
    torch.manual_seed(0)
    model = trainable_model(settings, CPU).eval()
    adapters, batch = learned(model), some_rows()
    scored = int(batch.scored[:, 1:].sum())
    assert adapters and all("lora_" in key and p.dtype == torch.float32 for key, p in adapters.items())
    for p in adapters.values():
        torch.nn.init.normal_(p, std=0.1)  # lora_B begins at zero, which would leave the others without a gradient
    four = [m for m in model.modules() if type(m).__name__ == "Linear4bit" and hasattr(m, "base_layer")]
    assert len(four) == len(adapters) // 2, "every linear module but the head"
    loss, found = gradients(model, [batch], scored)
    for module in four:
        module.base_layer.forward = dequantised(module.base_layer).forward
    expected_loss, expected = gradients(model, [batch], scored)
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-5)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-3)


@pytest.fixture
def study(small_config, local_ray, tmp_path):
    mapping = small_config(tmp_path / "out")
    tuned = {"tokens": 2048, "batch_size": 4, "learning_rate": 1e-2, "dtype": "nf4", "lora_rank": 4}
    mapping["finetune"] |= tuned
    return open_study(Config.model_validate(mapping))


@there
def test_a_training_over_four_bits_lowers_the_loss_and_goes_on_where_it_was_stopped(study, no_trainings):
    sample_corpora(study)
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 2048)[:1]
    keys = {dtype: job_keys(study.changed(finetune={"dtype": dtype}), heldout, jobs)[0] for dtype in ("nf4", "float32")}
    assert keys["nf4"] != keys["float32"]
    (whole,) = train_jobs(study, heldout, jobs)
    losses = whole.losses["target"]
    assert losses.after.mean() < losses.before.mean() - 0.05
    (exact,) = train_jobs(study.changed(finetune={"dtype": "float32"}), heldout, jobs)
    assert losses.before.mean() != exact.losses["target"].before.mean()
    assert losses.before.mean() == pytest.approx(exact.losses["target"].before.mean(), abs=0.1)
    study.store.remove(f"finetune/{keys['nf4']}.json")
    train_to_rung(study, heldout, jobs, 2)
    (again,) = train_jobs(study, heldout, jobs)
    np.testing.assert_allclose(again.losses["target"].after, losses.after, atol=1e-6)


@there
def test_the_formula_counts_the_four_bits_and_their_scales(study):
    located, needed = study.model, study_memory(study, False)
    model = trainable_model({"located": located, **study.config.finetune.model_dump()}, CPU)
    tensors = [p for p in model.parameters() if not p.requires_grad]
    for module in four_bit_model(located, CPU).modules():
        if type(module).__name__ == "Linear4bit":
            scales = module.weight.quant_state
            tensors += [scales.absmax, scales.state2.absmax]
    adapters = sum(4 * p.numel() for p in learned(model).values())
    there = sum(t.numel() * t.element_size() for t in tensors)
    assert needed.weights == pytest.approx(there + adapters, rel=0.01)
    bfloat16 = study_memory(study.changed(finetune={"dtype": "bfloat16"}), False)
    assert needed.gradients == bfloat16.gradients == 4 * adapters / 4


def test_without_the_extra_or_a_gpu_one_sentence_says_so_before_anything_starts(study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_training_fits(study.changed(finetune={"dtype": "bfloat16"}))
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: "there")
    with pytest.raises(ConfigError, match="'finetune.dtype' is nf4, which is for a GPU, and there is none here"):
        check_training_fits(study)
    check_training_fits(study.changed(cluster={"address": "head:6379"}))  # it may have some
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'finetune.dtype' is nf4, .* pip install 'align-ray\[nf4\]'"):
        check_training_fits(study)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"finetune": {"dtype": "nf4"}}, "on which adapters alone are trained; set lora_rank"),
        ({"finetune": {"dtype": "nf4", "lora_rank": 4, "scratch": {}}}, "take out scratch and shard"),
        ({"finetune": {"dtype": "nf4", "lora_rank": 4, "shard": True, "workers": 2}}, "take out scratch and shard"),
        (
            {
                "finetune": {"dtype": "nf4", "lora_rank": 4},
                "search": {"token_budget": 10_000, "objective": "predicted"},
            },
            r"a base of four bits \(finetune.dtype: nf4\) cannot be merged",
        ),
    ],
)
def test_what_four_bits_cannot_do_is_refused_in_one_sentence(small_config, tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        validated(Config, small_config(tmp_path, **changed), "study.yaml")
