"""Train the embedded probe: a small GPT-2 with its own byte-level BPE, on permissively licensed text.

    python jobs/train_probe.py prepare ../shared/corpora /tmp/probe \\
        --python-docs /usr/share/doc/python3.11/html/_sources
    MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 OMP_NUM_THREADS=1 \\
        torchrun --nproc-per-node 2 jobs/train_probe.py train /tmp/probe
    python jobs/train_probe.py export /tmp/probe align_ray/fisher/embedded_probe

Text: the training splits of a folder of corpora (with a manifest.json), Python's library documentation (reST sources)
and Python's own test-suite source. The demo's candidate corpora (`align_ray/corpora/installed.py`) are kept out: no
standard library module outside `test`, and no page from which `pydoc_data.topics` is made. ProofNet and miniF2F are
kept out as well, so that they can serve as targets.

`prepare --only c4-sample --only wikitext-2 ... --share 0.67 --tokenizer align_ray/fisher/embedded_probe` makes the text
of a generic base for the predictive study (docs/study.md): those domains alone, a share of their documents; the rest,
which the base never sees, goes to WORK/unused-NAME.jsonl.

One process per core beats one process with many threads; the two malloc settings stop glibc from returning the large
temporaries to the kernel at every step (+30 % tokens/s measured on 2 cores).
"""

import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import typer
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 8192, 512, 256, 4, 4
END = "<|endoftext|>"
DOMAIN_CAP_BYTES = 6_000_000
HELD_OUT_CORPORA = {"proofnet-lean4", "minif2f-lean4"}  # targets of the examples, never trained on
# pydoc_data.topics, a candidate of the demo, is made from these pages; licence texts are another candidate.
EXCLUDED_DOCS = (
    "reference/",
    "library/stdtypes",
    "library/string.",
    "library/pdb",
    "library/functions",
    "license",
    "copyright",
)

app = typer.Typer(add_completion=False, help=__doc__)


