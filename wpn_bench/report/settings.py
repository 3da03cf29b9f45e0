"""What a run was made with, setting by setting, and in which settings several runs differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wpn_bench.report.render import flat
from wpn_bench.report.view import BASE, View, one_line
from wpn_bench.results import read_manifest, read_results

UNKNOWN = "not recorded"
NOT_RUN = "not run"
# Of the configuration: said elsewhere (model, judge, methods), or no setting of what is measured.
_ELSEWHERE = frozenset({"model", "revision", "judge", "judges", "judge_card", "methods", "title", "report_to"})
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")


@dataclass(frozen=True)
class Compared:
    """One of the runs, under the name that tells it from the others."""

    label: str
    folder: Path
    results: dict[str, Any]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, label: str, folder: Path) -> Compared:
        return cls(label, folder, read_results(folder), read_manifest(folder))

    @cached_property
    def view(self) -> View:
        return View(self.results)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Setting -> its value as text: the configuration, the options that each method ended up with, digests of what
        was asked, versions. Digests are whole; `short` cuts them."""
        run, manifest = self.view.run, self.manifest
        parts: dict[str, Any] = {
            "base model": {"name": run.get("model"), "revision": run.get("revision")}
            | {k: v for k, v in part(manifest, "model").items() if k == "digest"},
            "judge": {"name": run.get("judge"), "threshold": run.get("threshold"), "card": _card(run)}
            | {k: v for k, v in part(manifest, "judge").items() if k == "digest"},
            "further judges": list(part(manifest, "further_judges")),
            "methods": {name: _options(about) for name, about in self.view.models.items() if name != BASE},
            **{k: v for k, v in part(manifest, "config").items() if k not in _ELSEWHERE},
            "prompts": {k: _set(v, "prompts") for k, v in part(manifest, "prompt_sets").items()},
            "texts": {k: _set(v, "texts") for k, v in part(manifest, "texts").items()},
            "tasks": {k: _task(v) for k, v in part(manifest, "tasks").items()},
            "versions": {"wpn-bench": manifest.get("wpn_bench")} | part(manifest, "versions"),
            "hardware": part(manifest, "hardware"),
        }
        # Runs without a manifest say at least this much.
        for name in ("preset", "seeds", "limit", "margin_points", "template", "decoding"):
            parts[name] = run.get(name, parts.get(name))
        return {one_line(name): one_line(value) for name, value in flat(parts)}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting in every run, in their order."""

    name: str
    values: tuple[str, ...]

    @property
    def short(self) -> tuple[str, ...]:
        """The values with digests cut to what tells them apart at a glance."""
        return tuple(_DIGEST.sub(r"\1", value) for value in self.values)

    @property
    def same(self) -> bool:
        return len(set(self.values)) == 1


def settings(runs: Sequence[Compared]) -> list[Setting]:
    """Every setting that any of the runs has. An option of a method says nothing of a run that was made without it."""
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
            continue  # that the method was not run is said already
        found.append(Setting(name, tuple(values)))
    groups = list(dict.fromkeys(name.partition(".")[0] for name in (*names, "methods")))
    return sorted(found, key=lambda one: groups.index(one.name.partition(".")[0]))


def part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """A record inside of another; nothing where it is not there or no record."""
    found = manifest.get(name)
    return found if isinstance(found, dict) else {}


def _options(about: dict[str, Any]) -> dict[str, Any]:
    """The options that a method ran with, tuned ones among them; the learning rate that its width gave it."""
    found = {**(about.get("config") or {})}
    if about.get("lr") is not None:
        found["lr"] = f"{about['lr']:.4g}"
    return found


def _card(run: dict[str, Any]) -> str | None:
    card = run.get("judge_card")
    return str(card.get("file_digest")) if isinstance(card, dict) else None


def _set(about: Any, what: str) -> str:
    return f"{about.get('n')} {what}, {about.get('digest')}" if isinstance(about, dict) else str(about)


def _task(about: Any) -> str:
    if not isinstance(about, dict):
        return str(about)
    data = " ".join(str(about[k]) for k in ("dataset", "revision") if about.get(k))
    return f"{about.get('task')}{f' on {data}' if data else ''}, {about.get('digest')}"
