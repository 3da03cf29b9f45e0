"""Errors that the user can act on, and the exit codes of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from wpn_bench.redact import redact_secrets

EXIT_OK = 0
EXIT_FAILED = 1  # a bug, or a failed job
EXIT_USER = 2  # invalid input; one line with the problem and a hint
EXIT_REGRESSION = 3  # `check`: worse than the baseline allows
EXIT_INCONCLUSIVE = 4  # `check`: too little data to decide
EXIT_STOPPED = 130  # Ctrl-C, the convention of shells


def redact_message(text: str) -> str:
    """Remove tokens, credentials in URLs and the path of the home folder from a message."""
    text, home = redact_secrets(text), str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=[/\s'\",;:)]|$)", "~", text) if home != "/" else text


def text_of(error: BaseException) -> str:
    """Return the message of an error in one line; empty if it has none, or if its `__str__` fails."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, each once (a chain of exceptions may contain a cycle)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class WpnBenchError(Exception):
    """Base class of this package's errors. Secrets are removed from every message."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str = "") -> None:
        super().__init__(redact_message(message))


class UserError(WpnBenchError):
    """A problem that the user can fix. It is printed as one line.

    Attributes:
        problem: What is wrong, with the file, line or name.
        hint: What to do next.
    """

    exit_code = EXIT_USER

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = redact_message(" ".join(problem.split()))
        self.hint = redact_message(" ".join(hint.split()))
        super().__init__(f"{self.problem}; {self.hint}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # The default would pickle the joined message, which does not fit __init__. Workers raise this error, too.
        return UserError, (self.problem, self.hint)


class JobFailed(WpnBenchError):
    """One job of the run failed (for example, training diverged). Jobs that do not need it continue."""
