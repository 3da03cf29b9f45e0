"""JSON files that may come from anybody: plain values or a `UserError`, never a surprise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError


def load_json(path: Path, way_out: str) -> Any:
    """The value in a UTF-8 JSON file.

    `UserError`, with `way_out`, for a file that cannot be read or is no JSON: cut off, of bytes that are no UTF-8, nested
    deeper or with longer numbers than Python reads, with NaN or Infinity. `FileNotFoundError` is the caller's: only it knows what is missing.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 (byte {e.start})", way_out) from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e})", way_out) from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON ({' '.join(str(e).split())[:120]})", way_out) from e


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number
