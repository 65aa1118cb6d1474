"""What a training needs of a worker's memory, by formula, from the model's shapes alone.

    weights       s_w N              s_w bytes a weight (4, or 2 in bfloat16; 0.516 of the trunk's linear modules in
                                     nf4, with a scale of a byte for 64 weights), N weights
    master        4 M                M trained weights, where those are bfloat16
    gradients     4 M                (6 M of bfloat16 weights: as they come, and added up in float32)
    AdamW         8 M                two moments
    average       4 M                of the weights over the last quarter of the steps (`step.Average`)
    activations   2 s n T sum_m (I_m + O_m) + 24 n T C L
                                     inputs and outputs of the trunk's linear modules, s bytes a number, about as much
                                     again for attention and the activation function, norms in float32; with
                                     `checkpoint_layers` of one layer, beside every layer's input, 4 n T C L
    casts         2 N                weights that are float32 and multiplied in bfloat16; of four-bit ones the largest
                                     alone, as it is multiplied
    logits        16 min(n T V, LOGITS)

for n sequences of T tokens at once, L layers of width C, V tokens of vocabulary. The optimiser's step holds 4 M more
when activations are gone. Where W workers share the model (`shard.py`), weights that are trained are float32, and

    weights, gradients, AdamW, average   of 1 / W of the weights; LoRA's adapters are whole on every worker
    gathered      s (2 R + 4 B) + 4 max(R, B)
                                     the R weights outside of the blocks and the B of the largest block, s bytes each,
                                     with their gradients; the next block as it comes in, twice; gradients on their way
                                     in float32. Of a frozen base s (R + 3 B)

On a GPU the CUDA context takes about 0.5 GB beside it, on a CPU the process as much.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from align_ray.errors import CapacityError, ConfigError
from align_ray.fisher.probe import has_bfloat16, random_model
from align_ray.fisher.trunk import bytes_of_a_sequence, trunk_modules
from align_ray.training.shard import blocks
from align_ray.training.step import LOGITS, causal_model, learned, prepared

if TYPE_CHECKING:
    from align_ray.config import Config
    from align_ray.context import Study

MEASURED_AT_ONCE = 8
"""Held-out rows that go through the model together (`step.heldout_losses`)."""
NF4 = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight in four bits: scales of 64 weights have a byte, and those of 256 scales four."""
USABLE = 0.95
"""Share of a device's memory that a training may plan with."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a worker, by what takes them."""

    weights: float
    gradients: float
    optimiser: float
    """Two moments, and master weights where there are any."""
    average: float
    activations: float
    """With weights cast for a product."""
    logits: float
    gathered: float = 0.0
    """Weights that are whole for a while, with their gradients, where workers share the model."""

    @property
    def total(self) -> float:
        """At the peak: in a backward pass, or in the optimiser's step, where activations are gone."""
        kept = self.weights + self.gradients + self.optimiser + self.average
        return kept + max(self.activations + self.logits + self.gathered, self.average)


def training_memory(
    model: Any, sequences: int, length: int, checkpoint_layers: bool, product_bytes: int, shares: int = 1
) -> Memory:
    """What a training step of a model needs, on one worker, with so many sequences of `length` tokens at once.

    `model`: as it is trained (`step.prepared`), also on torch's meta device; `product_bytes`: of a number in a matrix
    product, 2 where the device multiplies in bfloat16; `shares`: workers that share the model (`shard.shard`). Raises
    ConfigError where it cannot be shared.
    """
    causal, trained = causal_model(model), list(learned(model).values())
    config, tokens = causal.config.get_text_config(), sequences * length
    layers, width = config.num_hidden_layers, config.hidden_size
    linear = [m.weight for m in trunk_modules(causal).values()]
    of_layers = tokens * (2 * product_bytes * sum(sum(w.shape) for w in linear) + 24 * width * layers)
    activations = of_layers / layers + 4 * tokens * width * layers if checkpoint_layers else of_layers
    casts = sum(2.0 * w.numel() for w in linear if w.element_size() == 4) if product_bytes == 2 else 0.0
    at_once = max(sequences, MEASURED_AT_ONCE) * length * config.vocab_size
    frozen = [p for p in model.parameters() if not p.requires_grad]
    shared = shares > 1
    count = sum(p.numel() for p in trained) / (1 if frozen else shares)
    copied = 0 if shared else sum(p.numel() for p in trained if p.element_size() == 2)
    return Memory(
        weights=_bytes(frozen) / shares + (4.0 * count if shared else _bytes(trained)),
        gradients=4.0 * count + 2.0 * copied,
        optimiser=8.0 * count + 4.0 * copied,
        average=4.0 * count,
        activations=activations + casts,
        logits=16.0 * min(at_once, LOGITS),
        gathered=_gathered(causal, frozen) if shared else 0.0,
    )


