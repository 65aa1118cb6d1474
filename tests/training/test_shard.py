"""A model that is shared out among two workers on the CPU is trained as one worker trains it: gradients, clipping,
whole trainings, and states that another number of workers goes on from."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from align_ray.config import Config
from align_ray.corpora.sample import sample_corpora
from align_ray.errors import ConfigError
from align_ray.pipeline import open_study
from align_ray.store import Store
from align_ray.training import step
from align_ray.training.jobs import job_keys, train_jobs, train_to_rung
from align_ray.training.loop import weights_file
from align_ray.training.memory import training_memory
from align_ray.training.rows import candidate_jobs, heldout_rows
from align_ray.training.shard import blocks
from align_ray.training.step import heldout_losses
from tests.conftest import trainings_here
from tests.training.test_loop import CPU
from tests.training.test_step import SHAPES, gradients, shaped
from tests.training.two_workers import (
    ADAPTED,
    KINDS,
    WAYS,
    as_workers,
    larger,
    model_of,
    trained,
    two_workers,
    uneven_rows,
    wrote,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one():
    """Within, products are not rounded to bfloat16, as they are not in the two workers."""
    with pytest.MonkeyPatch.context() as patch, as_workers(0, 1):
        patch.setattr(step, "has_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """What two workers came to; two of their trainings were begun by one."""
    folder = tmp_path_factory.mktemp("two")
    for adapters in (None, 2):
        trained(model_of("smollm2", "plain", adapters), Store(str(folder / f"one-{adapters}")), rung=0)
    return two_workers(folder)


def close(found, expected, within=1e-5):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=within, atol=within * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("way", "adapters"), [*((w, None) for w in WAYS), *((w, 2) for w in ADAPTED)])
def test_two_workers_have_the_gradients_of_one_however_their_step_goes(one, two, name, way, adapters):
    """And clip them by the norm of all of them. The workers' rows have unlike numbers of tokens that count."""
    few, many = sorted(two["scored"])
    assert many > 2 * few > 0
    rows, model = uneven_rows(), model_of(name, "plain", adapters)
    loss, plain = gradients(model, [rows], few + many)
    found = two[name, way, adapters]
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    close(found["gradients"], plain)
    norm = float(torch.cat([g.flatten() for g in plain.values()]).norm())
    assert found["norm"] == pytest.approx(norm, rel=1e-5) and norm > 0.05
    close(found["clipped"], {n: g * 0.01 / norm for n, g in plain.items()}, 1e-4)
    np.testing.assert_allclose(found["losses"], heldout_losses(model, rows, CPU), rtol=1e-5)
    size = sum(p.numel() for n, p in model.named_parameters() if not (adapters and p.requires_grad))
    assert 0.4 * size < found["held"] < 0.6 * size, "the first worker's share of what is not an adapter"


@pytest.mark.parametrize("adapters", [None, 2])
def test_a_training_of_two_workers_is_that_of_one(one, two, adapters):
    found, expected = two["trained", "float32", adapters], trained(model_of("smollm2", "plain", adapters))
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-4)
    np.testing.assert_allclose(found["rungs"], expected["rungs"], rtol=1e-3)
    assert expected["losses"][-1] < expected["losses"][0] - 0.02 and len(found["losses"]) == 8


@pytest.mark.parametrize("adapters", [None, 2])
def test_in_bfloat16_small_steps_are_not_lost_and_the_course_is_that_of_one(one, two, adapters):
    found = two["trained", "bfloat16", adapters]
    expected = trained(model_of("smollm2", "plain", adapters, torch.bfloat16))
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=2e-3)
    values = torch.cat([v.flatten() for v in found["average"].values()])
    assert values.dtype == torch.float32 and (values.bfloat16().float() != values).float().mean() > 0.8


@pytest.mark.parametrize("adapters", [None, 2])
@pytest.mark.parametrize("way", ["resumed", "taken over"])
def test_a_training_that_was_broken_off_goes_on_as_if_it_were_not(one, two, way, adapters):
    """Of two workers on two, and of one on two."""
    found, whole = two[way, adapters], two["trained", "float32", adapters]
    np.testing.assert_allclose(found["losses"], whole["losses"], rtol=1e-4)
    close(found["average"], whole["average"], 1e-4)


