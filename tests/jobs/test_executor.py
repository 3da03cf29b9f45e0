from __future__ import annotations

import asyncio
import errno
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
import torch

from wpn_bench.core.progress import Reporter
from wpn_bench.core.registry import Registry
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs import executor as jobs_executor
from wpn_bench.jobs import job as jobs_job
from wpn_bench.jobs import stages as jobs_stages
from wpn_bench.jobs.executor import Fleet, LocalExecutor
from wpn_bench.jobs.job import External, Job, StageContext
from wpn_bench.jobs.stages import Stage
from wpn_bench.jobs.store import Store

LOG: list[str] = []


def write_stage(ctx: StageContext) -> None:
    """Writes its parameter after what its needs wrote."""
    LOG.append(ctx.params["text"])
    before = "".join((ctx.needs[role] / "text").read_text() for role in sorted(ctx.needs))
    (ctx.out / "text").write_text(before + ctx.params["text"])
    advance = ctx.progress(3, "things")
    advance(3)


def failing_stage(ctx: StageContext) -> None:
    LOG.append("failing")
    (ctx.out / "half").write_text("half")
    raise ctx.params["how"](ctx.params["why"])


@pytest.fixture(autouse=True)
def _stages(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("stages_for_tests")
    module.__dict__.update(write=write_stage, fail=failing_stage)
    module.__dict__.update(WRITE=Stage("stages_for_tests:write", 1, ("numpy",)), FAIL=Stage("stages_for_tests:fail", 1))
    monkeypatch.setitem(sys.modules, "stages_for_tests", module)
    registry: Registry[Stage] = Registry("stage", {"write": "stages_for_tests:WRITE", "fail": "stages_for_tests:FAIL"})
    monkeypatch.setattr(jobs_stages, "STAGES", registry)
    LOG.clear()


def write(text: str, *needs: Job | External) -> Job:
    return Job("write", {"text": text}, {str(k): need for k, need in enumerate(needs)}, f"write {text}")


class Failing(Job):
    """A job whose parameters hold an exception's type, which JSON does not."""

    @property
    def digest(self) -> str:  # type: ignore[override]
        return "f" * 64

    @property
    def inputs(self) -> dict[str, str]:  # type: ignore[override]
        return {}


def fail(how: type[Exception], why: str = "it broke") -> Job:
    return Failing("fail", {"how": how, "why": why}, {}, "fail")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, tuple[str, str | None]]]:
    """Run jobs on a fresh executor over one store; label -> (status, reason)."""

    def go(*jobs: Job) -> dict[str, tuple[str, str | None]]:
        outcomes = LocalExecutor(Store(tmp_path), Reporter()).run(jobs)
        return {o.job.label: (o.status, o.reason) for o in outcomes.values()}

    return go


# --- digests ---------------------------------------------------------------------------------------------------------


