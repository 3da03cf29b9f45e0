from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wpn_bench.core.files import write_json
from wpn_bench.jobs import rates, time_left
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.store import Store
from wpn_bench.jobs.time_left import TimeLeft


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def job(folder: Path, n: int, tokens: int = 5, name: str = "a") -> Job:
    prompts = folder / f"prompts-{n}"
    prompts.mkdir(exist_ok=True)
    (prompts / "items.jsonl").write_text("{}\n" * n)
    params = {"decoding": {"max_new_tokens": tokens}}
    needs = {"prompts": External(prompts, f"p{n}"), "model": External(folder / "model", name)}
    return Job("generate", params, needs, f"{name}: answer {n}", {"device": "cpu"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(time_left, "count_parameters", lambda folder: 1000)
    return Store(tmp_path / "store")


def test_the_rate_of_this_run_is_used_for_jobs_of_the_kind(tmp_path: Path, store: Store, clock: Clock) -> None:
    left = TimeLeft(store, clock)
    jobs = [job(tmp_path, 10), job(tmp_path, 30), job(tmp_path, 20, tokens=7)]
    left.add(jobs)
    assert left.seconds() is None
    left.start(jobs[0])
    clock.seconds += 20
    left.finish(Outcome(jobs[0], "done", 20.0))
    assert left.seconds() == 60 + 20  # 2 s an item; another kind: as long as the median job
    left.start(jobs[1])
    clock.seconds += 15
    assert left.seconds() == 45 + 20
    assert left.seconds(4) == 45 + 20 + 2 * 20  # two more jobs were announced


def test_earlier_runs_are_used_at_the_start_and_stored_jobs_cost_nothing(
    tmp_path: Path, store: Store, clock: Clock
) -> None:
    done = job(tmp_path, 10)
    folder = store.path("generate", done.digest)
    folder.mkdir(parents=True)
    manifest = {"stage": "generate", "inputs": {"params": dict(done.params)}, "files": {}, "seconds": 5.0}
    manifest |= {"work": {"responses": 10}, "parameters": 1000, "machine": rates.machine_name("cpu")}
    write_json(folder / "manifest.json", manifest)
    left = TimeLeft(store, clock)
    left.add([done, job(tmp_path, 40), replace(done, params={"decoding": {"max_new_tokens": 5}})])
    assert left.seconds() == pytest.approx(20.0)


def test_jobs_at_once_share_the_time(tmp_path: Path, store: Store, clock: Clock) -> None:
    left = TimeLeft(store, clock)
    jobs = [job(tmp_path, 10, name=name) for name in "abcd"]
    left.add(jobs)
    for one in jobs[:2]:
        left.start(one)
    clock.seconds += 10
    for one in jobs[:2]:
        left.finish(Outcome(one, "done", 10.0))
    assert left.seconds() == 10.0


def test_jobs_that_failed_or_were_skipped_are_no_measure(tmp_path: Path, store: Store, clock: Clock) -> None:
    left = TimeLeft(store, clock)
    jobs = [job(tmp_path, 10, name=name) for name in "abc"]
    left.add(jobs)
    left.start(jobs[0])
    left.finish(Outcome(jobs[0], "failed", 0.0, None, "it broke"))
    left.finish(Outcome(jobs[1], "skipped", 0.0, None, "a: it broke"))
    assert left.seconds() is None
    left.finish(Outcome(jobs[2], "cached", 9.0))
    assert left.seconds() == 0.0


def test_a_job_that_is_slower_than_expected_is_extrapolated(tmp_path: Path, store: Store, clock: Clock) -> None:
    left = TimeLeft(store, clock)
    jobs = [job(tmp_path, 10, name=name) for name in "ab"]
    left.add(jobs)
    left.start(jobs[0])
    clock.seconds += 10
    left.finish(Outcome(jobs[0], "done", 10.0))
    left.start(jobs[1])
    clock.seconds += 90
    assert left.seconds() == 0.0
    left.progress(jobs[1].digest, 3, 10)
    assert left.seconds() == 210.0


def test_the_first_items_of_a_slow_job_say_nothing_about_its_end(tmp_path: Path, store: Store, clock: Clock) -> None:
    """3 of 960 answers in a minute would be five hours, but the other answers of the batch are nearly finished."""
    left = TimeLeft(store, clock)
    jobs = [job(tmp_path, 960, name=name) for name in "ab"]
    left.add(jobs)
    left.start(jobs[0])
    clock.seconds += 50
    left.finish(Outcome(jobs[0], "done", 50.0))
    left.start(jobs[1])
    clock.seconds += 40
    left.progress(jobs[1].digest, 3, 960)
    assert left.seconds() == 10
    clock.seconds += 20
    assert left.seconds() is None
    left.progress(jobs[1].digest, 240, 960)
    assert left.seconds() == 180


def test_the_speed_of_a_running_job_replaces_that_of_earlier_jobs(tmp_path: Path, store: Store, clock: Clock) -> None:
    """An earlier job may have waited for another program for an hour."""
    left = TimeLeft(store, clock)
    jobs = [job(tmp_path, 100, name=name) for name in "ab"]
    left.add(jobs)
    left.start(jobs[0])
    clock.seconds += 5000
    left.finish(Outcome(jobs[0], "done", 5000.0))
    left.start(jobs[1])
    clock.seconds += 9
    left.progress(jobs[1].digest, 9, 100)
    assert left.seconds() == 4991
    clock.seconds += 1
    left.progress(jobs[1].digest, 10, 100)
    assert left.seconds() == 90
