"""The Ray executor: without a cluster, and on a cluster of two nodes (both on this machine), one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipeline.test_pipeline import Plain, Workshop

from wpn_bench import config as configuration
from wpn_bench.core.files import folder_signature, try_lock
from wpn_bench.core.progress import Advance, Reporter
from wpn_bench.errors import UserError
from wpn_bench.harmless import stages as harmless_stages
from wpn_bench.jobs import ray_cluster, ray_driver, ray_worker
from wpn_bench.jobs.executor import Fleet, LocalExecutor
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.journal import Journal, Shard
from wpn_bench.jobs.ray_cluster import connected, run_environment
from wpn_bench.jobs.ray_driver import RayExecutor, copy_to_store, shard_count
from wpn_bench.jobs.ray_worker import WorkerTask, run_task
from wpn_bench.jobs.store import Store, read_manifest
from wpn_bench.pipeline import runner
from wpn_bench.prompts import Item
from wpn_bench.prompts.items import ITEMS, item_row, read_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"ga": {"lr": 1e30, "steps": 4}, "sft": {"steps": 2, "batch_size": 2}}
# Not `importorskip`: importing Ray decides whether nodes require a token.
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'wpn-bench[ray]'")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread like the workers: another number of threads may change the last digit of a sum."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- without a cluster -----------------------------------------------------------------------------------------------


def generate_job(model: Path, prompts: Path, n_tokens: int = 5) -> Job:
    """Return a job that answers prompts."""
    params = {
        "template": "{prompt}",
        "decoding": {"max_new_tokens": n_tokens, "batch_size": 8},
        "dtype": "float32",
    }
    needs: dict[str, Job | External] = {"model": External(model, "m"), "prompts": External(prompts, prompts.name)}
    return Job("generate", params, needs, "answer", {"device": "cpu"})


def put_prompts(folder: Path, n: int) -> Path:
    folder.mkdir()
    items = [Item(str(k), f"Who sells apple number {k}?", (), ()) for k in range(n)]
    write_rows(folder / ITEMS, [item_row(item) for item in items])
    return folder


@pytest.fixture
def task(tmp_path: Path, small_opt: Path) -> Iterator[WorkerTask]:
    """A job with twelve prompts, for an empty store."""
    job = generate_job(small_opt, put_prompts(tmp_path / "prompts", 12))
    with run_environment(Store(tmp_path / "store")) as environment:
        yield WorkerTask(environment, 1, replace(job), job.inputs, 1)


def test_a_task_stores_its_artifact(task: WorkerTask) -> None:
    ended = run_task(task, None)
    assert ended is not None
    assert (ended.status, ended.reason) == ("done", None)
    assert ended.path == task.environment.store / "generate" / task.job.digest
    assert ended.peak_mb > 100
    again = run_task(task, None)
    assert again is not None
    assert again.status == "cached"


def test_a_locked_job_is_not_executed(task: WorkerTask) -> None:
    store = Store(task.environment.store)
    with store.claim("generate", task.job.digest):
        assert run_task(task, None) is None
        shared = run_task(replace(task, shard=Shard(0, 2)), None)
        assert shared is not None
        assert shared.status == "shared"
    assert store.find("generate", task.job.digest) is None
    with store.claim("generate", f"{task.job.digest}-1-of-2"):
        assert run_task(replace(task, shard=Shard(1, 2)), None) is None


def test_shards_compute_each_item_once_with_the_same_result(task: WorkerTask, tmp_path: Path) -> None:
    whole = run_task(task, None)
    assert whole is not None
    assert whole.path is not None
    elsewhere = Store(tmp_path / "elsewhere")
    with run_environment(elsewhere) as environment, try_lock(elsewhere.scratch("generate", task.job.digest)):
        task = replace(task, environment=environment)
        shares = [run_task(replace(task, shard=Shard(k, 3)), None) for k in range(3)]
        assert [s.status for s in shares if s] == ["shared"] * 3
        # The folder is locked by this test, so it is not removed when the job is done.
        seconds = Journal(elsewhere.scratch("generate", task.job.digest)).spent
        found = journalled(elsewhere.scratch("generate", task.job.digest))
        combined = run_task(task, None)
        assert journalled(elsewhere.scratch("generate", task.job.digest)) == found
    assert sorted(k for _, k in found) == list(range(12))
    assert set(found.values()) == {1}
    assert combined is not None
    assert combined.path is not None
    assert read_rows(combined.path / "responses.jsonl") == read_rows(whole.path / "responses.jsonl")
    # The time of the shards is included.
    spent = (read_manifest(combined.path) or {})["seconds"]
    assert 0 < seconds < spent <= combined.seconds + 0.001  # written in milliseconds, before the job is done


def journalled(scratch: Path) -> Counter[tuple[str, int]]:
    """Count how often each item occurs in a job's journal."""
    found: Counter[tuple[str, int]] = Counter()
    for file in scratch.glob("items-*.jsonl"):
        for line in file.read_text().splitlines():
            key, pairs, _ = json.loads(line.partition(" ")[2])
            found.update((key, int(k)) for k, _ in pairs)
    return found