def read_jsonl(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def split_by_name(files: list[Path], root: Path) -> tuple[list[str], list[str]]:
    """Train and held-out texts, one file in sixteen held out by the hash of its relative path."""
    train, heldout = [], []
    for file in sorted(files):
        text = file.read_text(encoding="utf-8", errors="ignore")
        held = hashlib.sha256(str(file.relative_to(root)).encode()).digest()[0] < 16
        (heldout if held else train).append(text)
    return train, heldout


def collect(corpora: Path, python_docs: Path | None) -> dict[str, dict[str, list[str]]]:
    """{domain: {"train": texts, "heldout": texts}}; every domain is cut to DOMAIN_CAP_BYTES of training text."""
    domains: dict[str, dict[str, list[str]]] = {}
    for corpus in json.loads((corpora / "manifest.json").read_text())["corpora"]:
        name = corpus["name"]
        if name not in HELD_OUT_CORPORA:
            domains[name] = {s: read_jsonl(corpora / name / f"{s}.jsonl") for s in ("train", "heldout")}
    if python_docs:
        pages = [
            p for p in python_docs.rglob("*.rst.txt") if not str(p.relative_to(python_docs)).startswith(EXCLUDED_DOCS)
        ]
        train, heldout = split_by_name(pages, python_docs)
        domains["python-library-docs"] = {"train": train, "heldout": heldout}
    import test

    root = Path(test.__path__[0])
    train, heldout = split_by_name([p for p in root.glob("test_*.py")], root)
    domains["python-test-suite"] = {"train": train, "heldout": heldout}
    for splits in domains.values():
        order = np.random.default_rng(0).permutation(len(splits["train"]))
        kept, size = [], 0
        for i in order:
            if size < DOMAIN_CAP_BYTES:
                kept.append(splits["train"][i])
                size += len(splits["train"][i].encode())
        splits["train"] = kept
    return domains


@app.command()
def prepare(
    corpora: Path,
    work: Path,
    python_docs: Path | None = None,
    only: list[str] | None = None,
    share: float = 1.0,
    tokenizer: Path | None = None,
) -> None:
    """Collect the text, train the tokenizer (or take the one given), write token arrays to WORK."""
    work.mkdir(parents=True, exist_ok=True)
    domains = {n: d for n, d in collect(corpora, python_docs).items() if not only or n in only}
    for name, splits in domains.items():
        kept = int(share * len(splits["train"]))
        unused = [json.dumps({"text": text}) + "\n" for text in splits["train"][kept:]]
        if unused:
            (work / f"unused-{name}.jsonl").write_text("".join(unused), encoding="utf-8")
        splits["train"] = splits["train"][:kept]
    encoder = PreTrainedTokenizerFast.from_pretrained(tokenizer) if tokenizer else train_tokenizer(domains)
    encoder.save_pretrained(work / "tokenizer")

    documents, sizes = [], {}
    for name, splits in domains.items():
        encoded = {s: encoder(texts, add_special_tokens=False)["input_ids"] for s, texts in splits.items()}
        documents += encoded["train"]
        heldout = [token for ids in encoded["heldout"] for token in [*ids, 0]]
        np.save(work / f"heldout-{name}.npy", np.array(heldout, dtype=np.uint16))
        sizes[name] = {
            "train_documents": len(splits["train"]),
            "train_bytes": sum(len(t.encode()) for t in splits["train"]),
            "train_tokens": sum(map(len, encoded["train"])),
            "heldout_bytes": sum(len(t.encode()) for t in splits["heldout"]),
        }
        print(name, sizes[name], flush=True)
    order = np.random.default_rng(0).permutation(len(documents))
    stream = np.concatenate([np.array([*documents[i], 0], dtype=np.uint16) for i in order])
    np.save(work / "train.npy", stream)
    (work / "sizes.json").write_text(json.dumps(sizes, indent=1))
    print("training tokens", len(stream))


def train_tokenizer(domains: dict[str, dict[str, list[str]]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of VOCABULARY entries on the training text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator((t for d in domains.values() for t in d["train"]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END, model_max_length=CONTEXT)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean next-token cross-entropy of a tied head, never holding more than [chunk, vocabulary] logits."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, chunk=512):
        h, w = hidden.to(torch.bfloat16), weight.to(torch.bfloat16)
        grad_h, grad_w, loss, n = torch.empty_like(h), torch.zeros_like(weight), 0.0, len(labels)
        for i in range(0, n, chunk):
            y = labels[i : i + chunk]
            logits = (h[i : i + chunk] @ w.T).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            loss += (log_z.squeeze(1) - logits.gather(1, y[:, None]).squeeze(1)).sum()
            probs = logits.sub_(log_z).exp_()
            probs[torch.arange(len(y)), y] -= 1
            g = probs.div_(n).to(torch.bfloat16)
            grad_h[i : i + chunk] = g @ w
            grad_w += (g.T @ h[i : i + chunk]).float()
        ctx.save_for_backward(grad_h.to(hidden.dtype), grad_w)
        return loss / n

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_w = ctx.saved_tensors
        return grad * grad_h, grad * grad_w, None, None


class TrainingModel(torch.nn.Module):
    """The GPT-2 with its loss inside, as DistributedDataParallel wants it."""

    def __init__(self, model: GPT2LMHeadModel):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.transformer(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        return ChunkedCrossEntropy.apply(
            hidden.reshape(-1, WIDTH), self.model.transformer.wte.weight, ids[:, 1:].reshape(-1)
        )


def new_model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def learning_rate_factor(progress: float, step: int) -> float:
    """Warm-up (100 steps), stable, then linear decay over the last 35 % (WSD)."""
    return min(1.0, (step + 1) / 100, max(0.0, 1 - progress) / 0.35 + 0.01)


@app.command()
def train(work: Path, tokens: float = 45e6, minutes: float = 1e9, batch: int = 8, lr: float = 3e-3) -> None:
    """Train until TOKENS or MINUTES are used up, whichever is first; the schedule follows whichever is ahead."""
    torch.set_num_threads(1)
    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    torch.manual_seed(0)
    model = new_model()
    net = TrainingModel(model)
    net = torch.nn.parallel.DistributedDataParallel(net) if distributed else net
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimisers = [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    data = np.load(work / "train.npy")
    rng, seen, step, start, losses = np.random.default_rng(0), 0, 0, time.time(), []
    order, cursor, epoch = np.zeros(0, dtype=int), 0, 0
    while True:
        elapsed = torch.tensor((time.time() - start) / 60 / minutes)
        if distributed:
            dist.broadcast(elapsed, 0)
        progress = max(seen / tokens, elapsed.item())
        if progress >= 1:
            break
        if cursor + batch * world > len(order):  # a new epoch starts at another offset, so that cuts differ
            offset = rng.integers(CONTEXT)
            order = offset + CONTEXT * rng.permutation((len(data) - offset - 1) // CONTEXT)
            cursor, epoch = 0, epoch + 1
        starts = order[cursor + rank : cursor + batch * world : world]
        cursor += batch * world
        ids = torch.from_numpy(np.stack([data[s : s + CONTEXT + 1] for s in starts]).astype(np.int64))
        loss = net(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * learning_rate_factor(progress, step)
            optimiser.step()
        model.zero_grad()
        seen, step = seen + batch * world * CONTEXT, step + 1
        losses.append(loss.item())
        if rank == 0 and step % 50 == 0:
            rate = seen / (time.time() - start)
            print(
                f"step {step} epoch {epoch} tokens {seen / 1e6:.2f}M loss {np.mean(losses[-50:]):.4f} {rate:.0f} tok/s",
                flush=True,
            )
        if rank == 0 and (step % 250 == 0):
            torch_state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
            save_file({k: v.contiguous() for k, v in torch_state.items()}, work / "model.safetensors")
            (work / "recipe.json").write_text(
                json.dumps({"tokens": seen, "steps": step, "lr": lr, "batch": batch * world, "epochs": epoch})
            )
            print("heldout bits per byte", evaluate(model, work, limit=20_000), flush=True)
    if rank == 0:
        state = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_file(state, work / "model.safetensors")
        recipe = {"tokens": seen, "steps": step, "lr": lr, "batch": batch * world, "epochs": epoch}
        (work / "recipe.json").write_text(json.dumps(recipe))
        print("heldout bits per byte", evaluate(model, work))
    if distributed:
        dist.destroy_process_group()


@torch.no_grad()
def evaluate(model: GPT2LMHeadModel, work: Path, limit: int | None = None) -> dict[str, float]:
    """Bits per UTF-8 byte on the held-out text of each domain (context 512, non-overlapping windows)."""
    sizes = json.loads((work / "sizes.json").read_text())
    result = {}
    for name, size in sizes.items():
        ids = np.load(work / f"heldout-{name}.npy").astype(np.int64)
        used = len(ids) if limit is None else min(limit, len(ids))
        bytes_per_token = size["heldout_bytes"] / len(ids)
        nats, count = 0.0, 0
        for i in range(0, used - 1, CONTEXT):
            x = torch.from_numpy(ids[i : i + CONTEXT + 1])[None]
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.transformer(input_ids=x[:, :-1], use_cache=False).last_hidden_state[0]
            n = x.shape[1] - 1
            nats += n * ChunkedCrossEntropy.apply(hidden, model.transformer.wte.weight, x[0, 1:]).item()
            count += n
        result[name] = round(nats / count / math.log(2) / bytes_per_token, 4)
    return result


@app.command()
def export(work: Path, out: Path) -> None:
    """Write the package's probe: fp16 safetensors, config, tokenizer and the figures for the model card."""
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    model = new_model()
    model.load_state_dict(load_file(work / "model.safetensors"), strict=False)
    model = model.half().float()  # the figures below are those of the weights as shipped
    bits = evaluate(model, work)
    model.half().save_pretrained(out, safe_serialization=True)
    PreTrainedTokenizerFast.from_pretrained(work / "tokenizer").save_pretrained(out)
    recipe, sizes = (json.loads((work / name).read_text()) for name in ("recipe.json", "sizes.json"))
    (out / "training.json").write_text(
        json.dumps({"recipe": recipe, "heldout_bits_per_byte": bits, "text": sizes}, indent=1)
    )
    unique = sum(size["train_tokens"] for size in sizes.values())
    lines = [
        f"Trained on {recipe['tokens'] / 1e6:.1f}M tokens ({recipe['tokens'] / unique:.1f} passes over "
        f"{unique / 1e6:.1f}M), "
        f"{recipe['steps']} steps of {recipe['batch']} sequences of {CONTEXT}.\n",
        "| domain | training bytes | training tokens | held-out bytes | held-out bits per byte |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {n} | {s['train_bytes']:,} | {s['train_tokens']:,} | {s['heldout_bytes']:,} | {bits[n]:.3f} |"
            for n, s in sizes.items()
        ),
    ]
    card = out / "MODEL_CARD.md"
    if not card.exists():
        card.write_text("# A base model trained by jobs/train_probe.py\n\n<!-- figures --><!-- /figures -->\n")
    before, _, rest = card.read_text().partition("<!-- figures -->")
    after = rest.partition("<!-- /figures -->")[2]
    table = "\n".join(lines)
    card.write_text(f"{before}<!-- figures -->\n{table}\n<!-- /figures -->{after}")
    print(table)


if __name__ == "__main__":
    app()
