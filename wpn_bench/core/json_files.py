"""Read JSON files of unknown origin: every invalid file gives a `UserError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError

LARGEST = 1e150  # its square is still finite, so computations with such values do not overflow


def load_json(path: Path, hint: str) -> Any:
    """Read a UTF-8 JSON file.

    Args:
        path: The file.
        hint: Hint of the errors.

    Returns:
        The value.

    Raises:
        FileNotFoundError: The file does not exist; only the caller knows what is missing.
        UserError: The file cannot be read or is not valid JSON: truncated, not UTF-8, nested deeper or with longer numbers
            than Python accepts, with a key twice in an object, or with NaN, Infinity or a number above `LARGEST`.
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
    """Build an object from its pairs (`object_pairs_hook`). Raises `ValueError` if a key occurs twice.

    Python's reader keeps the last value silently.
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
