"""Find the tasks and groups that a user names: by task, group, tag, or pattern such as `mmlu_*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from wpn_bench.benchmarks.definitions import TaskDefinition, read_folders
from wpn_bench.benchmarks.loading import find_definition, lm_eval_names
from wpn_bench.benchmarks.scores import Score
from wpn_bench.errors import UserError

_WITHOUT_EFFECT = {"task", "group", "task_alias", "group_alias", "aggregate_metric_list", "metadata", "tag"}


@dataclass(frozen=True)
class Aggregate:
    """How lm-eval averages a group.

    `filters` is empty if all filters are averaged. With `weighted`, a task counts by its number of documents.
    """

    metric: str
    filters: tuple[str, ...]
    weighted: bool

    def includes(self, score: Score) -> bool:
        """Return whether the average is computed from this score of the tasks."""
        return score.metric == self.metric and (not self.filters or score.filter in self.filters)


@dataclass(frozen=True)
class TaskGroup:
    """A group of tasks that lm-eval averages. `tasks` includes the tasks of its subgroups."""

    name: str
    tasks: tuple[str, ...]
    aggregates: tuple[Aggregate, ...]

    def aggregate_of(self, scores: Sequence[Score]) -> Aggregate | None:
        """Return the average that is computed from these scores of all its tasks, or None if there is none."""
        return next((one for one in self.aggregates if all(map(one.includes, scores))), None)


@dataclass(frozen=True)
class Selection:
    """The tasks of a run, and the groups that the user named."""

    tasks: tuple[str, ...]
    groups: tuple[TaskGroup, ...] = ()

    def preferred(self, task: str) -> list[Score]:
        """Return the scores of a task that its groups average. The filter `*` means the first filter."""
        averages = [one for group in self.groups if task in group.tasks for one in group.aggregates]
        return [Score(one.metric, name) for one in averages for name in one.filters or ("*",)]


def select(names: Sequence[str], folders: Sequence[Path]) -> Selection:
    """Find the tasks and groups that names stand for.

    Args:
        names: Names of tasks, groups and tags, and patterns with `*` that match the names of tasks.
        folders: Folders of task files. Names that are not found in them are looked up among lm-eval's own tasks.

    Returns:
        The tasks without duplicates, and the groups.

    Raises:
        UserError: A name is unknown, a group contains itself, or a group overrides settings of its tasks.
    """
    groups: dict[str, TaskGroup] = {}
    tasks = [task for name in names for task in _expand(name, tuple(folders), groups, ())]
    return Selection(tuple(dict.fromkeys(tasks)), tuple(groups.values()))


def _expand(name: str, folders: tuple[Path, ...], groups: dict[str, TaskGroup], within: tuple[str, ...]) -> list[str]:
    known = read_folders(folders)
    own = name in known or name.startswith(("wpn_", "lab_"))
    if any(c in name for c in "*?["):
        return _matching(name, folders)
    tags = _tags(known).get(name) or ([] if own else lm_eval_names(folders)[1].get(name, []))
    if tags and name not in known:
        return tags
    definition = find_definition(name, folders)
    if not definition.is_group:
        return [name]
    if name in within:
        raise UserError(f"{definition.path}: the group {name!r} contains itself", "remove it from its own tasks")
    return _members(name, definition.fields, definition, folders, groups, (*within, name))


def _members(
    name: str,
    fields: dict[str, Any],
    definition: TaskDefinition,
    folders: tuple[Path, ...],
    groups: dict[str, TaskGroup],
    within: tuple[str, ...],
) -> list[str]:
    """Return the tasks of a group, and add the group and its subgroups to `groups`.

    The fields may be those of a subgroup within another group's file.
    """
    _refuse_changes(definition, fields, name)
    listed = fields.get("task")
    tasks: list[str] = []
    for member in [listed] if isinstance(listed, str) else listed or []:
        if isinstance(member, dict) and isinstance(member.get("task"), list):
            tasks += _members(f"{name}::{member.get('group')}", member, definition, folders, groups, within)
            continue
        if isinstance(member, dict):
            _refuse_changes(definition, member, str(member.get("task") or member.get("group")))
            member = member.get("task") or member.get("group")
        if not isinstance(member, str):
            raise UserError(f"{definition.path}: task: {member!r} is not the name of a task", "put it in quotes")
        tasks += _expand(member, folders, groups, within)
    tasks = list(dict.fromkeys(tasks))
    if aggregates := _aggregates(definition, fields):
        groups[name] = TaskGroup(name, tuple(tasks), aggregates)
    return tasks


def _refuse_changes(definition: TaskDefinition, fields: dict[str, Any], name: str) -> None:
    if changed := sorted(set(map(str, fields)) - _WITHOUT_EFFECT):
        raise UserError(
            f"{definition.path}: the group sets {', '.join(changed)} for {name!r}, which wpn-bench does not support",
            "write a task file with `include:` and these settings, and name that task",
        )


def _aggregates(definition: TaskDefinition, fields: dict[str, Any]) -> tuple[Aggregate, ...]:
    listed = fields.get("aggregate_metric_list") or []
    found = []
    for one in [listed] if isinstance(listed, dict) else listed:
        if (
            not isinstance(one, dict)
            or not isinstance(one.get("metric"), str)
            or one.get("aggregation", "mean") != "mean"
        ):
            raise UserError(
                f"{definition.path}: aggregate_metric_list: {one!r} is not a metric with the aggregation mean",
                "write {metric: acc, aggregation: mean, weight_by_size: true}",
            )
        filters = one.get("filter_list") or ()
        chosen = (filters,) if isinstance(filters, str) else tuple(filters)
        found.append(Aggregate(one["metric"], chosen, bool(one.get("weight_by_size", True))))
    return () if definition.is_shipped else tuple(found)  # shipped tasks are averaged in the report


def _tags(known: dict[str, TaskDefinition]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, definition in known.items():
        tags = definition.fields.get("tag") or ()
        for tag in [tags] if isinstance(tags, str) else tags:
            found.setdefault(str(tag), []).append(name)
    return {tag: sorted(names) for tag, names in found.items()}


def _matching(pattern: str, folders: tuple[Path, ...]) -> list[str]:
    names = {name for name, one in read_folders(folders).items() if not one.is_group}
    if not pattern.startswith(("wpn_", "lab_")):
        names |= set(lm_eval_names(folders)[0])
    found = sorted(name for name in names if fnmatchcase(name, pattern))
    if not found:
        raise UserError(f"no task matches {pattern!r}", "`wpn-bench list benchmarks` shows those of wpn-bench")
    return found
