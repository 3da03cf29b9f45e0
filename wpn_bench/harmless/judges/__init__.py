"""Judges: each gives every response a harm between 0 and 1. One file, and one line in `spec.py`, for a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Judge, JudgeConfig
from wpn_bench.harmless.judges.spec import JUDGES, JudgeSpec, check
from wpn_bench.jobs.journal import sharing

if TYPE_CHECKING:
    from wpn_bench.jobs.job import StageContext

__all__ = ["JUDGES", "Judge", "JudgeConfig", "JudgeSpec", "forget_judges", "get_judge", "judge_of", "scores_by"]

_LOADED: dict[tuple[str, str], Judge] = {}


def get_judge(spec: str, device: str = "cpu") -> Judge:
    """The judge of `name`, `name:variant` (`detoxify:original`) or with options (see `spec.py`), made once per process."""
    read = check(spec)
    key = (read.scorer, device)
    if key not in _LOADED:
        _LOADED[key] = JUDGES.get(read.judge)(read.variant, device, read.config)
    return _LOADED[key]


def judge_of(ctx: StageContext, params: Mapping[str, Any], device: str | None = None) -> Judge:
    """The judge that a stage's parameters name, which must be the one of their `judge_digest`, if they have one. Where its
    files lie, which decides no output and is nobody's business, is in `ctx.local`. `device`: instead of the stage's.

    Raises `UserError` where it is another: it was changed since the run began, or another machine has another one.
    """
    judge = get_judge(ctx.local.get("judge", params["judge"]), device or ctx.local["device"])
    if "judge_digest" in params and judge.digest() != params["judge_digest"]:
        raise UserError(
            f"the judge {params['judge']} is not the one that this run began with",
            "type the same command again (and give every machine the same judge)",
        )
    return judge


def scores_by(judge: Judge, texts: Sequence[str], advance: Advance) -> list[float | None]:
    """The judge's scores in a stage whose items may be shared. In a process that has a share only, a judge that keeps no
    journal (it may ask a service, for money) is left to whoever puts the shares together."""
    if sharing() and not judge.journalled:
        return [None] * len(texts)
    return judge.score(texts, advance)


def forget_judges() -> None:
    """Whoever asks for a judge next gets it from its files as they are then."""
    _LOADED.clear()
