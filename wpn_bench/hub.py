"""What comes from the hub: repositories of models and data sets, at a commit that is resolved once.

`datasets.load_dataset` answers with *the latest cached* commit when the hub cannot be reached, whatever
revision was asked for, and needs half a minute of retries to find that out; `snapshot_download` answers with what an
earlier download that broke off has left. Here the commit is resolved once, what is cached at that commit is read without
a request, another commit than the one asked for is an error, and so is a file that is not what the hub promised.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from wpn_bench.errors import UserError, causes
from wpn_bench.store import digest_file, write_json, write_text

if TYPE_CHECKING:
    from datasets import DatasetDict

T = TypeVar("T")
Kind = Literal["model", "data set"]

PREFETCH = "run `wpn-bench prefetch` with the same options once, with network"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SEAL = "wpn-bench.json"  # the digests of a prepared data set's files, beside them
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)  # seconds before each further try
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL_BUILDERS = {"arrow", "csv", "json", "pandas", "parquet", "text"}


@dataclass(frozen=True)
class Fetched:
    """One thing that a run reads from elsewhere, as it lies here. `revision`: a commit, or the digest of a single file."""

    kind: str
    name: str
    revision: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.stat().st_size for file in self.files)

    def since(self, moment: float) -> bool:
        """Whether any of it was fetched after `moment` (seconds of `time.time`)."""
        return any(file.stat().st_mtime >= moment for file in self.files)


# --- with and without network ----------------------------------------------------------------------------------------


def go_offline() -> None:
    """Let no library ask the hub for anything, in this process and those that it starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # They read the variable when they are imported, which may have been before.
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def is_offline() -> bool:
    """Whether nothing may be fetched (`--offline`, HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Where what is fetched is kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


# --- repositories of models ------------------------------------------------------------------------------------------


@cache
def commit_of(model: str, revision: str | None = None) -> str:
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
        commit = patiently(ask)
    except Exception as e:
        if not is_of_the_line(e):
            raise
        if (said := _refusal(e, "model", model, revision)) is not None:
            raise said from e
        # No hub now: what is cached may still do.
        _AWAY.add(_endpoint())
        if (cached := _cached_commit(model, revision)) is None:
            raise UserError(
                f"{model} is not in the local cache and the hub cannot be reached",
                f"{PREFETCH} (HF_ENDPOINT, HF_HOME), or connect once, or give a folder;"
                " `wpn-bench full` alone needs no network",
            ) from e
        return cached
    _AWAY.discard(_endpoint())
    _remember(model, revision, commit)
    return commit


_AWAY: set[str] = set()  # addresses of hubs that did not answer


def is_away() -> bool:
    """Whether the hub may not be asked, or did not answer when it was: libraries would try for half a minute."""
    return is_offline() or _endpoint() in _AWAY


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _refs(model: str) -> Path:
    return cache_folder() / f"models--{model.replace('/', '--')}" / "refs"


def _cached_commit(model: str, revision: str | None) -> str | None:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return (_refs(model) / (revision or "main")).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _remember(model: str, revision: str | None, commit: str) -> None:
    """Which commit a branch or tag was at, where every library of the hub looks for it without network."""
    file = _refs(model) / (revision or "main")
    if revision == commit or _cached_commit(model, revision) == commit:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, commit)
    except OSError as e:
        raise _unwritable(e, model) from e


def names_of(model: str, commit: str) -> list[str]:
    """The files of a model repository at a commit; as they were listed when it was fetched, where they were.

    Raises `UserError` where neither is to be had.
    """
    from huggingface_hub import HfApi

    if (listed := _listed(model, commit)) is not None:
        return list(listed)
    if is_away():  # fetched by an older library, which kept no list
        folder = cache_folder() / f"models--{model.replace('/', '--')}" / "snapshots" / commit
        return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    try:
        return patiently(lambda: HfApi().list_repo_files(model, revision=commit))
    except Exception as e:
        raise explained(e, "model", model, commit) from e


def _listed(model: str, commit: str) -> dict[str, int] | None:
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
    if (sizes := _listed(model, commit)) is not None:
        lacking = [name for name in filter_repo_objects(sizes, **patterns) if not (folder / name).is_file()]
        if not lacking:
            return folder
        _check_space(model, sum(sizes[name] for name in lacking))
    patterns["local_files_only"] = is_away()
    try:
        return Path(patiently(lambda: snapshot_download(model, revision=commit, **patterns)))
    except Exception as e:
        raise explained(e, "model", model, commit) from e


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
        elif _COMMIT.fullmatch(file.name):
            data = file.read_bytes()
            right = file.name == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        else:
            continue  # a file system without links: the cache keeps no digest
        if not right:
            file.unlink()
            (folder / name).unlink(missing_ok=True)
            raise UserError(
                f"{name} of {model} is not what the hub promised: it was damaged on this machine, and is removed",
                "type the same command again to fetch it anew (with --offline: " + PREFETCH + ")",
            )


# --- data sets -------------------------------------------------------------------------------------------------------


def is_local(path: str | None) -> bool:
    """Whether a task's `dataset_path` names local files rather than a repository of the hub."""
    return path is None or path in _LOCAL_BUILDERS or Path(path).exists()


