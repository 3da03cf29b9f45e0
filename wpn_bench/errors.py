"""Errors that a person can act on, and the exit codes they lead to."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1  # a bug, or a job that failed
EXIT_USER = 2  # bad input: one line, and the way out
EXIT_REGRESSION = 3  # `check`: worse than allowed
EXIT_INCONCLUSIVE = 4  # `check`: the data bear no verdict
EXIT_STOPPED = 130  # Ctrl-C, as shells have it


class WpnBenchError(Exception):
    """Base of all named errors of this package."""

    exit_code = EXIT_FAILED


class UserError(WpnBenchError):
    """Something that the person at the keyboard can put right.

    `problem` says what is wrong (with the file, line or name), `way_out` what to do next. Printed as one line.
    """

    exit_code = EXIT_USER

    def __init__(self, problem: str, way_out: str) -> None:
        self.problem = " ".join(problem.split())
        self.way_out = " ".join(way_out.split())
        super().__init__(f"{self.problem}; {self.way_out}")


class JobFailed(WpnBenchError):
    """A job of the run could not be done (training diverged, a judge broke); the others go on."""
