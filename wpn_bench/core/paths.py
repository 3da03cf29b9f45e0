"""Locate the folders `tasks/` and `reports/`.

In a git checkout they are beside the package. In an installed wheel they are inside it.
"""

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
    """Return the folder with the definitions of benchmarks, prompt sets, attacks and presets."""
    return _folder("tasks")


def reports_dir() -> Path:
    """Return the folder with the report templates and the baseline results."""
    return _folder("reports")


def display_path(path: Path | str) -> str:
    """Return a path for messages, without the home folder and without secrets.

    A path within the working directory is shown relative to it. Of any other path, only the last part is shown.
    """
    p = Path(os.path.realpath(path))  # unlike Path.resolve, this accepts a loop of symbolic links
    try:
        return redact_secrets(str(p.relative_to(Path.cwd())))
    except ValueError:
        return redact_secrets(p.name)


def split_named(entry: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE` into the name and the source.

    The name is None if the text has no `=`, or if the whole text is a path that contains `=`. It is such a path if the
    file exists, or if there is a slash before the `=`, as in `data/date=2024/test.jsonl`.
    """
    name, equals, source = entry.partition("=")
    if not equals or "/" in name or os.path.exists(os.path.expanduser(entry)):
        return None, entry
    return name, source


def path_inside(folder: Path, name: str) -> Path:
    """Return the path `folder`/`name` if it is within `folder`. The file need not exist.

    A run folder may come from an untrusted source. It may refer to files outside itself, and such files must not be
    read, uploaded or written.

    Args:
        folder: The folder that must contain the file.
        name: Relative path of the file.

    Returns:
        The path of the file.

    Raises:
        UserError: `..`, an absolute path or a symbolic link leads out of `folder`.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} is outside of {folder.name}", "if you trust the file, copy it into the folder")
    return file
