"""What comes from the hub: repositories of models and data sets, at a commit that is resolved once.

`datasets.load_dataset` answers with *the latest cached* commit when the hub cannot be reached, whatever
revision was asked for, and needs half a minute of retries to find that out; `snapshot_download` answers with what an
earlier download that broke off has left. Here the commit is resolved once, what is cached at that commit is read without
a request, another commit than the one asked for is an error, and so is a file that is not what the hub promised.
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
    UNREACHABLE,
    as_user_error,
    cache_folder,
    cache_write_error,
    endpoint,
    is_connection_error,
    is_unreachable,
    refusal_error,
    with_retries,
)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


@cache
def resolve_commit(model: str, revision: str | None = None) -> str:
    """The commit of the model repository's `revision` (None: its main branch) as it stands now; without the hub, as it
    stood when it was fetched. The same commit for as long as the process lives, even if the branch moves meanwhile.

    Raises `UserError` for a repository or revision that does not exist, that is closed to this user, or that is neither
    reachable nor cached.
    """
    from huggingface_hub import HfApi

    def ask() -> str:
        sha = HfApi().model_info(model, revision=revision, timeout=20).sha
        assert sha is not None
        return str(sha)

    try:
        commit = with_retries(ask)
    except Exception as e:
        if not is_connection_error(e):
            raise
        if (said := refusal_error(e, "model", model, revision)) is not None:
            raise said from e
        # No hub now: what is cached may still do.
        UNREACHABLE.add(endpoint())
        if (cached := _cached_commit(model, revision)) is None:
            raise UserError(
                f"{model} is not in the local cache and the hub cannot be reached",
                f"{PREFETCH_HINT} (HF_ENDPOINT, HF_HOME), or connect once, or give a folder;"
                " `wpn-bench full` alone needs no network",
            ) from e
        return cached
    UNREACHABLE.discard(endpoint())
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
    """Which commit a branch or tag was at, where every library of the hub looks for it without network."""
    file = _refs(model) / (revision or "main")
    if revision == commit or _cached_commit(model, revision) == commit:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, commit)
    except OSError as e:
        raise cache_write_error(e, model) from e


def list_files(model: str, commit: str) -> list[str]:
    """The files of a model repository at a commit; as they were listed when it was fetched, where they were.

    Raises `UserError` where neither is to be had.
    """
    from huggingface_hub import HfApi

    if (listed := _cached_file_sizes(model, commit)) is not None:
        return list(listed)
    if is_unreachable():  # fetched by an older library, which kept no list
        folder = cache_folder() / f"models--{model.replace('/', '--')}" / "snapshots" / commit
        return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    try:
        return with_retries(lambda: HfApi().list_repo_files(model, revision=commit))
    except Exception as e:
        raise as_user_error(e, "model", model, commit) from e


def _cached_file_sizes(model: str, commit: str) -> dict[str, int] | None:
    """Bytes of each file as the hub listed them when the repository was fetched; None where no list was kept."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(model, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None


def snapshot(
    model: str, commit: str, *, allow: Sequence[str] | None = None, ignore: Sequence[str] | None = None
) -> Path:
    """The folder of a model repository's files at `commit` that fit the patterns, all of them there; fetched if need be,
    going on where an earlier attempt broke off.

    Raises `UserError` where a file cannot be had. What the files hold is checked by `check_files`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    patterns: dict[str, Any] = {"allow_patterns": allow, "ignore_patterns": ignore}
    folder = cache_folder() / f"models--{model.replace('/', '--')}" / "snapshots" / commit
    if (sizes := _cached_file_sizes(model, commit)) is not None:
        lacking = [name for name in filter_repo_objects(sizes, **patterns) if not (folder / name).is_file()]
        if not lacking:
            return folder
        _check_space(model, sum(sizes[name] for name in lacking))
    patterns["local_files_only"] = is_unreachable()
    try:
        return Path(with_retries(lambda: snapshot_download(model, revision=commit, **patterns)))
    except Exception as e:
        raise as_user_error(e, "model", model, commit) from e


def _check_space(model: str, need: int) -> None:
    """Raise `UserError` where the disk has no room for what is still to be fetched."""
    there = next(p for p in (cache_folder().absolute(), *cache_folder().absolute().parents) if p.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"{model} takes {need / 2**30:.1f} GiB more, and {there} has {free / 2**30:.1f} GiB free",
            "free some space, or set HF_HOME to a folder on a larger disk",
        )


def check_files(model: str, folder: Path, digests: dict[str, str]) -> None:
    """Raise `UserError` if a file of a snapshot is not what the hub promised, and remove it, so that it is fetched anew.

    digests: SHA-256 by name, of the files that are to be read. The cache keeps a file under the digest that the hub gave
    for it: SHA-256, or git's for small files.
    """
    for name, digest in digests.items():
        file = (folder / name).resolve()
        if len(file.name) == 64:
            right = file.name == digest
        elif COMMIT_HASH.fullmatch(file.name):
            data = file.read_bytes()
            right = file.name == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        else:
            continue  # a file system without links: the cache keeps no digest
        if not right:
            file.unlink()
            (folder / name).unlink(missing_ok=True)
            raise UserError(
                f"{name} of {model} is not what the hub promised: it was damaged on this machine, and is removed",
                "type the same command again to fetch it anew (with --offline: " + PREFETCH_HINT + ")",
            )
