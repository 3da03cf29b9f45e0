"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wpn_bench.core import consent
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Fleet
from wpn_bench.jobs.ray_worker import PROBE_SECONDS, RunEnvironment
from wpn_bench.jobs.store import Store

DEFAULT_THREADS = 4  # largest number of CPUs of a job, unless the user sets a number
OBJECT_STORE_BYTES = 80 * 2**20  # about Ray's minimum, because tasks exchange very little data
_FORWARDED = (  # environment variables that workers must share with the driver
    consent.CODE,
    consent.PICKLES,
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TRANSFORMERS_VERBOSITY",
    "TOKENIZERS_PARALLELISM",
)

_RAY_SETTINGS = {  # Ray reads these settings when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",  # no long messages about lost workers on standard output
}


@contextmanager
def connected(fleet: Fleet, address: str | None, reporter: Reporter) -> Iterator[int]:
    """Connect this process to a Ray cluster, so that it can send tasks.

    Args:
        fleet: The user's settings of the executor.
        address: Address of the cluster. None starts one on this machine, which is stopped at the end of the `with`
            block.
        reporter: Shows the activity.

    Yields:
        The number of CPUs of each job.

    Raises:
        UserError: The cluster cannot be reached or started, or has too few CPUs.
    """
    cpus = _connect(fleet, address, reporter)
    import ray

    try:
        yield cpus
    finally:
        ray.shutdown()


@contextmanager
def run_environment(store: Store) -> Iterator[RunEnvironment]:
    """Describe this process's environment for workers. The probe file exists in the store within the `with` block."""
    with tempfile.NamedTemporaryFile(dir=store.root / "tmp", prefix="probe-") as probe:
        variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
        yield RunEnvironment(store.root.resolve(), Path(probe.name).name, Path.cwd(), variables)


def _connect(fleet: Fleet, address: str | None, reporter: Reporter) -> int:
    if address is not None:
        _check_address(fleet, address)
    os.environ |= _RAY_SETTINGS | os.environ
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Ray listens on ports that other machines can reach, and its tasks run with this user's rights. So a token is
        # required. Ray reads this setting when it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with reporter.activity("start Ray" if address is None else "find the Ray cluster"):
        workers, cpus = _workers_and_cpus(fleet, _available_cpus())
        local_cluster = {
            "num_cpus": workers * cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        try:
            ray.init(address=address or "local", **quiet, **({} if address else local_cluster))
        except Exception as e:  # Ray raises many classes of errors, such as for a version conflict or a full disk
            why = " ".join(str(e).split())[:300]
            if address is not None:
                raise _unusable_cluster(address, why) from e
            raise UserError(f"Ray cannot be started ({why})", "fix this, or leave out --executor ray") from e
        if address is None:
            return cpus
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        cpus = fleet.cpus_per_job or _default_cpus(largest)
        if cpus > largest:
            ray.shutdown()
            raise UserError(
                f"a job needs {cpus} CPUs, but no node of the cluster has more than {largest}",
                "start nodes with more CPUs, or reduce --cpus-per-job",
            )
        return cpus


def _check_address(fleet: Fleet, address: str) -> None:
    """Raise `UserError` if nothing listens at the address. Without this check, Ray would retry for minutes."""
    if fleet.workers is not None:
        raise UserError(
            f"--workers only applies to a new cluster on this machine, not to the one at {address}",
            "leave out --workers, or unset RAY_ADDRESS",
        )
    if "://" in address:
        raise _unusable_cluster(address, "a Ray client is not part of the cluster")
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
        except (OSError, OverflowError) as e:
            raise _unusable_cluster(address, str(e)) from e


def _unusable_cluster(address: str, why: str) -> UserError:
    return UserError(
        f"the Ray cluster at {address} cannot be used ({why})",
        "run the command on a node of a running cluster, with the HOST:PORT that `ray start --head` printed",
    )


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_cpus(cpus: int) -> int:
    """Return the number of CPUs of a job on a machine with `cpus` CPUs.

    This is OMP_NUM_THREADS if set, and otherwise few enough that two jobs can run.
    """
    return _omp_threads() or max(1, min(DEFAULT_THREADS, cpus // 2))


def _omp_threads() -> int:
    """Return OMP_NUM_THREADS, or 0 if it is not set to a number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() else 0


def _workers_and_cpus(fleet: Fleet, cpus: int) -> tuple[int, int]:
    """Return the number of workers and the CPUs of each, for a machine with `cpus` CPUs."""
    if fleet.workers is None:
        each = fleet.cpus_per_job or _default_cpus(cpus)
        return max(1, cpus // each), each
    return fleet.workers, fleet.cpus_per_job or _omp_threads() or max(1, cpus // fleet.workers)
