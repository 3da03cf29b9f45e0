"""Which models the decoding loop supports, and which settings that a model brings are honoured."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

# The rule for the generation_config that a model brings: settings that change the logits, and so also greedy decoding, are
# honoured, and the answer to a prompt is the one that it gets alone. All others are ours: sampling (temperature, top_p, ...)
# and length come from `Decoding`, and the search is greedy or plain sampling (no beams, no assistant, no other cache).
# End tokens are honoured, too (see `models.ends`). These are the honoured settings, and the values that have no effect.
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
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter passes all arguments on
    return frozenset(inspect.signature(inner.forward).parameters)


def is_plain(model: PreTrainedModel) -> bool:
    """Return whether the decoding loop supports a model.

    It needs a plain cache (see `caches_plainly`) and a generation configuration that does not change the logits.
    """
    return not steering(getattr(model, "generation_config", None)) and caches_plainly(model)


def steering(settings: Any) -> dict[str, Any]:
    """Return the settings of a generation configuration (None: no settings) that change the logits, by name."""
    found = {name: getattr(settings, name, None) for name in _NEUTRAL}
    return {name: value for name, value in found.items() if value and value not in _NEUTRAL[name]}


def caches_plainly(model: PreTrainedModel) -> bool:
    """Return whether the model's cache contains only keys and values of tokens.

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
    """Return a note about the settings of a model's generation_config.json that change its answers.

    Args:
        name: What the note calls the model.
        folder: The folder of the model.

    Returns:
        One note, or none if there are no such settings.
    """
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return []
    try:
        settings = steering(GenerationConfig.from_pretrained(folder))
    except Exception:  # a file that transformers cannot read: it is ignored when the model is loaded, too
        return []
    listed = ", ".join(f"{key} {value}" for key, value in settings.items())
    return (
        [f"{name} brings settings that change its answers, and they are honoured: {listed[:200]}"] if settings else []
    )
