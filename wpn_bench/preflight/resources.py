"""Compare the memory, disk space and context length that a run needs with what is available.

This is done before any weights are downloaded or loaded. `doctor` prints the results. `full` and the other commands
refuse a run that cannot succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpn_bench import models
from wpn_bench.config import RunConfig
from wpn_bench.core.machine import USABLE_FRACTION, free_disk, nearest_existing
from wpn_bench.errors import UserError
from wpn_bench.preflight.estimates import (
    GIB,
    LIBRARY_BYTES,
    ModelSpec,
    attack_memory,
    download_bytes,
    inference_memory,
    store_usage,
    training_memory,
    training_need,
)


def available_memory(device: str) -> float:
    """Return the bytes of memory available for models on `device`."""
    from wpn_bench.core import device_memory

    return max(0.0, USABLE_FRACTION * device_memory.free_memory(device) - LIBRARY_BYTES[device])


@dataclass(frozen=True)
class FitCheck:
    """Whether one resource is sufficient.

    Attributes:
        topic: What was checked, such as "training".
        fits: Whether the resource is sufficient.
        text: How much is needed and how much is available.
        hint: What the user can do if it is not sufficient.
    """

    topic: str
    fits: bool
    text: str
    hint: str = ""


# Options that save training memory, from the least to the most intrusive, and their command-line form.
_SAVINGS: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"lora": 16},
    {"lora": 16, "gradient_checkpointing": True},
    {"lora": 16, "gradient_checkpointing": True, "dtype": "bfloat16", "mixed_precision": "no"},
    {
        "lora": 16,
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
        "mixed_precision": "no",
        "batch_size": 1,
        "retain_batch_size": 1,
    },
)
_OPTIONS = {
    "lora": "--lora 16",
    "gradient_checkpointing": "--gradient-checkpointing",
    "dtype": "--dtype bfloat16",
    "mixed_precision": "--mixed-precision no",
    "batch_size": "and `training: {batch_size: 1, retain_batch_size: 1, accumulation: 8}` in a --config file",
}


def check_training(spec: ModelSpec) -> FitCheck:
    """Check the memory of training. Methods train one after another, so only the largest need counts."""
    free = available_memory(spec.device)
    every = {name: training_memory(spec, name) for name in spec.config.methods}
    name, most = max(every.items(), key=lambda pair: pair[1].total)
    parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in training_need("train", name, most).parts.items())
    text = f"{name} needs at most {format_bytes(most.total)} ({most.parameters / 1e6:,.1f} M parameters: {parts})"
    available = f"{format_bytes(free)} available on {spec.device}"
    if most.total <= free:
        return FitCheck("training", True, f"fits: {text}, {available}")
    mixed = any(spec.config.method_config(one).mixed_precision != "no" for one in every)
    for changes in _SAVINGS:
        less = max(training_memory(spec, one, **changes).total for one in every)
        if less <= free:
            options = " ".join(
                option for name, option in _OPTIONS.items() if name in changes and (mixed or name != "mixed_precision")
            )
            return FitCheck(
                "training", False, f"does not fit: {text}, {available}", f"use {options} ({format_bytes(less)})"
            )
    return FitCheck("training", False, f"does not fit: {text}, {available}", "use a smaller model or a larger machine")


def check_inference(spec: ModelSpec) -> FitCheck:
    """Check the memory of inference.

    Two models (base and unlearned) are kept in memory if both fit. Otherwise there is one at a time, or it is
    offloaded.
    """
    config, free = spec.config, available_memory(spec.device)
    available = f"{format_bytes(free)} available on {spec.device}"
    if config.offload == "cpu" and spec.device != "cpu":
        free += available_memory("cpu")
        available += " and in main memory"
    one, two = inference_memory(spec, offload="none").memory, 2 * spec.weights()
    both = one + spec.weights()
    if both <= free:
        return FitCheck("measuring", True, f"fits: the base and one other model need {format_bytes(two)}, {available}")
    text = (
        f"one model needs {format_bytes(spec.weights())}, with activations and judge {format_bytes(one)}, {available}"
    )
    if one <= free:
        return FitCheck("measuring", True, f"fits one model at a time: {text}")
    least = inference_memory(spec, offload="disk").memory
    if config.offload == "disk" and least <= free:
        return FitCheck("measuring", True, f"fits if read from disk: {text}; {format_bytes(least)} are sufficient")
    if config.dtype == "float32" and (half := inference_memory(spec, "bfloat16", "none").memory) <= free:
        hint = f"use --dtype bfloat16 ({format_bytes(half)})"
    elif spec.device != "cpu" and config.offload == "none" and one <= free + available_memory("cpu"):
        hint = "use --offload cpu"
    elif config.offload != "disk" and least <= free:
        hint = f"use --offload disk ({format_bytes(least)})"
    else:
        hint = "use a smaller model or a larger machine"
    return FitCheck("measuring", False, f"does not fit: {text}", hint)


def check_attacks(spec: ModelSpec) -> Iterator[FitCheck]:
    """Check the attacks that do more than inference. They do not support offloaded models."""
    free = available_memory(spec.device)
    for need in attack_memory(spec):
        text = f"{need.name} needs at most {format_bytes(need.memory)}, {format_bytes(free)} available on {spec.device}"
        fits = need.memory <= free
        hint = "" if fits else f"leave out {need.name} (choose attacks with --attacks)"
        yield FitCheck("attacks", fits, ("fits: " if fits else "does not fit: ") + text, hint)


def check_context(spec: ModelSpec) -> FitCheck:
    """Check that a response fits into the model's context."""
    context, response = models.context_of(spec.model_config), spec.config.decoding.max_new_tokens
    text = f"{spec.config.model} has a context of {context} tokens, but the response alone may have {response}"
    return FitCheck(
        "context", response < context, text, "" if response < context else f"use --max-new-tokens below {context}"
    )


