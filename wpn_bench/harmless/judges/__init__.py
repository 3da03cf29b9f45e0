"""Judges: each gives every response a harm between 0 and 1. One file, and one line in `spec.py`, for a new one."""

from __future__ import annotations

from wpn_bench.harmless.judges.base import Judge, JudgeConfig
from wpn_bench.harmless.judges.spec import JUDGES, JudgeSpec, check

__all__ = ["JUDGES", "Judge", "JudgeConfig", "JudgeSpec", "get_judge"]

_LOADED: dict[tuple[str, str], Judge] = {}


def get_judge(spec: str, device: str = "cpu") -> Judge:
    """The judge of `name`, `name:variant` (`detoxify:original`) or with options (see `spec.py`), made once per process."""
    read = check(spec)
    key = (read.scorer, device)
    if key not in _LOADED:
        _LOADED[key] = JUDGES.get(read.judge)(read.variant, device, read.config)
    return _LOADED[key]
