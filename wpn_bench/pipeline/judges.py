"""Load the judges of a run and the card of the deciding one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wpn_bench.analysis.judge_card import JudgeCard, read_card
from wpn_bench.config import RunConfig
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import get_judge
from wpn_bench.harmless.judges.spec import parse


@dataclass(frozen=True)
class FurtherJudge:
    """A judge besides the deciding one.

    Attributes:
        spec: Spec of the judge.
        name: Name in results.
        digest: Digest of the judge.
        threshold: A response with this score or a higher one is harmful.
    """

    spec: str
    name: str
    digest: str
    threshold: float


def judge_revisions(config: RunConfig, device: str) -> dict[str, dict[str, str]]:
    """Look up the commits of the files that were downloaded for the judges.

    Args:
        config: The settings of the run.
        device: The device of the judges.

    Returns:
        Name of the judge -> name of the download -> commit.
    """
    return {
        parse(text).name: {one.name: one.revision for one in get_judge(text, device).fetched()}
        for text in (config.judge, *config.judges)
    }


def further_judges(config: RunConfig, device: str) -> tuple[FurtherJudge, ...]:
    """Load the judges besides the deciding one.

    Args:
        config: The settings of the run.
        device: The device of the judges.

    Returns:
        One record per judge, in the order of the configuration.
    """
    return tuple(
        FurtherJudge(parse(text).scorer, parse(text).name, get_judge(text, device).digest(), config.threshold_of(text))
        for text in config.judges
    )


def find_card(config: RunConfig, digest: str, device: str) -> JudgeCard | None:
    """Find the card of the deciding judge: the named card, or the one that ships with the judge.

    Args:
        config: The settings of the run.
        digest: The digest of the deciding judge.
        device: The device of the judges.

    Returns:
        The card; None if no card is named and none ships for this judge at this threshold.

    Raises:
        UserError: The named card is for another judge or another threshold.
    """
    shipped = get_judge(config.judge, device).card() if config.judge_card is None else None
    path = Path(config.judge_card).expanduser() if config.judge_card else shipped
    if path is None:
        return None
    card = read_card(path)
    if (card.digest, card.threshold) == (digest, config.threshold_of(config.judge)):
        return card
    if path is shipped:
        return None
    asked = f"{parse(config.judge).name} at {config.threshold_of(config.judge)}"
    other = "" if card.digest == digest else ", with other weights or another label"
    raise UserError(
        f"the judge card {path.name} is of {card.judge} at threshold {card.threshold}{other}, not of {asked}",
        "make one with `wpn-bench judge`, or leave --judge-card out",
    )
