"""The connection to the hub: offline or not, retries, and errors in one line."""

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

PREFETCH_HINT = "run `wpn-bench prefetch` with the same options once, with network"
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)  # seconds before each further try


@dataclass(frozen=True)
class FetchedItem:
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


UNREACHABLE: set[str] = set()  # addresses of hubs that did not answer


def is_unreachable() -> bool:
    """Whether the hub may not be asked, or did not answer when it was: libraries would try for half a minute."""
    return is_offline() or endpoint() in UNREACHABLE


def endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def quiet_libraries() -> Iterator[None]:
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


class IncompleteDownload(OSError):
    """What came is not what was promised: the line broke, most likely."""


def with_retries(call: Callable[[], T]) -> T:
    """Call again, after `PAUSES`, when the hub is busy (5xx, 429) or the line broke; not when it is away."""
    for pause in RETRY_DELAYS:
        try:
            return call()
        except Exception as e:
            if is_offline() or not _is_transient(e):
                raise
        time.sleep(pause)
    return call()


def _is_transient(e: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
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
        if "Consistency check failed" in str(link):  # fewer bytes than promised
            return True
    return False


def is_connection_error(e: Exception) -> bool:
    """Whether `e` says that the hub could not be asked. Its HTTP client differs between releases."""
    from huggingface_hub.errors import HfHubHTTPError

    client = type(e).__module__.partition(".")[0]
    return isinstance(e, (HfHubHTTPError, OSError)) or client in {"httpx", "httpx2"}


def refusal_error(e: Exception, kind: Kind, name: str, revision: str | None) -> UserError | None:
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


def disk_full_error(e: Exception) -> OSError | None:
    for link in exception_chain(e):
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return link
    return None


def cache_write_error(e: OSError, name: str) -> UserError:
    return UserError(
        f"{name} cannot be kept in {cache_folder()} ({e.strerror or type(e).__name__})",
        "free some space, or set HF_HOME to a folder on a larger disk",
    )


def as_user_error(e: Exception, kind: Kind, name: str, revision: str) -> UserError:
    """One line for an error while something is fetched; an error that is no fault of line, hub or disk is raised."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(e, UserError):
        return e
    if (full := disk_full_error(e)) is not None:
        return cache_write_error(full, name)
    if isinstance(e, PermissionError) and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return cache_write_error(e, name)
    if (said := refusal_error(e, kind, name, revision)) is not None:
        return said
    if isinstance(e, LocalEntryNotFoundError):
        return UserError(
            f"{name} at commit {revision[:12]} is not wholly in the local cache and the hub cannot be reached",
            PREFETCH_HINT,
        )
    if not is_connection_error(e):
        raise e
    return UserError(
        f"{name} could not be fetched ({' '.join(str(e).split())[:200]})", "type the same command again to go on"
    )
