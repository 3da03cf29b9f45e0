"""The user's consent to run third-party code and to read pickled weights. Both are refused by default.

Consent is stored in environment variables, so that worker processes inherit it. Only the configuration of a run sets
these variables (`granted`). Values that they had before are ignored.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from wpn_bench.core.machine import environment_variables

CODE, PICKLES = "WPN_BENCH_TRUST_REMOTE_CODE", "WPN_BENCH_ALLOW_PICKLE"


def code_allowed() -> bool:
    """Return whether Python code that comes with a model or with task files may run."""
    return os.environ.get(CODE) == "1"


def pickles_allowed() -> bool:
    """Return whether pickled weights of unknown origin may be read.

    Even with consent, only tensors and plain values are unpickled.
    """
    return os.environ.get(PICKLES) == "1"


def granted(*, code: bool = False, pickles: bool = False) -> AbstractContextManager[None]:
    """Give the consent to this process, and to processes that it starts, within a `with` block.

    Args:
        code: Whether third-party Python code may run.
        pickles: Whether pickled weights may be read.

    Returns:
        A context manager that restores the former consent at its end.
    """
    return environment_variables(**{CODE: str(int(code)), PICKLES: str(int(pickles))})
