"""`wpn-bench doctor`: what will work here and what will not, before anything is computed. No weights are loaded.

Each check gives a finding: `ok`, `note` (worth knowing, nothing fails), or `fail` (a run would fail) with the way out.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from wpn_bench.config import RunConfig
from wpn_bench.core import machine
from wpn_bench.errors import UserError
from wpn_bench.preflight import resources
from wpn_bench.preflight.resources import FitCheck, ModelSpec

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
class Diagnostic:
    """One line of the report. `hint` says what to do about a failure."""

    topic: str
    status: Literal["ok", "note", "fail"]
    text: str
    hint: str = ""


@dataclass(frozen=True)
class DoctorContext:
    """What is asked about: a run's configuration, its store, and the folder that its run folder will lie in."""

    config: RunConfig
    store: Path
    runs: Path

    @property
    def on_hub(self) -> bool:
        """Whether the model is fetched from the hub."""
        return self.config.model != "lab" and not Path(self.config.model).expanduser().exists()

    @cached_property
    def subject(self) -> ModelSpec | None:
        """What is estimated; None if the model's configuration cannot be read."""
        return ModelSpec.of(self.config)

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda`; raises `UserError` for a device that is not here."""
        from wpn_bench.models import pick_device

        return pick_device(self.config.device).partition(":")[0]


def run_checks(patient: DoctorContext) -> list[Diagnostic]:
    """All findings, in the order in which they are printed."""
    found: list[Diagnostic] = []
    for topic, check in _CHECKS.items():
        try:
            found += check(patient)
        except UserError as e:
            found.append(Diagnostic(topic, "fail", e.problem, e.hint))
    return found


def has_failures(findings: list[Diagnostic]) -> bool:
    return any(finding.status == "fail" for finding in findings)


def print_diagnostics(findings: list[Diagnostic], as_json: bool) -> None:
    """Print the findings and, last, whether all is well."""
    if as_json:
        print(json.dumps({"ok": not has_failures(findings), "findings": [asdict(f) for f in findings]}, indent=2))
        return
    width = max(len(f.topic) for f in findings)
    for f in findings:
        print(f"{f.status:<4}  {f.topic:<{width}}  {f.text}{f'; {f.hint}' if f.hint else ''}")
    bad = sum(f.status == "fail" for f in findings)
    print(f"{bad} thing{'s' if bad > 1 else ''} to mend first" if bad else "all is well")


def _libraries(patient: DoctorContext) -> Iterator[Diagnostic]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    declared = {_normal(r.name): r for r in map(Requirement, requires("wpn-bench") or ())}
    pinned = _pinned()
    yield Diagnostic("python", "ok", platform.python_version())
    for name in _LIBRARIES:
        try:
            here = version(name)
        except PackageNotFoundError:
            yield Diagnostic(name, "fail", "is not installed", "pip install wpn-bench")
            continue
        asked = str(declared[_normal(name)].specifier) if _normal(name) in declared else ""
        pin = pinned.get(_normal(name))
        if not SpecifierSet(asked).contains(here, prereleases=True):
            yield Diagnostic(name, "fail", f"{here}, but wpn-bench needs {asked}", f"pip install '{name}{asked}'")
        elif pin is not None and here.partition("+")[0] != pin:
            yield Diagnostic(name, "note", f"{here}; the tests ran with {pin}")
        else:
            yield Diagnostic(name, "ok", here + (" (as pinned)" if pin else ""))


def _pinned() -> dict[str, str]:
    """The versions of constraints.txt; none in an installed wheel, which has no such file."""
    file = Path(__file__).resolve().parents[2] / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_normal(name): pin for name, _, pin in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _machine(patient: DoctorContext) -> Iterator[Diagnostic]:
    import torch

    yield Diagnostic(
        "processors", "ok", f"{os.cpu_count()} ({platform.machine()}), PyTorch uses {torch.get_num_threads()}"
    )
    free, total = machine.free_memory(), machine.total_memory()
    yield Diagnostic("memory", "ok", f"{resources.format_bytes(free)} free of {resources.format_bytes(total)}")
    if not torch.cuda.is_available():
        yield Diagnostic("gpu", "note", "none: everything runs on the processor")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use --mixed-precision fp16"
        name = torch.cuda.get_device_name(i)
        yield Diagnostic(
            "gpu", "ok", f"{name}, {resources.format_bytes(free)} free of {resources.format_bytes(total)}, {bf16}"
        )
    yield Diagnostic("device", "ok", f"this run would use {patient.device}")


def _disk(patient: DoctorContext) -> Iterator[Diagnostic]:
    subject = patient.subject
    verdict = resources.check_store(subject, patient.store) if subject else None
    for topic, folder in (("store", patient.store), ("runs", patient.runs)):
        there = machine.nearest_existing(folder)
        if not there.is_dir() or not os.access(there, os.W_OK):
            option = "--store" if topic == "store" else "--out"
            yield Diagnostic(topic, "fail", f"{folder} cannot be written", f"give another with {option} DIR")
        elif topic == "store" and verdict:
            yield _finding(verdict)
        else:
            yield Diagnostic(topic, "ok", f"{resources.format_bytes(machine.free_disk(folder))} free at {folder}")


def _finding(verdict: FitCheck) -> Diagnostic:
    return Diagnostic(verdict.topic, "ok" if verdict.fits else "fail", verdict.text, verdict.hint)


def _hub(patient: DoctorContext) -> Iterator[Diagnostic]:
    from huggingface_hub import constants, get_token

    offline = constants.HF_HUB_OFFLINE
    # An endpoint may carry a name and a password.
    address = urlsplit(constants.ENDPOINT)
    where = f"{address.scheme}://{address.hostname}{f':{address.port}' if address.port else ''}"
    token = "with a token" if get_token() else "no token (gated repositories stay closed)"
    yield Diagnostic(
        "hub",
        "note" if offline else "ok",
        f"{where}, {token}{', offline mode: only what is cached' if offline else ''}",
    )


def _model(patient: DoctorContext) -> Iterator[Diagnostic]:
    from wpn_bench import hub, models

    asked = patient.config.model
    if patient.on_hub:
        # Raises where the run would: closed, unknown, not here and offline, code or pickles that nobody agreed to.
        models.check_permitted(asked, hub.resolve_commit(asked, patient.config.revision))
    if patient.subject is not None:
        yield Diagnostic("model", "ok", f"{asked}: {patient.subject.model_class.__name__}")
    elif patient.on_hub:
        hint = "check its name, HF_TOKEN, HF_ENDPOINT and the network; `wpn-bench full` alone needs none of them"
        yield Diagnostic(
            "model", "fail", f"the configuration of {asked} cannot be read from the hub or the cache", hint
        )
    else:
        yield Diagnostic(
            "model", "fail", f"{asked} holds no causal language model", "give a folder with config.json, or a hub id"
        )


def _judge(patient: DoctorContext) -> Iterator[Diagnostic]:
    from huggingface_hub import constants

    from wpn_bench.harmless.judges import JUDGES
    from wpn_bench.harmless.judges.spec import parse

    for text in (patient.config.judge, *patient.config.judges):
        spec = parse(text)
        missing = JUDGES.get(spec.judge).to_fetch(spec.variant)
        if not missing:
            yield Diagnostic("judge", "ok", f"{spec.shown} is here")
        elif constants.HF_HUB_OFFLINE:
            yield Diagnostic("judge", "fail", f"{spec.shown} lacks {missing}, and this is offline mode", "connect once")
        else:
            yield Diagnostic("judge", "note", f"{spec.shown} lacks {missing}, which a run will fetch")


def _training(patient: DoctorContext) -> Iterator[Diagnostic]:
    """Whether each method's training fits, and by what it would."""
    from wpn_bench.unlearn import preflight

    subject, config = patient.subject, patient.config
    if subject is None or "train" not in config.stages:
        return
    for name in config.methods:
        preflight.check_precision(config.method_config(name).mixed_precision, patient.device, config.dtype)
    yield _finding(resources.check_training(subject))


def _measuring(patient: DoctorContext) -> Iterator[Diagnostic]:
    """Whether the models that a run holds at a time fit; batches shrink to what is left beside them."""
    if patient.subject is not None:
        yield _finding(resources.check_inference(patient.subject))


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