def check_download(config: RunConfig) -> FitCheck:
    """Check the disk space of the hub's cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    need, free = download_bytes(config.model, config.revision), free_disk(cache)
    text = f"{config.model} needs {format_bytes(need)}, {format_bytes(free)} free in the hub's cache"
    hint = "" if need <= free else "set HF_HOME to a folder on a larger disk"
    return FitCheck("download", need <= free, text, hint)


def check_store(spec: ModelSpec, store: Path, done: int = 0) -> FitCheck:
    """Check the disk space of the store. The download is added if it goes to the same disk.

    Args:
        spec: The run and its model.
        store: Folder of the store.
        done: Number of the run's trainings whose models are already in the store.

    Returns:
        The result of the check.
    """
    from huggingface_hub import constants

    free, need = free_disk(store), store_usage(spec, done).total
    text = f"{format_bytes(free)} free at {store}, the trained models alone may need {format_bytes(need)}"
    if nearest_existing(store).stat().st_dev == nearest_existing(Path(constants.HF_HUB_CACHE)).stat().st_dev:
        fetched = download_bytes(spec.config.model, spec.config.revision)
        text += f" and the download {format_bytes(fetched)}" if fetched else ""
        need += fetched
    if need > free:
        return FitCheck("store", False, text, "choose a larger disk with --store DIR, or fewer --methods or --seeds")
    also = f", the trained models may need {format_bytes(need)}" if need else ""
    return FitCheck("store", True, f"{format_bytes(free)} free at {store}{also}")


def check_resources(config: RunConfig, *, force: bool = False, warn: Callable[[str], None] = lambda text: None) -> None:
    """Check the context length, memory and download of a run.

    A model whose configuration cannot be read is not checked.

    Args:
        config: Configuration of the run.
        force: Whether to warn instead of raising an error if an estimate does not fit.
        warn: Called with each warning.

    Raises:
        UserError: The run cannot succeed with this model on this machine.
    """
    spec = ModelSpec.of(config)
    if spec is None:
        return
    context = check_context(spec)
    if not context.fits:
        raise UserError(context.text, context.hint)
    raise_if_too_large(_of_memory(spec, warn), force=force, warn=warn)
    raise_if_too_large([check_download(config)], force=force, warn=warn)


def _of_memory(spec: ModelSpec, warn: Callable[[str], None]) -> list[FitCheck]:
    stages, found = set(spec.config.stages), []
    try:
        if "train" in stages and spec.config.methods:
            found.append(check_training(spec))
        if stages != {"train"}:
            found.append(check_inference(spec))
        found += check_attacks(spec)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as e:
        # Some models cannot be built and run without weights.
        what = " ".join(str(e).split())[:120]
        warn(f"note: the memory of {spec.model_class.__name__} cannot be estimated ({what})")
    return found


def raise_if_too_large(checks: list[FitCheck], *, force: bool, warn: Callable[[str], None]) -> None:
    """Refuse a run for which a resource is not sufficient.

    Args:
        checks: Results of the checks.
        force: Whether to warn instead.
        warn: Called with each warning.

    Raises:
        UserError: A check failed and `force` is false.
    """
    for check in checks:
        if check.fits:
            continue
        if not force:
            hint = f"{check.hint}; the estimate is an upper bound, so you can also try with --force"
            raise UserError(f"{check.topic}: {check.text}", hint)
        warn(f"warning: {check.topic}: {check.text}; continuing because of --force")


def format_bytes(count: float) -> str:
    """Format a number of bytes as GiB or MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
