"""Write report files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wpn_bench.core.files import write_text
from wpn_bench.errors import UserError
from wpn_bench.report import formats

# Characters that HTML forbids, that control a terminal, or that some programs take for the end of a file.
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def write_reports(makers: Mapping[str, str], about: Any, folder: Path) -> list[Path]:
    """Write the files of a report. All texts are made before the first is written.

    Args:
        makers: Name of a file -> "module:function" that makes its text.
        about: The argument of these functions.
        folder: The folder to write into.

    Returns:
        The paths of the files.

    Raises:
        UserError: A file cannot be written.
    """
    texts = {name: formats.maker(path)(about) for name, path in makers.items()}
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, _readable(text))
            written.append(folder / name)
    except OSError as e:
        raise UserError(f"the report cannot be written to {folder} ({e.strerror})", "give another with --out") from e
    return written


def _readable(text: str) -> str:
    """Make a text valid UTF-8 without control characters.

    A lone surrogate (half of an emoji) becomes a question mark, a control character the replacement character U+FFFD.
    """
    return _UNREADABLE.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))
