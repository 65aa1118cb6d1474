"""Models and tokenizers small enough for exact arithmetic in tests."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

GROUPED = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Llama's way of writing a configuration; grouped-query attention: two heads share a key."""

MODELS = {
    "gpt2": lambda v, tied: GPT2LMHeadModel(
        GPT2Config(vocab_size=v, n_positions=64, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied)
    ),
    "llama": lambda v, tied: LlamaForCausalLM(LlamaConfig(vocab_size=v, tie_word_embeddings=tied, **GROUPED)),
    "qwen2": lambda v, tied: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, tie_word_embeddings=tied, **GROUPED)),
    "gemma2": lambda v, tied: Gemma2ForCausalLM(
        Gemma2Config(vocab_size=v, head_dim=4, tie_word_embeddings=tied, **GROUPED)
    ),
    "qwen2moe": lambda v, tied: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=v, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8, **GROUPED
        )
    ),
    "neox": lambda v, tied: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, tie_word_embeddings=tied, **GROUPED)),
}


def tiny_model(family, vocabulary=29, tied=True, dtype=torch.float64):
    """A causal LM in evaluation mode whose random weights are large enough for uneven predictions."""
    torch.manual_seed(0)
    model = MODELS[family](vocabulary, tied).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def train_tiny_probe(folder, texts, steps=40):
    """Write a GPT-2 of two layers of width 32 with the embedded probe's tokenizer, trained until it knows which
    tokens are common; returns the folder's path."""
    import shutil

    from align_ray.config import Probe
    from align_ray.fisher.probe import EMBEDDED, load_tokenizer, locate_probe

    tokenizer = load_tokenizer(locate_probe(Probe()))
    ids = [i for encoded in tokenizer(texts, truncation=True, max_length=256)["input_ids"] for i in encoded]
    rows = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    torch.manual_seed(0)
    threads, end = torch.get_num_threads(), tokenizer.eos_token_id
    torch.set_num_threads(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=512,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=end,
            eos_token_id=end,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = rows[torch.randint(0, len(rows), (8,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    for file in EMBEDDED.glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


class Characters:
    """A tokenizer whose tokens are the code points of the text."""

    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) for c in text]}