def test_a_digest_covers_stage_parameters_and_needs() -> None:
    a, b = write("a"), write("b")
    digests = [
        a.digest,
        b.digest,
        write("a", a).digest,
        write("a", b).digest,
        write("a", a, b).digest,
        write("a", b, a).digest,  # the same jobs in other roles
        write("a", External(Path("/x"), "1")).digest,
        write("a", External(Path("/x"), "2")).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert write("a", write("b")).digest == write("a", write("b")).digest


def test_a_digest_ignores_where_and_how_it_is_called() -> None:
    here = Job("write", {"text": "a"}, {"x": External(Path("/here"), "1")}, "one", {"device": "cpu"})
    there = Job("write", {"text": "a"}, {"x": External(Path("/there"), "1")}, "other", {"device": "cuda"})
    assert here.digest == there.digest


def test_a_digest_covers_the_versions_of_stage_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = write("a").digest
    module = sys.modules["stages_for_tests"]
    monkeypatch.setattr(module, "WRITE", Stage("stages_for_tests:write", 2, ("numpy",)))
    newer_stage = write("a").digest
    monkeypatch.setattr(module, "WRITE", Stage("stages_for_tests:write", 1, ("numpy",)))
    monkeypatch.setattr(jobs_job, "version", lambda name: "0.0.1")
    older_library = write("a").digest
    assert len({before, newer_stage, older_library}) == 3


# --- running ---------------------------------------------------------------------------------------------------------


def test_jobs_run_in_order_and_hand_on_what_they_made(run: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    a = write("a")
    b = write("b", a)
    c = write("c", a, b)
    assert run(a, b, c) == {"write a": ("done", None), "write b": ("done", None), "write c": ("done", None)}
    assert LOG == ["a", "b", "c"]
    found = Store(tmp_path).find("write", c.digest)
    assert found is not None
    assert (found / "text").read_text() == "aabc"


def test_what_is_there_is_not_run_again(run: Callable[..., dict[str, object]]) -> None:
    a = write("a")
    b = write("b", a)
    run(a, b)
    assert run(a, b, write("c", b)) == {
        "write a": ("cached", None),
        "write b": ("cached", None),
        "write c": ("done", None),
    }
    assert LOG == ["a", "b", "c"]


def test_a_job_planned_twice_runs_once(run: Callable[..., dict[str, object]]) -> None:
    assert run(write("a"), write("a"), write("b", write("a"))) == {
        "write a": ("done", None),
        "write b": ("done", None),
    }
    assert LOG == ["a", "b"]


def test_a_cached_job_says_what_it_once_cost(tmp_path: Path) -> None:
    import json

    job = write("a")
    store = Store(tmp_path)
    LocalExecutor(store, Reporter()).run([job])
    manifest = store.path("write", job.digest) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 12.5}))
    (outcome,) = LocalExecutor(Store(tmp_path), Reporter()).run([job]).values()
    assert (outcome.status, outcome.seconds) == ("cached", 12.5)


