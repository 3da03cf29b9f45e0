"""The user's consent to run code and to unpickle files from third parties. The default is no.

Consent is stored in environment variables, so worker processes inherit it. Only the configuration of a run sets them
(`granted`); values that the variables had before are ignored.
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
    """Return whether pickled weights of unknown origin may be read (tensors and plain values only, even then)."""
    return os.environ.get(PICKLES) == "1"


def granted(*, code: bool = False, pickles: bool = False) -> AbstractContextManager[None]:
    """Set the consent of this process, and of processes that it starts, within a `with` block.

    Args:
        code: Third-party Python code may run.
        pickles: Pickled weights may be read.

    Returns:
        A context manager, which restores the former consent at its end.
    """
    return environment_variables(**{CODE: str(int(code)), PICKLES: str(int(pickles))})
