"""Speed and memory of the Fisher estimators, side by side in one run on the same model and rows.

    python benchmarks/fisher.py [--shape gpt2|llama-1b] [--sequences 16] [--rounds 3] [--json FILE]

First the two numbers that bound everything: the operations an embedding needs and the machine's matrix rate. Then, in
rounds that alternate between them: a forward pass, the published procedure, per-sequence gradients by torch.func, and
the estimators of this project. Weights and tokens are random: speed does not depend on them. One thread on a CPU, as a
worker of the embedding stage has. Peak memory is measured in a process of its own for each.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4000000000")  # as the workers have it (align_ray/runtime.py)
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8000000000")

warnings.filterwarnings("ignore", "There is a performance drop")  # torch.func over fused attention

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from align_ray.fisher.reference import reference_embedding
from align_ray.fisher.trunk import fisher_embeddings, trunk_modules

LENGTH = 128
SHAPES: dict[str, Callable] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
    "llama-1b": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
        )
    ),
}


def build(shape: str, dtype: str, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return SHAPES[shape]().to(device=device, dtype=getattr(torch, dtype)).eval()


def forward(model: torch.nn.Module, ids: np.ndarray) -> None:
    with torch.no_grad():
        for rows in torch.as_tensor(ids, device=model.device).split(8):
            model(input_ids=rows, use_cache=False).logits.sum().item()


def reference(model: torch.nn.Module, ids: np.ndarray) -> None:
    tokens = torch.as_tensor(ids, device=model.device)
    reference_embedding(model, tokens, torch.ones_like(tokens), model.config.vocab_size - 1, 0)


def vmap(model: torch.nn.Module, ids: np.ndarray) -> None:
    """One label draw; squared weight gradients of every sequence by torch.func, row means."""
    weights = {f"{model.base_model_prefix}.{n}.weight": m.weight.detach() for n, m in trunk_modules(model).items()}
    axes = {
        f"{model.base_model_prefix}.{n}.weight": 0 if isinstance(m, Conv1D) else 1
        for n, m in trunk_modules(model).items()
    }
    rest = {n: p.detach() for n, p in model.named_parameters() if n not in weights}

    def loss(weights: dict, row: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, {**rest, **weights}, (row[None],), {"use_cache": False}).logits[0]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for rows in torch.as_tensor(ids, device=model.device).split(1 if model.device.type == "cpu" else 4):
        with torch.no_grad():
            p = model(input_ids=rows, use_cache=False).logits.float().softmax(-1)
            labels = torch.multinomial(p.flatten(0, 1), 1).view(rows.shape)
        [(g.pow(2).mean(axes[name] + 1)).sum().item() for name, g in gradient(weights, rows, labels).items()]


def ours(draws: int) -> Callable:
    return lambda model, ids: fisher_embeddings(model, ids, draws, 0).head.sum().item()


VARIANTS: dict[str, tuple[Callable, str]] = {
    "forward pass, float32": (forward, "float32"),
    "forward pass, bfloat16": (forward, "bfloat16"),
    "reference procedure, float32": (reference, "float32"),
    "torch.func vmap, R=1, float32": (vmap, "float32"),
    "exact, R=1, float32": (ours(1), "float32"),
    "exact, R=4, float32": (ours(4), "float32"),
    "head only, float32": (ours(0), "float32"),
    "exact, R=1, bfloat16": (ours(1), "bfloat16"),
    "exact, R=4, bfloat16": (ours(4), "bfloat16"),
    "head only, bfloat16": (ours(0), "bfloat16"),
}


def operations(model: torch.nn.Module) -> dict[str, float]:
    """Floating-point operations a token: of a forward pass, of one draw's activation gradients and of its row
    squares."""
    trunk = [(m.weight.shape if isinstance(m, Conv1D) else m.weight.shape[::-1]) for m in trunk_modules(model).values()]
    multiply = sum(2 * i * o for i, o in trunk)
    head = 2 * model.get_output_embeddings().weight.numel()
    squares = sum(min(2 * LENGTH * (i + o), 2 * i * o) for i, o in trunk)
    return {"forward": multiply + head, "backward": multiply + head, "row squares": squares, "head": head}


def exact_operations(ops: dict[str, float], draws: int) -> float:
    """The head's gradient is shared by the draws; the rest is per draw."""
    return ops["forward"] + (ops["head"] if draws else 0) + draws * (ops["backward"] - ops["head"] + ops["row squares"])


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(dtype: str, device: str) -> float:
    """Operations a second of a large matrix product, best of five."""
    size = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(size, size * k, device=device, dtype=getattr(torch, dtype)) for k in (1, 4))
    best = float("inf")
    for _ in range(6):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * size * size * 4 * size / best


