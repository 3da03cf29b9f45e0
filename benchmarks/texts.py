"""Read the texts of a file, for speed comparisons."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def texts_of(path: Path, key: str) -> list[str]:
    """Return the values of `key` in the rows of a JSONL file (or .gz), in order."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)[key] for line in file if line.strip()]
