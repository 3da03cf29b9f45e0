"""Find tasks of lm-eval and of the user, and load them with their data at a fixed commit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import hub
from wpn_bench.benchmarks.definitions import TaskDefinition, read_folders, require_code_consent
from wpn_bench.core import consent
from wpn_bench.core.machine import environment_variables
from wpn_bench.core.registry import close_matches, unknown_name
from wpn_bench.errors import UserError
from wpn_bench.hub import resolve_revision

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

FEWSHOT_SEED = 1234  # lm-eval's default
TEMPLATES = 1024  # number of compiled templates that are kept


def permitted_definition(task: str, include_paths: Sequence[Path]) -> TaskDefinition:
    """Return the definition of a task, if it may be used.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.

    Returns:
        The definition.

    Raises:
        UserError: The task is unknown, or needs code that the user has not permitted.
    """
    definition = find_definition(task, include_paths)
    require_code_consent(definition)
    return definition


def find_definition(task: str, include_paths: Sequence[Path]) -> TaskDefinition:
    """Return the definition of a task or group, which is in one of the folders or in lm-eval.

    Args:
        task: Name of the task or group.
        include_paths: Folders of task files.

    Returns:
        The definition.

    Raises:
        UserError: There is no task or group of this name.
    """
    known = read_folders(tuple(include_paths))
    if task in known:
        return known[task]
    if task.startswith(("wpn_", "lab_")):
        raise unknown_name(
            "task", task, known
        )  # a misspelt name of a wpn-bench task, so lm-eval's tasks need not be read
    lm_eval_tasks = task_manager(tuple(include_paths), True).task_index
    entry = lm_eval_tasks.get(task)
    if entry is None or entry.yaml_path is None:
        raise unknown_name("task", task, close_matches(task, [*known, *lm_eval_tasks]) or known)
    return read_folders((Path(entry.yaml_path).parent,))[task]


def _manager_key(task: str, include_paths: Sequence[Path]) -> tuple[tuple[Path, ...], bool]:
    folders = tuple(include_paths)
    return folders, task not in read_folders(folders)


@cache
def task_manager(folders: tuple[Path, ...], with_defaults: bool) -> TaskManager:
    """Create lm-eval's task manager, once per process. Reading lm-eval's 14,000 task files takes ten seconds.

    Args:
        folders: Folders of task files.
        with_defaults: Whether to read lm-eval's own task files as well.

    Returns:
        The task manager.
    """
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=[str(f) for f in folders], include_defaults=with_defaults)


def lm_eval_names(folders: tuple[Path, ...]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of lm-eval's tasks, and its tags with the tasks of each."""
    from lm_eval.tasks._index import Kind

    index = task_manager(folders, True).task_index
    tasks = sorted(name for name, entry in index.items() if entry.kind in (Kind.TASK, Kind.PY_TASK))
    return tasks, {name: sorted(entry.tags) for name, entry in index.items() if entry.kind == Kind.TAG}


def clear_task_cache() -> None:
    """Remove all task files from the cache, so that they are read again."""
    read_folders.cache_clear()
    task_manager.cache_clear()


