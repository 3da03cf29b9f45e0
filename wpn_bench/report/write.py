"""Write report files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wpn_bench.core.files import write_text
from wpn_bench.errors import UserError
from wpn_bench.report import formats

# Characters that HTML forbids, that control a terminal, or that some programs interpret as the end of a file.
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def write_reports(makers: Mapping[str, str], about: Any, folder: Path) -> list[Path]:
    """Write the files of a report. All texts are made before the first file is written.

    Args:
        makers: For each file name the "module:function" that makes its text.
        about: Argument of these functions.
        folder: Folder for the files.

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
        raise UserError(
            f"the report cannot be written to {folder} ({e.strerror})", "give another folder with --out"
        ) from e
    return written


def _readable(text: str) -> str:
    """Return a text as valid UTF-8 without control characters.

    An unpaired surrogate (half of an emoji) becomes a question mark, and a control character becomes U+FFFD.
    """
    return _UNREADABLE.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))
