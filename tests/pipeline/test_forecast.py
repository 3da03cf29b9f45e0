from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workshop import Workshop

from wpn_bench import config as configuration
from wpn_bench.core import weights
from wpn_bench.core.progress import Reporter
from wpn_bench.jobs import rates as jobs_rates
from wpn_bench.jobs.job import Job
from wpn_bench.jobs.rates import Rate, Rates, job_kind
from wpn_bench.pipeline import forecast
from wpn_bench.pipeline.forecast import makespan

HERE = "this machine"


def job(name: str, *needs: Job) -> Job:
    return Job("perplexity", {"name": name}, {str(k): need for k, need in enumerate(needs)}, name)


def test_a_fleet_waits_for_what_a_job_needs() -> None:
    a, b = job("a"), job("b")
    c = job("c", a, b)
    seconds = {a.digest: 4.0, b.digest: 3.0, c.digest: 2.0}
    assert makespan([a, b, c], seconds, 1) == 9.0
    assert makespan([a, b, c], seconds, 2) == 6.0
    assert makespan([a, b, c], seconds, 9) == 6.0
    assert makespan([], {}, 3) == 0.0


@given(st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(0, 8), max_size=3)), max_size=9), st.integers(1, 5))
def test_more_workers_help_and_never_beyond_the_longest_chain(plan: list[tuple[int, list[int]]], workers: int) -> None:
    jobs: list[Job] = []
    chain: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for k, (length, needs) in enumerate(plan):
        made = job(str(k), *(jobs[n] for n in needs if n < k))
        jobs.append(made)
        seconds[made.digest] = float(length)
        chain[made.digest] = length + max((chain[n.digest] for n in made.needs.values()), default=0.0)
    work = sum(seconds.values())
    took = makespan(jobs, seconds, workers)
    longest = max(chain.values(), default=0.0)
    # Graham 1966: list scheduling is within (work / workers + longest chain).
    assert max(longest, work / workers) - 1e-9 <= took <= work / workers + longest + 1e-9
    assert makespan(jobs, seconds, 1) == pytest.approx(work)


def test_the_nearest_size_that_was_measured_counts() -> None:
    found = Rates(
        {
            "generate 8": [
                Rate(10.0, 100, 1_000_000, HERE),
                Rate(12.0, 100, 1_000_000, HERE),
                Rate(50.0, 100, 1_000_000, HERE),
                Rate(100.0, 10, 100_000_000, HERE),
                Rate(1.0, 100, 1_000_000, "another"),
            ]
        }
    )
    assert found.estimate("generate 8", 50, 1_000_000, HERE) == jobs_rates.Estimate(6.0, "same")
    assert found.estimate("generate 8", 10, 200_000_000, HERE) == jobs_rates.Estimate(200.0, "scaled")
    assert found.estimate("generate 9", 10, 1_000_000, HERE) == jobs_rates.Estimate(1.2, "scaled")  # other settings
    assert found.estimate("judge", 10, 1_000_000, HERE) == jobs_rates.Estimate(0.0, "none")
    assert found.estimate("generate 8", 10, 1_000_000, "a third") == jobs_rates.Estimate(0.0, "none")


def test_the_setup_is_counted_once_and_jobs_of_a_similar_size_decide() -> None:
    """A few items do not fill a batch, and loading takes as long for them as for many."""
    few = Rates({"benchmark": [Rate(3.0, 10, 1_000, HERE, setup=2.0)]})
    assert few.estimate("benchmark", 100, 1_000, HERE) == jobs_rates.Estimate(12.0, "same")
    both = Rates({"benchmark": [Rate(3.0, 10, 1_000, HERE, setup=2.0), Rate(4.0, 200, 1_000, HERE, setup=2.0)]})
    assert both.estimate("benchmark", 300, 1_000, HERE) == jobs_rates.Estimate(5.0, "same")
    assert both.estimate("benchmark", 12, 1_000, HERE) == jobs_rates.Estimate(pytest.approx(3.2), "same")


def test_a_manifest_gives_the_setup(tmp_path: Path) -> None:
    for name, about in {"a": {"setup": 1.5}, "b": {}}.items():
        folder = tmp_path / "perplexity" / name
        folder.mkdir(parents=True)
        made = {"stage": "perplexity", "inputs": {"params": {}}, "files": {}, "seconds": 2.0, "machine": name}
        (folder / "manifest.json").write_text(json.dumps(made | {"work": {"windows": 5}} | about))
    found = Rates.from_store(tmp_path)
    assert found.estimate("perplexity", 10, 0, "a").seconds == pytest.approx(2.5)
    assert found.estimate("perplexity", 10, 0, "b").seconds == pytest.approx(4.0)