def peak(name: str, shape: str, device: str, sequences: int, answer: multiprocessing.Queue) -> None:
    """Peak memory, MiB, beyond the loaded model (in a process of its own)."""
    torch.set_num_threads(1)
    run, dtype = VARIANTS[name]
    model = build(shape, dtype, device)
    ids = np.zeros((sequences, LENGTH), dtype=np.int64)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(model, ids)
        answer.put((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident memory
        before = resident("VmRSS")
        run(model, ids)
        answer.put(resident("VmHWM") - before)


def resident(field: str) -> float:
    """A line of /proc/self/status, MiB (Linux)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, 1 of {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="variants whose name contains this")
    parser.add_argument("--json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    names = [name for name in VARIANTS if not options.only or options.only in name]
    models = {dtype: build(options.shape, dtype, device) for dtype in {VARIANTS[name][1] for name in names}}
    ids = np.random.default_rng(0).integers(
        0, next(iter(models.values())).config.vocab_size, (options.sequences, LENGTH)
    )
    ops = operations(next(iter(models.values())))
    rates = {dtype: matrix_rate(dtype, device) for dtype in models}
    tokens = ids.size
    print(
        f"{machine(device)}; {datetime.date.today()}; torch {torch.__version__}; {options.shape} shape, "
        f"{options.sequences} x {LENGTH} tokens"
    )
    print("operations a token: " + ", ".join(f"{k} {v / 1e6:.0f}M" for k, v in ops.items()))
    print("matrix rate: " + ", ".join(f"{d} {r / 1e9:.0f} GFLOP/s" for d, r in sorted(rates.items())))

    for name in names:
        VARIANTS[name][0](models[VARIANTS[name][1]], ids[:2])
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            run, dtype = VARIANTS[name]
            synchronise(device)
            start = time.perf_counter()
            run(models[dtype], ids)
            synchronise(device)
            times[name].append(time.perf_counter() - start)
    models.clear()
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in names:
        answer = context.Queue()
        process = context.Process(target=peak, args=(name, options.shape, device, options.sequences, answer))
        process.start()
        memory = answer.get(timeout=1800)
        process.join()
        dtype = VARIANTS[name][1]
        draws = 4 if "R=4" in name else 1 if "R=1" in name else 0
        needed = ops["forward"] if "forward" in name else exact_operations(ops, draws)
        median = statistics.median(times[name])
        to = {
            what: statistics.median(t / mine for t, mine in zip(times[other], times[name], strict=True))
            if other in times
            else None
            for what, other in (("reference", "reference procedure, float32"), ("forward", f"forward pass, {dtype}"))
        }
        share = None if name.startswith(("reference", "torch.func")) else needed * tokens / median / rates[dtype]
        rows.append({
            "variant": name, "tokens_per_s": tokens / median, "of_reference": to["reference"],
            "forward_passes": to["forward"] and 1 / to["forward"], "matrix_rate_share": share, "peak_mib": memory,
        })  # fmt: skip

    show = lambda value, form: "" if value is None else form.format(value)  # noqa: E731
    print(
        "\n| variant | tokens/s | x reference | forward passes | share of matrix rate | peak MiB over the model |\n"
        "|---|---|---|---|---|---|"
    )
    for r in rows:
        cells = (
            show(r["of_reference"], "{:.1f}"),
            show(r["forward_passes"], "{:.2f}"),
            show(r["matrix_rate_share"], "{:.0%}"),
        )
        print(f"| {r['variant']} | {r['tokens_per_s']:.0f} | {' | '.join(cells)} | {r['peak_mib']:.0f} |")
    if options.json:
        about = {
            "machine": machine(device),
            "date": str(datetime.date.today()),
            "torch": torch.__version__,
            **vars(options),
        }
        with open(options.json, "w") as file:
            json.dump({**about, "operations": ops, "rates": rates, "times": times, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
