"""Data sets at a known commit: with the hub, with a bad line, and without."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Hub = Callable[..., dict[str, str]]

pytestmark = pytest.mark.hub

NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9"}

RESOLVE = """
import sys
from wpn_bench.benchmarks.run import resolve_revision
from wpn_bench.errors import UserError
try:
    print(resolve_revision(*sys.argv[1:]))
except UserError as e:
    print("USER ERROR", e)
"""

LOAD = """
import sys
from wpn_bench import hub
from wpn_bench.errors import UserError
try:
    data = hub.load(*sys.argv[1:])
    print({split: len(rows) for split, rows in data.items()})
except UserError as e:
    print("USER ERROR", e)
"""

COPA = ("aps/super_glue", "copa")
COPA_ROWS = "{'train': 20, 'validation': 100}"


def test_a_commit_is_resolved_and_read(hub_with: Hub, run_python: Run) -> None:
    env = hub_with()
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert len(commit) == 40
    first = run_python(LOAD, env, *COPA, commit)
    assert first.stdout.strip() == COPA_ROWS
    assert first.stderr == ""
    # From now on the hub is not needed, whether or not the user says so.
    for offline in (NOBODY, {"HF_HUB_OFFLINE": "1"}):
        assert run_python(RESOLVE, env | offline, *COPA).stdout.strip() == commit
        again = run_python(LOAD, env | offline, *COPA, commit)
        assert again.stdout.strip() == COPA_ROWS
        assert again.stderr == ""
    # Another commit than the cached one is refused, not silently replaced as by `datasets`.
    other = run_python(LOAD, env | {"HF_HUB_OFFLINE": "1"}, *COPA, "0" * 40).stdout
    assert other.startswith(f"USER ERROR the data set 'aps/super_glue' is cached at commit {commit[:12]}, not at")
    # A configuration that is not cached is not there.
    assert "run once with network" in run_python(RESOLVE, env | NOBODY, "aps/super_glue", "wsc").stdout


@pytest.mark.parametrize("offline", [NOBODY, {"HF_HUB_OFFLINE": "1"}], ids=["no line", "offline mode"])
def test_nothing_cached_and_no_hub(hub_with: Hub, run_python: Run, offline: dict[str, str]) -> None:
    said = run_python(RESOLVE, hub_with() | offline, *COPA).stdout
    assert said.strip() == (
        "USER ERROR the data set 'aps/super_glue' is not cached and the hub cannot be reached; run once with network"
    )


def test_an_unknown_data_set(hub_with: Hub, run_python: Run) -> None:
    said = run_python(RESOLVE, hub_with(), "nobody/nothing").stdout
    assert said.startswith("USER ERROR there is no data set 'nobody/nothing' on the hub; ")


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--fail-rate", "0.2"), ("--cut-rate", "0.2")], ids=["busy", "cut off"])
def test_a_bad_line_is_borne(hub_with: Hub, run_python: Run, options: tuple[str, ...]) -> None:
    env = hub_with(*options, "--seed", "1")
    commit = run_python(RESOLVE, env, *COPA).stdout.strip()
    assert len(commit) == 40
    assert run_python(LOAD, env, *COPA, commit).stdout.strip() == COPA_ROWS
