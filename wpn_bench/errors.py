"""Errors that a person can act on, and the exit codes they lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from wpn_bench.redact import redact_secrets

EXIT_OK = 0
EXIT_FAILED = 1  # a bug, or a job that failed
EXIT_USER = 2  # bad input: one line, and the way out
EXIT_REGRESSION = 3  # `check`: worse than allowed
EXIT_INCONCLUSIVE = 4  # `check`: the data bear no verdict
EXIT_STOPPED = 130  # Ctrl-C, as shells have it


def redact_message(text: str) -> str:
    """A message without what is nobody's business: tokens, logins in addresses, the name of the home folder."""
    text, home = redact_secrets(text), str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=[/\s'\",;:)]|$)", "~", text) if home != "/" else text


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came of; each once, for they may go round in a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class WpnBenchError(Exception):
    """Base of all named errors of this package. No message holds a secret, whatever it was made of."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str = "") -> None:
        super().__init__(redact_message(message))


class UserError(WpnBenchError):
    """Something that the person at the keyboard can put right.

    `problem` says what is wrong (with the file, line or name), `hint` what to do next. Printed as one line.
    """

    exit_code = EXIT_USER

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = redact_message(" ".join(problem.split()))
        self.hint = redact_message(" ".join(hint.split()))
        super().__init__(f"{self.problem}; {self.hint}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # Pickled by what it was made from: it may have been raised in another process.
        return UserError, (self.problem, self.hint)


class JobFailed(WpnBenchError):
    """A job of the run could not be done (training diverged, a judge broke); the others go on."""