def test_a_job_without_a_model_takes_the_same_time_beside_a_larger_model() -> None:
    """A judge reads no model of the run: its manifest has no number of parameters."""
    found = Rates({"judge": [Rate(3.0, 10, 0, HERE)]})
    assert found.estimate("judge", 20, 135_000_000, HERE) == jobs_rates.Estimate(6.0, "same")


def test_jobs_are_alike_by_what_decides_their_speed() -> None:
    answers: dict[str, Any] = {"decoding": {"max_new_tokens": 8}, "template": "x"}
    assert job_kind("generate", answers) == job_kind("generate", answers | {"template": "y"})
    assert job_kind("generate", answers) != job_kind("generate", {"decoding": {"max_new_tokens": 9}})
    small, large = ({"method": "wpn", "config": {"batch_size": size, "lr": size}} for size in (4, 8))
    assert job_kind("train", small) != job_kind("train", large)
    assert job_kind("train", small) == job_kind("train", {"method": "wpn", "config": {"batch_size": 4, "lr": 9}})
    assert job_kind("benchmark", {"task": "piqa"}) != job_kind("benchmark", {"task": "copa"})


@pytest.mark.slow
def test_the_plan_of_a_run(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> None:
    workshop = Workshop(tmp_path, small_opt, triples)

    def asked(workers: int = 1, **changes: Any) -> forecast.Forecast:
        config = configuration.from_settings(workshop.settings | changes)
        return forecast.forecast(config, workshop.store, workers, Reporter())

    before = asked()
    assert before.work == 0.0
    assert before.unknown == sum(line.jobs for line in before.lines) > 10
    (tuned,) = asked(tune=2).open
    assert tuned.endswith("a training and its measurement each")  # nothing was measured
    workshop.run()
    after = asked()
    assert (after.work, after.seconds, after.unknown) == (0.0, 0.0, 0)
    assert all(line.done == line.jobs for line in after.lines)
    assert after.parameters == before.parameters == weights.count_parameters(small_opt) > 10_000
    # Another seed: as much again as the first one of it took, to be measured once more.
    more = asked(seeds=(0, 1))
    left = {line.stage: line.jobs - line.done for line in more.lines}
    assert left == {"vet": 0, "calibrate": 0, "train": 1, "generate": 4, "judge": 4, "benchmark": 2, "perplexity": 1}
    assert more.unknown == 0
    manifests = [json.loads(f.read_text()) for f in (workshop.store / "train").glob("*/manifest.json")]
    (line,) = (line for line in more.lines if line.stage == "train")
    assert line.seconds == pytest.approx(manifests[0]["seconds"])
    assert 0 < asked(4, seeds=(0, 1)).seconds < more.seconds == pytest.approx(more.work)
    # The tasks to tune on were never measured; the others of the stage give their time.
    small = {"learning_rates": 3, "weights": ["full"], "schedules": ["constant"], "steps": 30}
    tuned, relearnt, searched = asked(tune=2, relearn={"steps": [0, 2]}, relearn_search=small).open
    assert re.search(r"; about \d+ (s|min) if all train to their end, and less because some are stopped early$", tuned)
    assert relearnt.startswith("relearning: ")
    # Three attacks of 10 steps, one of them of 30, and the best again.
    assert searched == (
        "relearning search: 3 trainings and the best once more on each of 2 models, at most 60 steps on each, and fewer where an"
        " attack succeeds early"
    )
    workshop.run("tuned", tune=1)
    (tuned,) = asked(tune=2).open
    assert re.search(r"; about \d+ (s|min) if all train to their end, and less because some are stopped early$", tuned)
    (tuned,) = asked(tune=2, tune_halving=False).open
    assert re.search(r"; about \d+ (s|min) if all train to their end$", tuned)


@pytest.mark.slow
def test_the_plan_knows_what_vetting_removed(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> None:
    """Vetting changes what is trained on, so the plan must use its result to find the trainings in the store."""
    mixed = [{**one, "harmless": [*one["harmless"], "You are a stupid idiot, shut up."]} for one in triples]
    workshop = Workshop(tmp_path, small_opt, mixed)
    workshop.run(stages=("train",))
    assert any("are harmful by the judge and were not trained on" in note for note in workshop.notes)
    config = configuration.from_settings(workshop.settings | {"stages": ("train",)})
    after = forecast.forecast(config, workshop.store, 1, Reporter())
    assert {line.stage: (line.jobs, line.done) for line in after.lines} == {"vet": (1, 1), "train": (1, 1)}
