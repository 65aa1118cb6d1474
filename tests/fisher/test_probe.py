"""Probes: found by name, folder or hub id; safetensors only; nothing runs that came with a model."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from align_ray.errors import ProbeError
from align_ray.fisher.probe import load_model, load_tokenizer, locate_probe
from align_ray.fisher.settings import ProbeName
from tests.tiny import tiny_model


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama in a folder as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiny_model("llama").float().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path)
    return tmp_path


def test_the_embedded_probe_is_a_language_model_of_the_stated_size():
    located = locate_probe(ProbeName())
    model, tokenizer = load_model(located), load_tokenizer(located)
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 10e6
    assert model.config.n_positions >= 512 and 8000 < len(tokenizer) < 9000
    text = (
        "The function returns a list of the names of all files in the directory, sorted by the time of their creation."
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    loss = model(input_ids=ids, labels=ids).loss
    assert loss < 5 < 9.01 and loss + 1.5 < model(input_ids=shuffled, labels=shuffled).loss  # log(8192) = 9.01


def test_the_weights_fit_in_the_package_and_the_card_states_the_figures():
    from align_ray.fisher.probe import EMBEDDED

    assert (EMBEDDED / "model.safetensors").stat().st_size < 25e6
    card, record = (EMBEDDED / "MODEL_CARD.md").read_text(), json.loads((EMBEDDED / "training.json").read_text())
    for name, bits in record["heldout_bits_per_byte"].items():
        assert name in card and f"{bits:.3f}" in card


def test_a_folder_is_loaded_and_its_digest_is_that_of_its_weights(folder):
    first = locate_probe(ProbeName(str(folder)))
    assert type(load_model(first)).__name__ == "LlamaForCausalLM" and load_tokenizer(first).eos_token == "</s>"
    assert locate_probe(ProbeName(str(folder))).digest == first.digest
    model = load_model(first)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    other = folder / "other"
    model.save_pretrained(other)
    for file in folder.glob("tokenizer*"):
        (other / file.name).write_bytes(file.read_bytes())
    assert locate_probe(ProbeName(str(other))).digest != first.digest


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ProbeError, match="no safetensors"):
        locate_probe(ProbeName(str(folder)))


def test_code_that_comes_with_a_model_is_refused_unless_asked_for(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('the code ran')\n")
    with pytest.raises(ProbeError, match="trust_remote_code"):
        locate_probe(ProbeName(str(folder)))


def test_a_folder_without_a_tokenizer_is_named(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ProbeError, match="tokenizer"):
        load_tokenizer(locate_probe(ProbeName(str(folder))))


@pytest.mark.slow
def test_smollm2_is_loaded_from_the_installed_package_without_importing_it():
    pytest.importorskip("gguf")
    try:
        located = locate_probe(ProbeName("smollm2"))
    except ProbeError as error:
        pytest.skip(str(error))
    model = load_model(located)
    assert 130e6 < sum(p.numel() for p in model.parameters()) < 140e6 and load_tokenizer(located).vocab_size == 49152


def test_the_public_names_are_functions_even_after_their_modules_are_imported():
    import align_ray
    import align_ray.pipeline

    for name in align_ray.__all__:
        assert callable(getattr(align_ray, name)), name
