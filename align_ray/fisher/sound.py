"""Refuse a model that would give no sound results, before anything is read: by its configuration, the headers of its
weights, its tokenizer and a forward pass without numbers. However large it is, no weights are read, no memory is
taken."""

from functools import lru_cache

from torch._subclasses.fake_tensor import FakeTensorMode

from align_ray.errors import ProbeError
from align_ray.fisher.probe import Located, empty_model, load_tokenizer, random_model, whole_config
from align_ray.fisher.suited import check_probe


@lru_cache
def check_model(located: Located, as_probe: bool = True) -> None:
    """Raise ProbeError for what cannot be a probe or, with `as_probe` false, cannot be fine-tuned.

    What the numbers tell is looked at where they are loaded (`load_model`, `check_probe`)."""
    _refuse_kind(located)
    if "gguf_file" in located.arguments:  # transformers compares its weights with the model's only where it loads them
        _refuse_tokens(located, whole_config(located).get_text_config().vocab_size)
    else:
        _refuse_tokens(located, len(empty_model(located).get_input_embeddings().weight))
    if as_probe:
        _refuse_way(located)


def _refuse_kind(located: Located) -> None:
    """What the configuration alone tells."""
    import transformers

    whole = whole_config(located)
    text, kind = whole.get_text_config(), type(whole).__name__
    for config in (whole, text):
        if quantised := getattr(config, "quantization_config", None):
            how = quantised if isinstance(quantised, dict) else quantised.to_dict()
            raise ProbeError(
                f"probe '{located.name}': its weights are quantised "
                f"({how.get('quant_method', 'quantization_config')}) and "
                "would stay so, which is not supported; use the model they were made from."
            )
    if whole.is_encoder_decoder or text.is_encoder_decoder:
        raise ProbeError(
            f"probe '{located.name}': {kind} is of an encoder-decoder model, which is not supported; use a "
            "decoder-only "
            "one."
        )
    if type(text) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(whole, "auto_map"):
        return
    what = (
        "no causal language model"
        if text is whole
        else "a multimodal model whose language model cannot be had by itself"
    )
    raise ProbeError(f"probe '{located.name}': {kind} is of {what}; use a causal language model.")


def _refuse_tokens(located: Located, embedded: int) -> None:
    """What the tokenizer tells, given the rows of the embedding."""
    largest = max(load_tokenizer(located).get_vocab().values(), default=0)
    if largest >= embedded:
        raise ProbeError(
            f"probe '{located.name}': its tokenizer numbers tokens up to {largest}, but its embedding has {embedded} "
            "rows; "
            "enlarge it (resize_token_embeddings), or restore the tokenizer that the model was trained with."
        )


def _refuse_way(located: Located) -> None:
    """What a forward pass without numbers tells."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            check_probe(random_model(located, {}).eval(), located.name)
    except ProbeError:
        raise
    except (
        Exception
    ):  # a way that depends on numbers, or an operation without a fake one: left to the check with the weights
        return