def test_a_failed_job_fails_its_dependants_and_no_others(run: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    broken = fail(JobFailed, "it broke\n  badly")
    needs_it = write("b", broken)
    needs_that = write("c", needs_it)
    got = run(write("a"), broken, needs_it, needs_that, write("d"))
    assert got == {
        "write a": ("done", None),
        "fail": ("failed", "it broke badly"),
        "write b": ("skipped", "fail: it broke badly"),
        "write c": ("skipped", "write b: fail: it broke badly"),
        "write d": ("done", None),
    }
    assert LOG == ["a", "failing", "d"]
    assert not (tmp_path / "fail").exists()


def test_a_failed_job_is_tried_again(run: Callable[..., dict[str, object]]) -> None:
    run(fail(JobFailed))
    run(fail(JobFailed))
    assert LOG == ["failing", "failing"]


class Panic(BaseException):
    """Like the panic of a library written in Rust, which is no `Exception`."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


def bad_input(why: str) -> UserError:
    return UserError(why, "mend it")


def too_deep(why: str) -> Exception:
    def call() -> None:
        call()

    try:
        call()
    except RecursionError as e:
        return e
    raise AssertionError


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (TypeError, "TypeError: it broke"),
        (ImportError, "ImportError: it broke"),
        (KeyError, "KeyError: 'it broke'"),
        (AssertionError, "AssertionError: it broke"),
        (jinja2.UndefinedError, "UndefinedError: it broke"),
        (bad_input, "it broke; mend it"),
        (too_deep, "RecursionError: maximum recursion depth exceeded"),
        (MemoryError, "MemoryError: it broke"),
        (torch.OutOfMemoryError, "OutOfMemoryError: it broke"),
        (RuntimeError, "it broke"),
        (ValueError, "it broke"),
        (OSError, "it broke"),
        (lambda why: StopIteration(), "StopIteration"),
        (lambda why: ExceptionGroup(why, [TypeError("inside")]), "ExceptionGroup: it broke (1 sub-exception)"),
        (asyncio.CancelledError, "CancelledError: it broke"),
        (Panic, "Panic: it broke"),
        (Unprintable, "Unprintable"),
        (lambda why: ValueError(f"{why}\udcff"), "it broke"),
    ],
)
def test_whatever_a_job_raises_fails_that_job_and_names_a_crash_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: type[Exception], reason: str
) -> None:
    broken = fail(how)
    jobs = [write("a"), broken, write("b", broken), write("c")]
    outcomes = LocalExecutor(Store(tmp_path), Reporter()).run(jobs)
    assert [o.status for o in outcomes.values()] == ["done", "failed", "skipped", "done"]
    failed, skipped = outcomes[broken.digest], outcomes[jobs[2].digest]
    assert failed.reason is not None
    assert failed.reason.startswith(reason)
    assert failed.reason.endswith(f" (crash file: fail-{'f' * 16}.txt)")
    assert skipped.reason == f"fail: {failed.reason}"
    assert failed.crash == tmp_path / "crashes" / f"fail-{'f' * 16}.txt"
    assert "in failing_stage" in failed.crash.read_text()
    assert str(failed.crash) in capsys.readouterr().err


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_run_is_obeyed(run: Callable[..., dict[str, object]], how: type[Exception]) -> None:
    with pytest.raises(how):
        run(fail(how))


def test_a_crash_file_holds_no_secret_and_goes_with_the_next_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-secret-1")
    broken = fail(TypeError, "with planted-secret-1")
    (outcome,) = LocalExecutor(Store(tmp_path), Reporter()).run([broken]).values()
    assert outcome.crash is not None
    assert "planted-secret-1" not in outcome.crash.read_text() + str(outcome.reason)
    monkeypatch.setattr(sys.modules["stages_for_tests"], "fail", lambda ctx: None)
    (outcome,) = LocalExecutor(Store(tmp_path), Reporter()).run([broken]).values()
    assert outcome.status == "done"
    assert not list((tmp_path / "crashes").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EXDEV])
def test_a_place_that_takes_no_more_ends_the_run_and_keeps_what_is_done(
    run: Callable[..., dict[str, object]], number: int
) -> None:
    """Whatever library it was that wrapped what the system said."""

    def wrapped(why: str) -> Exception:
        return RuntimeError(f"cannot write: {os.strerror(number)} ({why})")

    for how in (wrapped, lambda why: OSError(number, os.strerror(number), why)):
        with pytest.raises(UserError, match=f"fail: {os.strerror(number).lower()}; fix this and repeat the command"):
            run(write("a"), fail(how))  # type: ignore[arg-type]
        assert run(write("a"))["write a"] == ("cached", None)


def test_the_reporter_hears_of_every_job(tmp_path: Path) -> None:
    heard: list[object] = []

    class Listening(Reporter):
        def plan(self, total: int) -> None:
            heard.append(total)

        def start(self, label: str) -> None:
            heard.append(("start", label))

        def finish(self, label: str, status: str, seconds: float) -> None:
            heard.append((status, label))

    broken = fail(JobFailed)
    LocalExecutor(Store(tmp_path), Listening()).run([write("a"), broken, write("b", broken)])
    assert heard == [
        3,
        ("start", "write a"),
        ("done", "write a"),
        ("start", "fail"),
        ("failed", "fail"),
        ("skipped", "write b"),
    ]


# --- who runs them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ({"executor": "rey"}, "unknown executor 'rey'; choose from local, ray"),
        ({"shards": 2}, "--shards needs the executor ray; add --executor ray, or leave out --shards"),
        (
            {"ray_address": "auto"},
            "--ray-address needs the executor ray; add --executor ray, or leave out --ray-address",
        ),
        (
            {"executor": "ray", "gpus_per_job": 0.0},
            "--gpus-per-job 0 is invalid; give a whole number, or a fraction below 1",
        ),
        (
            {"executor": "ray", "gpus_per_job": 1.5},
            "--gpus-per-job 1.5 is invalid; give a whole number, or a fraction below 1",
        ),
        ({"executor": "ray"}, "--executor ray needs ray, which is not installed; pip install 'wpn-bench[ray]'"),
    ],
)
def test_a_fleet_that_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, fleet: dict[str, object], said: str) -> None:
    monkeypatch.setattr(jobs_executor, "find_spec", lambda name: None if name == "ray" else True)
    with pytest.raises(UserError) as caught:
        Fleet(**fleet)  # type: ignore[arg-type]
    assert str(caught.value) == said


def test_alone_is_what_is_had_without_asking(tmp_path: Path) -> None:
    with Fleet().open_executor(Store(tmp_path), Reporter()) as executor:
        assert isinstance(executor, LocalExecutor)
