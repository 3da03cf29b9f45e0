"""JSON files that may come from anybody: plain values or a `UserError`, never a surprise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError

LARGEST = 1e150  # its square is a number, too: nothing that is computed of such values overflows


def load_json(path: Path, hint: str) -> Any:
    """The value in a UTF-8 JSON file.

    `UserError`, with `hint`, for a file that cannot be read or is no JSON: cut off, of bytes that are no UTF-8, nested
    deeper or with longer numbers than Python reads, with NaN or Infinity or a number beyond `LARGEST`. `FileNotFoundError` is
    the caller's: only it knows what is missing.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_float, parse_float=_float, parse_int=_int)
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 (byte {e.start})", hint) from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})", hint) from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON ({' '.join(str(e).split())[:120]})", hint) from e


def _float(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST:  # NaN as well
        raise ValueError(f"{text[:20]} is no number that could be worked with")
    return number


def _int(text: str) -> int:
    number = int(text)
    if abs(number) > LARGEST:
        raise ValueError(f"{text[:20]}... is no number that could be worked with")
    return number
