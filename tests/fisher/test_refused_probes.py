"""Models that would give no sound results are refused with one sentence by `open_study`, before a corpus is read or Ray
is started."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    CTRLConfig,
    CTRLLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from align_ray import doctor, pipeline
from align_ray.config import Config
from align_ray.errors import ProbeError
from align_ray.fisher.probe import EMBEDDED, load_model, load_tokenizer, locate_probe, random_model
from align_ray.fisher.settings import ProbeName
from align_ray.fisher.sound import check_model
from align_ray.fisher.suited import check_probe
from tests.tiny import GROUPED, tiny_model

VOCABULARY = 8192
"""Of the embedded tokenizer."""
TEXT = {**GROUPED, "vocab_size": VOCABULARY}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
NARROW = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def saved(model, folder, **options):
    """The model in a folder, beside the embedded tokenizer."""
    model.save_pretrained(folder, **options)
    for file in EMBEDDED.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def small(family="llama", tied=False):
    return tiny_model(family, VOCABULARY, tied, torch.float32)


def edited(folder, **fields):
    """The folder with fields of its config.json changed."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def sharded(folder, **options):
    return saved(small(**options), folder, max_shard_size="100KB")


def opt(**fields):
    return OPTForCausalLM(
        OPTConfig(hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, **NARROW, **fields)
    )


def bert():
    return transformers.BertLMHeadModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            is_decoder=True,
        )
    )


def llava():
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION))
    )


def gemma3():
    text = {**TEXT, "head_dim": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4))


def qwen2vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision)
    )


def mamba():
    return MambaForCausalLM(MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, **NARROW))


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    )


def ctrl():
    return CTRLLMHeadModel(CTRLConfig(n_embd=16, dff=24, n_layer=1, n_head=2, n_positions=64, **NARROW))


