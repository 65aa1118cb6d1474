"""What is measured on a GPU, part by part (benchmarks/gpu.sh OUT); on a CPU a rehearsal, with --tiny in seconds.

    1 exact      Fisher rows against autograd, in float32 and bfloat16
    2 fisher     forward pass, published procedure, exact estimator: tokens/s, share of the matrix rate, memory
    3 memory     out-of-memory halving, provoked
    4 noise      the noise floor of the exact estimator and of the published procedure, on real text
    5 training   a step, plain, checkpointed, LoRA: tokens/s, model FLOP utilisation, memory against its formula
    6 tests      the repository's tests that need a GPU

What is expected is written down first (`expected`). Every row is written when it is measured; a part that fails is told
with its error and the next one begins; one for which the time is up is told as left out. Exit status 1 where a part
failed.
"""

import argparse
import dataclasses
import datetime
import gc
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.append(os.environ.get("CARRIED", ""))  # after what the machine has itself

import numpy as np
import torch
from fisher import SHAPES, exact_operations, machine, operations, synchronise
from fisher import forward as forward_pass
from fisher import reference as published
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from align_ray.alignment.noise import corpus_noise
from align_ray.corpora.rows import Rows
from align_ray.fisher import trunk
from align_ray.fisher.estimators import embed_batch
from align_ray.fisher.probe import has_bfloat16, load_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import Estimator, ProbeName, Quirks
from align_ray.training.memory import training_memory
from align_ray.training.step import prepared, whole_step

ROOT = pathlib.Path(__file__).resolve().parents[1]


def llama(**fields: Any) -> Callable[[], Any]:
    kept = {"max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": None, **fields}
    return lambda: LlamaForCausalLM(LlamaConfig(**kept))


SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
SHAPES |= {"135m": llama(**SMOLLM2), "tiny": llama(**TINY)}

DATASHEET = {"matrix": 989e12, "memory": 3.35e12}
"""H100 SXM: bfloat16 operations a second, bytes a second. Estimates are made with these before anything runs."""
OF_DATASHEET = 0.6
"""Share of them that a large product or copy reaches."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    fisher: dict[str, int]
    """By shape, sequences of 128 tokens."""
    training: dict[str, tuple[int, int]]
    """By shape, sequences and tokens each of a step."""
    rounds: int
    matrix: int
    noise_rows: int
    head_epochs: int
    """Of the published procedure in `noise`."""
    exact: tuple[int, int, int]
    """Vocabulary, sequences, tokens."""


FULL = Sizes(
    {"gpt2": 512, "llama-1b": 128}, {"135m": (16, 2048), "llama-1b": (4, 2048)}, 3, 8192, 512, 5, (5000, 4, 96)
)
SMALL = Sizes({"tiny": 4}, {"tiny": (2, 32)}, 1, 128, 2, 1, (50, 2, 12))


def build(shape: str, dtype: str, device: str) -> Any:
    """A model of the shape with random weights, in evaluation mode."""
    torch.manual_seed(0)
    with torch.device(device):
        return SHAPES[shape]().to(getattr(torch, dtype)).eval()


def timed(run: Callable[[], Any], device: str, rounds: int) -> tuple[float, float | None]:
    """Median seconds, and the peak of bytes beyond what was there (None on a CPU), after a first run that is not
    counted."""
    run()
    before = 0
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() - before if device == "cuda" else None


def rates(device: str, size: int) -> dict[str, float]:
    """Operations a second of a large matrix product by dtype, and bytes a second of a copy, read and written."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        a, b = (torch.randn(size, size * k, device=device, dtype=getattr(torch, dtype)) for k in (1, 4))
        found[dtype] = 8 * size**3 / timed(lambda a=a, b=b: a @ b, device, 5)[0]
    kept, into = torch.randn(size, size * 4, device=device), torch.empty(size, size * 4, device=device)
    found["copy"] = 2 * kept.numel() * 4 / timed(lambda: into.copy_(kept), device, 5)[0]
    return found


