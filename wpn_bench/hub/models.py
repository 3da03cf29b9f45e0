"""Download models from the hub, at a commit that is resolved once.

The hub's libraries are not strict enough for reproducible runs. If the hub cannot be reached, `datasets.load_dataset`
retries for half a minute and then returns *the latest cached* commit, whatever revision was requested.
`snapshot_download` returns the incomplete files of an interrupted download. In this module, a cached commit is read
without a request. A commit other than the requested one and a file that does not match its digest are errors.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wpn_bench.core.files import write_text
from wpn_bench.errors import UserError
from wpn_bench.hub.connection import (
    PREFETCH_HINT,
    as_user_error,
    cache_folder,
    cache_write_error,
    is_connection_error,
    is_unreachable,
    refusal_error,
    set_unreachable,
    with_retries,
)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


@cache
def resolve_commit(model: str, revision: str | None = None) -> str:
    """Return the current commit of a model's revision, or the cached commit if the hub cannot be reached.

    Within a process, repeated calls return the same commit, even if the branch moves.

    Args:
        model: Name of the repository on the hub.
        revision: Branch, tag or commit; None means the main branch.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        UserError: The repository or revision does not exist, access is restricted, or it is neither reachable nor
            cached.
    """
    from huggingface_hub import HfApi

    def request() -> str:
        sha = HfApi().model_info(model, revision=revision, timeout=20).sha
        assert sha is not None
        return str(sha)

    try:
        commit = with_retries(request)
    except Exception as e:
        if not is_connection_error(e):
            raise
        if (refused := refusal_error(e, "model", model, revision)) is not None:
            raise refused from e
        # The hub cannot be reached, so use the cache.
        set_unreachable(True)
        if (cached := _cached_commit(model, revision)) is None:
            raise UserError(
                f"{model} is not in the local cache and the hub cannot be reached",
                f"{PREFETCH_HINT} (check HF_ENDPOINT and HF_HOME), or give a local folder;"
                " without --model, `wpn-bench full` uses its small lab model, which needs no network",
            ) from e
        return cached
    set_unreachable(False)
    _save_ref(model, revision, commit)
    return commit


def _refs(model: str) -> Path:
    return cache_folder() / f"models--{model.replace('/', '--')}" / "refs"


def _cached_commit(model: str, revision: str | None) -> str | None:
    if revision is not None and COMMIT_HASH.fullmatch(revision):
        return revision
    try:
        return (_refs(model) / (revision or "main")).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _save_ref(model: str, revision: str | None, commit: str) -> None:
    """Store the commit of a branch or tag in the place where all libraries of the hub look for it when offline."""
    file = _refs(model) / (revision or "main")
    if revision == commit or _cached_commit(model, revision) == commit:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, commit)
    except OSError as e:
        raise cache_write_error(e, model) from e


def list_files(model: str, commit: str) -> list[str]:
    """Return the file names of a model repository at a commit. They are read from the cache if it has them.

    Args:
        model: Name of the repository on the hub.
        commit: The commit.

    Returns:
        Paths within the repository.

    Raises:
        UserError: The list is not cached and the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if (sizes := _cached_file_sizes(model, commit)) is not None:
        return list(sizes)
    if is_unreachable():  # an older library downloaded the model and stored no list
        folder = cache_folder() / f"models--{model.replace('/', '--')}" / "snapshots" / commit
        return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    try:
        return with_retries(lambda: HfApi().list_repo_files(model, revision=commit))
    except Exception as e:
        raise as_user_error(e, "model", model, commit) from e


def _cached_file_sizes(model: str, commit: str) -> dict[str, int] | None:
    """Return the size in bytes of each file, as the hub listed it at the download. None if no list is cached."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(model, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None


def snapshot(
    model: str, commit: str, *, allow: Sequence[str] | None = None, ignore: Sequence[str] | None = None
) -> Path:
    """Download the files of a model at a commit, unless they are cached. An interrupted download is resumed.

    This function does not verify the contents; `check_files` does.

    Args:
        model: Name of the repository on the hub.
        commit: The commit.
        allow: Glob patterns of the files to download; None means all files.
        ignore: Glob patterns of files to leave out.

    Returns:
        The local folder with all files that match the patterns.

    Raises:
        UserError: A file cannot be downloaded, or the disk has too little free space.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    patterns: dict[str, Any] = {"allow_patterns": allow, "ignore_patterns": ignore}
    folder = cache_folder() / f"models--{model.replace('/', '--')}" / "snapshots" / commit
    if (sizes := _cached_file_sizes(model, commit)) is not None:
        missing = [name for name in filter_repo_objects(sizes, **patterns) if not (folder / name).is_file()]
        if not missing:
            return folder
        _check_space(model, sum(sizes[name] for name in missing))
    patterns["local_files_only"] = is_unreachable()
    try:
        return Path(with_retries(lambda: snapshot_download(model, revision=commit, **patterns)))
    except Exception as e:
        raise as_user_error(e, "model", model, commit) from e


def _check_space(model: str, need: int) -> None:
    """Raise `UserError` if the disk of the cache has less than `need` bytes free."""
    folder = next(p for p in (cache_folder().absolute(), *cache_folder().absolute().parents) if p.exists())
    if need > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{model} needs {need / 2**30:.1f} GiB more, and {folder} has {free / 2**30:.1f} GiB free",
            "free disk space, or set HF_HOME to a folder on a larger disk",
        )


def check_files(model: str, folder: Path, digests: dict[str, str]) -> None:
    """Compare the files of a snapshot with the digests of the hub.

    The cache names each file by the digest that the hub gives for it: SHA-256, or git's SHA-1 for small files.

    Args:
        model: Name of the repository on the hub.
        folder: The snapshot.
        digests: Actual SHA-256 of each file to check, by file name.

    Raises:
        UserError: A file does not match. It is removed, so that it is downloaded again.
    """
    for name, digest in digests.items():
        file = (folder / name).resolve()
        if len(file.name) == 64:
            matches = file.name == digest
        elif COMMIT_HASH.fullmatch(file.name):
            data = file.read_bytes()
            matches = file.name == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        else:
            continue  # on a file system without links, the cache stores no digest
        if not matches:
            file.unlink()
            (folder / name).unlink(missing_ok=True)
            raise UserError(
                f"{name} of {model} did not match the hub's digest: the local copy was damaged and has been removed",
                "repeat the command to download it again (or with --offline, first " + PREFETCH_HINT + ")",
            )
