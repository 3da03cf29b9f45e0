"""Where `tasks/` and `reports/` lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

from wpn_bench.errors import UserError
from wpn_bench.redact import redact_secrets

_PACKAGE = Path(__file__).resolve().parent.parent


def _folder(name: str) -> Path:
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name


def tasks_dir() -> Path:
    """What is measured, declared: benchmarks, prompt sets, attack templates, presets."""
    return _folder("tasks")


def reports_dir() -> Path:
    """How results look: templates, reference results."""
    return _folder("reports")


def display_path(path: Path | str) -> str:
    """A path as it may stand in a manifest: relative to here, or its last part - never a home folder nor a secret."""
    p = Path(os.path.realpath(path))  # which takes a loop of links for what it is called
    try:
        return redact_secrets(str(p.relative_to(Path.cwd())))
    except ValueError:
        return redact_secrets(p.name)


def path_inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, there or not. `UserError` where `..`, an absolute name or a link leads out of the folder: a run
    folder may come from anybody, and what it names elsewhere is neither read, sent on nor written."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} leads out of {folder.name}", "copy what it points to into the folder, if you trust it")
    return file
