"""Judges: each gives a response a score between 0 (harmless) and 1 (harmful). A new one is one file and one line in `spec.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Exchange, Judge, JudgeConfig
from wpn_bench.harmless.judges.spec import JUDGES, JudgeSpec, check
from wpn_bench.jobs.journal import is_sharded

if TYPE_CHECKING:
    from wpn_bench.jobs.job import StageContext

__all__ = [
    "JUDGES",
    "Exchange",
    "Judge",
    "JudgeConfig",
    "JudgeSpec",
    "distinct",
    "forget_judges",
    "get_judge",
    "judge_of",
    "needs_prompt",
    "scores_of",
]

_LOADED: dict[tuple[str, str], Judge] = {}


def get_judge(spec: str, device: str = "cpu") -> Judge:
    """The judge that a text names; made once per process.

    Args:
        spec: `name`, `name:variant` (`detoxify:original`), or with options (see `spec.py`).
        device: Where its model runs.

    Raises:
        UserError: There is no such judge, an option is wrong, or the judge's class breaks the contract.
    """
    read = check(spec)
    key = (read.scorer, device)
    if key not in _LOADED:
        kind = JUDGES.get(read.judge)
        _check_contract(read.judge, kind)
        _LOADED[key] = kind(read.variant, device, read.config)
    return _LOADED[key]


def _check_contract(name: str, kind: type[Judge]) -> None:
    """Raise `UserError` for a class whose `needs_prompt` and methods contradict each other."""
    reads = getattr(kind, "score_exchanges", None) not in (None, Judge.score_exchanges)
    if reads and not needs_prompt(kind):
        raise UserError(
            f"the judge {name!r} implements score_exchanges without needs_prompt = True, so equal responses to different"
            " prompts would share one score",
            "set needs_prompt = True in its class, or implement score instead",
        )
    if needs_prompt(kind) and not reads:
        raise UserError(
            f"the judge {name!r} has needs_prompt = True and does not implement score_exchanges",
            "implement it (docs/extending.md)",
        )


def needs_prompt(judge: Judge | type[Judge]) -> bool:
    """Whether a judge reads the prompt. A class that was written before judges could does not say so: it does not."""
    return bool(getattr(judge, "needs_prompt", False))


def judge_of(ctx: StageContext, params: Mapping[str, Any], device: str | None = None) -> Judge:
    """The judge that a stage's parameters name.

    Args:
        ctx: The stage. `ctx.local["judge"]`, which is not part of the cache key, says where the judge's files lie.
        params: Has `judge` and, to check that it is the same judge, `judge_digest`.
        device: Where its model runs (None: the stage's device).

    Raises:
        UserError: The judge has another digest: it was changed since the run began, or this machine has another one.
    """
    judge = get_judge(ctx.local.get("judge", params["judge"]), device or ctx.local["device"])
    if "judge_digest" in params and judge.digest() != params["judge_digest"]:
        raise UserError(
            f"the judge {params['judge']} is not the one that this run began with",
            "type the same command again (and give every machine the same judge)",
        )
    return judge


def distinct(judge: Judge, exchanges: Sequence[Exchange]) -> list[Exchange]:
    """The exchanges that the judge must score, in order: equal ones once, and if it does not read the prompt, each
    response once."""
    found: dict[Exchange | str, Exchange] = {}
    for exchange in exchanges:
        found.setdefault(_key(judge, exchange), exchange)
    return list(found.values())


def scores_of(judge: Judge, exchanges: Sequence[Exchange], advance: Advance = lambda n: None) -> list[float | None]:
    """The judge's score of each exchange, in order; None where it gave none. Only `distinct` exchanges are scored.

    In a process that works on a shard of a job, a judge without per-example checkpoints is not asked (all None): it would
    score everything in every shard, perhaps for money. It is asked by the process that puts the shards together.

    Args:
        judge: A judge, or an object with the method `score` alone.
        exchanges: Original prompts (before any attack) with the responses.
        advance: Called with the number of distinct exchanges scored since its last call.
    """
    if is_sharded() and not judge.journalled:
        return [None] * len(exchanges)
    asked = distinct(judge, exchanges)
    if needs_prompt(judge):
        found = judge.score_exchanges(asked, advance)
    else:
        found = judge.score([exchange.response for exchange in asked], advance)
    scores = dict(zip((_key(judge, exchange) for exchange in asked), found, strict=True))
    return [scores[_key(judge, exchange)] for exchange in exchanges]


def _key(judge: Judge, exchange: Exchange) -> Exchange | str:
    return exchange if needs_prompt(judge) else exchange.response


def forget_judges() -> None:
    """Forget all loaded judges: the next `get_judge` reads their files again."""
    _LOADED.clear()
