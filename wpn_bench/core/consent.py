"""What the person at the keyboard has agreed to: code of others, pickles of others. Neither, unless they said so.

It stands in the environment, so that worker processes have it from the process that was asked. A run's configuration
alone decides (`given`): what an environment happens to hold before does not count.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from wpn_bench.core.machine import environment_variables

CODE, PICKLES = "WPN_BENCH_TRUST_REMOTE_CODE", "WPN_BENCH_ALLOW_PICKLE"


def code_allowed() -> bool:
    """Whether Python code that comes with a model or a folder of tasks may run."""
    return os.environ.get(CODE) == "1"


def pickles_allowed() -> bool:
    """Whether pickled weights that nobody vouches for may be read; even then tensors and plain values only."""
    return os.environ.get(PICKLES) == "1"


def granted(*, code: bool = False, pickles: bool = False) -> AbstractContextManager[None]:
    """For as long as this lasts, exactly these have been agreed to, here and in processes started meanwhile."""
    return environment_variables(**{CODE: str(int(code)), PICKLES: str(int(pickles))})
