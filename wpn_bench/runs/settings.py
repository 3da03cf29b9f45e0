"""The settings of a finished run, as a comparison of runs lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wpn_bench.core.flatten import flatten
from wpn_bench.runs.files import BASE
from wpn_bench.runs.view import View, one_line

# Keys of the configuration that are listed elsewhere (model, judge, methods) or do not affect results.
_ELSEWHERE = frozenset({"model", "revision", "judge", "judges", "judge_card", "methods", "title", "report_to"})


def settings_of(view: View, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Collect the settings of a run.

    Args:
        view: The results.
        manifest: The manifest; empty if the run has none.

    Returns:
        Setting -> its value as text: the configuration, the final options of each method, digests of prompt sets, texts
        and tasks, and versions. Digests are not shortened; `report.settings.Setting.short` does that.
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
    # Only results.json has these if the run has no manifest.
    for name in ("preset", "seeds", "limit", "margin_points", "template", "decoding"):
        parts[name] = run.get(name, parts.get(name))
    return {one_line(name): one_line(value) for name, value in flatten(parts)}


def part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Get a dictionary inside another.

    Args:
        record: The outer dictionary.
        name: The key.

    Returns:
        The inner dictionary; empty if it is missing or not a dictionary.
    """
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _options(about: dict[str, Any]) -> dict[str, Any]:
    """The final options of a method, with tuned values, and the learning rate if it was derived from the model width."""
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
