"""The connection to the hub: offline mode, retries, and conversion of errors to `UserError`."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from wpn_bench.errors import UserError, exception_chain

T = TypeVar("T")
Kind = Literal["model", "data set"]

PREFETCH_HINT = "run `wpn-bench prefetch` with the same options once while online"
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)  # seconds before each retry


@dataclass(frozen=True)
class FetchedItem:
    """A downloaded model, data set or file.

    Attributes:
        kind: What was downloaded, such as "model" or "data set".
        name: Name on the hub.
        revision: The commit, or for a single file its digest.
        files: The local files.
    """

    kind: str
    name: str
    revision: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Return the total size of the files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def fetched_after(self, moment: float) -> bool:
        """Return whether a file was downloaded after `moment`, a time in seconds as `time.time` returns it."""
        return any(file.stat().st_mtime >= moment for file in self.files)


def go_offline() -> None:
    """Stop all libraries from making requests to the hub, in this process and in processes that it starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Libraries read this variable when they are imported. Those that are imported already must be changed here.
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def is_offline() -> bool:
    """Return whether downloads are disabled (`--offline`, HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Return the hub's cache folder."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


_UNREACHABLE: set[str] = set()  # URLs of hubs that did not answer


def is_unreachable() -> bool:
    """Return whether this process is offline or the hub did not answer an earlier request.

    Callers skip requests if so, because libraries would retry for half a minute.
    """
    return is_offline() or _endpoint() in _UNREACHABLE


def set_unreachable(unreachable: bool) -> None:
    """Record whether the hub answered the last request."""
    if unreachable:
        _UNREACHABLE.add(_endpoint())
    else:
        _UNREACHABLE.discard(_endpoint())


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Disable the progress bars and warnings of `datasets` and `huggingface_hub`. Errors are still raised."""
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


class IncompleteDownload(OSError):
    """The downloaded data does not match its digest, most likely because the connection was interrupted."""


def with_retries(call: Callable[[], T]) -> T:
    """Call a function, and call it again after transient errors, with the pauses in `RETRY_DELAYS`.

    Transient errors are a busy hub (status 5xx or 429) and an interrupted connection. If the hub cannot be reached at
    all, there is no retry.
    """
    for delay in RETRY_DELAYS:
        try:
            return call()
        except Exception as e:
            if is_offline() or not _is_transient(e):
                raise
        time.sleep(delay)
    return call()


def _is_transient(e: Exception) -> bool:
    """Return whether the same request may succeed if it is repeated."""
    for link in exception_chain(e):
        status = getattr(getattr(link, "response", None), "status_code", None) or getattr(link, "code", None)
        if isinstance(status, int) and (status >= 500 or status == 429):
            return True
        if isinstance(link, IncompleteDownload) or type(link).__name__ in {
            "RemoteProtocolError",
            "ReadError",
            "ReadTimeout",
            "IncompleteRead",
        }:
            return True
        if "Consistency check failed" in str(link):  # the hub sent fewer bytes than it had announced
            return True
    return False


def is_connection_error(e: Exception) -> bool:
    """Return whether `e` means that a request to the hub failed.

    Releases of `huggingface_hub` use different HTTP clients, whose exceptions differ.
    """
    from huggingface_hub.errors import HfHubHTTPError

    client = type(e).__module__.partition(".")[0]
    return isinstance(e, (HfHubHTTPError, OSError)) or client in {"httpx", "httpx2"}


def refusal_error(e: Exception, kind: Kind, name: str, revision: str | None) -> UserError | None:
    """Return the error for a request that the hub refused, or None if the connection failed.

    Args:
        e: The exception of the request.
        kind: What was requested.
        name: Its name on the hub.
        revision: The requested revision.

    Returns:
        The error for the user (no access, unknown name or unknown revision), or None.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    label = name if kind == "model" else f"the data set {name!r}"
    ask = "request access on its page, then set HF_TOKEN and try again"
    if isinstance(e, GatedRepoError):
        return UserError(f"access to {label} is restricted", ask)
    if isinstance(e, RevisionNotFoundError):
        return UserError(
            f"{label} has no revision {revision!r}", "leave out the revision, or give a branch, a tag or a commit"
        )
    if isinstance(e, RepositoryNotFoundError):
        if kind == "data set":
            return UserError(f"there is no data set {name!r} on the hub", "check its name (owner/name) and HF_TOKEN")
        return UserError(
            f"unknown model {name!r}: no such folder here and no such repository on the hub",
            "check the spelling (owner/name) and HF_TOKEN, or give a folder; `wpn-bench full` alone uses its small lab model",
        )
    status = getattr(getattr(e, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(f"the hub refuses access to {label} ({status})", f"check HF_TOKEN, or {ask}")
    return None


def disk_full_error(e: Exception) -> OSError | None:
    """Return the error of a full disk or an exceeded quota from the chain of `e`, or None."""
    for link in exception_chain(e):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return link
    return None


def cache_write_error(e: OSError, name: str) -> UserError:
    """Return the error for a cache folder that cannot be written.

    Args:
        e: The operating system's error.
        name: Name of the model or data set to store.

    Returns:
        The error for the user.
    """
    return UserError(
        f"{name} cannot be stored in {cache_folder()} ({e.strerror or type(e).__name__})",
        "free disk space, or set HF_HOME to a folder on a larger disk",
    )


def as_user_error(e: Exception, kind: Kind, name: str, revision: str) -> UserError:
    """Convert an exception during a download into a `UserError`.

    Args:
        e: The exception.
        kind: What was downloaded.
        name: Its name on the hub.
        revision: The commit.

    Returns:
        The error, which the caller raises.

    Raises:
        Exception: `e` itself, if its cause is neither the connection nor the hub nor the disk.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(e, UserError):
        return e
    if (full := disk_full_error(e)) is not None:
        return cache_write_error(full, name)
    if isinstance(e, PermissionError) and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return cache_write_error(e, name)
    if (refused := refusal_error(e, kind, name, revision)) is not None:
        return refused
    if isinstance(e, LocalEntryNotFoundError):
        return UserError(
            f"{name} at commit {revision[:12]} is not completely in the local cache and the hub cannot be reached",
            PREFETCH_HINT,
        )
    if not is_connection_error(e):
        raise e
    return UserError(
        f"{name} could not be downloaded ({' '.join(str(e).split())[:200]})",
        "repeat the command to resume the download",
    )