@pytest.mark.parametrize("adapters", [None, 2])
def test_one_worker_goes_on_from_what_two_had_kept(one, two, tmp_path_factory, adapters):
    folder = next(tmp_path_factory.getbasetemp().glob(f"two*/two-{adapters}"))
    found = trained(model_of("smollm2", "plain", adapters), Store(str(folder)))
    np.testing.assert_allclose(found["losses"], two["trained", "float32", adapters]["losses"], rtol=1e-4)
    close(found["average"], two["trained", "float32", adapters]["average"], 1e-4)


@pytest.mark.parametrize("adapters", [None, 2])
def test_what_a_shared_model_writes_is_what_it_writes_alone(one, two, adapters):
    alone = wrote(model_of("smollm2", "plain", adapters))
    assert torch.equal(two["wrote", adapters], alone) and len(alone.unique()) >= 2


@pytest.mark.parametrize(("dtype", "adapters"), KINDS)
def test_a_step_of_a_shared_model_holds_what_the_formula_says(two, dtype, adapters):
    """States to the byte, and the peak within the formula; what is not activations, whose bound is wide in a tiny model
    (test_memory.py), is no more than 1.7 times as much."""
    found, alone = two["memory", dtype, adapters], training_memory(larger(dtype, adapters), 2, 16, False, 4)
    of = training_memory(larger(dtype, adapters), 2, 16, False, 4, 2)
    adapted = alone.average if adapters else 0  # four bytes of each weight, which is whole
    assert found["Sharded Param"] == pytest.approx(of.weights - adapted, rel=1e-3)
    assert found["OptState"] == pytest.approx(of.optimiser, rel=5e-3)  # AdamW counts its steps as well
    assert found["Total"] + of.average <= of.total
    assert of.total - of.activations - of.logits <= 1.7 * (found["Total"] + of.average)
    if not adapters:
        assert of.average == alone.average / 2 and of.optimiser == alone.average
    else:
        assert of.weights == pytest.approx((alone.weights - adapted) / 2 + adapted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_of_ray_train_end_what_one_worker_of_this_process_began(small_config, local_ray, tmp_path):
    """With the losses and the kept weights of a training that was never broken off and never shared."""
    mapping = small_config(tmp_path / "out")
    without_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # two workers draw other numbers
    mapping["finetune"] |= {"batch_size": 4, "learning_rate": 1e-3, "keep_weights": True, "scratch": without_dropout}
    study = open_study(Config.model_validate(mapping))
    sample_corpora(study)
    heldout, jobs = heldout_rows(study), candidate_jobs(study, 1024)[:1]
    (key,) = job_keys(study, heldout, jobs)
    with trainings_here():
        (whole,) = train_jobs(study, heldout, jobs)
        expected = load_file(tmp_path / "out" / weights_file(key))
        for name in (f"finetune/{key}.json", f"finetune/{key}.safetensors", weights_file(key)):
            study.store.remove(name)
        train_to_rung(study, heldout, jobs, 3)
    assert study.store.names("finetune/state") and not study.store.exists(f"finetune/{key}.json")
    (found,) = train_jobs(study.changed(finetune={"workers": 2, "shard": True}), heldout, jobs)
    np.testing.assert_allclose(found.training, whole.training, atol=5e-3)  # products are rounded to bfloat16
    np.testing.assert_allclose(found.losses["target"].after, whole.losses["target"].after, atol=5e-3)
    kept = load_file(tmp_path / "out" / weights_file(key))
    assert kept.keys() == expected.keys()
    flat = lambda of: torch.cat([of[name].float().flatten() for name in sorted(of)])
    assert (flat(kept) - flat(expected)).norm() < 0.1 * flat(expected).norm()
    assert not study.store.names("finetune/state")


def test_blocks_are_found_and_a_model_that_does_not_name_them_is_refused():
    model = shaped("qwen3")
    assert blocks(model) == [*model.model.layers]
    model._no_split_modules = None
    with pytest.raises(ConfigError, match="'finetune.shard': Qwen3ForCausalLM does not say which modules"):
        blocks(model)


def test_one_worker_has_nobody_to_share_with(small_config, tmp_path):
    mapping = small_config(tmp_path)
    mapping["finetune"]["shard"] = True
    with pytest.raises(ValidationError, match="set workers: 2 or more"):
        Config.model_validate(mapping)
    mapping["finetune"]["workers"] = 2
    assert Config.model_validate(mapping).finetune.shard
