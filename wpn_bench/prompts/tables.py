"""Read rows from JSON Lines, JSON, CSV, TSV and Parquet files."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wpn_bench.core.json_files import without_duplicates
from wpn_bench.errors import UserError
from wpn_bench.prompts.columns import COLUMNS
from wpn_bench.prompts.csv_cells import CsvError, find_delimiter, list_or_text, records

_MISSING = ("nan", "NaN", "<NA>")  # pandas writes these for a missing text


def read_file(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl, .json, .csv, .tsv (all also gzipped) or .parquet file.

    Raises:
        UserError: The file is missing, empty, damaged or of another type. The message names the line where possible.
    """
    reader = READERS.get(Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is not .jsonl, .json, .csv, .tsv or .parquet", "convert it, or give it the suffix of its format"
        )
    try:
        rows = reader(path)
    except FileNotFoundError as e:
        raise UserError(f"there is no file {path}", "check the path") from e
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8 (byte {e.start})", f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}"
        ) from e
    except (OSError, EOFError, zlib.error) as e:  # truncated gzip files raise the last two
        raise UserError(
            f"{path} cannot be read ({getattr(e, 'strerror', None) or e})", "check the file and its permissions"
        ) from e
    except ValueError as e:  # the path contains a NUL byte
        raise UserError(f"{str(path)!r} is not a valid path ({e})", "check the path") from e
    if not rows:
        raise UserError(
            f"{path} is empty",
            "give a file with at least one row of data (the first line of a CSV file only names its columns)",
        )
    return rows


def _text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    A file with the suffix .gz is decompressed.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as f:
        raw: bytes = f.read()
    for mark, encoding in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")):
        if raw.startswith(mark):
            return raw.decode(encoding)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    if raw[:1000].count(0) * 4 > len(raw[:1000]):  # in UTF-16, every second byte of English text is 0
        raise UserError(
            f"{path} seems to be UTF-16 without a byte order mark",
            f"convert it: iconv -f utf-16le -t utf-8 {path.name}",
        )
    return raw.decode("utf-8-sig")


def _decode(text: str) -> Any:
    """Read one JSON value. Raises `ValueError` for a key that occurs twice and for an unpaired surrogate."""
    value = json.loads(text, object_pairs_hook=without_duplicates)
    if "\\u" in text:
        _must_be_text(value)
    return value


def _values(text: str) -> list[Any]:
    """Read a text of several JSON values one after another, over any number of lines."""
    decoder = json.JSONDecoder(object_pairs_hook=without_duplicates)
    at, found = 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    _must_be_text(found)
    return found


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    rows = []
    # str.splitlines() would also split at characters that JSON strings may contain.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = _decode(line)
        except (ValueError, RecursionError) as e:
            if (whole := _whole_document(path, text)) is not None:
                return whole
            raise UserError(f"{path} line {number} is not valid JSON ({e})", "correct this line") from e
        if not isinstance(row, dict):
            if (whole := _whole_document(path, text)) is not None:
                return whole
            raise UserError(f"{path} line {number} is not a JSON object", 'write {"prompt": ...} on every line')
        rows.append(row)
    return rows


def _whole_document(path: Path, text: str) -> list[dict[str, Any]] | None:
    """Read a .jsonl file that contains one JSON document or indented objects. Returns None if it contains neither."""
    try:
        values = _values(text)
    except (ValueError, RecursionError):
        return None
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    return rows if rows and all(isinstance(row, dict) for row in rows) else None


def _read_json(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    try:
        values = _values(text)
    except (ValueError, RecursionError) as e:
        if isinstance(e, json.JSONDecodeError) and text.startswith("{") and "\n{" in text:
            return _read_jsonl(path)  # its error names the line
        line = f" line {e.lineno}" if isinstance(e, json.JSONDecodeError) else _line_of(text, str(e))
        raise UserError(f"{path}{line} is not valid JSON ({e})", "correct the file") from e
    if not values:
        return []
    rows = values if len(values) > 1 else _rows_of(path, values[0])
    if rows and all(isinstance(row, str) for row in rows):
        return [{"text": row} for row in rows]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path} entry {number} is not a JSON object", 'write {"prompt": ...} for every prompt')
    return rows


