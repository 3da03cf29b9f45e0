"""`wpn-bench doctor`: what will work here and what will not, before anything is computed. No weights are loaded.

Each check gives a finding: `ok`, `note` (worth knowing, nothing fails), or `fail` (a run would fail) with the way out.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from wpn_bench.config import RunConfig
from wpn_bench.errors import UserError

GIB = 2**30
# What Python, PyTorch and transformers take beside the model.
LIBRARIES = {"cpu": 1.0 * GIB, "cuda": 0.5 * GIB}
SPARE = 0.9  # of the free memory: the rest is lost between blocks
_LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "lm-eval",
    "detoxify",
    "huggingface-hub",
    "pandas",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. `way_out` says what to do about a failure."""

    topic: str
    status: Literal["ok", "note", "fail"]
    text: str
    way_out: str = ""


@dataclass(frozen=True)
class Patient:
    """What is asked about: a run's configuration, its store, and the folder that its run folder will lie in."""

    config: RunConfig
    store: Path
    runs: Path

    @property
    def on_hub(self) -> bool:
        """Whether the model is fetched from the hub."""
        return self.config.model != "lab" and not Path(self.config.model).expanduser().exists()

    @cached_property
    def architecture(self) -> tuple[Any, Any]:
        """Class and configuration of the model; (None, None) if it cannot be read."""
        from wpn_bench import lab
        from wpn_bench.unlearn.preflight import architecture

        where: Path | str = lab.base_model() if self.config.model == "lab" else self.config.model
        if isinstance(where, str) and not self.on_hub:
            where = Path(where).expanduser()
        return architecture(where, self.config.revision)

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda`; raises `UserError` for a device that is not here."""
        from wpn_bench.models import pick_device

        return pick_device(self.config.device).partition(":")[0]


def examine(patient: Patient) -> list[Finding]:
    """All findings, in the order in which they are printed."""
    found: list[Finding] = []
    for topic, check in _CHECKS.items():
        try:
            found += check(patient)
        except UserError as e:
            found.append(Finding(topic, "fail", e.problem, e.way_out))
    return found


def failed(findings: list[Finding]) -> bool:
    return any(finding.status == "fail" for finding in findings)


def show(findings: list[Finding], as_json: bool) -> None:
    """Print the findings and, last, whether all is well."""
    if as_json:
        print(json.dumps({"ok": not failed(findings), "findings": [asdict(f) for f in findings]}, indent=2))
        return
    width = max(len(f.topic) for f in findings)
    for f in findings:
        print(f"{f.status:<4}  {f.topic:<{width}}  {f.text}{f'; {f.way_out}' if f.way_out else ''}")
    bad = sum(f.status == "fail" for f in findings)
    print(f"{bad} thing{'s' if bad > 1 else ''} to mend first" if bad else "all is well")


# --- the checks ------------------------------------------------------------------------------------------------------


def _libraries(patient: Patient) -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    declared = {_normal(r.name): r for r in map(Requirement, requires("wpn-bench") or ())}
    pinned = _pinned()
    yield Finding("python", "ok", platform.python_version())
    for name in _LIBRARIES:
        try:
            here = version(name)
        except PackageNotFoundError:
            yield Finding(name, "fail", "is not installed", "pip install wpn-bench")
            continue
        asked = str(declared[_normal(name)].specifier) if _normal(name) in declared else ""
        pin = pinned.get(_normal(name))
        if not SpecifierSet(asked).contains(here, prereleases=True):
            yield Finding(name, "fail", f"{here}, but wpn-bench needs {asked}", f"pip install '{name}{asked}'")
        elif pin is not None and here.partition("+")[0] != pin:
            yield Finding(name, "note", f"{here}; the tests ran with {pin}")
        else:
            yield Finding(name, "ok", here + (" (as pinned)" if pin else ""))


def _pinned() -> dict[str, str]:
    """The versions of constraints.txt; none in an installed wheel, which has no such file."""
    file = Path(__file__).resolve().parent.parent / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_normal(name): pin for name, _, pin in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _machine(patient: Patient) -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield Finding(
        "processors", "ok", f"{os.cpu_count()} ({platform.machine()}), PyTorch uses {torch.get_num_threads()}"
    )
    yield Finding("memory", "ok", f"{_size(memory.available)} free of {_size(memory.total)}")
    if not torch.cuda.is_available():
        yield Finding("gpu", "note", "none: everything runs on the processor")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use --mixed-precision fp16"
        name = torch.cuda.get_device_name(i)
        yield Finding("gpu", "ok", f"{name}, {_size(free)} free of {_size(total)}, {bf16}")
    yield Finding("device", "ok", f"this run would use {patient.device}")


def _disk(patient: Patient) -> Iterator[Finding]:
    need = _disk_need(patient)
    for topic, folder, wanted in (("store", patient.store, need), ("runs", patient.runs, 0)):
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        if not there.is_dir() or not os.access(there, os.W_OK):
            option = "--store" if topic == "store" else "--out"
            yield Finding(topic, "fail", f"{folder} cannot be written", f"give another with {option} DIR")
        elif free < wanted:
            text = f"{_size(free)} free at {folder}, the trained models alone may take {_size(wanted)}"
            yield Finding(topic, "fail", text, "give a larger disk with --store DIR, or fewer --methods or --seeds")
        else:
            also = f", the trained models may take {_size(wanted)}" if wanted else ""
            yield Finding(topic, "ok", f"{_size(free)} free at {folder}{also}")


def _disk_need(patient: Patient) -> int:
    """Bytes of the models that the run trains, and of one checkpoint with Adam's states."""
    import torch

    model_class, model_config = patient.architecture
    if model_class is None or "train" not in patient.config.stages:
        return 0
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class(model_config).parameters())
    size = torch.finfo(getattr(torch, patient.config.dtype)).bits // 8
    return parameters * (size * len(patient.config.methods) * len(patient.config.seeds) + 12)


def _hub(patient: Patient) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    offline = constants.HF_HUB_OFFLINE
    # An endpoint may carry a name and a password.
    address = urlsplit(constants.ENDPOINT)
    where = f"{address.scheme}://{address.hostname}{f':{address.port}' if address.port else ''}"
    token = "with a token" if get_token() else "no token (gated repositories stay closed)"
    yield Finding(
        "hub",
        "note" if offline else "ok",
        f"{where}, {token}{', offline mode: only what is cached' if offline else ''}",
    )


def _model(patient: Patient) -> Iterator[Finding]:
    asked = patient.config.model
    model_class, _ = patient.architecture
    if model_class is not None:
        yield Finding("model", "ok", f"{asked}: {model_class.__name__}")
    elif patient.on_hub:
        way_out = "check its name, HF_TOKEN, HF_ENDPOINT and the network; `wpn-bench full` alone needs none of them"
        yield Finding(
            "model", "fail", f"the configuration of {asked} cannot be read from the hub or the cache", way_out
        )
    else:
        yield Finding(
            "model", "fail", f"{asked} holds no causal language model", "give a folder with config.json, or a hub id"
        )


def _judge(patient: Patient) -> Iterator[Finding]:
    from huggingface_hub import constants

    from wpn_bench.harmless.judges import JUDGES
    from wpn_bench.harmless.judges.spec import parse

    for text in (patient.config.judge, *patient.config.judges):
        spec = parse(text)
        missing = JUDGES.get(spec.judge).to_fetch(spec.variant)
        if not missing:
            yield Finding("judge", "ok", f"{spec.shown} is here")
        elif constants.HF_HUB_OFFLINE:
            yield Finding("judge", "fail", f"{spec.shown} lacks {missing}, and this is offline mode", "connect once")
        else:
            yield Finding("judge", "note", f"{spec.shown} lacks {missing}, which a run will fetch")


def _training(patient: Patient) -> Iterator[Finding]:
    """Whether each method's training fits, and by what it would."""
    from wpn_bench.engine.budget import free_memory
    from wpn_bench.unlearn import preflight
    from wpn_bench.unlearn.memory import of_training
    from wpn_bench.unlearn.methods import method_of

    model_class, model_config = patient.architecture
    config = patient.config
    if model_class is None or "train" not in config.stages:
        return
    for name in config.methods:
        preflight.check_precision(config.method_config(name).mixed_precision, patient.device, config.dtype)
    free = SPARE * free_memory(patient.device) - LIBRARIES[patient.device]

    def estimate(name: str, **changes: Any) -> Any:
        given = config.method_config(name).model_dump() | changes
        kind = method_of(name)
        return of_training(model_class, model_config, kind(kind.Config(**given)), config.dtype)

    # The methods that a run trains one after another: the hungriest decides.
    every = {name: estimate(name) for name in config.methods}
    name, most = max(every.items(), key=lambda pair: pair[1].total)
    parts = ", ".join(
        f"{part} {_size(size)}"
        for part in ("weights", "reference", "gradients", "optimizer", "activations")
        if (size := getattr(most, part))
    )
    text = f"{name} takes at most {_size(most.total)} ({most.parameters / 1e6:,.1f} M parameters: {parts})"
    here = f"{_size(max(0, free))} to be had on {patient.device}"
    if most.total <= free:
        yield Finding("training", "ok", f"fits: {text}, {here}")
        return
    for option, changes in _SAVINGS.items():
        less = max(estimate(one, **changes).total for one in config.methods)
        if less <= free:
            yield Finding("training", "fail", f"does not fit: {text}, {here}", f"use {option} ({_size(less)})")
            return
    yield Finding("training", "fail", f"does not fit: {text}, {here}", "take a smaller model, or a larger machine")


# Options that save memory, the least intrusive first.
_SAVINGS: dict[str, dict[str, Any]] = {
    "--gradient-checkpointing": {"gradient_checkpointing": True},
    "--lora 16": {"lora": 16},
    "--lora 16 --gradient-checkpointing": {"lora": 16, "gradient_checkpointing": True},
}


def _measuring(patient: Patient) -> Iterator[Finding]:
    """Whether two models, which is what a run holds at a time, fit; batches shrink to what is left beside them."""
    import torch

    from wpn_bench.engine.budget import free_memory
    from wpn_bench.models import KEEP

    model_class, model_config = patient.architecture
    if model_class is None:
        return
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class(model_config).parameters())
    need = KEEP * parameters * torch.finfo(getattr(torch, patient.config.dtype)).bits // 8
    free = SPARE * free_memory(patient.device) - LIBRARIES[patient.device]
    text = f"base and one other model take {_size(need)}, {_size(max(0, free))} to be had on {patient.device}"
    if need <= free:
        yield Finding("measuring", "ok", f"fits: {text}")
    else:
        yield Finding("measuring", "fail", f"does not fit: {text}", "use --dtype bfloat16, or a larger machine")


_CHECKS = {
    "libraries": _libraries,
    "machine": _machine,
    "disk": _disk,
    "hub": _hub,
    "model": _model,
    "judge": _judge,
    "training": _training,
    "measuring": _measuring,
}


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