def of_shape(folder):
    """A file that holds a tensor of another shape than config.json says."""
    weights = load_file(saved(small(), folder) / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(23, 16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_lm_head(folder):
    weights = load_file(saved(small(), folder) / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def torn(folder):
    file = saved(small(), folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def adapter(folder):
    from peft import LoraConfig, get_peft_model

    get_peft_model(small(), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))


def checkpoints(folder):
    for step in (5, 10):
        saved(small(), folder / f"checkpoint-{step}")


def gguf(folder):
    (saved(small(), folder) / "model.safetensors").rename(folder / "model.gguf")


def pieces(folder):
    for file in saved(small(), folder).glob("tokenizer*"):
        file.unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x00")


REFUSED = {
    "state space": (lambda f: saved(mamba(), f), "MambaForCausalLM is a state-space model"),
    "experts": (
        lambda f: saved(small("qwen2moe"), f),
        "'layers.0.mlp.* of Qwen2MoeForCausalLM does not see every token once",
    ),
    "capped logits": (
        lambda f: saved(small("gemma2", True), f),
        "Gemma2ForCausalLM changes its logits after the vocabulary head",
    ),
    "opt": (lambda f: saved(opt(), f), "OPTForCausalLM sees the tokens of all sequences in one row"),
    "opt with projections": (lambda f: saved(opt(word_embed_proj_dim=8), f), "OPTForCausalLM sees the tokens"),
    "projection before the head": (
        lambda f: saved(bert(), f),
        "BertLMHeadModel changes the trunk's output before the vocab",
    ),
    "in place": (lambda f: saved(ctrl(), f), "CTRLLMHeadModel changes its input embeddings in place"),
    "encoder-decoder": (lambda f: saved(t5(), f), "T5Config is of an encoder-decoder model"),
    "multimodal": (lambda f: saved(qwen2vl(), f), "Qwen2VLConfig is of a multimodal model whose language model"),
    "classifier": (
        lambda f: saved(transformers.ViTModel(transformers.ViTConfig(**VISION)), f),
        "ViTConfig is of no causal lang",
    ),
    "quantised": (
        lambda f: edited(saved(small(), f), quantization_config={"quant_method": "gptq", "bits": 4}),
        "its weights are quantised \\(gptq\\)",
    ),
    "more layers than the file": (
        lambda f: edited(saved(small(), f), num_hidden_layers=4),
        "18 of 39 tensors, the first 'model.layers.2.*is not there",
    ),
    "other shape": (
        of_shape,
        "1 of 21 tensors, the first 'model.layers.1.mlp.up_proj.weight' is \\[23, 16\\] instead of \\[24, 16\\]",
    ),
    "no head": (without_lm_head, "1 of 21 tensors, the first 'lm_head.weight' is not there"),
    "missing shard": (
        lambda f: min(sharded(f).glob("model-*")).unlink(),
        "lacks 1 of the \\d files of its weights, the first is 'model-00001",
    ),
    "torn": (torn, "transformers can load"),
    "more tokens than rows": (
        lambda f: saved(tiny_model("llama", VOCABULARY - 1, True, torch.float32), f),
        "tokens up to 8191, but its embedding has 8191 rows",
    ),
    "adapter": (adapter, "holds an adapter of 'owner/base'"),
    "checkpoints": (checkpoints, "a trainer's checkpoints; name one of them, such as .*checkpoint-10"),
    "gguf": (gguf, "GGUF alone"),
    "sentencepiece": (pieces, "tokenizer.model, is read by sentencepiece, which is not installed; pip install"),
}


@pytest.fixture
def nothing_read(monkeypatch):
    """Reading a corpus, beyond a look at its first records, or starting Ray fails the test."""

    def forbidden(*_, **__):
        raise AssertionError("read or started")

    monkeypatch.setattr("align_ray.pipeline.sample_corpora", forbidden)
    monkeypatch.setattr("align_ray.stages.connect", forbidden)
    monkeypatch.setattr("ray.init", forbidden)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_a_corpus_is_read(case, small_config, tmp_path, nothing_read):
    make, sentence = REFUSED[case]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(ProbeError, match=sentence) as caught:
        pipeline.open_study(Config.model_validate(small_config(tmp_path / "out", probe={"model": str(folder)})))
    told = str(caught.value)
    assert str(folder) in told and told.endswith(".") and "\n" not in told, told
    assert ";" in told, "it names a way out"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["more layers than the file", "other shape"])
def test_weights_that_do_not_cover_the_model_are_refused_where_they_are_loaded_too(case, tmp_path, capfd):
    make, sentence = REFUSED[case]
    make(tmp_path)
    with pytest.raises(ProbeError, match=sentence):
        load_model(locate_probe(ProbeName(str(tmp_path))))
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_the_model_to_fine_tune_must_be_whole_but_may_be_of_any_kind(small_config, tmp_path, nothing_read):
    whole, lacking = tmp_path / "whole", tmp_path / "lacking"
    saved(small("qwen2moe"), whole)
    edited(saved(small(), lacking), num_hidden_layers=4)
    study = pipeline.open_study(
        Config.model_validate(small_config(tmp_path / "out", probe={}, finetune={"model": str(whole)}))
    )
    assert study.model.path == str(whole)
    with pytest.raises(ProbeError, match="lacking.*18 of 39 tensors"):
        pipeline.open_study(
            Config.model_validate(small_config(tmp_path / "out", probe={}, finetune={"model": str(lacking)}))
        )


def with_other_tokens(folder):
    """The probe's folder, two tokens of its tokenizer having each other's place."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = sorted(vocabulary)[:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("probe, said", [("mamba", "state-space"), ("other tokens", "has another tokenizer than")])
def test_further_probes_are_refused_before_their_stage_starts(probe, said, small_config, tmp_path, nothing_read):
    folder = saved(mamba() if probe == "mamba" else small(), tmp_path / "probe")
    if probe == "other tokens":
        with_other_tokens(folder)
    names = ["a", "b", "c", "d"]
    mapping = small_config(tmp_path / "out", predict={"tokens": 512, "probes": [str(folder)]})
    mapping["candidates"] = [{**mapping["candidates"][0], "name": name} for name in names]
    study = pipeline.open_study(Config.model_validate(mapping))
    with pytest.raises(ProbeError, match=said):
        pipeline.predict(study)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "neox"])
def test_dense_transformers_pass_with_and_without_their_weights(family, tied, tmp_path):
    fields = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    model = (
        Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, head_dim=4, tie_word_embeddings=tied, **fields))
        if family == "qwen3"
        else small(family, tied)
    )
    saved(model, tmp_path, max_shard_size="100KB")
    located = locate_probe(ProbeName(str(tmp_path)))
    check_model(located)
    check_probe(load_model(located))
    assert len(list(tmp_path.glob("model-*"))) > 1


@pytest.mark.parametrize("make", [llava, gemma3])
def test_of_a_multimodal_model_the_language_model_is_taken(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    saved(model, tmp_path)
    located = locate_probe(ProbeName(str(tmp_path)))
    check_model(located)
    taken, tokens = load_model(located), torch.arange(8)[None]
    assert located.context == 64 and "Conditional" not in type(taken).__name__
    check_probe(taken)
    with torch.no_grad():
        torch.testing.assert_close(taken(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_a_model_that_goes_by_more_than_its_embeddings_is_refused_by_its_numbers():
    model = small("llama")
    trunk = model.model.forward

    def scaled(input_ids=None, inputs_embeds=None, **options):
        if inputs_embeds is None:
            inputs_embeds = model.model.embed_tokens(input_ids) * 2
        return trunk(inputs_embeds=inputs_embeds, **options)

    model.model.forward = scaled
    with pytest.raises(ProbeError, match="LlamaForCausalLM goes by more than its input embeddings"):
        check_probe(model)


def test_an_input_changed_after_it_was_read_is_refused():
    model = small("llama")
    module = model.model.layers[0].mlp
    forward = module.forward
    module.forward = lambda x: forward(x) + x.mul_(2)
    with pytest.raises(ProbeError, match="changes the input of 'layers.0.mlp.*' in place"):
        check_probe(model)


def test_a_large_model_takes_no_memory_to_check(tmp_path, monkeypatch):
    """Seven billion weights, of which nothing is there but the configuration."""
    import resource

    saved(small(), tmp_path)
    LlamaConfig(vocab_size=VOCABULARY, hidden_size=4096, num_hidden_layers=32).save_pretrained(tmp_path)
    located = locate_probe(ProbeName(str(tmp_path)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProbeError, match="291 of 291 tensors|instead of"):
        check_model(located)
    monkeypatch.setattr("align_ray.fisher.sound.empty_model", lambda located: small())
    check_model(located)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "in KiB"


def test_a_model_is_looked_at_once_in_a_process_and_again_when_it_was_written_anew(tmp_path):
    saved(small(), tmp_path)
    first = locate_probe(ProbeName(str(tmp_path)))
    check_model(first)
    looked = check_model.cache_info().misses
    check_model(locate_probe(ProbeName(str(tmp_path))))
    assert check_model.cache_info().misses == looked
    edited(tmp_path, num_hidden_layers=4)
    with pytest.raises(ProbeError, match="18 of 39"):
        check_model(locate_probe(ProbeName(str(tmp_path))))


def test_a_configuration_read_once_is_not_changed_by_models_made_of_it(tmp_path):
    located = locate_probe(ProbeName(str(saved(small(), tmp_path))))
    assert random_model(located, {"num_hidden_layers": 1}).config.num_hidden_layers == 1
    assert random_model(located, {}).config.num_hidden_layers == 2


def test_doctor_refuses_what_open_study_does(small_config, tmp_path):
    saved(mamba(), tmp_path / "model")
    config = Config.model_validate(small_config(tmp_path / "out", probe={"model": str(tmp_path / "model")}))
    for name in ("configuration", "probe"):
        (row,) = json.loads(doctor._answer(name, config.model_dump_json()))
        assert row["status"] == "failed" and "state-space" in row["result"]


def test_a_revision_is_part_of_a_name(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(saved(small(), tmp_path / "hub"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for probe in (
        ProbeName("owner/name"),
        ProbeName("owner/name@v1.0"),
        ProbeName("owner/name@refs/pr/1"),
        ProbeName("a/b", "main"),
    ):
        locate_probe(probe)
    assert asked == [("owner/name", None), ("owner/name", "v1.0"), ("owner/name", "refs/pr/1"), ("a/b", "main")]
    with pytest.raises(ProbeError, match="names a revision, and so does 'probe.revision'; remove one"):
        locate_probe(ProbeName("owner/name@v1.0", "main"))


def test_a_models_own_code_is_fetched_and_part_of_its_digest_where_it_is_trusted(monkeypatch, tmp_path):
    import huggingface_hub

    asked, folder = [], saved(small(), tmp_path / "hub")
    (folder / "own.py").write_text("a = 1\n")

    def download(name, revision, allow_patterns):
        asked.append("*.py" in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    def digests():
        return [locate_probe(ProbeName("owner/name", None, trusted)).digest for trusted in (False, True)]

    plain, trusted = digests()
    (folder / "own.py").write_text("a = 22\n")
    assert digests()[0] == plain and digests()[1] != trusted
    assert asked == [False, True] * 3


def test_the_model_to_fine_tune_has_a_revision_of_its_own(monkeypatch, small_config, tmp_path):
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(EMBEDDED)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    sections = {"probe": {"model": "owner/name", "revision": "a"}, "finetune": {"model": "owner/name@b"}}
    pipeline.open_study(Config.model_validate(small_config(tmp_path / "out", **sections)))
    assert asked == [("owner/name", "a"), ("owner/name", "b")]


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    folder = saved(small(), tmp_path / "model@final")
    assert locate_probe(ProbeName(str(folder))).path == str(folder)


def test_the_digests_of_the_named_probes_stay():
    assert locate_probe(ProbeName()).digest == "e6a4725eb959ed3f"
    try:
        assert locate_probe(ProbeName("smollm2")).digest == "d5d56f019fd86895"
    except ProbeError as error:
        assert "install the extra" in str(error)
    assert len(load_tokenizer(locate_probe(ProbeName()))) == VOCABULARY
