"""Check the settings of trainings for a model and a device, before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError
from wpn_bench.unlearn import lora

if TYPE_CHECKING:
    from wpn_bench.unlearn.methods.base import MethodConfig


def check_report_to(names: Sequence[str]) -> None:
    """Check the services to which training curves are sent.

    Raises `UserError` if transformers does not know a service, or if its package is not installed.
    """
    if not names:
        return
    from transformers.integrations import integration_utils as known

    installed = known.get_available_reporting_integrations()
    for name in names:
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise unknown_name("service for training curves", name, known.INTEGRATION_TO_CALLBACK)
        if name not in installed:
            raise UserError(
                f"--report-to {name}: its package is not installed", f"pip install {name}, or leave out --report-to"
            )


def check_training(settings: Sequence[MethodConfig], folder: Path, device: str, dtype: str) -> None:
    """Check that a model can be trained with each of the given settings.

    Args:
        settings: The settings of each training.
        folder: Folder of the model.
        device: Device of the training.
        dtype: Data type of the saved and evaluated model, and of the training without mixed precision.

    Raises:
        UserError: The model cannot be trained with one of the settings.
    """
    for one in settings:
        check_precision(one.mixed_precision, device, dtype)
    if not any(one.gradient_checkpointing or one.lora for one in settings):
        return
    model_class, model_config = architecture(folder)
    if model_class is None:
        return  # the model is not a causal language model, and loading it gives a better error
    if any(one.gradient_checkpointing for one in settings) and not model_class.supports_gradient_checkpointing:
        raise UserError(
            f"{model_class.__name__} does not support gradient checkpointing",
            "leave out --gradient-checkpointing; a smaller batch_size with --accumulation also saves memory",
        )
    for adapters in {one.lora: None for one in settings if one.lora}:
        lora.check(model_class, model_config, adapters)


def check_precision(kind: str, device: str, dtype: str) -> None:
    """Check the precision of a training.

    Args:
        kind: Mixed precision: "no", "bf16" or "fp16".
        device: Device of the training.
        dtype: Data type of the model's weights.

    Raises:
        UserError: The device does not support the precision, or `dtype` is too coarse for the updates.
    """
    import torch

    on_gpu = device.startswith("cuda")
    if kind == "fp16" and not on_gpu:
        raise UserError(
            f"--mixed-precision fp16 needs a CUDA device, but this run uses {device}",
            "use --mixed-precision bf16, or leave out the option; on a CPU neither is faster",
        )
    if kind == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise UserError("this GPU does not compute in bf16", "use --mixed-precision fp16")
    if kind == "no" and dtype == "float16":
        raise UserError(
            "weights in float16 cannot be trained, because Adam's steps are smaller than their resolution",
            "add --mixed-precision fp16 (it trains float32 weights), or use --dtype bfloat16 or float32",
        )


def architecture(folder: Path) -> tuple[Any, Any]:
    """Return the class and the configuration of the causal language model in a folder, or (None, None)."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    from wpn_bench.core import consent

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=consent.code_allowed())
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config
    except (ValueError, OSError, KeyError):
        return None, None
