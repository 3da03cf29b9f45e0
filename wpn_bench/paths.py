"""Where `tasks/` and `reports/` lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name


def tasks_dir() -> Path:
    """What is measured, declared: benchmarks, prompt sets, attack templates, presets."""
    return _folder("tasks")


def reports_dir() -> Path:
    """How results look: templates, reference results."""
    return _folder("reports")


def shown(path: Path | str) -> str:
    """A path as it may stand in a manifest: relative to here, or its last part - never a home folder."""
    p = Path(path).resolve()
    try:
        return str(p.relative_to(Path.cwd()))
    except ValueError:
        return p.name