def resolve_revision(path: str, name: str | None = None, revision: str | None = None) -> str | None:
    """The commit of the hub's data set `path` as it stands now; without the hub, the commit that is cached.

    None for local files. Raises `UserError` for a data set that does not exist, that is closed to this
    user, or that is neither reachable nor cached. `name` is the configuration; it only matters without the
    hub. `revision`: a branch, tag or commit (None: the main branch).
    """
    return None if is_local(path) else _resolve(path, name, revision)


@cache
def _resolve(path: str, name: str | None, revision: str | None) -> str:
    from huggingface_hub import HfApi

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        info = patiently(lambda: HfApi().dataset_info(path, revision=revision, timeout=20))
        if info.sha is not None:
            return str(info.sha)
    except Exception as e:
        if not is_of_the_line(e):
            raise
        if (said := _refusal(e, "data set", path, revision)) is not None:
            raise said from e
        # No hub now: what is cached may still do.
    cached = cached_revision(path, name)
    if cached is None:
        raise UserError(f"the data set {path!r} is not cached and the hub cannot be reached", PREFETCH)
    return cached


def cached_revision(path: str, name: str | None = None) -> str | None:
    """The commit that `datasets` would read from its cache without the hub; None if there is none."""
    builder = _cached_builder(path, name)
    return None if builder is None else str(builder.hash)


def load(path: str, name: str | None, revision: str) -> DatasetDict:
    """All splits of a data set at the commit `revision`, from the cache where it is there, whole.

    Raises `UserError` if that commit can neither be read from the cache nor fetched.
    """
    with quiet():
        builder = _cached_builder(path, name)
        if builder is None or builder.hash != revision or not _is_whole(builder):
            builder = _fetch(path, name, revision)
        data: DatasetDict = builder.as_dataset()
    return data


def tables_of(path: str, name: str | None) -> tuple[Path, ...]:
    """The files that a cached data set is read from; none where it is not cached."""
    builder = _cached_builder(path, name)
    return () if builder is None else tuple(_tables(builder))


def _tables(builder: Any) -> list[Path]:
    return sorted(Path(builder.cache_dir).glob("*.arrow"))


