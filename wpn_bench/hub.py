"""Data sets from the hub at a known commit.

`datasets.load_dataset` answers with *the latest cached* commit when the hub cannot be reached, whatever
revision was asked for, and needs half a minute of retries to find that out. Here the commit is resolved
once, what is cached at that commit is read without a request, and another commit than the one asked for is
an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict

T = TypeVar("T")

_LOCAL_BUILDERS = {"arrow", "csv", "json", "pandas", "parquet", "text"}


def is_local(path: str | None) -> bool:
    """Whether a task's `dataset_path` names local files rather than a repository of the hub."""
    return path is None or path in _LOCAL_BUILDERS or Path(path).exists()


def resolve_revision(path: str, name: str | None = None) -> str | None:
    """The commit of the hub's data set `path` as it stands now; without the hub, the commit that is cached.

    None for local files. Raises `UserError` for a data set that does not exist, that is closed to this
    user, or that is neither reachable nor cached. `name` is the configuration; it only matters without the
    hub.
    """
    return None if is_local(path) else _resolve(path, name)


@cache
def _resolve(path: str, name: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = _patiently(lambda: HfApi().dataset_info(path, timeout=20))
        if info.sha is not None:
            return str(info.sha)
    except GatedRepoError as e:
        raise UserError(
            f"access to the data set {path!r} is restricted",
            "ask for access on its page, then set HF_TOKEN and try again",
        ) from e
    except RepositoryNotFoundError as e:
        raise UserError(f"there is no data set {path!r} on the hub", "check its name (owner/name) and HF_TOKEN") from e
    except Exception as e:
        if not is_of_the_line(e):
            raise
        # No hub now: what is cached may still do.
    cached = cached_revision(path, name)
    if cached is None:
        raise UserError(f"the data set {path!r} is not cached and the hub cannot be reached", "run once with network")
    return cached


def cached_revision(path: str, name: str | None = None) -> str | None:
    """The commit that `datasets` would read from its cache without the hub; None if there is none."""
    builder = _cached_builder(path, name)
    return None if builder is None else str(builder.hash)


def load(path: str, name: str | None, revision: str) -> DatasetDict:
    """All splits of a data set at the commit `revision`, from the cache where it is there.

    Raises `UserError` if that commit can neither be read from the cache nor fetched.
    """
    with quiet():
        builder = _cached_builder(path, name)
        if builder is None or builder.hash != revision:
            builder = _fetch(path, name, revision)
        data: DatasetDict = builder.as_dataset()
    return data


def _fetch(path: str, name: str | None, revision: str) -> Any:
    import datasets

    def fetch() -> Any:
        builder = datasets.load_dataset_builder(path, name, revision=revision)
        if builder.hash == revision:
            builder.download_and_prepare()
        return builder

    try:
        builder = _patiently(fetch)
    except Exception as e:
        if not (is_of_the_line(e) or isinstance(e, (ValueError, datasets.exceptions.DatasetsError))):
            raise
        why = " ".join(str(e).split())[:200]
        raise UserError(
            f"the data set {path!r} could not be fetched at commit {revision[:12]} ({why})",
            "check the network and the name; once fetched, it is read from the cache",
        ) from e
    if builder.hash != revision:
        # What `datasets` falls back to when the hub does not answer.
        raise UserError(
            f"the data set {path!r} is cached at commit {str(builder.hash)[:12]}, not at {revision[:12]},"
            " and the hub cannot be reached",
            "run once with network, or start a new run, which takes the cached commit",
        )
    return builder


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


def _patiently(call: Callable[[], T]) -> T:
    """Call again, after 0.5 to 4 s, when the hub is busy (5xx, 429) or the line broke; not when away."""
    for pause in (0.5, 1.0, 2.0, 4.0):
        try:
            return call()
        except Exception as e:
            if not _is_passing(e):
                raise
        time.sleep(pause)
    return call()


def _chain(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def _is_passing(e: Exception) -> bool:
    """Whether the same request may well succeed in a moment."""
    for link in _chain(e):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None and (status >= 500 or status == 429):
            return True
        if type(link).__name__ in {"RemoteProtocolError", "ReadError", "ReadTimeout"}:
            return True
    return False


def is_of_the_line(e: Exception) -> bool:
    """Whether `e` says that the hub could not be asked. Its HTTP client differs between releases."""
    from huggingface_hub.errors import HfHubHTTPError

    client = type(e).__module__.partition(".")[0]
    return isinstance(e, (HfHubHTTPError, OSError)) or client in {"httpx", "httpx2"}
