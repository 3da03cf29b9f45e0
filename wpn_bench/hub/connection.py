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

from wpn_bench.errors import UserError, causes

T = TypeVar("T")
Kind = Literal["model", "data set"]

PREFETCH = "run `wpn-bench prefetch` with the same options once, with network"
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)  # seconds before each further try


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


_AWAY: set[str] = set()  # addresses of hubs that did not answer


def is_away() -> bool:
    """Whether the hub may not be asked, or did not answer when it was: libraries would try for half a minute."""
    return is_offline() or _endpoint() in _AWAY


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


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
