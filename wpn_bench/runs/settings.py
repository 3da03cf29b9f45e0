"""Collect the settings of a finished run for comparisons between runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wpn_bench.core.flatten import flatten
from wpn_bench.runs.files import BASE
from wpn_bench.runs.view import View, one_line

# Keys of the configuration that comparisons list elsewhere (model, judge, methods) or that do not affect results.
_ELSEWHERE = frozenset({"model", "revision", "judge", "judges", "judge_card", "methods", "title", "report_to"})


def settings_of(view: View, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Collect the settings of a run.

    Args:
        view: The results.
        manifest: The manifest; empty if the run has none.

    Returns:
        The value of each setting as text. Settings are the configuration, the final options of each method, the digests
        of prompt sets, texts and tasks, and versions. Digests are not shortened; `report.settings.Setting.short` does
        that.
    """
    run = view.run
    parts: dict[str, Any] = {
        "base model": {"name": run.get("model"), "revision": run.get("revision")}
        | {k: v for k, v in part(manifest, "model").items() if k == "digest"},
        "judge": {"name": run.get("judge"), "threshold": run.get("threshold"), "card": _card(run)}
        | {k: v for k, v in part(manifest, "judge").items() if k == "digest"},
        "further judges": list(part(manifest, "further_judges")),
        "methods": {name: _options(about) for name, about in view.models.items() if name != BASE},
        **{k: v for k, v in part(manifest, "config").items() if k not in _ELSEWHERE},
        "prompts": {k: _set(v, "prompts") for k, v in part(manifest, "prompt_sets").items()},
        "texts": {k: _set(v, "texts") for k, v in part(manifest, "texts").items()},
        "tasks": {k: _task(v) for k, v in part(manifest, "tasks").items()},
        "versions": {"wpn-bench": manifest.get("wpn_bench")} | part(manifest, "versions"),
        "hardware": part(manifest, "hardware"),
    }
    # These settings are also in results.json, which every run has.
    for name in ("preset", "seeds", "limit", "limits", "margin_points", "template", "decoding"):
        parts[name] = run.get(name, parts.get(name))
    return {one_line(name): one_line(value) for name, value in flatten(parts)}


def part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a dictionary within another.

    Args:
        record: The outer dictionary.
        name: Key of the inner dictionary.

    Returns:
        The inner dictionary; empty if it is missing or not a dictionary.
    """
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _options(about: dict[str, Any]) -> dict[str, Any]:
    """Return the final options of a method, with the tuned values and the learning rate that was used."""
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