def _bytes(parameters: Iterable[Any]) -> float:
    return float(sum(p.numel() * p.element_size() for p in parameters))


def _gathered(causal: Any, frozen: list[Any]) -> float:
    """Bytes of the weights outside of the blocks and of the largest block while they are whole; where there are
    `frozen` ones, of those alone, which have no gradients."""
    shared = {*(frozen or causal.parameters())}
    parts = [shared.intersection(block.parameters()) for block in blocks(causal)]
    rest, largest = [*shared.difference(*parts)], [*max(parts, key=_bytes)]
    if frozen:
        return _bytes(rest) + 3 * _bytes(largest)
    on_their_way = 4.0 * max(sum(p.numel() for p in part) for part in (rest, largest))
    return 2 * _bytes(rest) + 4 * _bytes(largest) + on_their_way


def study_memory(study: "Study", gpu: bool) -> Memory:
    """What a worker of a study's trainings needs; no weights are read."""
    import torch

    tune = study.config.finetune
    four = tune.dtype == "nf4"
    with torch.device("meta"):
        model = random_model(study.model, tune.scratch or {}).to(torch.float32 if four else getattr(torch, tune.dtype))
        model = prepared(model, tune.lora_rank, tune.lora_targets, tune.checkpoint_layers)
    share = -(-tune.batch_size // tune.workers)
    low = gpu or has_bfloat16(torch.device("cpu"))
    at_once = min(share, tune.micro_batch_size or share)
    shares = tune.workers if tune.shard else 1
    length = study.config.sampling.sequence_length
    needed = training_memory(model, at_once, length, tune.checkpoint_layers, 2 if low else 4, shares)
    return in_four_bits(needed, model, 2 if low else 4) if four else needed


def in_four_bits(needed: Memory, model: Any, product_bytes: int) -> Memory:
    """What is needed where the linear modules of a float32 model's frozen trunk have four bits a weight instead."""
    weights = [m.weight for m in trunk_modules(causal_model(model)).values()]
    linear = [w.numel() for w in weights if not w.requires_grad]  # not the adapters
    formed = product_bytes * (max(linear) - (sum(linear) if product_bytes == 2 else 0))
    return dataclasses.replace(
        needed, weights=needed.weights - (4 - NF4) * sum(linear), activations=needed.activations + formed
    )


def memory_here(gpu: bool) -> float | None:
    """Bytes of this machine's smallest GPU, or of its main memory; None where there is no such GPU."""
    import psutil
    import torch

    if not gpu:
        return float(psutil.virtual_memory().total)
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return float(min(sizes)) if sizes else None


def planned_memory(study: "Study", gpu: bool) -> dict[str, float | None]:
    """What a worker of a study's trainings needs, bytes by what takes them and in all, and what is `there`, as a JSON
    value; None on a cluster, whose devices are not known before it is reached. Raises CapacityError where it cannot
    fit."""
    there = _there(study, gpu)
    check_probe_memory(study, gpu, there)
    needed = check_memory(study, gpu, there)
    return {**dataclasses.asdict(needed), "total": needed.total, "there": there}


def _there(study: "Study", gpu: bool) -> float | None:
    elsewhere = study.config.cluster.address or os.environ.get("RAY_ADDRESS")
    return None if elsewhere else memory_here(gpu)


def assumes_gpu(study: "Study") -> bool:
    """Whether workers have a GPU: as the configuration says, else where this machine has one."""
    import torch

    asked = study.config.cluster.use_gpu
    return torch.cuda.is_available() if asked is None else asked


def check_probe_fits(study: "Study") -> None:
    """Raises CapacityError where the probe cannot fit a device of this machine, on which it is to be embedded."""
    if there := _there(study, gpu := assumes_gpu(study)):
        check_probe_memory(study, gpu, there)


def check_training_fits(study: "Study") -> None:
    """Raises CapacityError where a training cannot fit a device of this machine, on which it is to run, and ConfigError
    where what its weights need is not installed."""
    if there := _there(study, gpu := assumes_gpu(study)):
        check_memory(study, gpu, there)
    else:
        check_four_bits(study.config, gpu=True)


def check_four_bits(config: "Config", gpu: bool) -> None:
    """Raises ConfigError where weights are to have four bits, and what that needs is not there."""
    if config.finetune.dtype != "nf4":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "field 'finetune.dtype' is nf4, which bitsandbytes makes, and that is not installed; pip install "
            "'align-ray[nf4]', or set dtype: bfloat16."
        )
    if not gpu:
        raise ConfigError(
            "field 'finetune.dtype' is nf4, which is for a GPU, and there is none here; set dtype: bfloat16, two bytes "
            "a weight."
        )


