from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path

import pytest

from wpn_bench.core.progress import Reporter
from wpn_bench.core.progress_lines import Lines, Logged


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Stream(io.StringIO):
    """Counts what has reached the reader."""

    flushed = 0

    def flush(self) -> None:
        self.flushed = len(self.getvalue())


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(stream: Stream | None, clock: Clock) -> Lines:
    return Lines(stream, clock, lambda: datetime(2026, 1, 2, 3, 4, 5))


def said(stream: Stream) -> list[str]:
    assert stream.flushed == len(stream.getvalue())
    return [line.removeprefix("2026-01-02 03:04:05 ") for line in stream.getvalue().splitlines()]


def test_a_line_at_each_start_and_end_and_one_a_minute(clock: Clock) -> None:
    stream = Stream()
    log = lines(stream, clock)
    log.expect(lambda jobs: 600.0 * jobs)
    log.plan(3)
    log.finish("base: copa", "cached", 12.0)
    log.start("train wpn (seed 0)")
    advance = log.items(100, "steps")
    for _ in range(130):
        clock.seconds += 1
        advance(1)
        log.tick()
    log.finish("train wpn (seed 0)", "done", 130.0)
    log.start("wpn (seed 0): answer pku")
    clock.seconds += 59
    log.tick()
    assert said(stream) == [
        "job 1 of 3, base: copa: cached, about 20 min left",
        "job 2 of 3, train wpn (seed 0): started, about 20 min left",
        "job 2 of 3, train wpn (seed 0): 60 of 100 steps, 60 s, about 20 min left",
        "job 2 of 3, train wpn (seed 0): 120 of 100 steps, 120 s, about 20 min left",
        "job 2 of 3, train wpn (seed 0): done in 130.0 s, about 10 min left",
        "job 3 of 3, wpn (seed 0): answer pku: started, about 10 min left",
    ]
    clock.seconds += 1
    log.tick()
    assert said(stream)[-1] == "job 3 of 3, wpn (seed 0): answer pku: at work, 60 s, about 10 min left"


def test_jobs_at_once_and_activities_are_heard_of(clock: Clock) -> None:
    stream = Stream()
    log = lines(stream, clock)
    log.plan(2)
    for label in ("one", "other"):
        log.start(label)
    log.items(None, "prompts", "one")(7)
    late = log.items(9, "prompts", "other")
    log.items(5, "tokens", "other")(2)
    late(1)  # of a count that has ended
    clock.seconds += 60
    with log.activity("compare and report"):
        log.tick()
        clock.seconds += 60
        log.tick()
    assert said(stream)[2:] == [
        "job 1 of 2, one: 7 prompts, 60 s",
        "job 2 of 2, other: 2 of 5 tokens, 60 s",
        "job 1 of 2, one: 7 prompts, 120 s",
        "job 2 of 2, other: 2 of 5 tokens, 120 s",
        "compare and report: at work, 60 s",
    ]


def test_the_file_holds_what_was_said_before_it_was_there(tmp_path: Path, clock: Clock) -> None:
    stream, log = Stream(), lines(None, clock)
    file = tmp_path / "log.txt"
    file.write_text("an earlier run\n")
    with Logged(lines(stream, clock), log) as both:
        both.note("note: two prompts were dropped")
        both.plan(1)
        log.open(file)
        both.start("train wpn")
        both.items(3, "steps")(1)
        assert file.read_text().splitlines()[-1] == "2026-01-02 03:04:05 job 1 of 1, train wpn: started"
        both.finish("train wpn", "failed", 2.0)
    earlier, *found = file.read_text().splitlines()
    assert earlier == "an earlier run"
    assert [line[20:] for line in found] == [*said(stream), "the run is complete"]


@pytest.mark.parametrize(
    ("error", "line"), [(KeyboardInterrupt(), "stopped"), (ValueError("no\nroom"), "ended by an error: no room")]
)
def test_the_file_says_how_the_run_ended(tmp_path: Path, clock: Clock, error: BaseException, line: str) -> None:
    log = lines(None, clock)
    log.open(tmp_path / "log.txt")
    with pytest.raises(type(error)), Logged(Reporter(), log):
        raise error
    assert (tmp_path / "log.txt").read_text().splitlines()[-1][20:] == line


def test_no_secret_is_logged(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-secret")
    stream = Stream()
    lines(stream, clock).note("the server said planted-secret\nand more")
    assert said(stream) == ["the server said *** and more"]


@pytest.mark.parametrize("error", [OSError("disk full"), BrokenPipeError(), ValueError("closed")])
def test_a_stream_that_takes_no_more_does_not_end_the_run(clock: Clock, error: Exception) -> None:
    class Broken(Stream):
        def write(self, text: str) -> int:
            raise error

    log = lines(Broken(), clock)
    log.plan(1)
    log.start("train wpn")
    log.finish("train wpn", "done", 1.0)
