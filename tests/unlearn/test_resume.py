"""A training job that is killed by the kernel, through the executor and the store, in processes of their own."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fork_server import ROOT, ForkServer

from wpn_bench.core.progress import Reporter
from wpn_bench.errors import JobFailed
from wpn_bench.jobs import job as jobs_job
from wpn_bench.jobs.executor import LocalExecutor
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.store import Store, read_manifest
from wpn_bench.prompts import Item
from wpn_bench.unlearn import checkpoints
from wpn_bench.unlearn.train import TRAINING

from .training import job_in, method_of, put_needs

CODE = """
import json, sys
from pathlib import Path
from wpn_bench.cli.libraries import configure_libraries
configure_libraries()  # as the command line does: libraries that merely lie there (torchao) talk on standard error
from wpn_bench.core.progress import Reporter
from wpn_bench.jobs.executor import LocalExecutor
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.store import Store
said = json.loads(sys.argv[1])
needs = {role: External(Path(path), role) for role, path in said["needs"].items()}
job = Job("train", said["params"], needs, "train", said["local"])
(outcome,) = LocalExecutor(Store(Path(said["store"])), Reporter()).run([job]).values()
print(outcome.status, outcome.path)
"""


@pytest.fixture
def said(tmp_path: Path, small_opt: Path, items: list[Item], texts: list[str]) -> dict[str, Any]:
    """What the code above reads: a long training with many checkpoints."""
    method = method_of("wpn", steps=60, save_every=5)
    return job_in(tmp_path, small_opt, method, put_needs(tmp_path, items, texts))


def run(said: dict[str, Any], commands: ForkServer) -> Path:
    done = commands.completed(["python", "-c", CODE, json.dumps(said)], ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    status, path = done.stdout.split()
    assert status == "done"
    return Path(path)


@pytest.mark.slow
def test_killed_in_the_middle(said: dict[str, Any], tmp_path: Path, offline_commands: ForkServer) -> None:
    """What was kept of the model on the way is kept."""
    said["params"]["snapshots"] = [3, 58]
    whole = run(said | {"store": str(tmp_path / "undisturbed")}, offline_commands)
    scratch = tmp_path / "store" / "scratch"
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(offline_commands.completed, ["python", "-c", CODE, json.dumps(said)], tmp_path)
        try:
            deadline = time.monotonic() + 100
            while not list(scratch.glob("train-*/checkpoint-*/seal.json")):
                assert not killed.done(), "ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            for process in offline_commands.running():
                process.kill()
        assert killed.result().returncode == -signal.SIGKILL
    (folder,) = scratch.glob("train-*")
    last = checkpoints.latest(folder)
    assert last is not None
    assert not (tmp_path / "store" / "train").exists()
    # The training that goes on starts from it: were it trained from the start, this figure would be overwritten.
    progress = json.loads((last / "progress.json").read_text())
    progress["history"][0]["loss"] = 123.0
    (last / "progress.json").write_text(json.dumps(progress))
    checkpoints.seal(last)

    made = run(said, offline_commands)
    assert not list(scratch.glob("train-*"))
    one, other = ((read_manifest(p) or {})["files"] for p in (whole, made))
    assert {name.split("/")[0] for name in one} >= {"step-3", "step-58", "model.safetensors"}
    assert {name: d for name, d in one.items() if name != TRAINING} == {
        name: d for name, d in other.items() if name != TRAINING
    }
    first, second = (json.loads((p / TRAINING).read_text()) for p in (whole, made))
    assert second["history"][0]["loss"] == 123.0
    assert second["history"][1:] == first["history"][1:]
    assert len(second["history"]) == 60


def in_process(said: dict[str, Any]) -> tuple[Job, LocalExecutor]:
    needs: dict[str, Job | External] = {role: External(Path(p), role) for role, p in said["needs"].items()}
    job = Job("train", said["params"], needs, "train", said["local"])
    return job, LocalExecutor(Store(Path(said["store"])), Reporter())


@pytest.mark.parametrize(("error", "kept"), [(RuntimeError("out of memory"), True), (JobFailed("diverged"), False)])
def test_what_may_pass_keeps_its_checkpoints(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: bool
) -> None:
    """Short memory may be had later; a training that diverged would diverge again."""

    def breaks(ctx: jobs_job.StageContext) -> None:
        assert ctx.scratch is not None
        ctx.scratch.mkdir(parents=True)
        raise error

    monkeypatch.setattr("wpn_bench.unlearn.train.run_train_stage", breaks)
    job, executor = in_process(said)
    (outcome,) = executor.run([job]).values()
    assert outcome.status == "failed"
    assert executor.store.scratch("train", job.digest).exists() == kept


def test_a_diverged_training_leaves_nothing(said: dict[str, Any]) -> None:
    said["params"]["config"] |= {"lr": 1e30}
    said["local"]["config"] = {"save_every": 1}
    job, executor = in_process(said)
    (outcome,) = executor.run([job]).values()
    assert outcome.status == "failed"
    assert "training diverged" in (outcome.reason or "")
    assert not executor.store.scratch("train", job.digest).exists()
