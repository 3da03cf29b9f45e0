"""Load the judges of a run and the card of the deciding judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wpn_bench.analysis.judge_card import JudgeCard, read_card
from wpn_bench.config import RunConfig
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import get_judge
from wpn_bench.harmless.judges.spec import MAJORITY, members_of, parse


@dataclass(frozen=True)
class RunJudge:
    """A judge of a run.

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

    @property
    def members(self) -> list[str]:
        """The specs of the judges whose votes this one counts; empty if it is no majority."""
        spec = parse(self.spec)
        return [parse(member).scorer for member in members_of(spec.variant)] if spec.judge == MAJORITY else []


def deciding_judge(config: RunConfig, digest: str) -> RunJudge:
    """Describe the deciding judge.

    Args:
        config: The settings of the run.
        digest: The digest of the judge.

    Returns:
        The judge.
    """
    spec = parse(config.judge)
    return RunJudge(spec.scorer, spec.name, digest, config.threshold_of(config.judge))


def judge_revisions(config: RunConfig, device: str) -> dict[str, dict[str, str]]:
    """Return the commits of the files that were downloaded for the judges.

    Args:
        config: Settings of the run.
        device: Device of the judges.

    Returns:
        For each judge, the commit of each download by its name.
    """
    return {
        parse(text).name: {one.name: one.revision for one in get_judge(text, device).fetched()}
        for text in (config.judge, *config.judges)
    }


def further_judges(config: RunConfig, device: str) -> tuple[RunJudge, ...]:
    """Load the judges other than the deciding one.

    Args:
        config: Settings of the run.
        device: Device of the judges.

    Returns:
        One record per judge, in the order of the configuration.
    """
    return tuple(
        RunJudge(parse(text).scorer, parse(text).name, get_judge(text, device).digest(), config.threshold_of(text))
        for text in config.judges
    )


def find_cards(config: RunConfig, judges: Sequence[RunJudge], device: str) -> dict[str, JudgeCard]:
    """Find the cards of the judges: those that the settings name, else those that ship with the judges.

    Args:
        config: The settings of the run.
        judges: The judges, the deciding one first.
        device: The device of the judges.

    Returns:
        Name of a judge -> its card, for the judges that have one at their threshold.

    Raises:
        UserError: A named card is of no judge of the run, or of one at another threshold, or two are of the same judge.
    """
    known = {(judge.digest, judge.threshold): judge.name for judge in judges}
    found: dict[str, JudgeCard] = {}
    if not config.judge_card:
        for path in filter(None, (get_judge(judge.spec, device).card() for judge in judges)):
            card = read_card(path)
            if name := known.get((card.digest, card.threshold)):
                found[name] = card
        return found
    for path in (Path(card).expanduser() for card in config.judge_card):
        card = read_card(path)
        name = known.get((card.digest, card.threshold))
        if name is None:
            same = any(judge.digest == card.digest for judge in judges)
            other = "" if same else ", with other weights or another label"
            asked = " or ".join(f"{judge.name} at {judge.threshold}" for judge in judges)
            raise UserError(
                f"the judge card {path.name} is of {card.judge} at threshold {card.threshold}{other}, not of {asked}",
                "make one with `wpn-bench judge`, or leave --judge-card out",
            )
        if name in found:
            raise UserError(f"two judge cards are of {name}", "name one of them")
        found[name] = card
    return found
