"""Find and read task definitions in lm-eval's YAML format, and compute a digest of everything that determines a score.

The YAML files are read without lm-eval, so that listing and planning take milliseconds.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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


class Function(str):
    """The dotted name in a `!function module.name` tag. The function is not imported."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that collects the names in all `!function` tags (`functions`) and repeated keys (`repeated`)."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.functions: list[str] = []
        self.repeated: list[str] = []

    def function(self, node: yaml.Node) -> Function:
        self.functions.append(str(node.value))
        return Function(str(node.value))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.repeated += [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        return super().construct_mapping(node, deep)


_Loader.add_constructor("!function", _Loader.function)


@dataclass(frozen=True)
class TaskDefinition:
    """The definition of a task or of a group of tasks.

    Attributes:
        name: Name of the task or group.
        path: Its YAML file.
        fields: Fields of the file, merged with those of the files that it includes.
        sources: All files that affect a score.
        functions: Functions that lm-eval would import to read the task, including those in overridden fields.
        files: The YAML file of each field, which may be an included file.
        repeated: (file, key) of each key that is given twice. YAML silently uses the last value.
    """

    name: str
    path: Path
    fields: dict[str, Any]
    sources: tuple[Path, ...]
    functions: tuple[str, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    repeated: tuple[tuple[Path, str], ...] = ()

    @property
    def is_group(self) -> bool:
        """Return whether this is a group of tasks."""
        return "group" in self.fields

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the field `metadata`, or an empty dict if there is none."""
        found = self.fields.get("metadata")
        return found if isinstance(found, dict) else {}

    @property
    def is_shipped(self) -> bool:
        """Return whether the task comes with wpn-bench."""
        return self.path.resolve().is_relative_to(tasks_dir().resolve())

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the contents of `sources`, independent of their paths."""
        whole = hashlib.sha256()
        for source in self.sources:
            whole.update(hashlib.sha256(source.read_bytes()).digest())
        return whole.hexdigest()

    def where(self, key: str) -> str:
        """Return the file and the name of a field, for messages."""
        return f"{self.files.get(key.partition('[')[0].partition('.')[0], self.path)}: {key}"


def short_name(task: str) -> str:
    """Return the name of a task in results: `wpn_arc_easy` and `lab_arc_easy` are both `arc_easy`."""
    for prefix in _PREFIXES:
        if task.startswith(prefix):
            return task.removeprefix(prefix)
    return task


def task_folders(names: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the paths of folders of task files, given as paths or names of folders in `tasks/` ("benchmarks", "lab").

    Job parameters contain names and not paths, because paths differ between machines. Raises `UserError` if a folder
    does not exist.
    """
    folders = []
    for name in names:
        if not str(name):  # Path("") is the working directory, with everything below it
            raise UserError(
                "a folder of tasks has an empty name", "give a folder that contains lm-eval task files (YAML)"
            )
        shipped = tasks_dir() / name
        folder = shipped if shipped.is_dir() else Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"there is no folder of tasks at {name}", "give a folder that contains lm-eval task files (YAML)"
            )
        folders.append(folder.resolve())
    return tuple(folders)


@cache
def read_folders(folders: tuple[Path, ...]) -> dict[str, TaskDefinition]:
    """Read the tasks and groups in folders. Other YAML files are ignored.

    Returns:
        The definitions by name. If a name occurs twice, the definition in the later folder is used.

    Raises:
        UserError: A file cannot be read, or the name of a task is not text.
    """
    found: dict[str, TaskDefinition] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                read = _read(path)
            except (OSError, UnicodeDecodeError, yaml.YAMLError, SyntaxError) as e:
                why = " ".join(str(e).split())[:160]
                raise UserError(f"the task file {path} cannot be read ({why})", "fix the file") from e
            name = read.fields.get("group") or read.fields.get("task")
            if isinstance(name, str):
                sources, functions = tuple(dict.fromkeys(read.sources)), tuple(dict.fromkeys(read.functions))
                repeated = tuple(dict.fromkeys(read.repeated))
                found[name] = TaskDefinition(name, path, read.fields, sources, functions, read.files, repeated)
            elif name is not None and not isinstance(name, list | dict):
                raise UserError(f"{path}: the name of the task is {name!r}, which is not text", "put it in quotes")
    return found


@dataclass
class _Read:
    """What a file and its includes contain."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    repeated: list[tuple[Path, str]] = field(default_factory=list)


def _read(path: Path, within: tuple[Path, ...] = ()) -> _Read:
    """Read a file and merge it with its includes. `within` are the files that include it."""
    if path.resolve() in within:
        raise UserError(f"the task file {path} includes itself", "remove the include")
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        fields = loader.get_single_data()
    finally:
        loader.dispose()
    if not isinstance(fields, dict):
        return _Read()
    found = _Read(sources=[path], functions=list(loader.functions), repeated=[(path, key) for key in loader.repeated])
    includes = fields.pop("include", [])
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise UserError(f"{path}: include is {name!r}, which is not text", "give the name of a YAML file")
        base = _read(path.parent / name, (*within, path.resolve()))
        found.fields |= base.fields
        found.files |= base.files
        found.sources += base.sources
        found.functions += base.functions
        found.repeated += base.repeated
    for module in sorted({f.rpartition(".")[0] for f in loader.functions}):
        found.sources += _module_files(module, path.parent)
    found.fields |= fields
    found.files |= dict.fromkeys(map(str, fields), path)
    return found


def require_code_consent(definition: TaskDefinition) -> None:
    """Refuse a task that runs third-party code, unless the user has agreed to it.

    The tasks of wpn-bench and lm-eval may use functions. Templates run in a sandbox.

    Raises:
        UserError: The task has its own code, or downloads code for a metric.
    """
    if consent.code_allowed():
        return
    path = definition.path.resolve()
    lm_eval = find_spec("lm_eval")
    installed = [
        tasks_dir().resolve(),
        *(Path(p).resolve() for p in (lm_eval and lm_eval.submodule_search_locations) or ()),
    ]
    code = [*definition.functions, *(["class"] if "class" in definition.fields else [])]
    if code and not any(path.is_relative_to(folder) for folder in installed):
        raise UserError(
            f"the task {definition.name!r} runs Python code from its folder ({code[0]}) with your permissions",
            "review the code, then add --trust-remote-code (`trust_remote_code: true`)",
        )
    metrics = definition.fields.get("metric_list") or ()
    downloaded = [m.get("metric") for m in metrics if isinstance(m, dict) and m.get("hf_evaluate")]
    if downloaded:
        raise UserError(
            f"the task {definition.name!r} downloads code for its metric {downloaded[0]!r} from the hub",
            "add --trust-remote-code (`trust_remote_code: true`), or remove the task",
        )


def _module_files(module: str, beside: Path, seen: frozenset[str] = frozenset()) -> list[Path]:
    """Return the source files of a helper module and of the modules that it imports.

    The module is in the folder of the YAML file or in this package. So the digest of a task changes with the code that
    generates its data, as for the lab tasks. For a module of this package, only imports from the same subpackage count.
    Modules such as errors and paths do not affect the data.
    """
    if module in seen:
        return []
    path = beside / (module.replace(".", "/") + ".py")
    if not path.is_file():
        if module.partition(".")[0] != _PACKAGE:
            return []  # the module is in a library, whose version is part of the job's digest
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
    """Return the modules of this package that a source file imports. Cached by its modification time and size."""
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
