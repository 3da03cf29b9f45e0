"""The settings of several runs, and whether they differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wpn_bench.runs.files import BASE
from wpn_bench.runs.finished import Run
from wpn_bench.runs.view import one_line

UNKNOWN = "not recorded"
NOT_RUN = "not run"
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting and its value in each run, in the order of the runs."""

    name: str
    values: tuple[str, ...]

    @property
    def short(self) -> tuple[str, ...]:
        """The values, with digests shortened to 12 characters."""
        return tuple(_DIGEST.sub(r"\1", value) for value in self.values)

    @property
    def same(self) -> bool:
        return len(set(self.values)) == 1


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Return all settings that at least one of the runs has.

    If a run does not use a method, the options of this method have the value `NOT_RUN`.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    found = []
    for method in dict.fromkeys(m for run in runs for m in run.view.models if m != BASE):
        ran = tuple("run" if method in run.view.models else NOT_RUN for run in runs)
        found.append(Setting(f"methods.{one_line(method)}", ran))
    for name in names:
        owner = next((m for run in runs for m in run.view.models if name.startswith(f"methods.{m}.")), None)
        without = [owner is not None and owner not in run.view.models for run in runs]
        values = [NOT_RUN if out else run.settings.get(name, UNKNOWN) for run, out in zip(runs, without, strict=True)]
        if len({value for value in values if value != NOT_RUN}) == 1 and NOT_RUN in values:
            continue  # `methods.<name>` already shows that some runs did not use the method
        found.append(Setting(name, tuple(values)))
    groups = list(dict.fromkeys(name.partition(".")[0] for name in (*names, "methods")))
    return sorted(found, key=lambda one: groups.index(one.name.partition(".")[0]))
