"""Texts of a file, for the comparisons of speed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def texts_of(path: Path, key: str) -> list[str]:
    """What the rows of a JSONL file (.gz, too) have under `key`, in their order."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)[key] for line in file if line.strip()]
