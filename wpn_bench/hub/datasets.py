"""Load data sets from the hub at a fixed commit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.files import digest_file, write_json
from wpn_bench.errors import UserError
from wpn_bench.hub.connection import (
    PREFETCH_HINT,
    as_user_error,
    disk_full_error,
    is_connection_error,
    is_offline,
    quiet_libraries,
    refusal_error,
    with_retries,
)
from wpn_bench.hub.models import COMMIT_HASH

if TYPE_CHECKING:
    from datasets import DatasetDict

DIGESTS_FILE = "wpn-bench.json"  # SHA-256 of each prepared file, stored in the same folder
_LOCAL_BUILDERS = {"arrow", "csv", "json", "pandas", "parquet", "text"}


def is_local(path: str | None) -> bool:
    """Return whether a task's `dataset_path` refers to local files and not to a repository on the hub."""
    return path is None or path in _LOCAL_BUILDERS or Path(path).exists()


def resolve_revision(path: str, name: str | None = None, revision: str | None = None) -> str | None:
    """Return the current commit of a data set, or the cached commit if the hub cannot be reached.

    Args:
        path: Name of the data set on the hub, or a local path.
        name: Configuration of the data set. It is only used to find the cached commit.
        revision: Branch, tag or commit; None means the main branch.

    Returns:
        The commit; None for local files.

    Raises:
        UserError: The data set does not exist, access is restricted, or it is neither reachable nor cached.
    """
    return None if is_local(path) else _resolve(path, name, revision)


@cache
def _resolve(path: str, name: str | None, revision: str | None) -> str:
    from huggingface_hub import HfApi

    if revision is not None and COMMIT_HASH.fullmatch(revision):
        return revision
    try:
        info = with_retries(lambda: HfApi().dataset_info(path, revision=revision, timeout=20))
        script = f"{path.rpartition('/')[2]}.py"
        if any(file.rfilename == script for file in info.siblings or ()):
            raise script_error(path, script)
        if info.sha is not None:
            return str(info.sha)
    except UserError:
        raise
    except Exception as e:
        if not is_connection_error(e):
            raise
        if (refused := refusal_error(e, "data set", path, revision)) is not None:
            raise refused from e
        # The hub cannot be reached, so use the cache.
    cached = cached_revision(path, name)
    if cached is None:
        raise UserError(f"the data set {path!r} is not cached and the hub cannot be reached", PREFETCH_HINT)
    return cached


def script_error(path: str, script: str) -> UserError:
    """Return the error for a data set that is a Python script. `datasets` 4 and later do not run such scripts.

    Args:
        path: Name of the data set on the hub.
        script: File name of the script.

    Returns:
        The error, which the caller raises.
    """
    return UserError(
        f"the data set {path!r} is a script ({script}), which the library `datasets` no longer runs",
        "use a copy that consists of data files (Parquet, JSON, CSV), or its revision refs/convert/parquet if it has one",
    )


def cached_revision(path: str, name: str | None = None) -> str | None:
    """Return the commit that `datasets` would read from its cache without the hub.

    Args:
        path: Name of the data set on the hub.
        name: Configuration of the data set.

    Returns:
        The commit; None if nothing is cached.
    """
    builder = _cached_builder(path, name)
    return None if builder is None else str(builder.hash)


def load_dataset(path: str, name: str | None, revision: str) -> DatasetDict:
    """Load all splits of a data set at a commit. They are read from the cache if it has this commit undamaged.

    Args:
        path: Name of the data set on the hub.
        name: Configuration of the data set.
        revision: The commit.

    Returns:
        The splits by name.

    Raises:
        UserError: The commit can neither be read from the cache nor downloaded.
    """
    with quiet_libraries():
        builder = _cached_builder(path, name)
        if builder is None or builder.hash != revision or not _is_intact(builder):
            builder = _fetch(path, name, revision)
        data: DatasetDict = builder.as_dataset()
    return data


def cached_tables(path: str, name: str | None) -> tuple[Path, ...]:
    """Return the Arrow files of a cached data set.

    Args:
        path: Name of the data set on the hub.
        name: Configuration of the data set.

    Returns:
        The files; empty if the data set is not cached.
    """
    builder = _cached_builder(path, name)
    return () if builder is None else tuple(_tables(builder))


def _tables(builder: Any) -> list[Path]:
    return sorted(Path(builder.cache_dir).glob("*.arrow"))


def _is_intact(builder: Any) -> bool:
    """Return whether the prepared files match their stored digests.

    Files that another program prepared have no digests and are accepted.
    """
    import json

    try:
        expected = json.loads((Path(builder.cache_dir) / DIGESTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(expected == {file.name: digest_file(file) for file in _tables(builder)})


class _WrongCachedCommit(OSError):
    """`datasets` could not reach the hub and read another commit from its cache instead."""


def _fetch(path: str, name: str | None, revision: str) -> Any:
    import datasets

    def fetch() -> Any:
        builder = datasets.load_dataset_builder(path, name, revision=revision)
        if builder.hash != revision:
            raise _WrongCachedCommit(str(builder.hash))
        if Path(builder.cache_dir).is_dir() and not _is_intact(builder):
            if is_offline():
                raise UserError(f"the cached files of the data set {path!r} are damaged", PREFETCH_HINT)
            shutil.rmtree(builder.cache_dir)
        builder.download_and_prepare()
        if not (Path(builder.cache_dir) / DIGESTS_FILE).exists():
            write_json(
                Path(builder.cache_dir) / DIGESTS_FILE, {file.name: digest_file(file) for file in _tables(builder)}
            )
        return builder

    try:
        return with_retries(fetch)
    except _WrongCachedCommit as e:
        raise UserError(
            f"the data set {path!r} is cached at commit {str(e)[:12]}, not at {revision[:12]},"
            " and the hub cannot be reached",
            f"{PREFETCH_HINT}, or leave out the revision to use the cached commit",
        ) from e
    except Exception as e:
        if isinstance(e, RuntimeError) and "scripts are no longer supported" in str(e):
            raise script_error(path, str(e).rpartition(" ")[2]) from e
        if isinstance(e, (ValueError, datasets.exceptions.DatasetsError)) and not disk_full_error(e):
            why = " ".join(str(e).split())[:200]
            raise UserError(
                f"the data set {path!r} could not be downloaded at commit {revision[:12]} ({why})",
                "check the network and the name; after one download, the data set is read from the cache",
            ) from e
        raise as_user_error(e, "data set", path, revision) from e


def _cached_builder(path: str, name: str | None) -> Any:
    import datasets

    try:
        with quiet_libraries(), _offline():
            return datasets.load_dataset_builder(path, name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return None  # the data set, or this configuration of it, is not cached


@contextmanager
def _offline() -> Iterator[None]:
    """Make `datasets` and `huggingface_hub` read only their caches within a `with` block."""
    import datasets
    import huggingface_hub.constants

    before = (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
