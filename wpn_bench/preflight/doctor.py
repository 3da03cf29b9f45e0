"""Check before a run what will work on this machine (`wpn-bench doctor`). No weights are loaded.

Each check returns diagnostics with a status: `ok`, `note` (for information; the run works) or `fail` (the run would
fail; a hint tells what to do).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from wpn_bench.config import RunConfig, split_candidate
from wpn_bench.core import machine
from wpn_bench.core.files import check_locks
from wpn_bench.errors import UserError
from wpn_bench.models.files import check_causal, check_usable
from wpn_bench.preflight import resources
from wpn_bench.preflight.estimates import ModelSpec
from wpn_bench.preflight.resources import FitCheck
from wpn_bench.preflight.versions import LIBRARIES, normal_name, pinned_versions


@dataclass(frozen=True)
class Diagnostic:
    """One line of the output.

    Attributes:
        topic: What was checked.
        status: `ok`, `note` or `fail`.
        text: What was found.
        hint: What the user can do about a failure.
    """

    topic: str
    status: Literal["ok", "note", "fail"]
    text: str
    hint: str = ""


@dataclass(frozen=True)
class DoctorContext:
    """What is checked.

    Attributes:
        config: Configuration of the run.
        store: Folder of its artifact store.
        runs: Parent folder of its run folder.
    """

    config: RunConfig
    store: Path
    runs: Path

    @property
    def on_hub(self) -> bool:
        """Return whether the model is on the hub and not local."""
        return self.config.model != "lab" and not Path(self.config.model).expanduser().exists()

    @cached_property
    def spec(self) -> ModelSpec | None:
        """Return the run and its model, for estimates, or None if the model's configuration cannot be read."""
        return ModelSpec.of(self.config)

    @cached_property
    def device(self) -> str:
        """Return `cpu` or `cuda`. Raises `UserError` for a device that this machine does not have."""
        from wpn_bench.models import pick_device

        return pick_device(self.config.device).partition(":")[0]


def run_checks(context: DoctorContext) -> list[Diagnostic]:
    """Run all checks and return their diagnostics in the order of the output."""
    diagnostics: list[Diagnostic] = []
    for topic, check in _CHECKS.items():
        try:
            diagnostics += check(context)
        except UserError as e:
            diagnostics.append(Diagnostic(topic, "fail", e.problem, e.hint))
    return diagnostics


def has_failures(diagnostics: list[Diagnostic]) -> bool:
    """Return whether a run would fail."""
    return any(d.status == "fail" for d in diagnostics)


def print_diagnostics(diagnostics: list[Diagnostic], as_json: bool) -> None:
    """Print the diagnostics, and in the last line the number of failures.

    Args:
        diagnostics: The diagnostics.
        as_json: Whether to print JSON instead of text.
    """
    if as_json:
        print(json.dumps({"ok": not has_failures(diagnostics), "findings": [asdict(d) for d in diagnostics]}, indent=2))
        return
    width = max(len(d.topic) for d in diagnostics)
    for d in diagnostics:
        print(f"{d.status:<4}  {d.topic:<{width}}  {d.text}{f'; {d.hint}' if d.hint else ''}")
    failures = sum(d.status == "fail" for d in diagnostics)
    print(f"{failures} problem{'s' if failures > 1 else ''} to fix first" if failures else "no problems found")


def _libraries(context: DoctorContext) -> Iterator[Diagnostic]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    declared = {normal_name(r.name): r for r in map(Requirement, requires("wpn-bench") or ())}
    pinned = pinned_versions()
    yield Diagnostic("python", "ok", platform.python_version())
    for name in LIBRARIES:
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Diagnostic(name, "fail", "is not installed", "pip install wpn-bench")
            continue
        required = str(declared[normal_name(name)].specifier) if normal_name(name) in declared else ""
        pin = pinned.get(normal_name(name))
        if not SpecifierSet(required).contains(installed, prereleases=True):
            yield Diagnostic(
                name, "fail", f"{installed}, but wpn-bench needs {required}", f"pip install '{name}{required}'"
            )
        elif pin is not None and installed.partition("+")[0] != pin:
            yield Diagnostic(name, "note", f"{installed}; the tests ran with {pin}")
        else:
            yield Diagnostic(name, "ok", installed + (" (as pinned)" if pin else ""))


def _machine(context: DoctorContext) -> Iterator[Diagnostic]:
    import torch

    yield Diagnostic(
        "processors", "ok", f"{os.cpu_count()} ({platform.machine()}), PyTorch uses {torch.get_num_threads()}"
    )
    free, total = machine.free_memory(), machine.total_memory()
    yield Diagnostic("memory", "ok", f"{resources.format_bytes(free)} free of {resources.format_bytes(total)}")
    if not torch.cuda.is_available():
        yield Diagnostic("gpu", "note", "none, so everything runs on the CPU")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use --mixed-precision fp16"
        name = torch.cuda.get_device_name(i)
        yield Diagnostic(
            "gpu", "ok", f"{name}, {resources.format_bytes(free)} free of {resources.format_bytes(total)}, {bf16}"
        )
    yield Diagnostic("device", "ok", f"this run would use {context.device}")


