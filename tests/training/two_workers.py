"""What two workers of torch's process group on gloo come to with a model that is shared out between them: everything
that test_shard.py looks at, in one pair of processes, each of which is seconds of imports."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align_ray.store import Store
from align_ray.training import step
from align_ray.training.loop import micro_batches, share_of, train_model
from align_ray.training.shard import average_gradients, shard, whole
from align_ray.training.step import (
    add_gradients,
    causal_model,
    heldout_losses,
    learned,
    losses_of,
    master_weights,
    prepared,
)
from tests.training.test_loop import CPU, some_rows
from tests.training.test_step import SHAPES, no_dropout, shaped

WAYS = ("plain", "accumulated", "checkpointed", "chunked", "all")
ADAPTED = ("plain", "all")
"""The ways that LoRA is tried in."""
KINDS = [("float32", None), ("bfloat16", None), ("float32", 2), ("bfloat16", 2)]
"""Of weights, and the rank of adapters."""
RUNGS = (0.5,)


def model_of(name, way, rank=None, dtype=torch.float32):
    """A tiny model as it is trained, the same in every process; adapters are moved from where they begin, at zero."""
    model = prepared(shaped(name, dtype), rank, "all-linear", way in ("checkpointed", "all")).train()
    torch.manual_seed(1)
    for weight in learned(model).values() if rank else ():
        weight.data += 0.1 * torch.randn_like(weight)
    no_dropout(model)
    return model


def uneven_rows():
    """Five rows, of which the second worker's have few tokens that count."""
    rows = some_rows(5)
    rows.scored[1::2, 4:] = False
    return rows


def chunked(way):
    """Within, seven tokens have their logits at once, where that is the way."""
    return patch.object(step, "LOGITS", 29 * 7 if way in ("chunked", "all") else step.LOGITS)


@contextlib.contextmanager
def as_workers(rank, world):
    """Within, the loop runs as on a worker of Ray Train."""
    import ray.train

    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: world)
    with (
        patch.object(ray.train, "get_context", lambda: context),
        patch("ray.train.torch.prepare_model", lambda model: model),
    ):
        yield


def training(name="smollm2", **changed):
    """A job of eight steps and the settings of its training."""
    job = {"key": name, "rows": some_rows(8, seed=1), "replay": None, "seed": 3, "learning_rate": 1e-2}
    settings = {"batch_size": 4, "epochs": 4, "micro_batch_size": 2, "checkpoint_every": 1e9, "replay_share": 0.0}
    return job, settings | changed


def trained(model, store=None, rung=None, **changed):
    """What `train_model` comes to, and the model's whole weights, after; held-out losses are those at a rung."""
    job, settings = training(**changed)
    rows = some_rows(3, seed=2)
    found = train_model(
        model, job, settings, CPU, RUNGS, lambda _: heldout_losses(model, rows, CPU).tolist(), store, rung
    )
    average = {n: whole(v).clone() for n, v in found.average.values.items()}
    return {"losses": found.losses, "rungs": found.rungs, "average": average}


def on_worker(rank, folder):
    """All of it, on one of two workers; the first writes it down."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    step.has_bfloat16 = lambda device: False  # products are not rounded, so that two ways can be told to be one
    found = {}
    rows = uneven_rows()
    scored = int(rows.scored[:, 1:].sum())
    found["scored"] = [int(share_of(rows, r, 2).scored[:, 1:].sum()) for r in range(2)]
    for name in SHAPES:
        for way, adapters in [*((w, None) for w in WAYS), *((w, 2) for w in ADAPTED)]:
            model = shard(model_of(name, way, adapters), CPU, "float32")
            weights = master_weights(model)
            parts = micro_batches(rows, rank, 2, 1 if way in ("accumulated", "all") else None)
            with chunked(way):
                loss = add_gradients(losses_of(model), weights, parts, scored, CPU, 2)
            average_gradients(weights.values())
            torch.distributed.all_reduce(loss)
            gradients = {n: whole(w.grad).clone() for n, w in weights.items()}
            of = {"loss": loss.item() / 2, "gradients": gradients, "losses": heldout_losses(model, rows, CPU)}
            of["held"] = sum(p.to_local().numel() for p in model.parameters() if hasattr(p, "to_local"))
            of["norm"] = float(whole(torch.nn.utils.clip_grad_norm_(list(weights.values()), 0.01)))
            of["clipped"] = {n: whole(w.grad).clone() for n, w in weights.items()}
            found[name, way, adapters] = of
    found |= trainings(rank, Path(folder)) | {("memory", *kind): held(*kind) for kind in KINDS}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


def trainings(rank, folder):
    """Whole ones, ones that go on from a rung, also of what one worker had begun, and what the model writes."""
    found = {}
    with as_workers(rank, 2):
        for dtype, adapters in KINDS:
            model = shard(model_of("smollm2", "plain", adapters, getattr(torch, dtype)), CPU, dtype)
            found["trained", dtype, adapters] = trained(model)
        for adapters in (None, 2):
            make = lambda: shard(model_of("smollm2", "plain", adapters), CPU, "float32")  # noqa: B023
            store = Store(str(folder / f"two-{adapters}"))
            trained(make(), store, rung=0)
            torch.distributed.barrier()  # as a report to Ray Train is one
            found["resumed", adapters] = trained(make(), store)
            found["taken over", adapters] = trained(make(), Store(str(folder / f"one-{adapters}")))
    for adapters in (None, 2):
        found["wrote", adapters] = wrote(shard(model_of("smollm2", "plain", adapters), CPU, "float32"))
    return found


def larger(dtype, adapters):
    """A model of which one block is a small part."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=500, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, **sizes)
    return prepared(LlamaForCausalLM(config).to(getattr(torch, dtype)), adapters, "all-linear", False)


def held(dtype, adapters):
    """Bytes at the peak of a step, by what holds them, as torch counts them; the average of the weights is not there."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    model = shard(larger(dtype, adapters), CPU, dtype)
    weights, rows = master_weights(model), some_rows(2, 16)
    optimiser = torch.optim.AdamW(weights.values())
    tracker = FSDPMemTracker(causal_model(model), optimiser)
    for _ in range(2):  # the first makes the states
        with tracker:
            add_gradients(losses_of(model), weights, [rows], 10, CPU, 2)
            average_gradients(weights.values())
            optimiser.step()
            optimiser.zero_grad()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    return {str(getattr(kind, "value", kind)): size for kind, size in found.items()}


def wrote(model):
    """What it writes after two contexts of unlike content, greedily, int64 [2, 6]."""
    ids = torch.as_tensor(np.random.default_rng(5).integers(0, 29, (2, 4)))
    with torch.no_grad():
        out = model.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    return out[:, 4:]


def two_workers(folder):
    """What both come to; `folder` holds what one worker had begun."""
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
        torch.multiprocessing.spawn(on_worker, (str(folder),), nprocs=2)
    return torch.load(folder / "found.pt", weights_only=False)  # numpy arrays, of our own