def expected(sizes: Sizes) -> list[dict[str, Any]]:
    """Before anything is run: operations a token, bytes moved a token, and the rate that the datasheet's numbers give.

    Bytes: weights once a pass (forward, backward), spread over its tokens, and the inputs and outputs of all linear
    modules written once and read twice, in bfloat16. A training reads and writes 28 bytes a weight in its optimiser
    step.
    """
    rows = []
    for shape, sequences in sizes.fisher.items():
        with torch.device("meta"):
            model = SHAPES[shape]()
        ops, tokens = operations(model), sequences * 128
        weights, moved = 2.0 * ops["forward"] / 2, 3 * 2 * linear_widths(model)
        for what, draws, passes in (("forward pass", None, 1), ("exact, R=1", 1, 2), ("exact, R=4", 4, 5)):
            needed = ops["forward"] if draws is None else exact_operations(ops, draws)
            rows.append(floor(f"{shape}: {what}", needed, passes * (weights / tokens + moved)))
    for shape, (sequences, length) in sizes.training.items():
        with torch.device("meta"):
            model = SHAPES[shape]()
        step = training_operations(model, length)
        tokens, weights = sequences * length, model.num_parameters()
        for what in ("plain", "lora"):
            optimiser = 28.0 * weights / tokens if what == "plain" else 0.0
            needed, again = step[what], 2 * (2.0 * weights / tokens + 3 * 2 * linear_widths(model))
            rows.append(floor(f"{shape}: training step, {what}", needed, again + optimiser))
    return rows


def floor(what: str, ops: float, moved: float) -> dict[str, Any]:
    rate = OF_DATASHEET * min(DATASHEET["matrix"] / ops, DATASHEET["memory"] / moved)
    bound = "products" if DATASHEET["matrix"] / ops < DATASHEET["memory"] / moved else "memory"
    return {"what": what, "operations_a_token": ops, "bytes_a_token": moved, "tokens_per_s": rate, "bound_by": bound}


def linear_widths(model: Any) -> int:
    """Inputs and outputs of all linear modules of the trunk, numbers a token."""
    return sum(sum(m.weight.shape) for m in trunk.trunk_modules(model).values())


def training_operations(model: Any, length: int) -> dict[str, float]:
    """Operations a token of a training step, recomputation not counted: products with all weights forward and twice
    backward (once where they are frozen), and attention over half of `length` tokens before it."""
    config = model.config.get_text_config()
    weights = operations(model)["forward"] / 2
    attention = 2.0 * 2 * config.num_hidden_layers * config.hidden_size * length / 2
    return {"plain": 3 * (2 * weights + attention), "lora": 2 * 2 * weights + 3 * attention}


# --- the parts --------------------------------------------------------------------------------------------------------


def part_exact(device: str, sizes: Sizes, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Largest difference of a Fisher row from autograd's on the same labels, relative to the largest row; and d."""
    from align_ray.alignment.distance import scaled_cosine_distance

    vocabulary, n, length = sizes.exact
    torch.manual_seed(0)
    exact = llama(**TINY | {"vocab_size": vocabulary})().double().eval()
    for parameter in exact.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = np.random.default_rng(0).integers(0, vocabulary, (n, length))
    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.1)):
        model = LlamaForCausalLM(exact.config).to(device, getattr(torch, dtype)).eval()
        model.load_state_dict(exact.state_dict())
        found = trunk.fisher_embeddings(model, ids, 1, 0).trunk[0].double().cpu().numpy()
        same = model.double()  # the weights as they were rounded: what is left is the arithmetic's error
        labels = drawn(same, ids)
        wanted = np.stack([autograd_rows(same, row, y) for row, y in zip(ids, labels, strict=True)])
        error = float(np.median(abs(found - wanted) / wanted.max(1, keepdims=True)))
        worst = float((abs(found - wanted) / wanted.max(1, keepdims=True)).max())
        d = float(scaled_cosine_distance(found.mean(0), wanted.mean(0)))
        yield {"dtype": dtype, "median_error": error, "largest_error": worst, "d": d, "within": worst < most}
        if dtype == "float32" and worst >= most:
            raise AssertionError(f"float32 rows differ from autograd's by {worst:.1e}")


def drawn(model: Any, ids: np.ndarray) -> np.ndarray:
    """The labels of the estimator's uniform numbers, by float64 probabilities, int [n, T]."""
    uniforms = torch.as_tensor(trunk.label_uniforms(ids, 1, 0)[0], device=model.device)
    with torch.no_grad():
        p = model(input_ids=torch.as_tensor(ids, device=model.device)).logits.softmax(-1).cumsum(-1)
    return (p <= uniforms[..., None] * p[..., -1:]).sum(-1).cpu().numpy()


