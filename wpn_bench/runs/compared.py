"""A finished run with its settings, as comparisons read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wpn_bench.core.flatten import flatten
from wpn_bench.runs.files import BASE, read_manifest, read_results
from wpn_bench.runs.view import View, one_line

# Of the configuration: said elsewhere (model, judge, methods), or no setting of what is measured.
_ELSEWHERE = frozenset({"model", "revision", "judge", "judges", "judge_card", "methods", "title", "report_to"})


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
        return {one_line(name): one_line(value) for name, value in flatten(parts)}


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