def _disk(context: DoctorContext) -> Iterator[Diagnostic]:
    spec = context.spec
    fit = resources.check_store(spec, context.store) if spec else None
    for topic, folder in (("store", context.store), ("runs", context.runs)):
        existing = machine.nearest_existing(folder)
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            option = "--store" if topic == "store" else "--out"
            yield Diagnostic(topic, "fail", f"{folder} cannot be written", f"choose another folder with {option} DIR")
            continue
        if topic == "store":
            check_locks(existing)
        if topic == "store" and fit:
            yield _diagnostic(fit)
        else:
            yield Diagnostic(topic, "ok", f"{resources.format_bytes(machine.free_disk(folder))} free at {folder}")


def _diagnostic(fit: FitCheck) -> Diagnostic:
    return Diagnostic(fit.topic, "ok" if fit.fits else "fail", fit.text, fit.hint)


def _hub(context: DoctorContext) -> Iterator[Diagnostic]:
    from huggingface_hub import constants, get_token

    offline = constants.HF_HUB_OFFLINE
    # The URL of the endpoint may contain a user name and a password, which must not be printed.
    address = urlsplit(constants.ENDPOINT)
    where = f"{address.scheme}://{address.hostname}{f':{address.port}' if address.port else ''}"
    token = "with a token" if get_token() else "no token (gated repositories cannot be used)"
    yield Diagnostic(
        "hub",
        "note" if offline else "ok",
        f"{where}, {token}{', offline mode: only the cache is used' if offline else ''}",
    )


def _model(context: DoctorContext) -> Iterator[Diagnostic]:
    from wpn_bench import models

    model = context.config.model
    if context.on_hub:
        # This raises the errors that the run would raise: no access, unknown name, offline and not cached, or no consent to
        # code or pickles.
        models.check_permitted(model, models.commit_of(model, context.config.revision))
    if context.spec is not None:
        trained = "train" in context.config.stages and bool(context.config.methods)
        check_usable(models.settings_folder(model, context.config.revision), trained=trained)
        yield Diagnostic("model", "ok", f"{model}: {context.spec.model_class.__name__}")
    elif context.on_hub:
        hint = (
            "check its name, HF_TOKEN, HF_ENDPOINT and the network; `wpn-bench full` without options needs none of them"
        )
        yield Diagnostic(
            "model", "fail", f"the configuration of {model} cannot be read from the hub or the cache", hint
        )
    else:
        yield Diagnostic(
            "model",
            "fail",
            f"{model} contains no causal language model",
            "give a folder with config.json, or the name of a model on the hub",
        )


def _candidates(context: DoctorContext) -> Iterator[Diagnostic]:
    """Check that each candidate exists, without loading or merging it. An endpoint is asked for its models."""
    for name, source in map(split_candidate, context.config.candidates):
        try:
            found = _described(source)
        except UserError as e:
            yield Diagnostic("candidate", "fail", f"{name}: {e.problem}", e.hint)
        else:
            yield Diagnostic("candidate", "ok", f"{name}: {found}")


def _described(source: str) -> str:
    """Return what a model is: an endpoint, a hub model, an adapter or a folder. Raises `UserError` if it cannot be used."""
    from wpn_bench import models
    from wpn_bench.models.adapters import is_adapter, named_base
    from wpn_bench.models.backends.endpoint import PREFIX, parse_source
    from wpn_bench.models.backends.openai import identified

    path = Path(source).expanduser()
    if source.startswith(PREFIX):
        endpoint = identified(parse_source(source))
        return f"the endpoint {endpoint.url} has {endpoint.model}"
    if not path.exists() and source not in (models.LAB, models.LAB_ORACLE):
        asked, revision = models.split_revision(source)
        commit = models.commit_of(asked, revision)
        models.check_permitted(asked, commit)
        return f"{asked}, commit {commit[:12]}"
    if path.is_dir() and is_adapter(path):
        named = named_base(path)
        return f"{source} is an adapter of {named[0] if named else 'the base, since it names no model'}"
    if (path / "config.json").is_file():
        check_causal(path)
        check_usable(path, trained=False)
    return source


