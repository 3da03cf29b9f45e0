"""Access to the Hugging Face hub: models and data sets at fixed commits, with retries and an offline mode."""

from __future__ import annotations

from wpn_bench.hub.connection import (
    PREFETCH_HINT,
    FetchedItem,
    IncompleteDownload,
    as_user_error,
    go_offline,
    is_offline,
    is_unreachable,
    quiet_libraries,
    with_retries,
)
from wpn_bench.hub.datasets import cached_tables, is_local, load_dataset, resolve_revision
from wpn_bench.hub.models import HUB_ID, check_files, list_files, resolve_commit, snapshot

__all__ = [
    "HUB_ID",
    "PREFETCH_HINT",
    "FetchedItem",
    "IncompleteDownload",
    "as_user_error",
    "cached_tables",
    "check_files",
    "go_offline",
    "is_local",
    "is_offline",
    "is_unreachable",
    "list_files",
    "load_dataset",
    "quiet_libraries",
    "resolve_commit",
    "resolve_revision",
    "snapshot",
    "with_retries",
]
