"""Task files (lm-eval's YAML format): find one, read what it says, digest all that decides a score.

Reads the YAML itself, without lm-eval, so that listing and planning cost milliseconds.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from wpn_bench.core import consent
from wpn_bench.core.paths import tasks_dir
from wpn_bench.errors import UserError

_PREFIXES = ("wpn_", "lab_")
_PACKAGE = __name__.partition(".")[0]


class _Function(str):
    """The value of a `!function module.name` tag: the dotted name, not imported."""


class _Loader(yaml.SafeLoader):
    """`functions`: all that the file names, wherever they stand in it."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.functions: list[str] = []

    def function(self, node: yaml.Node) -> _Function:
        self.functions.append(str(node.value))
        return _Function(str(node.value))


_Loader.add_constructor("!function", _Loader.function)


@dataclass(frozen=True)
class TaskDefinition:
    """One task or group as declared: its name, its merged fields, the files that decide a score, and the functions that
    reading it would import (also such as another field overrides)."""

    name: str
    path: Path
    fields: dict[str, Any]
    sources: tuple[Path, ...]
    functions: tuple[str, ...] = ()

    @property
    def is_group(self) -> bool:
        return "group" in self.fields

    @property
    def metadata(self) -> dict[str, Any]:
        found = self.fields.get("metadata")
        return found if isinstance(found, dict) else {}

    @property
    def digest(self) -> str:
        """SHA-256 of the contents of `sources`. Where they lie does not count."""
        whole = hashlib.sha256()
        for source in self.sources:
            whole.update(hashlib.sha256(source.read_bytes()).digest())
        return whole.hexdigest()


def short_name(task: str) -> str:
    """`wpn_arc_easy` and `lab_arc_easy` are both `arc_easy` in results, so a report has one set of names."""
    for prefix in _PREFIXES:
        if task.startswith(prefix):
            return task.removeprefix(prefix)
    return task


def task_folders(names: Iterable[str | Path]) -> tuple[Path, ...]:
    """Folders of task files: each name is a folder inside `tasks/` ("benchmarks", "lab") or a path.

    Names rather than paths travel in job parameters: another machine has the same tasks in another place.
    Raises `UserError` for a folder that is not there.
    """
    folders = []
    for name in names:
        if not str(name):  # would be this folder, with all that lies beneath
            raise UserError("a folder of tasks has an empty name", "give a folder that holds lm-eval task YAMLs")
        shipped = tasks_dir() / name
        folder = shipped if shipped.is_dir() else Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"there is no folder of tasks at {name}", "give a folder that holds lm-eval task YAMLs")
        folders.append(folder.resolve())
    return tuple(folders)


@cache
def read_folders(folders: tuple[Path, ...]) -> dict[str, TaskDefinition]:
    """Tasks and groups declared in `folders`, by name; a later folder wins. Other YAML files are left out."""
    found: dict[str, TaskDefinition] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                fields, files, functions = _read(path)
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
                why = " ".join(str(e).split())[:160]
                raise UserError(f"the task file {path} cannot be read ({why})", "mend the YAML") from e
            name = fields.get("group") or fields.get("task")
            if isinstance(name, str):
                found[name] = TaskDefinition(name, path, fields, tuple(files), tuple(functions))
    return found


def expand(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Replace groups (`wpn_nine`) by their tasks, each task once. Names not in `folders` pass through."""
    known = read_folders(tuple(folders))
    flat: list[str] = []
    for name in names:
        definition = known.get(name)
        if definition is not None and definition.is_group:
            members = [m["task"] if isinstance(m, dict) else m for m in definition.fields["task"]]
            flat += expand(members, folders)
        else:
            flat.append(name)
    return list(dict.fromkeys(flat))


def _read(path: Path) -> tuple[dict[str, Any], list[Path], list[str]]:
    """The fields of one file merged with those it includes, every file that decides a score, and the functions named."""
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        fields = loader.get_single_data()
    finally:
        loader.dispose()
    if not isinstance(fields, dict):
        return {}, [], []
    merged: dict[str, Any] = {}
    files, functions = [path], list(loader.functions)
    includes = fields.pop("include", [])
    for name in includes if isinstance(includes, list) else [includes]:
        base, more, named = _read(path.parent / name)
        merged |= base
        files += more
        functions += named
    for module in sorted({f.rpartition(".")[0] for f in loader.functions}):
        files += _module_files(module, path.parent)
    return merged | fields, list(dict.fromkeys(files)), list(dict.fromkeys(functions))


def require_code_consent(definition: TaskDefinition) -> None:
    """Raise `UserError` for a task that brings code, or has some fetched, unless the user agreed to it.

    Our own tasks and lm-eval's may name functions; templates of either run in a sandbox.
    """
    if consent.code_allowed():
        return
    at = definition.path.resolve()
    lm_eval = find_spec("lm_eval")
    installed = [
        tasks_dir().resolve(),
        *(Path(p).resolve() for p in (lm_eval and lm_eval.submodule_search_locations) or ()),
    ]
    named = [*definition.functions, *(["class"] if "class" in definition.fields else [])]
    if named and not any(at.is_relative_to(folder) for folder in installed):
        raise UserError(
            f"the task {definition.name!r} runs code beside its file ({named[0]}), with your rights",
            "read it, then add --trust-remote-code (`trust_remote_code: true`)",
        )
    metrics = definition.fields.get("metric_list") or ()
    fetched = [m.get("metric") for m in metrics if isinstance(m, dict) and m.get("hf_evaluate")]
    if fetched:
        raise UserError(
            f"the task {definition.name!r} has code for its metric {fetched[0]!r} fetched from the hub",
            "add --trust-remote-code (`trust_remote_code: true`), or leave the task out",
        )


def _module_files(module: str, beside: Path, seen: frozenset[str] = frozenset()) -> list[Path]:
    """The source of a helper module (beside the YAML, else ours) and of what it imports from this package.

    Data that is made by code (the lab's) thereby changes a task's digest when that code changes; of a module of this package
    what counts is the folder that it stands in, for errors and paths decide no data.
    """
    if module in seen:
        return []
    path = beside / (module.replace(".", "/") + ".py")
    if not path.is_file():
        if module.partition(".")[0] != _PACKAGE:
            return []  # a library: its version stands in the job's digest
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            return []
        path = Path(spec.origin)
    files = [path]
    stat = path.stat()
    within = f"{module.rpartition('.')[0]}." if module.startswith(f"{_PACKAGE}.") else ""
    for name in _imports(path, (stat.st_mtime_ns, stat.st_size)):
        if name.startswith(within):
            files += _module_files(name, beside, seen | {module})
    return list(dict.fromkeys(files))


@cache
def _imports(path: Path, as_of: tuple[int, int]) -> tuple[str, ...]:
    """Modules of this package that a source file imports; parsed once for each state of the file (time, size)."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = [f"{node.module}.{a.name}" for a in node.names]
            found += [m for m in inside if m.startswith(f"{_PACKAGE}.") and _exists(m)] or [node.module]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names]
    return tuple(name for name in dict.fromkeys(found) if name.startswith(f"{_PACKAGE}."))


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
