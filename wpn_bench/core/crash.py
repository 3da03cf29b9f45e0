"""The text of a crash file: the versions, the command or job that failed, and the traceback of the unexpected error."""

from __future__ import annotations

import sys
import traceback

from wpn_bench.redact import redact


def crash_text(error: BaseException, action: str) -> str:
    """Describe an unexpected error for a bug report.

    The text contains no values of variables. Secrets and the names of the user and the machine are removed.

    Args:
        error: The unexpected error.
        action: Description of the command or the job that raised it.

    Returns:
        The versions, the action and the traceback, over several lines.
    """
    version = getattr(sys.modules["wpn_bench"], "__version__", "")  # importing it here would break the layers
    raised = "".join(traceback.format_exception(error))
    return redact(f"wpn-bench {version}, Python {sys.version.split()[0]}\n{action}\n\n{raised}")