def check_memory(study: "Study", gpu: bool, there: float | None) -> Memory:
    """What a worker needs. Raises CapacityError where that is more than `there`, the bytes of a device (None: not
    known), with its parts and what would spare some, and ConfigError as `check_four_bits`."""
    check_four_bits(study.config, gpu or there is None)
    needed, tune = study_memory(study, gpu), study.config.finetune
    room = None if there is None else there * (tune.gpus_per_worker if gpu and tune.gpus_per_worker < 1 else 1.0)
    if room is None or needed.total <= USABLE * room:
        return needed
    workers = sharing_workers(study, room) if gpu else None  # on a CPU they would share its one memory
    parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in dataclasses.asdict(needed).items() if value)
    ways = [
        *(["finetune.micro_batch_size: 1"] if tune.micro_batch_size != 1 else []),
        *(["finetune.checkpoint_layers: true"] if not tune.checkpoint_layers else []),
        *(["finetune.lora_rank: 16"] if tune.lora_rank is None else []),
        *(["finetune.dtype: bfloat16"] if tune.dtype == "float32" else []),
        *(["finetune.dtype: nf4"] if gpu and tune.dtype == "bfloat16" and tune.lora_rank and not tune.shard else []),
        *([f"finetune.shard: true with finetune.workers: {workers}"] if workers else []),
    ]
    spare = f"set {' or '.join(ways)}" if ways else "choose a smaller model or a larger device"
    raise CapacityError(
        f"a training of '{study.config.finetune.model or study.config.probe.model}' needs {needed.total / 1e9:.1f} GB "
        f"of a worker ({parts}), and a {'GPU' if gpu else 'machine'} here has {room / 1e9:.1f} GB; {spare}."
    )


def sharing_workers(study: "Study", room: float) -> int | None:
    """The fewest workers, a power of two above those that there are, on whose GPUs of `room` bytes a training fits when
    they share the model; None where 64 are too few."""
    workers = 2
    while workers <= 64:
        asked = study.changed(finetune={"shard": True, "workers": workers})
        if workers > study.config.finetune.workers and study_memory(asked, True).total <= USABLE * room:
            return workers
        workers *= 2
    return None


def check_probe_memory(study: "Study", gpu: bool, there: float | None) -> float:
    """Bytes that the embedding stage needs of a worker at the least: the probe's weights (four times as much for the
    published procedure: a copy, gradients, their squares) and a pass of one sequence. Raises CapacityError where that
    is more than `there` (None: not known)."""
    import torch

    wanted, length = study.config.embedding, study.config.sampling.sequence_length
    low = wanted.dtype == "bfloat16" or (wanted.dtype == "auto" and (gpu or has_bfloat16(torch.device("cpu"))))
    with torch.device("meta"):
        model = random_model(study.probe, {}).to(torch.bfloat16 if low else torch.float32)
    copies = 4 if wanted.estimator == "reference" else 1
    weights = copies * sum(p.numel() * p.element_size() for p in model.parameters())
    needed = float(weights + bytes_of_a_sequence(model, length, wanted.draws))
    if there is not None and needed > USABLE * there:
        raise CapacityError(
            f"the probe '{study.config.probe.model}' needs {needed / 1e9:.1f} GB of a worker in "
            f"{'bfloat16' if low else 'float32'}, {weights / 1e9:.1f} of them weights, and a "
            f"{'GPU' if gpu else 'machine'} here has {there / 1e9:.1f} GB; choose a smaller 'probe.model'."
        )
    return needed
