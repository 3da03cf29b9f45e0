"""What the person at the keyboard has agreed to: code of others, pickles of others. Neither, unless they said so.

It stands in the environment, so that worker processes have it from the process that was asked. A run's configuration
alone decides (`given`): what an environment happens to hold before does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

CODE, PICKLES = "WPN_BENCH_TRUST_REMOTE_CODE", "WPN_BENCH_ALLOW_PICKLE"


def to_code() -> bool:
    """Whether Python code that comes with a model or a folder of tasks may run."""
    return os.environ.get(CODE) == "1"


def to_pickles() -> bool:
    """Whether pickled weights that nobody vouches for may be read; even then tensors and plain values only."""
    return os.environ.get(PICKLES) == "1"


@contextmanager
def given(*, code: bool = False, pickles: bool = False) -> Iterator[None]:
    """For as long as this lasts, exactly these have been agreed to, here and in processes started meanwhile."""
    before = {name: os.environ.get(name) for name in (CODE, PICKLES)}
    os.environ.update({CODE: str(int(code)), PICKLES: str(int(pickles))})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