def autograd_rows(model: Any, row: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The definition: mean squared gradient of every output row of every trunk weight."""
    modules = list(trunk.trunk_modules(model).values())
    log_p = model(input_ids=torch.as_tensor(row[None], device=model.device)).logits[0].log_softmax(-1)
    loss = -log_p.gather(1, torch.as_tensor(labels, device=model.device)[:, None]).sum()
    gradients = torch.autograd.grad(loss, [m.weight for m in modules])
    axes = [0 if isinstance(m, Conv1D) else 1 for m in modules]
    return torch.cat([g.pow(2).mean(a) for g, a in zip(gradients, axes, strict=True)]).cpu().numpy()


def part_fisher(device: str, sizes: Sizes, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for shape, sequences in sizes.fisher.items():
        seconds: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        for dtype in ("float32", "bfloat16"):
            model = build(shape, dtype, device)
            ids = np.random.default_rng(0).integers(0, model.config.vocab_size - 1, (sequences, 128))
            ops, few = operations(model), max(2, sequences // 8)
            ways: dict[str, tuple[Callable[[], Any], np.ndarray, float | None, int | None]] = {
                "forward pass": (lambda m=model, x=ids: forward_pass(m, x), ids, ops["forward"], None),
                **{
                    name: (lambda m=model, x=ids, r=r: trunk.fisher_embeddings(m, x, r, 0), ids, total, r)
                    for name, r, total in (
                        ("exact, R=1", 1, exact_operations(ops, 1)),
                        ("exact, R=4", 4, exact_operations(ops, 4)),
                        ("head only", 0, exact_operations(ops, 0)),
                    )
                },
            }
            if dtype == "float32":
                rest = ids[:few]
                ways["reference procedure"] = (lambda m=model, x=rest: published(m, x), rest, None, None)
            for name, (run, given, needed, draws) in ways.items():
                taken, peak = timed(run, device, 1 if name.startswith("reference") else sizes.rounds)
                seconds[f"{name}, {dtype}"] = per_token = taken / given.size
                formula = None if draws is None else fisher_bytes(model, sequences, draws, device)
                row = {
                    "shape": shape, "variant": f"{name}, {dtype}", "tokens_per_s": 1 / per_token,
                    "forward_passes": per_token / seconds[f"forward pass, {dtype}"],
                    "of_matrix_rate": needed and needed / per_token / known["rates"][dtype],
                    "peak_bytes": peak, "formula_bytes": formula,
                }  # fmt: skip
                rows.append(row)
                yield row
            del model, ways
            clean(device)
        slow = seconds["reference procedure, float32"]
        for row in rows:  # also those before it
            row["of_reference"] = slow * row["tokens_per_s"]


def fisher_bytes(model: Any, sequences: int, draws: int, device: str) -> float:
    """Of a pass, beyond the model (see `trunk.sequences_per_pass`)."""
    step = min(sequences, trunk.sequences_per_pass(model, 128, draws))
    chunk = trunk.GPU_CHUNK if device == "cuda" else trunk.CPU_CHUNK
    logits = 5.0 * 4 * min(chunk, step * 128 * model.config.vocab_size)
    return step * trunk.bytes_of_a_sequence(model, 128, draws) + logits


def part_memory(device: str, sizes: Sizes, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The device is filled but for a little (on a CPU it is made to fail), and a large batch is asked for."""
    model, shape = build("tiny", "float32", device), (4096, 256) if device == "cuda" else (8, 16)
    ids = np.random.default_rng(0).integers(0, 512, shape)
    expected_loss = trunk.fisher_embeddings(model, ids[:8], 1, 0, 2).loss
    whole, real = len(ids), trunk._embed
    ballast = None
    if device == "cuda":
        clean(device)
        ballast = torch.empty(max(0, torch.cuda.mem_get_info()[0] - 2**30), dtype=torch.uint8, device=device)
    else:

        def full(model: Any, ids: np.ndarray, *rest: Any) -> Any:
            if len(ids) > 2:
                raise torch.OutOfMemoryError("provoked")
            return real(model, ids, *rest)

        trunk._embed = full
    try:
        found = trunk.fisher_embeddings(model, ids, 1, 0, whole)
    finally:
        trunk._embed = real
        del ballast
        clean(device)
    difference = float((found.loss[:8] - expected_loss).abs().max())
    if found.step >= whole or difference > 1e-3:
        raise AssertionError(f"{whole} sequences asked for, {found.step} at once, losses differ by {difference:.1e}")
    yield {"asked": whole, "at_once": found.step, "largest_difference_of_losses": difference}


def part_noise(device: str, sizes: Sizes, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    located = locate_probe(ProbeName())
    tokenizer = load_tokenizer(located)
    ids = stdlib_rows(tokenizer, sizes.noise_rows)
    ways = [("exact", "float32"), ("exact", "bfloat16"), ("reference", "float32")]
    for kind, dtype in ways:
        model = load_model(located, device, dtype)
        settings = Estimator(kind, 2, quirks=Quirks(head_epochs=sizes.head_epochs))
        start = time.perf_counter()
        unit, _ = embed_batch(model, ids, settings, 0, tokenizer.eos_token_id or 0)
        seconds = time.perf_counter() - start
        block = ("trunk",) if kind == "exact" else ("trunk", "vocabulary")
        v = corpus_noise([unit] * 2, block, diversity=0.0, absolute=settings.epsilon)["draw_variance"]
        yield {
            "estimator": f"{kind}, R=1, {dtype}", "rows": " + ".join(block), "floor": v / (1 + v),
            "sequences": len(ids), "seconds_of_two_draws": seconds,
        }  # fmt: skip


def stdlib_rows(tokenizer: Any, rows: int) -> np.ndarray:
    """Text of Python's standard library, int [rows, 128]."""
    ids: list[int] = []
    for file in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        ids += tokenizer(file.read_text(encoding="utf-8", errors="replace"), truncation=True, max_length=4096)[
            "input_ids"
        ]
        if len(ids) >= rows * 128:
            break
    return np.array(ids[: len(ids) // 128 * 128]).reshape(-1, 128)[:rows]


def part_training(device: str, sizes: Sizes, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ways = {
        "plain": ("float32", False, None),
        "bfloat16, float32 master": ("bfloat16", False, None),
        "checkpointed": ("float32", True, None),
        "LoRA 16, bfloat16 base": ("bfloat16", False, 16),
        "LoRA 16, bfloat16 base, checkpointed": ("bfloat16", True, 16),
    }
    low = has_bfloat16(torch.device(device))
    for shape, (sequences, length) in sizes.training.items():
        for name, (dtype, checkpointed, rank) in ways.items():
            clean(device)
            before = torch.cuda.memory_allocated() if device == "cuda" else 0
            model, own = build(shape, dtype, device), ""
            ops = training_operations(model, length)["lora" if rank else "plain"]
            if rank and importlib.util.find_spec("peft") is None:
                model, own = low_rank(prepared(model, None, "all-linear", checkpointed), rank), " (peft is not there)"
            else:
                model = prepared(model, rank, "all-linear", checkpointed)
            model.train()
            formula = training_memory(model, sequences, length, checkpointed, 2 if low else 4)
            if device == "cuda" and formula.total > 0.95 * torch.cuda.mem_get_info()[1]:
                yield {"shape": shape, "way": name, "formula_bytes": formula.total, "left_out": "does not fit"}
                del model
                continue
            step = training_step(model, sequences, length, device)
            try:
                seconds, peak = timed(step, device, sizes.rounds)
            except torch.OutOfMemoryError:
                yield {"shape": shape, "way": name, "formula_bytes": formula.total, "left_out": "out of memory"}
                del model, step
                continue
            tokens = sequences * length
            there = None if peak is None else torch.cuda.max_memory_allocated() - before
            yield {
                "shape": shape, "way": name + own, "tokens_per_step": tokens, "tokens_per_s": tokens / seconds,
                "model_flop_utilisation": ops * tokens / seconds / known["rates"]["bfloat16" if low else "float32"],
                "peak_bytes": there, "formula_bytes": formula.total,
            }  # fmt: skip
            del model, step


def training_step(model: Any, sequences: int, length: int, device: str) -> Callable[[], float]:
    """A whole step as `training/loop.py` takes it: gradients, clipping, AdamW, the average of the weights."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (sequences, length)).astype(np.int32)
    return whole_step(model, [Rows.plain(ids)], torch.device(device))


def low_rank(model: Any, rank: int) -> Any:
    """Plan B without peft: the same products, a frozen base and two float32 factors beside every linear module."""

    class LowRank(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base, of = base, {"device": base.weight.device, "dtype": torch.float32}
            self.down = torch.nn.Parameter(torch.randn(rank, base.in_features, **of) / rank)
            self.up = torch.nn.Parameter(torch.zeros(base.out_features, rank, **of))

        @property
        def weight(self) -> torch.Tensor:
            return self.base.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + (2 * (x.to(self.down.dtype) @ self.down.T @ self.up.T)).to(x.dtype)

    model.requires_grad_(False)
    for name, module in trunk.trunk_modules(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.base_model.get_submodule(parent), last, LowRank(module))
    return model


def part_tests(device: str, sizes: Sizes, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """On a CPU they are counted alone."""
    files = {str(f): f.read_text().count("@pytest.mark.gpu") for f in sorted((ROOT / "tests").rglob("test_*.py"))}
    files.pop(str(ROOT / "tests" / "test_gpu_benchmark.py"), None)
    if device != "cuda":
        yield {"waiting_for_a_gpu": sum(files.values())}
        return
    if importlib.util.find_spec("pytest") is None:
        yield {"left_out": "pytest is not there; parts 1 and 3 check the same"}
        return
    line = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-m", "gpu", "-o", "addopts="]
    line += ["-p", "no:cacheprovider", *(file for file, count in files.items() if count)]
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH", ""), os.environ.get("CARRIED", "")) if p)
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
    if done.returncode:
        raise AssertionError(f"{last[0]}: {done.stdout[-600:]}")
    yield {"result": last[0]}


PARTS: dict[str, tuple[Callable[[str, Sizes, dict[str, Any]], Iterator[dict[str, Any]]], float]] = {
    "exact": (part_exact, 20),
    "fisher": (part_fisher, 150),
    "memory": (part_memory, 20),
    "noise": (part_noise, 40),
    "training": (part_training, 120),
    "tests": (part_tests, 60),
}
"""By name: what it does, and the seconds that must be left for it to begin."""


def clean(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; what a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [
        name.replace("_", " ").replace("bytes", "GB") if name.endswith("_bytes") else name.replace("_", " ")
        for name in names
    ]
    body = [[shown(name, row.get(name)) for name in names] for row in rows]
    lines = [head, ["---"] * len(names), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(name: str, value: Any) -> str:
    if value is None or isinstance(value, str | bool):
        return "" if value is None else str(value)
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f}"
    if name in ("of_matrix_rate", "model_flop_utilisation"):
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def write(out: pathlib.Path, known: dict[str, Any]) -> None:
    """gpu.json and gpu.md, each whole or as it was."""
    about = f"{known['machine']}; {known['date']}; torch {known['torch']}"
    parts = [f"# {about}\n\nexpected before anything ran, of an H100\n\n{table(known['expected'])}"]
    if "rates" in known:
        measured = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in known["rates"].items())
        parts.append(f"measured, in 10^12 operations (bytes) a second: {measured}")
    for name, part in known["parts"].items():
        took = f"{part['seconds']:.0f} s" if "seconds" in part else ""
        told = [table(part["rows"])] if part.get("rows") else []
        told += [part["state"]] if "state" in part else []
        parts.append("\n\n".join([f"## {name} {took}", *told]))
    for file, text in (("gpu.json", json.dumps(known, indent=1)), ("gpu.md", "\n\n".join(parts) + "\n")):
        (out / f".{file}").write_text(text)
        (out / f".{file}").replace(out / file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tiny", action="store_true", help="seconds on a CPU: a rehearsal")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=440.0, help="no part begins that may last longer than this")
    options = parser.parse_args()
    start, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = SMALL if options.tiny else FULL
    known: dict[str, Any] = {
        "machine": machine(device), "date": str(datetime.date.today()), "torch": torch.__version__,
        "tiny": options.tiny, "expected": expected(sizes), "parts": {},
    }  # fmt: skip
    write(options.out, known)
    known["rates"] = rates(device, sizes.matrix)
    for name in options.only:
        part, needed = PARTS[name]
        began = time.monotonic()
        if options.seconds - (began - start) < needed:
            known["parts"][name] = {"state": "left out: the time is up"}
        else:
            known["parts"][name] = found = {"rows": []}
            try:
                for row in part(device, sizes, known):
                    found["rows"].append(row)
                    write(options.out, known)
            except Exception as error:  # the next parts are measured all the same
                found |= {"state": f"failed: {type(error).__name__}: {str(error)[:500]}", "failed": True}
            known["parts"][name]["seconds"] = time.monotonic() - began
        clean(device)
        write(options.out, known)
    print((options.out / "gpu.md").read_text())
    return int(any(part.get("failed") for part in known["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
