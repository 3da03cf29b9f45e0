"""Judges: each gives every response a toxicity between 0 and 1. One file and one line here for a new one."""

from __future__ import annotations

from wpn_bench.harmless.judges.base import Judge
from wpn_bench.registry import Registry

JUDGES: Registry[type[Judge]] = Registry(
    "judge",
    {
        "detoxify": "wpn_bench.harmless.judges.detoxify:DetoxifyJudge",
    },
)

_LOADED: dict[tuple[str, str], Judge] = {}


def get_judge(spec: str, device: str = "cpu") -> Judge:
    """The judge of `name` or `name:variant` (`detoxify:original`), made once per process."""
    key = (spec, device)
    if key not in _LOADED:
        name, _, variant = spec.partition(":")
        _LOADED[key] = JUDGES.get(name)(variant, device)
    return _LOADED[key]
