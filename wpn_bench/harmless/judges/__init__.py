"""A judge gives each response a score between 0 (harmless) and 1 (harmful).

To add a judge, write one file and add one line to `spec.py`.
"""

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
    """Return the judge that a specification names. It is created once for each process and device.

    Args:
        spec: `name`, `name:variant` (such as `detoxify:original`), or either with options (see `spec.py`).
        device: Device of the judge's model.

    Returns:
        The judge, ready to score.

    Raises:
        UserError: There is no such judge, an option is wrong, or the class of the judge is not valid.
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
    """Return whether a judge reads the prompt.

    Judges written before this attribute existed do not have it. They do not read the prompt.
    """
    return bool(getattr(judge, "needs_prompt", False))


def judge_of(ctx: StageContext, params: Mapping[str, Any], device: str | None = None) -> Judge:
    """Return the judge that the parameters of a stage name.

    Args:
        ctx: The argument of the stage function. `ctx.local["judge"]` may name the judge by the local path of its files.
            This path is not part of the job's digest.
        params: Contains `judge` and optionally `judge_digest`, with which the judge is compared.
        device: Device of the judge's model; None uses the device of the stage.

    Returns:
        The judge, ready to score.

    Raises:
        UserError: The judge has another digest, because it was changed after the run began or differs on this machine.
    """
    judge = get_judge(ctx.local.get("judge", params["judge"]), device or ctx.local["device"])
    if "judge_digest" in params and judge.digest() != params["judge_digest"]:
        raise UserError(
            f"the judge {params['judge']} is not the one that this run began with",
            "repeat the command, and install the same judge on every machine",
        )
    return judge


def distinct(judge: Judge, exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Return the exchanges that the judge must score, without duplicates.

    Args:
        judge: The judge. If it does not read prompts, exchanges with equal responses are duplicates.
        exchanges: Prompts with their responses.

    Returns:
        The first exchange of each set of duplicates, in order.
    """
    found: dict[Exchange | str, Exchange] = {}
    for exchange in exchanges:
        found.setdefault(_key(judge, exchange), exchange)
    return list(found.values())


def scores_of(judge: Judge, exchanges: Sequence[Exchange], advance: Advance = lambda n: None) -> list[float | None]:
    """Score each exchange with the judge. Duplicates are scored once (see `distinct`).

    A judge without a journal would score all exchanges again in every shard of a job, and may cost money each time. So
    a process that works on one shard does not call such a judge, and all scores are None. The process that combines the
    shards calls it.

    Args:
        judge: A judge, or an object that has only the method `score`.
        exchanges: Original prompts (before any attack) with the responses.
        advance: Called with the number of distinct exchanges scored since its last call.

    Returns:
        The score of each exchange, in order; None where the judge gave no score.
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
    """Remove all cached judges, so that the next `get_judge` reads their files again."""
    _LOADED.clear()
