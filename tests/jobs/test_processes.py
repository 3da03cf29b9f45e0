"""Jobs in several processes: real helpers on a tiny model, and the order of jobs with helpers that are threads."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.core.progress import Reporter
from wpn_bench.core.registry import Registry
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs import processes
from wpn_bench.jobs import stages as jobs_stages
from wpn_bench.jobs.executor import Fleet, LocalExecutor, execute_job, need_paths
from wpn_bench.jobs.helper import HelperLost
from wpn_bench.jobs.job import External, Job, StageContext
from wpn_bench.jobs.processes import ProcessExecutor
from wpn_bench.jobs.stages import Stage
from wpn_bench.jobs.store import Store


class Heard(Reporter):
    """Records what is shown."""

    shows_items = True

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def start(self, label: str) -> None:
        self.started.append(label)

    def finish(self, label: str, status: str, seconds: float) -> None:
        self.ended.append((label, status))

    def note(self, text: str) -> None:
        self.notes.append(text)


# --- real helpers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def losses(tiny_model: Path, tmp_path: Path) -> list[Job]:
    """Four measurements of the same model on texts of their own."""
    jobs = []
    for k in range(4):
        texts = tmp_path / f"texts{k}"
        texts.mkdir()
        (texts / "texts.jsonl").write_text(json.dumps({"text": f"{k} " * (5 + k)}) + "\n")
        needs = {"model": External(tiny_model, "m"), "texts": External(texts, f"t{k}")}
        jobs.append(Job("perplexity", {"dtype": "float32"}, needs, f"text {k}", {"device": "cpu"}))
    return jobs


def files_of(store: Store, jobs: list[Job]) -> list[bytes]:
    return [store.path(job.stage, job.digest).joinpath("windows.parquet").read_bytes() for job in jobs]


@pytest.mark.slow
def test_helpers_write_what_one_process_writes(losses: list[Job], tmp_path: Path) -> None:
    """One helper alone: this process takes a job only if the helper leaves one."""
    alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
    LocalExecutor(alone, Reporter()).run(losses)
    heard = Heard()
    executor = ProcessExecutor(shared, heard, 2)
    try:
        outcomes = executor.run(losses)
        assert [o.status for o in outcomes.values()] == ["done"] * 4
        assert list(outcomes) == [job.digest for job in losses]
        assert sorted(heard.started) == sorted(job.label for job in losses)
        assert sorted(heard.ended) == sorted((job.label, "done") for job in losses)
        assert files_of(alone, losses) == files_of(shared, losses)
        assert [o.status for o in executor.run(losses).values()] == ["cached"] * 4
    finally:
        executor.stop()


@pytest.mark.slow
def test_this_process_goes_on_if_the_helper_is_killed(losses: list[Job], tmp_path: Path) -> None:
    heard = Heard()
    store = Store(tmp_path / "store")
    executor = ProcessExecutor(store, heard, 2)
    executor._helpers = [processes.Helper(store.root)]
    os.kill(executor._helpers[0].pid, signal.SIGKILL)
    outcomes = executor.run(losses)
    assert [o.status for o in outcomes.values()] == ["done"] * 4
    assert [note.partition(":")[0].partition(" during ")[0] for note in heard.notes] == ["lost a process"]
    assert executor._helpers == []


# --- the order of jobs, with helpers in threads -------------------------------------------------------------------------

RAN: list[tuple[str, bool]] = []  # (label, whether a helper executed it)


def write_stage(ctx: StageContext) -> None:
    if ctx.params["text"] == "broken":
        raise JobFailed("it broke")
    if ctx.params["text"] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    ctx.progress(1, "things")(1)
    (ctx.out / "text").write_text(ctx.params["text"])


@pytest.fixture(autouse=True)
def _stages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "losses" in request.fixturenames:
        return
    RAN.clear()
    module = types.ModuleType("stages_for_processes")
    module.__dict__.update(write=write_stage, NARROW=Stage("stages_for_processes:write", 1, shardable=True))
    module.__dict__.update(WIDE=Stage("stages_for_processes:write", 1))
    monkeypatch.setitem(sys.modules, "stages_for_processes", module)
    registry: Registry[Stage] = Registry(
        "stage", {"narrow": "stages_for_processes:NARROW", "wide": "stages_for_processes:WIDE"}
    )
    monkeypatch.setattr(jobs_stages, "STAGES", registry)
    monkeypatch.setattr(processes, "Helper", InThread)


class InThread:
    """A helper that executes jobs in the thread that waits for it."""

    lost_at: str | None = None

    def __init__(self, store: Path) -> None:
        self.store = Store(store)

    def execute(self, job: Job, threads: int, started: Any, items: Any) -> Mapping[str, Any] | None:
        if job.label == InThread.lost_at:
            raise HelperLost
        started()
        outcome = execute_job(self.store, job, need_paths(job, {}), items)
        RAN.append((job.label, True))
        return {name: value for name, value in vars(outcome).items() if name != "job"}

    def stop(self) -> None:
        pass


def run(tmp_path: Path, *jobs: Job, heard: Reporter | None = None) -> dict[str, tuple[str, str | None]]:
    executor = ProcessExecutor(Store(tmp_path / "store"), heard or Reporter(), 2)
    return {o.job.label: (o.status, o.reason) for o in executor.run(jobs).values()}


def write(stage: str, text: str, *needs: Job) -> Job:
    return Job(stage, {"text": text}, {str(k): need for k, need in enumerate(needs)}, text)


def test_trainings_are_for_helpers(tmp_path: Path) -> None:
    trained = [write("wide", f"train {k}") for k in range(3)]
    asked = [write("narrow", f"ask {k}", job) for k, job in enumerate(trained)]
    assert run(tmp_path, *trained, *asked) == {job.label: ("done", None) for job in (*trained, *asked)}
    assert {label for label, _ in RAN} >= {job.label for job in trained}


def test_without_a_helper_this_process_trains_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr(InThread, "lost_at", "train 0")
    trained = [write("wide", f"train {k}") for k in range(2)]
    asked = write("narrow", "ask", *trained)
    got = run(tmp_path, *trained, asked, heard=heard)
    assert got == dict.fromkeys(("train 0", "train 1", "ask"), ("done", None))
    assert heard.notes == ["lost a process during train 0: another one continues"]
    assert RAN == []


def test_a_failure_in_a_helper_skips_what_needs_it(tmp_path: Path) -> None:
    broken = write("wide", "broken")
    got = run(tmp_path, broken, write("narrow", "needs it", broken), write("narrow", "other"))
    assert got == {
        "broken": ("failed", "it broke"),
        "needs it": ("skipped", "broken: it broke"),
        "other": ("done", None),
    }


def test_a_full_disk_in_a_helper_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="full: no space left on device"):
        run(tmp_path, write("wide", "full"), write("narrow", "needs it", write("wide", "full")))


def test_workers_choose_the_number_of_processes(tmp_path: Path) -> None:
    for fleet, number in ((Fleet(), 1), (Fleet(workers=3), 3)):
        with fleet.open_executor(Store(tmp_path / str(number)), Reporter()) as executor:
            assert isinstance(executor, ProcessExecutor)
            executor.run([write("narrow", f"{number} {k}") for k in range(5)])
            assert len(executor._helpers) == number - 1


# --- the default ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "gigabytes", "gpu", "expected"),
    [(1, 24, False, 1), (2, 24, False, 2), (16, 64, False, 4), (4, 5, False, 2), (4, 1, False, 1), (8, 64, True, 1)],
)
def test_small_models_get_a_process_for_each_thread_that_memory_allows(
    threads: int, gigabytes: int, gpu: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(processes, "free_memory", lambda: gigabytes * 10**9)
    assert processes.processes_for_small_models() == expected
