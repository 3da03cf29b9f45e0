"""Errors that the user can correct, and the exit codes of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from wpn_bench.redact import redact_secrets

EXIT_OK = 0
EXIT_FAILED = 1  # a job failed, or wpn-bench has a bug
EXIT_USER = 2  # the input is invalid; one line gives the problem and a hint
EXIT_REGRESSION = 3  # only `check`: a metric is worse than the baseline allows
EXIT_INCONCLUSIVE = 4  # only `check`: there are too few data for a decision
EXIT_STOPPED = 130  # the user pressed Ctrl-C; shells use this number


def redact_message(text: str) -> str:
    """Remove tokens, credentials in URLs and the path of the home folder from a message."""
    text, home = redact_secrets(text), str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=[/\s'\",;:)]|$)", "~", text) if home != "/" else text


def text_of(error: BaseException) -> str:
    """Return the message of an error as one line.

    The line is empty if the error has no message or its `__str__` fails.
    """
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and all its causes. Each is yielded once, because a chain of exceptions may contain a cycle."""
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
    """A problem that the user can correct. It is printed as one line.

    Attributes:
        problem: What is wrong. It names the file, line or setting.
        hint: What the user can do about it.
    """

    exit_code = EXIT_USER

    def __init__(self, problem: str, hint: str) -> None:
        self.problem = redact_message(" ".join(problem.split()))
        self.hint = redact_message(" ".join(hint.split()))
        super().__init__(f"{self.problem}; {self.hint}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # Workers send this error to the main process. The default pickles the joined message, which __init__ rejects.
        return UserError, (self.problem, self.hint)


class JobFailed(WpnBenchError):
    """A job of the run failed, for example because training diverged. Jobs that do not need its result continue."""