def load_configured(
    definition: TaskDefinition, include_paths: Sequence[Path], revision: str | None
) -> ConfigurableTask:
    """Load a task and its data.

    Args:
        definition: The task.
        include_paths: Folders of task files.
        revision: Commit of the data if it is on the hub; None uses the latest commit.

    Returns:
        lm-eval's task.

    Raises:
        UserError: The task is declared twice, its metric is unknown, or its data cannot be read.
    """
    manager = task_manager(*_manager_key(definition.name, include_paths))
    entry = manager.task_index.get(definition.name)
    if entry is None or entry.yaml_path is None or entry.yaml_path.resolve() != definition.path.resolve():
        # The task is declared twice. lm-eval would use the first file, but consent was checked for another one.
        raise UserError(f"the task {definition.name!r} is declared twice in its folder", "rename one of them")
    _check_metrics(definition)
    # To change fields of a task, lm-eval's documentation recommends a group with one member.
    member = {"task": definition.name, **pinned_fields(definition, revision)}
    try:
        loaded = manager.load({"group": "one", "task": [member]})
    except (OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        why = " ".join(str(e).split())[:200]
        raise UserError(
            f"the data of task {definition.name!r} cannot be read ({why})",
            "check the network and the task file",
        ) from e
    task: Any = loaded["tasks"][definition.name]
    return task


def _check_metrics(definition: TaskDefinition) -> None:
    """Refuse unknown metrics, because lm-eval would search the hub for them and run the code that it finds."""
    from lm_eval.api import metrics, registry  # noqa: F401 - importing metrics fills the registry

    metric_names = [m.get("metric") for m in definition.fields.get("metric_list") or () if isinstance(m, dict)]
    names = [name for name in metric_names if isinstance(name, str) and name not in definition.functions]
    unknown = [name for name in names if name not in registry.metric_registry]
    if unknown and not consent.code_allowed():
        raise UserError(
            f"the task {definition.name!r} has the metric {unknown[0]!r}, which lm-eval would download from the hub and run",
            "add --trust-remote-code (`trust_remote_code: true`), or use a metric that lm-eval knows",
        )


def zero_shot(task: ConfigurableTask) -> ConfigurableTask:
    """Set the number of few-shot examples to 0 if the task does not set it, and fix the seed that draws examples."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def load_task(task: str, include_paths: Sequence[Path], revision: str | None) -> ConfigurableTask:
    """Load a task in the form that `evaluate_task` uses.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.
        revision: Commit of the data set; None uses the latest commit.

    Returns:
        The lm-eval task.

    Raises:
        UserError: The task is unknown, or its data cannot be read.
    """
    with quiet_lm_eval():
        return zero_shot(load_configured(permitted_definition(task, include_paths), include_paths, revision))


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval and `datasets`, render templates in a sandbox, and stop lm-eval from starting processes."""
    # The processes that lm-eval forks for its bootstrap sometimes hang.
    with _quiet(), hub.quiet_libraries(), _sandboxed_templates(), environment_variables(DISABLE_MULTIPROC="1"):
        yield


@contextmanager
def _sandboxed_templates() -> Iterator[None]:
    """Render the templates of task files in a sandbox.

    In lm-eval's own environment, they could use any Python object.
    """
    from lm_eval import utils

    before = utils.env
    utils.env = _sandbox(frozenset(before.filters.items()))
    try:
        yield
    finally:
        utils.env = before


@cache
def _sandbox(filters: frozenset[tuple[str, Any]]) -> Any:
    """Return the environment in which templates are rendered. It compiles each template once.

    lm-eval asks for the same template again for each document, and compiling takes longer than rendering.
    """
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    safe: Any = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    safe.filters.update(dict(filters))
    safe.from_string = lru_cache(TEMPLATES)(safe.from_string)
    return safe


def pinned_fields(definition: TaskDefinition, revision: str | None) -> dict[str, Any]:
    """Return the fields that make a task read its data at a fixed commit.

    Args:
        definition: The task.
        revision: The commit; None uses the latest commit.

    Returns:
        The fields, which override those of the file. None are needed for local data and data that code generates.
    """
    fields = definition.fields
    path, name = fields.get("dataset_path"), fields.get("dataset_name")
    if "custom_dataset" in fields or "class" in fields or path is None or hub.is_local(path):
        return {}
    commit = revision or resolve_revision(path, name, declared_revision(fields))
    options = {
        k: v for k, v in (fields.get("dataset_kwargs") or {}).items() if k not in ("trust_remote_code", "revision")
    }
    if options or commit is None:
        return {"dataset_kwargs": {**options, "revision": commit}}

    def at_commit(**_: Any) -> Any:
        return hub.load_dataset(path, name, commit)

    return {"custom_dataset": at_commit}


def declared_revision(fields: Mapping[str, Any]) -> str | None:
    """Return the branch, tag or commit of the data set in a task file."""
    options = fields.get("dataset_kwargs")
    revision = options.get("revision") if isinstance(options, dict) else None
    return None if revision is None else str(revision)


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable the progress bars and messages of lm-eval. Errors are still raised."""
    import lm_eval.api.task as task_module

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.ERROR)
    # Only the progress bar for the construction of prompts has no option that disables it.
    task_module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        task_module.tqdm = bar
