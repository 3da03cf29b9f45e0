from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench.errors import UserError
from wpn_bench.unlearn.methods.base import MethodConfig
from wpn_bench.unlearn.preflight import check_precision, check_report_to, check_training


@pytest.mark.parametrize(
    ("kind", "device", "dtype"),
    [("no", "cpu", "float32"), ("no", "cpu", "bfloat16"), ("bf16", "cpu", "float32"), ("bf16", "cpu", "float16"),
     ("fp16", "cuda", "float32"), ("fp16", "cuda:1", "float16"), ("bf16", "cuda", "bfloat16")],
)  # fmt: skip
def test_precisions_that_work(monkeypatch: pytest.MonkeyPatch, kind: str, device: str, dtype: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    check_precision(kind, device, dtype)


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "problem"),
    [("fp16", "cpu", "float32", "fp16 needs a CUDA device, but this run uses cpu; use --mixed-precision bf16"),
     ("bf16", "cuda", "float32", "does not compute in bf16; use --mixed-precision fp16"),
     ("no", "cuda", "float16", "weights in float16 cannot be trained.*; add --mixed-precision fp16")],
)  # fmt: skip
def test_precisions_that_do_not(
    monkeypatch: pytest.MonkeyPatch, kind: str, device: str, dtype: str, problem: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UserError, match=problem):
        check_precision(kind, device, dtype)


def test_services_for_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["wandb"])
    check_report_to(())
    check_report_to(("wandb",))
    with pytest.raises(UserError, match="unknown service for training curves 'wandbb'; did you mean 'wandb'"):
        check_report_to(("wandb", "wandbb"))
    with pytest.raises(UserError, match="--report-to mlflow: its package is not installed; pip install mlflow"):
        check_report_to(("mlflow",))


def settings(**options: Any) -> list[MethodConfig]:
    return [MethodConfig(), MethodConfig(**options)]


def test_adapters_and_recomputed_activations(small_lm: Path) -> None:
    check_training(settings(gradient_checkpointing=True, lora={"rank": 2}), small_lm, "cpu", "float32")
    with pytest.raises(UserError, match="LoRA finds no modules to adapt"):
        check_training(settings(lora={"target_modules": ["nothing"]}), small_lm, "cpu", "float32")


def test_an_architecture_that_keeps_its_activations(small_opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import OPTForCausalLM

    monkeypatch.setattr(OPTForCausalLM, "supports_gradient_checkpointing", False)
    check_training(settings(lora=2), small_opt, "cpu", "float32")
    with pytest.raises(UserError, match=r"OPTForCausalLM does not support gradient checkpointing; leave"):
        check_training(settings(gradient_checkpointing=True), small_opt, "cpu", "float32")


def test_what_is_no_language_model_is_said_elsewhere(small_opt: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_opt, tmp_path / "model")
    for content in (json.dumps({"model_type": "t5"}), json.dumps({"model_type": "nonsense"}), "{}"):
        (folder / "config.json").write_text(content)
        check_training(settings(lora=2), folder, "cpu", "float32")
