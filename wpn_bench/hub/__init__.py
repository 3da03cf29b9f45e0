"""The Hugging Face hub: models and data sets at known commits, with retries and offline."""

from __future__ import annotations

from wpn_bench.hub.connection import (
    PREFETCH,
    Cut,
    Fetched,
    explained,
    go_offline,
    is_away,
    is_offline,
    patiently,
    quiet,
)
from wpn_bench.hub.datasets import is_local, load, resolve_revision, tables_of
from wpn_bench.hub.models import HUB_ID, check_files, commit_of, names_of, snapshot

__all__ = [
    "HUB_ID",
    "PREFETCH",
    "Cut",
    "Fetched",
    "check_files",
    "commit_of",
    "explained",
    "go_offline",
    "is_away",
    "is_local",
    "is_offline",
    "load",
    "names_of",
    "patiently",
    "quiet",
    "resolve_revision",
    "snapshot",
    "tables_of",
]
