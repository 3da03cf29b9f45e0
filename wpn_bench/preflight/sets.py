"""List the prompt sets, text sets and benchmarks that a run reads.

The run, its early check and `prefetch` use this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from wpn_bench import prompts
from wpn_bench.benchmarks.definitions import short_name, task_folders
from wpn_bench.benchmarks.run import BenchmarkInfo, describe
from wpn_bench.benchmarks.selection import Selection, TaskGroup, select
from wpn_bench.config import RunConfig
from wpn_bench.core.paths import split_named
from wpn_bench.errors import UserError
from wpn_bench.prompts import SetSpec
from wpn_bench.prompts.types import Role

Use = Literal[
    "forget",
    "validation",
    "in_domain",
    "ood",
    "benign",
    "retain",
    "heldout",
    "tune_text",
    "benign_prompts",
    "tune_benign",
]


@dataclass(frozen=True)
class RunSet:
    """A set, and what the run uses it for."""

    use: Use
    spec: SetSpec

    @property
    def is_text(self) -> bool:
        """Return whether the set contains texts. All other sets contain prompts."""
        return self.spec.kind == "text"


def sets_of(config: RunConfig) -> list[RunSet]:
    """Return every set that a run of `config` reads. Only declarations of sets are read here.

    Validation prompts, in-domain prompts and text for tuning that the configuration does not name are not in the list.
    The run takes them from the forget set or the retain set. Raises `UserError` for an unknown name.
    """
    tuned_on_text = config.tune and not config.tune_benchmarks
    prompt_sets: tuple[tuple[Use, Role, tuple[str | None, ...]], ...] = (
        ("forget", "forget", (config.forget,)),
        ("in_domain", "in_domain", config.in_domain),
        ("ood", "ood", config.ood),
        ("benign", "benign", config.benign),
        ("validation", "validation", (config.validation,)),
        ("benign_prompts", "benign", (config.benign_prompts if config.methods else None,)),
        ("tune_benign", "benign", (config.tune_benign if config.tune and config.methods else None,)),
    )
    text_sets: tuple[tuple[Use, Role, str | None], ...] = (
        ("retain", "retain", config.retain),
        ("heldout", "heldout", config.heldout),
        ("tune_text", "validation", config.tune_text if tuned_on_text else None),
    )
    found = []
    for use, role, entries in prompt_sets:
        for entry in entries:
            if entry is None:
                continue
            name, source = split_set_name(entry) if use in ("in_domain", "ood", "benign") else (None, entry)
            spec = prompts.spec_for(source, role=role, kind=config.file_kind, name=name, columns=config.columns)
            found.append(RunSet(use, spec))
    for use, role, text in text_sets:
        if text:
            found.append(RunSet(use, prompts.spec_for(text, role=role, kind="text", columns=config.columns)))
    return found


def split_set_name(entry: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE`, which gives a set another name. Without `NAME=`, the name is None."""
    return split_named(entry)


@dataclass(frozen=True)
class TaskNames:
    """The benchmark tasks of a run, without groups: those for testing and those for tuning."""

    tested: tuple[str, ...]
    tuned: tuple[str, ...]
    folders: tuple[Path, ...]
    groups: tuple[TaskGroup, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)

    def describe(self, name: str, *, resolve: bool = True) -> BenchmarkInfo:
        """Describe a task with the score that the user or its group chose for it.

        Args:
            name: Name of the task.
            resolve: Whether to find the commit of its data.

        Returns:
            The description.
        """
        preferred = Selection(self.tested, self.groups).preferred(name)
        return describe(name, self.folders, resolve=resolve, metrics=self.metrics, preferred=preferred)


def task_names_of(config: RunConfig) -> TaskNames:
    """Return the tasks that a run of `config` reads. Raises `UserError` for a folder of tasks that cannot be read."""
    tested = config.benchmarks if "benchmarks" in config.stages else ()
    tuned = config.tune_benchmarks if config.tune else ()
    if "benchmarks" not in config.stages and not config.tune:
        return TaskNames((), (), ())
    folders = task_folders(config.benchmark_folders)
    found, for_tuning = select(tested, folders), select(tuned, folders)
    names = (*found.tasks, *for_tuning.tasks)
    if shared := set(found.tasks) & set(for_tuning.tasks):
        raise UserError(f"{min(shared)} is a test benchmark of this run", "choose other tune_benchmarks")
    short = [short_name(name) for name in names]
    if twice := [name for name in names if short.count(short_name(name)) > 1]:
        raise UserError(f"{' and '.join(twice[:2])} have the same name in results", "run only one of them")
    metrics = {task.strip(): metric for task, _, metric in (one.partition("=") for one in config.benchmark_metrics)}
    members = {group.name: group.tasks for group in found.groups}
    metrics = {task: text for name, text in metrics.items() for task in members.get(name, (name,))}
    if unused := [task for task in metrics if not any(fnmatchcase(name, task) for name in names)]:
        raise UserError(
            f"--metric names {unused[0]!r}, which is not a benchmark of the run", f"it has {', '.join(names[:8])}"
        )
    return TaskNames(found.tasks, for_tuning.tasks, folders, found.groups, metrics)