def _line_of(text: str, problem: str) -> str:
    """Return ` line N` for the last object in which a key occurs twice, and an empty text for another problem."""
    if "occurs twice" not in problem:
        return ""
    decoder = json.JSONDecoder(object_pairs_hook=without_duplicates)
    at = 0
    for brace in re.finditer("{", text):
        try:
            decoder.raw_decode(text, brace.start())
        except json.JSONDecodeError:
            continue  # this brace is inside a text
        except ValueError:
            at = brace.start()
    line = text.count("\n", 0, at) + 1
    return f" line {line}"


def _rows_of(path: Path, value: Any) -> list[Any]:
    """Return the rows of a JSON document.

    It may be a list, an object with one list, pandas' `to_json`, an object of named rows, or one row.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise UserError(f"{path} contains neither a list nor an object", 'write [{"prompt": ...}, ...]')
    if set(value) >= {"columns", "data"} and isinstance(value["columns"], list):
        return [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
    lists = [key for key, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)]
    chats = [
        key for key in lists if {"role", "content"} <= set(value[key][0]) or {"from", "value"} <= set(value[key][0])
    ]
    if len(lists) == 1 and not chats:
        return list(value[lists[0]])
    if len(lists) > 1 and not chats:
        raise UserError(
            f"{path} has several lists of objects ({', '.join(lists)[:200]})", "keep only the list with the prompts"
        )
    inner = list(value.values())
    if inner and all(isinstance(one, dict) and one for one in inner):
        keys = list(inner[0])
        if all(key.isdigit() for one in inner for key in one):  # one object for each column
            return [{name: column.get(key) for name, column in value.items()} for key in keys]
        return inner
    if inner and all(isinstance(one, list) and one and isinstance(one[0], str) for one in inner):
        if len({len(one) for one in inner}) > 1 or not COLUMNS & {key.casefold() for key in value}:
            raise UserError(
                f"{path} is an object of lists of texts ({', '.join(value)[:200]})", "write one object for each prompt"
            )
        return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    return [value]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    told = re.match(r"sep=(.)\r?\n", text)  # first line of some files that Excel wrote
    if told:
        text = "\n" + text[told.end() :]
    stem = path.stem if path.suffix == ".gz" else path.name
    usual = "\t" if Path(stem).suffix.lower() == ".tsv" else ","
    delimiter = told[1] if told else find_delimiter(text, usual, COLUMNS)
    rows = []
    try:
        lines = records(text, delimiter)
        columns = [name.strip("\ufeff \t") for name in next(lines, (1, []))[1]]
        if twice := [c for c in columns if c and columns.count(c) > 1]:
            raise UserError(
                f"{path} has two columns named {twice[0][:60]!r}", "rename one of them in the first line of the file"
            )
        for number, cells in lines:
            # More cells than columns are probably due to a comma in an unquoted text. Part of the text would be lost.
            if any(cells[len(columns) :]):
                sign = {"\t": "tabs", ",": "commas", ";": "semicolons"}.get(delimiter, delimiter)
                raise UserError(
                    f"{path} line {number} has more cells than the first line has columns ({len(columns)})",
                    f"put texts that contain {sign} into double quotes",
                )
            if not any(cell.strip() for cell in cells) and len(cells) > 1:
                continue  # spreadsheets write such lines for rows that were cleared
            cells += [None] * (len(columns) - len(cells))  # type: ignore[list-item]
            rows.append(
                {
                    name: cell if cell is None else "" if cell in _MISSING else list_or_text(cell)
                    for name, cell in zip(columns, cells, strict=False)
                    if name
                }
            )
    except CsvError as e:
        raise UserError(f"{path} line {e.line}: {e}", e.hint) from e
    return rows


def _must_be_text(value: Any) -> None:
    """Raise `ValueError` for an escaped unpaired surrogate, which is not a character and cannot be encoded as UTF-8."""
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
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