def _attacker(context: DoctorContext) -> Iterator[Diagnostic]:
    """Check that the attacker of adaptive attacks exists, and that its endpoint answers a short request."""
    from wpn_bench.models.backends.client import REFUSED, UNANSWERED, EndpointClient
    from wpn_bench.models.backends.endpoint import PREFIX, parse_source
    from wpn_bench.models.backends.openai import identified

    source = context.config.attacker_needed()
    if source is None:
        return
    found = _described(source)
    if source.startswith(PREFIX):
        endpoint = identified(parse_source(source)).model_copy(update={"retries": 0})
        asked = {"messages": [{"role": "user", "content": "Hello"}]} if endpoint.api == "chat" else {"prompt": "Hello"}
        body = {"model": endpoint.model, **asked, "max_tokens": 16, "temperature": 1, "seed": 0}
        ((_, reply, _),) = EndpointClient(endpoint).ask_all({0: body}, 2)
        if (reply.reason or "").startswith((REFUSED, UNANSWERED)):
            hint = "try it with another client, and raise its timeout if it is slow"
            yield Diagnostic("attacker", "fail", f"{found}, but it does not reply ({reply.reason})", hint)
            return
        found += ", and replies"
    yield Diagnostic("attacker", "ok", found)


def _judge(context: DoctorContext) -> Iterator[Diagnostic]:
    from huggingface_hub import constants

    from wpn_bench import hub
    from wpn_bench.analysis.judge_rows import WORDING_ONLY
    from wpn_bench.harmless.judges import JUDGES, get_judge
    from wpn_bench.harmless.judges.spec import MAJORITY, members_of, parse

    texts: dict[str, None] = {}  # each judge once, the members of a majority instead of it
    for text in (context.config.judge, *context.config.judges):
        judge = parse(text)
        texts.update(dict.fromkeys(members_of(judge.variant) if judge.judge == MAJORITY else [text]))
    for text in texts:
        judge = parse(text)
        if JUDGES.get(judge.judge).remote:
            try:
                get_judge(text).digest()
            except UserError as e:
                yield Diagnostic("judge", "fail", f"{judge.shown}: {e.problem}", e.hint)
            else:
                yield Diagnostic("judge", "ok", f"{judge.shown} answers")
            continue
        missing = JUDGES.get(judge.judge).to_fetch(judge.variant)
        if not missing:
            yield Diagnostic("judge", "ok", f"{judge.shown} is available")
        elif constants.HF_HUB_OFFLINE:
            yield Diagnostic(
                "judge",
                "fail",
                f"{judge.shown} lacks {missing}, which cannot be downloaded in offline mode",
                hub.PREFETCH_HINT,
            )
        else:
            yield Diagnostic("judge", "note", f"{judge.shown} lacks {missing}, which a run will download")
    if not any(parse(text).reads_prompt for text in (context.config.judge, *context.config.judges)):
        hint = "add one that does: a guard model (--judge guard:ID), or exchange, which needs no download"
        yield Diagnostic("verdict", "note", WORDING_ONLY, hint)


def _training(context: DoctorContext) -> Iterator[Diagnostic]:
    """Check whether each method's training fits into memory, and which options would make it fit."""
    from wpn_bench.unlearn import preflight

    spec, config = context.spec, context.config
    if spec is None or "train" not in config.stages:
        return
    for name in config.methods:
        preflight.check_precision(config.method_config(name).mixed_precision, context.device, config.dtype)
    yield _diagnostic(resources.check_training(spec))


def _measuring(context: DoctorContext) -> Iterator[Diagnostic]:
    """Check whether the models that are loaded at the same time fit into memory.

    Batches adapt to the remaining memory.
    """
    if context.spec is not None:
        yield _diagnostic(resources.check_inference(context.spec))


def _benchmarks(context: DoctorContext) -> Iterator[Diagnostic]:
    """Check the files of all tasks, and the data of those tasks that do not come with wpn-bench.

    Data on the hub is not downloaded for this check.
    """
    from wpn_bench.benchmarks.loading import find_definition
    from wpn_bench.benchmarks.run import rehearse_task
    from wpn_bench.hub import is_local
    from wpn_bench.preflight.sets import task_names_of

    names = task_names_of(context.config)
    for name in (*names.tested, *names.tuned):
        info = names.describe(name, resolve=False)
        if find_definition(name, names.folders).is_shipped:
            continue
        if info.dataset_path is None or is_local(info.dataset_path):
            rehearse_task(info, names.folders, context.config.limit_of("benchmarks"))
        else:
            names.describe(name)
    if names.tested or names.tuned:
        yield Diagnostic("benchmarks", "ok", f"{len(names.tested) + len(names.tuned)} tasks can be read")


_CHECKS = {
    "libraries": _libraries,
    "machine": _machine,
    "disk": _disk,
    "hub": _hub,
    "model": _model,
    "candidates": _candidates,
    "attacker": _attacker,
    "judge": _judge,
    "benchmarks": _benchmarks,
    "training": _training,
    "measuring": _measuring,
}
