"""The text of a crash file: what was done when an unexpected error was raised, and its traceback."""

from __future__ import annotations

import sys
import traceback

from wpn_bench.redact import redact


def crash_text(error: BaseException, action: str) -> str:
    """Describe an error for a bug report. The text has no values of variables, and secrets and names are removed.

    Args:
        error: The error.
        action: The command or the job that raised it.

    Returns:
        The versions, the action and the traceback.
    """
    version = getattr(sys.modules["wpn_bench"], "__version__", "")  # an import would reach above this layer
    raised = "".join(traceback.format_exception(error))
    return redact(f"wpn-bench {version}, Python {sys.version.split()[0]}\n{action}\n\n{raised}")