def test_the_error_names_a_node_with_another_library(task: WorkerTask) -> None:
    libraries = {**task.inputs["libraries"], "tokenizers": "0.0.1"}
    asked = replace(task, inputs={**task.inputs, "libraries": libraries})
    with pytest.raises(UserError, match=rf"has tokenizers {version('tokenizers')}, but this run started with 0\.0\.1"):
        run_task(asked, None)
    with pytest.raises(UserError, match="has nowhere-to-be-had not installed"):
        task.environment.enter({"nowhere-to-be-had": "1"})


def test_the_error_names_a_node_with_another_version(task: WorkerTask, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = replace(harmless_stages.GENERATE, version=harmless_stages.GENERATE.version + 1)
    monkeypatch.setattr(harmless_stages, "GENERATE", newer)
    with pytest.raises(UserError, match="has another version of wpn-bench than this run started with"):
        run_task(task, None)


def test_the_error_names_a_node_that_does_not_see_the_store(task: WorkerTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "PROBE_SECONDS", 0.0)
    with pytest.raises(
        UserError, match=r"does not see the store .*; use --store DIR with a folder that all nodes share"
    ):
        run_task(replace(task, environment=replace(task.environment, probe="probe-of-another-folder")), None)


def test_a_task_waits_for_files_of_another_node(task: WorkerTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may show them with a delay."""
    store = Store(task.environment.store)
    prompts = store.path("prompts", "p" * 64)
    needs = {**task.job.needs, "prompts": External(prompts, "prompts")}

    def arrives() -> None:
        time.sleep(0.5)
        with store.build("prompts", "p" * 64, {}) as out:
            write_rows(out / ITEMS, [item_row(Item("0", "Why?", (), ()))])

    writing = threading.Thread(target=arrives)
    writing.start()
    ended = run_task(replace(task, job=replace(task.job, needs=needs)), None)
    writing.join()
    assert ended is not None
    assert ended.status == "done"
    monkeypatch.setattr(ray_worker, "ARRIVAL_SECONDS", 0.0)
    needs["prompts"] = External(store.path("prompts", "q" * 64), "prompts")
    with pytest.raises(UserError, match="does not see what another node wrote to the store"):
        run_task(replace(task, job=replace(task.job, needs=needs)), None)


@pytest.mark.parametrize(
    ("stage", "items", "idle", "asked", "parts"),
    [
        ("generate", 1000, 4, None, 4),
        ("generate", 1000, 0, None, 1),
        ("generate", 130, 4, None, 2),
        ("generate", 20, 4, None, 1),  # not worth loading the model
        ("generate", 20, 4, 3, 3),
        ("generate", 2, 4, 3, 2),
        ("generate", 1000, 4, 1, 1),
        ("gcg", 1000, 4, None, 1),  # a search depends on its earlier steps
        ("gcg", 1000, 4, 3, 1),
        ("train", 1000, 4, 3, 1),
    ],
)
def test_a_job_is_split_if_workers_would_be_idle(
    tmp_path: Path, stage: str, items: int, idle: int, asked: int | None, parts: int
) -> None:
    (tmp_path / ITEMS).write_text("{}\n" * items)
    needs = {"prompts": External(tmp_path, "p")}
    assert shard_count(Job(stage, {}, needs, stage), needs, idle, asked) == parts


def test_the_documents_of_a_benchmark_are_bounded_by_its_limit(tmp_path: Path) -> None:
    needs = {"model": External(tmp_path, "m")}
    assert shard_count(Job("benchmark", {"limit": None}, needs, "copa"), needs, 4, None) == 4
    assert shard_count(Job("benchmark", {"limit": 200}, needs, "copa"), needs, 4, None) == 3


def test_an_external_model_is_copied_to_the_store_once(tmp_path: Path, small_opt: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for file in small_opt.iterdir():  # the layout of the hub's cache
        (blobs / f"of-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / f"of-{file.name}")
    need = External(snapshot, "d" * 64, folder_signature(snapshot))
    store = Store(tmp_path / "store")
    there = copy_to_store(store, need)
    assert there.path == tmp_path / "store" / "models" / ("d" * 64) / "files"
    assert {f.name: f.read_bytes() for f in there.path.iterdir()} == {
        f.name: f.read_bytes() for f in small_opt.iterdir()
    }
    assert not any(f.is_symlink() for f in there.path.iterdir())
    assert (there.digest, there.seen) == (need.digest, folder_signature(there.path))
    assert copy_to_store(Store(tmp_path / "store"), need) == there
    # It is identified by its own digest and is not an artifact: jobs do not depend on where the model is.
    assert store.content(there.path) == ""
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(UserError, match="changed during the run"):
        copy_to_store(Store(tmp_path / "another"), need)
    assert not (tmp_path / "another" / "models").exists()


@pytest.mark.parametrize(
    ("fleet", "threads", "cpus", "divided"),
    [
        (Fleet(), "", 2, (2, 1)),
        (Fleet(), "", 1, (1, 1)),
        (Fleet(), "", 16, (4, 4)),
        (Fleet(), "1", 16, (16, 1)),
        (Fleet(), "32", 16, (1, 32)),
    ],
)
def test_cpus_are_divided_between_jobs(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet, threads: str, cpus: int, divided: tuple[int, int]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert ray_cluster._workers_and_cpus(fleet, cpus) == divided


def test_cpus_are_divided_between_a_given_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wpn_bench.jobs.executor.find_spec", lambda name: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert ray_cluster._workers_and_cpus(Fleet("ray", workers=3), 16) == (3, 2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert ray_cluster._workers_and_cpus(Fleet("ray", workers=3), 16) == (3, 5)
    assert ray_cluster._workers_and_cpus(Fleet("ray", workers=3, cpus_per_job=2), 16) == (3, 2)
    assert ray_cluster._workers_and_cpus(Fleet("ray", workers=4), 2) == (4, 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "ray://127.0.0.1:10001"])
def test_an_unreachable_cluster_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("wpn_bench.jobs.executor.find_spec", lambda name: True)
    with pytest.raises(UserError, match=f"the Ray cluster at {address} cannot be used"):
        connected(Fleet("ray", ray_address=address), address, Reporter()).__enter__()
    with pytest.raises(UserError, match="--workers only applies to a new cluster on this machine"):
        connected(Fleet("ray", workers=2), address, Reporter()).__enter__()


# --- on two nodes ----------------------------------------------------------------------------------------------------


class Cluster:
    """A cluster of two nodes with one CPU each, to which this process is connected."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        size = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=size)
        self._second = self._cluster.add_node(**size)
        self.fleet = Fleet("ray", ray_address=self._cluster.address)

    def kill_second(self, store: Path) -> None:
        """Kill the raylet and the workers of the second node during a job, like a power failure."""
        raylet = psutil.Process(self._second.all_processes["raylet"][0].process.pid)
        while not any(suspend_if_busy(process, store) for process in raylet.children(recursive=True)):
            time.sleep(0.01)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    def stop(self) -> None:
        self._cluster.shutdown()

    @contextmanager
    def executor(self, store: Store, reporter: Reporter, **fleet: Any) -> Iterator[RayExecutor]:
        with run_environment(store) as environment:
            yield RayExecutor(replace(self.fleet, **fleet), store, reporter, environment, 1, is_local=False)


def suspend_if_busy(process: psutil.Process, store: Path) -> bool:
    """Suspend the process and return True if it has locked a job of the store."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()
        if any(Path(file.path).is_relative_to(store / "locks") for file in process.open_files()):
            return True
        process.resume()
    return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AUTH_MODE": "token", "AUTH_TOKEN": "of-the-tests" * 4, "USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Cluster()
        try:
            with connected(made.fleet, made.fleet.ray_address, Reporter()) as cpus:
                assert cpus == 1
                yield made
        finally:
            made.stop()


class RecordingReporter(Reporter):
    """Records all reports, and calls `do` after `after` jobs have ended."""

    shows_items = True

    def __init__(self, after: int = 0, do: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.started: list[str] = []
        self.ended: dict[str, str] = {}
        self.counted: Counter[str] = Counter()
        self._after, self._do = after, do

    def start(self, label: str) -> None:
        self.started.append(label)

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        def advance(n: int) -> None:
            self.counted[unit] += n

        return advance

    def finish(self, label: str, status: str, seconds: float) -> None:
        self.ended[label] = status
        if len(self.ended) == self._after:
            self._do()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    """A workshop with a finished run of the local executor, `alone`: one method that trains and one that diverges."""
    made = Workshop(tmp_path_factory.mktemp("workshop"), small_opt, triples)
    run(made, "alone", Fleet(), Reporter())
    return made


def run(workshop: Workshop, name: str, fleet: Fleet, reporter: Reporter) -> dict[str, Any]:
    """Execute a whole run with its own store."""
    return runner.run(
        configuration.from_settings(workshop.settings | {"benchmarks": ("lab_copa",), "methods": METHODS}),
        out=workshop.folder / name,
        store=workshop.folder / f"store of {name}",
        reporter=reporter,
        command="wpn-bench full",
        fleet=fleet,
    )


@dataclass(frozen=True)
class ConnectedFleet(Fleet):
    """Uses a cluster to which this process is connected already."""

    cluster: Any = None

    def open_executor(self, store: Store, reporter: Reporter) -> AbstractContextManager[RayExecutor]:
        lent: AbstractContextManager[RayExecutor] = self.cluster.executor(store, reporter, shards=self.shards)
        return lent


def results_of(workshop: Workshop, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((workshop.folder / name / "results.json").read_text())
    return loaded


def contents(store: Path) -> dict[str, str]:
    """Return the content digest of each artifact, by stage and digest."""
    found = {folder: read_manifest(folder) for folder in store.glob("*/*") if len(folder.name) == 64}
    return {str(f.relative_to(store)): m["content"] for f, m in found.items() if m and m["stage"] != "models"}


@with_ray
def test_whatever_a_job_raises_fails_that_job(cluster: Cluster, tmp_path: Path, small_opt: Path) -> None:
    prompts = put_prompts(tmp_path / "prompts", 2)
    (tmp_path / "model").mkdir()
    good = generate_job(small_opt, prompts)
    no_model = replace(good, needs={**good.needs, "model": External(tmp_path / "model", "empty")}, label="no model")
    bug = replace(good, params={**good.params, "decoding": "greedy"}, label="a bug")
    needs_it = replace(good, needs={**good.needs, "prompts": bug}, label="needs it")
    store, reporter = Store(tmp_path / "store"), RecordingReporter()
    with cluster.executor(store, reporter) as executor:
        outcomes = executor.run([no_model, bug, needs_it, good])
    assert outcomes[good.digest].reason is None
    assert [o.status for o in outcomes.values()] == ["failed", "failed", "skipped", "done"]
    assert "cannot be loaded as a causal language model" in str(outcomes[no_model.digest].reason)
    failed = outcomes[bug.digest]
    assert failed.reason is not None
    assert failed.reason.startswith("TypeError: ")
    assert outcomes[needs_it.digest].reason == f"a bug: {failed.reason}"
    assert failed.crash == store.crash_file("generate", bug.digest).resolve()
    assert "run_generate_stage" in failed.crash.read_text()
    assert [n for n in reporter.notes if str(failed.crash) in n]


@with_ray
def test_user_errors_of_a_node_are_passed_on(cluster: Cluster, tmp_path: Path) -> None:
    with (
        cluster.executor(Store(tmp_path / "store"), Reporter()) as executor,
        pytest.raises(UserError, match=r"the node .* has torch .*, but this run started with 0\.1; install the same"),
    ):
        executor._check_nodes({"torch": "0.1"})


@with_ray
def test_jobs_on_cuda_request_a_gpu(cluster: Cluster, tmp_path: Path) -> None:
    job = generate_job(tmp_path, put_prompts(tmp_path / "prompts", 2))
    with cluster.executor(Store(tmp_path / "store"), Reporter(), gpus_per_job=0.5) as executor:
        assert executor.capacity(job) == 2
        with pytest.raises(UserError, match=r"a job needs 0\.5 GPUs, but the cluster has 0; start Ray on nodes where"):
            executor.capacity(replace(job, local={"device": "cuda:1"}))


@with_ray
def test_a_killed_worker_loses_no_finished_item(cluster: Cluster, tmp_path: Path, small_opt: Path) -> None:
    import ray

    n = 960  # enough that progress is reported
    store, reporter = Store(tmp_path / "store"), RecordingReporter()
    job = generate_job(small_opt, put_prompts(tmp_path / "prompts", n), n_tokens=50)
    scratch = store.scratch("generate", job.digest)

    def kill() -> None:
        while not journalled(scratch):
            time.sleep(0.02)
        workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::")]
        (at_work,) = [p for p in workers if suspend_if_busy(p, tmp_path / "store")]
        at_work.kill()

    with (
        try_lock(scratch),
        cluster.executor(store, reporter, shards=1) as executor,
    ):  # locked, so that the journal is not removed when the job is done
        ray.get(executor.progress_actor.read.remote())  # wait until it runs
        killing = threading.Thread(target=kill)
        killing.start()
        outcome = executor.run([job])[job.digest]
        killing.join()
        found = journalled(scratch)
        files = list(scratch.glob("items-*.jsonl"))
    assert outcome.status == "done"
    assert reporter.notes == ["lost a worker during answer: another worker continues"]
    assert sorted(k for _, k in found) == list(range(n))
    assert set(found.values()) == {1}
    assert len(files) == 2
    assert reporter.started == ["answer"]
    assert 0 < reporter.counted["responses"] <= 2 * n
    undisturbed = LocalExecutor(Store(tmp_path / "alone"), Reporter()).run([job])[job.digest]
    assert undisturbed.path is not None
    assert outcome.path is not None
    assert (outcome.path / "responses.jsonl").read_bytes() == (undisturbed.path / "responses.jsonl").read_bytes()


@with_ray
def test_a_job_that_kills_its_workers_does_not_stop_others(
    cluster: Cluster, tmp_path: Path, small_opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray_driver, "RETRIES", 1)
    bad, good = (generate_job(small_opt, put_prompts(tmp_path / name, 4)) for name in ("bad", "good"))
    bad = replace(bad, label="bad")
    reporter = RecordingReporter()
    with cluster.executor(Store(tmp_path / "store"), reporter) as executor:
        submit, dies = executor.submit, ray.remote(lambda: os._exit(1)).options(max_retries=0)
        monkeypatch.setattr(executor, "submit", lambda task: dies.remote() if task.job.label == "bad" else submit(task))
        outcomes = executor.run([bad, good])
    assert [(o.status, o.reason) for o in outcomes.values()] == [
        ("failed", "lost 2 workers (killed, or out of memory)"),
        ("done", None),
    ]
    assert reporter.notes == ["lost a worker during bad: another worker continues"]


@with_ray
def test_a_job_of_another_run_is_waited_for(cluster: Cluster, tmp_path: Path, small_opt: Path) -> None:
    store, reporter = Store(tmp_path / "store"), RecordingReporter()
    job = generate_job(small_opt, put_prompts(tmp_path / "prompts", 4))

    def elsewhere() -> None:
        while not reporter.notes:
            time.sleep(0.02)
        claim.__exit__(None, None, None)

    claim = store.claim("generate", job.digest)
    assert claim.__enter__()
    with cluster.executor(store, reporter) as executor:
        other = threading.Thread(target=elsewhere)
        other.start()
        outcome = executor.run([job])[job.digest]
        other.join()
    assert outcome.status == "done"
    assert reporter.notes == ["waiting: another run with this store is executing answer"]


@with_ray
@pytest.mark.slow
def test_two_nodes_with_shards_give_the_results_of_one_process(
    cluster: Cluster, workshop: Workshop, comparable: Plain
) -> None:
    """All artifacts are equal to the last bit, failures included, although the items of each job were split."""
    reporter = RecordingReporter()
    found = run(workshop, "shared", ConnectedFleet(shards=3, executor="ray", cluster=cluster), reporter)
    assert comparable(found) == comparable(results_of(workshop, "alone"))
    assert found["run"]["failed"][0]["job"] == "train ga (seed 0)"
    alone, shared = (contents(workshop.folder / f"store of {name}") for name in ("alone", "shared"))
    assert shared == alone
    assert {key.partition("/")[0] for key in shared} >= {"generate", "judge", "benchmark", "perplexity", "train"}
    assert reporter.counted["shards"] >= 3 * 6
    assert Counter(reporter.started) == Counter(reporter.ended.keys())
    for folder in ("scratch", "tmp", "locks"):
        assert not list((workshop.folder / "store of shared" / folder).iterdir())


@with_ray
@pytest.mark.slow
def test_a_killed_node_loses_only_its_unfinished_jobs(cluster: Cluster, workshop: Workshop, comparable: Plain) -> None:
    """This must be the last test on this cluster."""
    store = workshop.folder / "store of killed"
    killing = threading.Thread(target=cluster.kill_second, args=(store,))
    reporter = RecordingReporter(6, killing.start)
    found = run(workshop, "killed", ConnectedFleet("ray", cluster=cluster), reporter)
    assert comparable(found) == comparable(results_of(workshop, "alone"))
    killing.join(10)
    assert not killing.is_alive()
    assert contents(store) == contents(workshop.folder / "store of alone")
    # The job that it was executing, and those sent to it before its end was noticed.
    assert 1 <= len([note for note in reporter.notes if note.startswith("lost a worker")]) <= 3
    assert (
        Counter(reporter.ended.values())["cached"] <= 1
    )  # it may have been killed between finishing a job and reporting it


# --- the command line, with a cluster of its own ---------------------------------------------------------------------


@with_ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("methods: {sft: {steps: 2, batch_size: 2}}\nbenchmarks: [lab_copa]\ncurve: null\n")
    options = f"--limit 4 --attacks typos --executor ray --workers 1 -v -c {settings} --out {tmp_path / 'run'}"
    command = subprocess.Popen(
        [sys.executable, "-m", "wpn_bench", "full", *options.split(), "--store", str(tmp_path / "store")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stderr is not None
    said = []
    for line in command.stderr:
        said.append(line)
        if line.startswith("done"):
            break
    started = psutil.Process(command.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in started)
    os.killpg(command.pid, how)  # like a terminal: the signal goes to all processes of the session
    said += command.stderr.read().splitlines()
    command.wait(60)
    assert psutil.wait_procs(started, timeout=30)[1] == []
    assert not any("Traceback" in line for line in said)
    if how == signal.SIGINT:
        assert command.returncode == 130
        assert said[-1].startswith("stopped; finished work is kept")
    assert list((tmp_path / "store" / "vet").iterdir())
