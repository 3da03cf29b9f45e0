"""Decide which models the decoding loop supports, and which settings in a model's generation_config.json are used."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

# Of a model's generation_config, only the settings that change the logits (and so also greedy decoding) and the end tokens
# (see `models.ends`) are used. Sampling (temperature, top_p, ...) and length come from `Decoding`. The search is greedy or
# plain sampling, without beams, an assistant model or another cache. This dict contains the settings that change the
# logits, each with the values that have no effect.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
}
_ATTENTIONS = {"full_attention", "sliding_attention"}


def accepted_by(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the arguments of a model's `forward`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter accepts all arguments
    return frozenset(inspect.signature(inner.forward).parameters)


def is_plain(model: PreTrainedModel) -> bool:
    """Return whether the decoding loop supports a model.

    The model needs a plain cache (see `caches_plainly`) and a generation configuration that does not change the logits.
    """
    return not steering(getattr(model, "generation_config", None)) and caches_plainly(model)


def steering(settings: Any) -> dict[str, Any]:
    """Return the settings of a generation configuration that change the logits, by name. None has no such settings."""
    found = {name: getattr(settings, name, None) for name in _NEUTRAL}
    return {name: value for name, value in found.items() if value and value not in _NEUTRAL[name]}


def caches_plainly(model: PreTrainedModel) -> bool:
    """Return whether the model's cache contains only the keys and values of tokens.

    State-space models and models with chunked attention have other caches.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or _ATTENTIONS)
    return (
        {"past_key_values", "attention_mask", "use_cache"} <= accepted_by(model)
        and not getattr(model.config, "is_encoder_decoder", False)
        and not getattr(model, "_is_stateful", False)
        and kinds <= _ATTENTIONS
    )


def settings_note(name: str, folder: Path) -> list[str]:
    """Return a note about the settings in a model's generation_config.json that change its answers.

    Args:
        name: Name of the model in the note.
        folder: Folder of the model.

    Returns:
        A list with one note, or an empty list if there are no such settings.
    """
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return []
    try:
        settings = steering(GenerationConfig.from_pretrained(folder))
    except Exception:  # a file that transformers cannot read is also ignored when the model is loaded
        return []
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    return (
        [f"the generation_config.json of {name} changes its answers with these settings: {listed[:200]}"]
        if settings
        else []
    )
