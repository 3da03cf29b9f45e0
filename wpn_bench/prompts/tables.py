"""Read rows from JSON Lines, CSV and Parquet files."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from wpn_bench.errors import UserError


def read_file(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl, .csv (both also gzipped) or .parquet file.

    Raises:
        UserError: The file is missing, empty, damaged or of another type. The message names the line where possible.
    """
    reader = READERS.get(Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower())
    if reader is None:
        raise UserError(f"{path} is not .jsonl, .csv or .parquet", "convert it, or rename it to what it is")
    try:
        rows = reader(path)
    except FileNotFoundError as e:
        raise UserError(f"there is no file {path}", "check the path") from e
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8 (byte {e.start})", f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}"
        ) from e
    except (OSError, EOFError, zlib.error) as e:  # the last two are raised by truncated gzip files
        raise UserError(
            f"{path} cannot be read ({getattr(e, 'strerror', None) or e})", "check the file and its permissions"
        ) from e
    except ValueError as e:  # the path contains a NUL byte
        raise UserError(f"{str(path)!r} is no path of a file ({e})", "check the path") from e
    if not rows:
        raise UserError(f"{path} is empty", "give a file with at least one row (the first of a CSV names its columns)")
    return rows


def _open(path: Path) -> TextIO:
    """Open a text file, decompressed if its suffix is .gz. Line ends are not converted."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    opened: TextIO = opener(path, "rt", encoding="utf-8-sig", newline="")
    return opened


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    # Split at line feeds only: str.splitlines() also splits at characters that JSON strings may contain.
    with _open(path) as f:
        text = f.read()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                _must_be_text(row)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path} line {number} is not valid JSON ({e})", "mend that line") from e
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object", 'write {"prompt": ...} on every line')
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    rows = []
    with _open(path) as f:
        reader = csv.DictReader(f)
        try:
            columns = reader.fieldnames or []
            if twice := [c for c in columns if c and columns.count(c) > 1]:
                raise UserError(f"{path} has two columns {twice[0][:60]!r}", "rename one of them in its first line")
            for row in reader:
                # More cells than columns, probably because of a comma in an unquoted text. Some text would be lost.
                if any(row.get(None) or ()):
                    raise UserError(
                        f"{path} line {reader.line_num} has more cells than the first line has columns ({len(columns)})",
                        "put texts that hold commas into double quotes",
                    )
                rows.append({k: _list_or_text(v) for k, v in row.items() if k})
        except csv.Error as e:
            raise UserError(
                f"{path} is not valid CSV (line {reader.line_num}: {e})",
                "save it again as UTF-8 CSV; texts of more than 131,072 characters go into a .jsonl file",
            ) from e
    return rows


def _list_or_text(value: Any) -> Any:
    # A cell may contain several responses as a JSON list.
    if isinstance(value, str) and value.startswith("["):
        try:
            parsed = json.loads(value)
            _must_be_text(parsed)
        except (ValueError, RecursionError):
            return value
        return parsed
    return value


def _must_be_text(value: Any) -> None:
    """Raise `ValueError` for an unpaired escaped surrogate: it is not a character, and UTF-8 cannot encode it."""
    json.dumps(value, ensure_ascii=False).encode()


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowException as e:
        raise UserError(f"{path} is not a Parquet file ({' '.join(str(e).split())[:120]})", "save it again") from e
    return rows


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
