"""Locate `tasks/` and `reports/`: beside the package in a git checkout, inside it in an installed wheel."""

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
    """Return the folder of benchmark, prompt set, attack and preset definitions."""
    return _folder("tasks")


def reports_dir() -> Path:
    """Return the folder of report templates and baseline results."""
    return _folder("reports")


def display_path(path: Path | str) -> str:
    """Return a path for display: relative to the working directory or its last part, without home folder and secrets."""
    p = Path(os.path.realpath(path))  # unlike Path.resolve, accepts a loop of symbolic links
    try:
        return redact_secrets(str(p.relative_to(Path.cwd())))
    except ValueError:
        return redact_secrets(p.name)


def split_named(entry: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE` into both. The name is None without `NAME=`, and if the whole is a path with `=` in it.

    A file that exists is a file, and a name contains no slash: `data/date=2024/test.jsonl` is a path.
    """
    name, equals, source = entry.partition("=")
    if not equals or "/" in name or os.path.exists(os.path.expanduser(entry)):
        return None, entry
    return name, source


def path_inside(folder: Path, name: str) -> Path:
    """Return `folder`/`name`, which need not exist, if it is within `folder`.

    A run folder may come from an untrusted source. Files that it refers to elsewhere are not read, uploaded or written.

    Args:
        folder: The folder that the file must be in.
        name: Relative path of the file.

    Returns:
        The path.

    Raises:
        UserError: `..`, an absolute path or a symbolic link leads out of `folder`.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{file} is outside of {folder.name}", "copy the file that it points to into the folder, if you trust it"
        )
    return file
