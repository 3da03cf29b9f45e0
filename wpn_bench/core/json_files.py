"""Read JSON files of unknown origin. Every invalid file raises a `UserError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError

LARGEST = 1e150  # the square of this number is finite, so computations with accepted values do not overflow


def load_json(path: Path, hint: str) -> Any:
    """Read a UTF-8 JSON file.

    Args:
        path: The file to read.
        hint: What the user can do; it becomes the hint of the errors.

    Returns:
        The decoded value.

    Raises:
        FileNotFoundError: The file does not exist. Only the caller knows what is missing.
        UserError: The file cannot be read, is not UTF-8 or is not valid JSON. Also rejected are an object with the same
            key twice, nesting and numbers that are too long for Python, NaN, Infinity, and numbers above `LARGEST`
            (1e150).
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(
            text,
            parse_constant=_float,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=without_duplicates,
        )
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 (byte {e.start})", hint) from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})", hint) from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON ({' '.join(str(e).split())[:120]})", hint) from e


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from the pairs of a JSON object, for the argument `object_pairs_hook` of `json.loads`.

    Raises `ValueError` if a key occurs twice. Without this check, Python silently keeps the last value.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice in one object")
    return found


def _float(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST:  # also true for NaN
        raise ValueError(f"{text[:20]} is not a number in the supported range")
    return number


def _int(text: str) -> int:
    number = int(text)
    if abs(number) > LARGEST:
        raise ValueError(f"{text[:20]}... is not a number in the supported range")
    return number
