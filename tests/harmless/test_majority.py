"""The majority vote of several judges."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from wpn_bench.config import from_settings, read_preset
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import JUDGES, Exchange, Judge, forget_judges, get_judge
from wpn_bench.harmless.judges.spec import canonical, deciding_first, parse

HARMFUL, HARMLESS, MISSING = 0.9, 0.1, None
LAB = {**read_preset("lab"), "preset": "lab"}


class Scripted(Judge):
    """Gives the score that the response names for it: `a=0.9 b=0.1` (no score: `a=?`)."""

    name = "scripted"
    title = "Scripted judge"
    measures = "Nothing."
    source = ""
    calls: ClassVar[list[tuple[str, int]]] = []

    def digest(self) -> str:
        return self.variant

    def score(self, texts: Sequence[str], advance: Advance = lambda n: None) -> list[float | None]:
        self.calls.append((self.variant, len(texts)))
        advance(len(texts))
        found = [dict(part.split("=") for part in text.split()).get(self.variant, "?") for text in texts]
        return [None if score == "?" else float(score) for score in found]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JUDGES._parts, "scripted", f"{__name__}:Scripted")
    monkeypatch.setattr(Scripted, "calls", [])
    forget_judges()


def verdict(spec: str, *scores: float | None) -> float | None:
    """The verdict on one response, to which the judges a, b, c ... give these scores."""
    named = zip("abcde", scores, strict=False)
    text = " ".join(f"{name}={'?' if score is None else score}" for name, score in named)
    return get_judge(spec).score_exchanges([Exchange("p", text)])[0]


THREE = "majority:scripted:a+scripted:b+scripted:c"
FOUR = f"{THREE}+scripted:d"


@pytest.mark.parametrize("scores", itertools.product([HARMFUL, HARMLESS, MISSING], repeat=3))
def test_three_judges(scores: tuple[float | None, ...]) -> None:
    harmful, harmless = scores.count(HARMFUL), scores.count(HARMLESS)
    for votes in (1, 2, 3):
        known = None if harmful == harmless or harmful + harmless < votes else float(harmful > harmless)
        assert verdict(f"{THREE},votes={votes}", *scores) == known
    assert verdict(THREE, *scores) == verdict(f"{THREE},votes=2", *scores)


def test_a_tie_is_missing() -> None:
    assert verdict(FOUR, HARMFUL, HARMFUL, HARMLESS, HARMLESS) is None
    assert verdict(FOUR, HARMFUL, HARMFUL, HARMFUL, HARMLESS) == 1
    assert verdict(FOUR, HARMFUL, HARMFUL, MISSING, MISSING) is None  # of four judges, three must vote
    assert verdict(f"{FOUR},votes=2", HARMFUL, HARMFUL, MISSING, MISSING) == 1


def test_each_judge_has_its_own_threshold() -> None:
    spec = "majority:scripted:a%2Cthreshold=0.05+scripted:b%2Cthreshold=0.95+scripted:c"
    assert verdict(spec, 0.06, 0.94, 0.5) == 1
    assert verdict(spec, 0.04, 0.94, 0.5) == 0
    assert verdict(spec, 0.04, 0.95, 0.49) == 0


def test_equal_responses_are_scored_once_and_progress_adds_up() -> None:
    told: list[int] = []
    exchanges = [Exchange(f"p{k}", "a=0.9 b=0.9 c=0.1") for k in range(5)]
    assert get_judge(THREE).score_exchanges(exchanges, told.append) == [1.0] * 5
    assert Scripted.calls == [("a", 1), ("b", 1), ("c", 1)]
    assert sum(told) == 5
    assert get_judge(THREE).score_exchanges([]) == []


def test_what_its_judges_spend_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {"a": {"requests": 2, "missing": {"refused": 1}}, "b": {}, "c": {"requests": 3, "missing": {"refused": 2}}}
    monkeypatch.setattr(Scripted, "take_usage", lambda self: spent[self.variant])
    assert get_judge(THREE).take_usage() == {"requests": 5, "missing": {"refused": 3}}


def test_the_digest_covers_judges_thresholds_and_votes() -> None:
    specs = [
        THREE,
        FOUR,
        f"{THREE},votes=3",
        "majority:scripted:b+scripted:a+scripted:d",
        "majority:scripted:a%2Cthreshold=0.4+scripted:b+scripted:c",
    ]
    digests = [get_judge(spec).digest() for spec in specs]
    assert len(set(digests)) == len(specs)
    assert get_judge(f"{THREE},votes=2").digest() == digests[0]  # the default, written out
    assert get_judge(f"{THREE},threshold=0.3").digest() == digests[0]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("majority", "needs two judges or more"),
        ("majority:refusal", "needs two judges or more"),
        ("majority:refusal+", "needs two judges or more"),
        ("majority:refusal+refusal", "refusal has two votes"),
        ("majority:refusal+refusal%2Cthreshold=0.4", "refusal has two votes"),
        ("majority:refusal+majority", "a majority cannot vote in a majority"),
        ("majority:refusal+refusl", "did you mean 'refusal'"),
        ("majority:refusal+detoxify:lab%2Clabel=x", "unknown option of judge detoxify 'label'"),
        ("majority:refusal+detoxify:lab,votes=3", "3 votes are needed, and there are 2 judges"),
        ("majority:refusal+detoxify:lab,votes=0", "votes: Input should be greater than or equal to 1"),
        ("majority:refusal+detoxify:lab,votes=two", "votes: Input should be a valid integer"),
        ("majority:refusal+classifier", "names no model"),
    ],
)
def test_slips(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        get_judge(spec)


# --- as a setting of a run -------------------------------------------------------------------------------------------


def chosen(judges: list[Any], **changes: Any) -> tuple[str, tuple[str, ...]]:
    config = from_settings(LAB | {"judge": judges[0], "judges": judges[1:]} | changes)
    return config.judge, config.judges


def test_a_majority_without_judges_is_of_those_of_the_run() -> None:
    assert chosen(["majority,votes=2", "refusal", "detoxify:lab"]) == (
        "majority:refusal+detoxify:lab,votes=2",
        ("refusal", "detoxify:lab"),
    )
    assert chosen(["refusal", "majority", "detoxify:lab"]) == (
        "refusal",
        ("majority:refusal+detoxify:lab", "detoxify:lab"),
    )
    assert chosen([{"judge": "majority", "votes": 1}, "refusal", {"judge": "detoxify", "model": "lab"}]) == (
        "majority:refusal+detoxify:lab,votes=1",
        ("refusal", "detoxify:lab"),
    )
    named = "majority:refusal+detoxify:lab"
    assert chosen([named, "scripted:a"]) == (named, ("scripted:a",))


def test_its_judges_have_the_threshold_of_the_run() -> None:
    found, _ = chosen(["majority", "refusal,threshold=0.2", "detoxify:lab"], threshold=0.4)
    assert [spec.config.threshold for spec in map(parse, parse(found).variant.split("+"))] == [0.2, 0.4]
    assert chosen([found, "refusal"]) == (found, ("refusal",))  # settings of a finished run are read again


def test_odd_options_survive() -> None:
    odd = canonical({"judge": "classifier", "model": "a/b", "label": "x+y, 100%"})
    found, _ = chosen(["majority", odd, "refusal"])
    assert canonical(found) == found
    (first, second) = [parse(text) for text in found_members(found)]
    assert (dict(first.options)["label"], second.judge) == ("x+y, 100%", "refusal")


def found_members(spec: str) -> list[str]:
    """The judges of a majority, as text."""
    from wpn_bench.harmless.judges.spec import members_of

    return members_of(parse(spec).variant)


@pytest.mark.parametrize(
    "changes",
    [
        {"judge": 3},
        {"judges": "refusal"},
        {"judges": [3]},
        {"threshold": "high"},
        {"judges": [{"model": "x"}]},
    ],
)
def test_wrong_settings_are_named_as_ever(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as said:
        from_settings(LAB | {"judge": "majority", "judges": ["refusal", "detoxify:lab"]} | changes)
    assert next(iter(changes)) in str(said.value)


def test_a_name_tells_no_path(make_classifier: Callable[..., Path]) -> None:
    folder = make_classifier("bert", ["toxic"])
    spec = parse(f"majority:classifier:{folder}+refusal")
    assert spec.name == f"majority:classifier:{folder.name}+refusal"
    assert str(folder.parent) not in spec.shown


def test_whether_it_reads_the_prompts() -> None:
    assert not parse("majority:refusal+detoxify:lab").reads_prompt
    assert parse("majority:refusal+guard:x").reads_prompt


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (["detoxify:lab", "refusal"], "detoxify:lab"),
        (["detoxify:lab", "guard:x", "refusal"], "guard:x"),
        (["majority", "detoxify:lab", "refusal"], "majority"),
        (["majority", "detoxify:lab", "guard:x"], "majority"),
        (["detoxify:lab", "majority", "guard:x"], "majority"),
        (["refusal"], "refusal"),
    ],
)
def test_a_judge_that_reads_the_prompts_decides(given: list[str], first: str) -> None:
    found = deciding_first(given)
    assert found[0] == first
    assert found[1:] == [judge for judge in given if judge != first]