def _is_whole(builder: Any) -> bool:
    """Whether the prepared files are as they were when they were made; what another program made is taken as it is."""
    import json

    try:
        promised = json.loads((Path(builder.cache_dir) / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return bool(promised == {file.name: digest_file(file) for file in _tables(builder)})


class _FellBack(OSError):
    """`datasets` could not reach the hub and took another commit from its cache."""


def _fetch(path: str, name: str | None, revision: str) -> Any:
    import datasets

    def fetch() -> Any:
        builder = datasets.load_dataset_builder(path, name, revision=revision)
        if builder.hash != revision:
            raise _FellBack(str(builder.hash))
        if Path(builder.cache_dir).is_dir() and not _is_whole(builder):
            if is_offline():
                raise UserError(f"the data set {path!r} was damaged on this machine", PREFETCH)
            shutil.rmtree(builder.cache_dir)
        builder.download_and_prepare()
        if not (Path(builder.cache_dir) / SEAL).exists():
            write_json(Path(builder.cache_dir) / SEAL, {file.name: digest_file(file) for file in _tables(builder)})
        return builder

    try:
        return patiently(fetch)
    except _FellBack as e:
        raise UserError(
            f"the data set {path!r} is cached at commit {str(e)[:12]}, not at {revision[:12]},"
            " and the hub cannot be reached",
            f"{PREFETCH}, or name no revision, which takes the cached commit",
        ) from e
    except Exception as e:
        if isinstance(e, (ValueError, datasets.exceptions.DatasetsError)) and not _full(e):
            why = " ".join(str(e).split())[:200]
            raise UserError(
                f"the data set {path!r} could not be fetched at commit {revision[:12]} ({why})",
                "check the network and the name; once fetched, it is read from the cache",
            ) from e
        raise explained(e, "data set", path, revision) from e


def _cached_builder(path: str, name: str | None) -> Any:
    import datasets

    try:
        with quiet(), _offline():
            return datasets.load_dataset_builder(path, name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return None  # nothing cached, or not this configuration


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` and `huggingface_hub` read their caches only."""
    import datasets
    import huggingface_hub.constants

    before = (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings from `datasets` and `huggingface_hub`; errors are raised as ever."""
    import datasets
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity = datasets.logging.get_verbosity()
    bars, hub_bars = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
        if not hub_bars:
            enable_progress_bars()


# --- what can go wrong -----------------------------------------------------------------------------------------------


class Cut(OSError):
    """What came is not what was promised: the line broke, most likely."""


def patiently(call: Callable[[], T]) -> T:
    """Call again, after `PAUSES`, when the hub is busy (5xx, 429) or the line broke; not when it is away."""
    for pause in PAUSES:
        try:
            return call()
        except Exception as e:
            if is_offline() or not _is_passing(e):
                raise
        time.sleep(pause)
    return call()


def _is_passing(e: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    for link in causes(e):
        status = getattr(getattr(link, "response", None), "status_code", None) or getattr(link, "code", None)
        if isinstance(status, int) and (status >= 500 or status == 429):
            return True
        if isinstance(link, Cut) or type(link).__name__ in {
            "RemoteProtocolError",
            "ReadError",
            "ReadTimeout",
            "IncompleteRead",
        }:
            return True
        if "Consistency check failed" in str(link):  # fewer bytes than promised
            return True
    return False


def is_of_the_line(e: Exception) -> bool:
    """Whether `e` says that the hub could not be asked. Its HTTP client differs between releases."""
    from huggingface_hub.errors import HfHubHTTPError

    client = type(e).__module__.partition(".")[0]
    return isinstance(e, (HfHubHTTPError, OSError)) or client in {"httpx", "httpx2"}


def _refusal(e: Exception, kind: Kind, name: str, revision: str | None) -> UserError | None:
    """What the hub said, if it has answered; None if the line is what failed."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    whole = name if kind == "model" else f"the data set {name!r}"
    ask = "ask for access on its page, then set HF_TOKEN and try again"
    if isinstance(e, GatedRepoError):
        return UserError(f"access to {whole} is restricted", ask)
    if isinstance(e, RevisionNotFoundError):
        return UserError(f"{whole} has no revision {revision!r}", "leave it out or name a branch, a tag or a commit")
    if isinstance(e, RepositoryNotFoundError):
        if kind == "data set":
            return UserError(f"there is no data set {name!r} on the hub", "check its name (owner/name) and HF_TOKEN")
        return UserError(
            f"unknown model {name!r}: no such folder here and no such repository on the hub",
            "check the spelling (owner/name) and HF_TOKEN, or give a folder; `wpn-bench full` alone runs the embedded lab",
        )
    status = getattr(getattr(e, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(f"the hub refuses access to {whole} ({status})", f"check HF_TOKEN, or {ask}")
    return None


def _full(e: Exception) -> OSError | None:
    for link in causes(e):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return link
    return None


def _unwritable(e: OSError, name: str) -> UserError:
    return UserError(
        f"{name} cannot be kept in {cache_folder()} ({e.strerror or type(e).__name__})",
        "free some space, or set HF_HOME to a folder on a larger disk",
    )


def explained(e: Exception, kind: Kind, name: str, revision: str) -> UserError:
    """One line for an error while something is fetched; an error that is no fault of line, hub or disk is raised."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(e, UserError):
        return e
    if (full := _full(e)) is not None:
        return _unwritable(full, name)
    if isinstance(e, PermissionError) and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _unwritable(e, name)
    if (said := _refusal(e, kind, name, revision)) is not None:
        return said
    if isinstance(e, LocalEntryNotFoundError):
        return UserError(
            f"{name} at commit {revision[:12]} is not wholly in the local cache and the hub cannot be reached", PREFETCH
        )
    if not is_of_the_line(e):
        raise e
    return UserError(
        f"{name} could not be fetched ({' '.join(str(e).split())[:200]})", "type the same command again to go on"
    )
