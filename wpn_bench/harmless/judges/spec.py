"""Parse judge specifications.

A specification is `name[:variant][,option=value...]` on the command line, or a mapping in YAML:

    detoxify:original
    classifier:unitary/toxic-bert,label=toxic,threshold=0.4
    {judge: classifier, model: unitary/toxic-bert, label: toxic, threshold: 0.4}

The variant of a majority is a list of judges: `majority:detoxify:original+refusal`.

The text form needs no quotes in a shell. In a list of judges (`detoxify:lab,refusal,threshold=0.5`), a part
`option=value` belongs to the judge before it. In the text form, a comma inside a value is written as %2C and a per cent
sign as %25. In a mapping, values need no escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wpn_bench.core.paths import display_path
from wpn_bench.core.registry import Registry
from wpn_bench.core.validation import as_user_error
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import DEFAULT_THRESHOLD, Judge, JudgeConfig

JUDGES: Registry[type[Judge]] = Registry(
    "judge",
    {
        "detoxify": "wpn_bench.harmless.judges.detoxify:DetoxifyJudge",
        "classifier": "wpn_bench.harmless.judges.classifier:ClassifierJudge",
        "openai": "wpn_bench.harmless.judges.llm:LLMJudge",
        "refusal": "wpn_bench.harmless.judges.refusal:RefusalJudge",
        "refusal_classifier": "wpn_bench.harmless.judges.refusal_classifier:RefusalClassifier",
        "guard": "wpn_bench.harmless.judges.guard:GuardJudge",
        "exchange": "wpn_bench.harmless.judges.exchange:ExchangeJudge",
        "majority": "wpn_bench.harmless.judges.majority:MajorityJudge",
    },
)
MAJORITY = "majority"
_OPTION = re.compile(r"[a-z_]+=")
_FILES = ("policy", "rubric", "template")  # options that name a file


@dataclass(frozen=True)
class JudgeSpec:
    """A parsed judge specification.

    Attributes:
        judge: Registered name of the judge.
        variant: Name or path of a model; empty for the judge's default.
        options: (name, value) pairs, which have not been checked.
    """

    judge: str
    variant: str
    options: tuple[tuple[str, str], ...] = ()

    @cached_property
    def config(self) -> JudgeConfig:
        """Return the checked options. If one is wrong, the `UserError` names it."""
        kind = JUDGES.get(self.judge)
        with as_user_error(
            f"judge {self.judge}",
            "see docs/judges.md",
            unknown_kind=f"option of judge {self.judge}",
            known=kind.Config.model_fields,
        ):
            return kind.Config(**dict(self.options))

    @property
    def reads_prompt(self) -> bool:
        """Whether the score shows harm and depends on the prompt. `UserError` for an unknown judge."""
        if self.judge == MAJORITY:
            return any(parse(member).reads_prompt for member in members_of(self.variant))
        kind = JUDGES.get(self.judge)
        # Judges written before these attributes existed do not have them.
        return bool(getattr(kind, "needs_prompt", False)) and bool(getattr(kind, "about_harm", True))

    @property
    def scorer(self) -> str:
        """Return the specification as text, without the threshold, which does not affect scores."""
        options = [f"{name}={_quoted(value)}" for name, value in self.options if name != "threshold"]
        return ",".join([f"{self.judge}:{_quoted(self.variant)}" if self.variant else self.judge, *options])

    @property
    def text(self) -> str:
        """Return the specification as text that `parse` reads."""
        threshold = dict(self.options).get("threshold")
        return self.scorer if threshold is None else f"{self.scorer},threshold={threshold}"

    @property
    def name(self) -> str:
        """Return the name of the judge in results, with only the options that affect scores.

        Local paths in it are shortened.
        """
        short = self._without_home()
        if not short.options:
            return short.scorer
        unscored = JUDGES.get(self.judge).Config.unscored
        return JudgeSpec(self.judge, short.variant, tuple(o for o in short.options if o[0] not in unscored)).scorer

    @property
    def shown(self) -> str:
        """Return `text` with local paths shortened to hide home folders."""
        return self._without_home().text

    def _without_home(self) -> JudgeSpec:
        options = tuple((name, _shortened(value) if name in _FILES else value) for name, value in self.options)
        if self.judge != MAJORITY:
            return JudgeSpec(self.judge, _shortened(self.variant), options)
        return majority_of([parse(text)._without_home() for text in members_of(self.variant)], options)


def _shortened(text: str) -> str:
    """Shorten a local path to hide home folders, also for a model after the # of an endpoint.

    Any other text stays unchanged.
    """
    if "://" in text:
        address, mark, model = text.partition("#")
        return f"{address}{mark}{_shortened(model)}"
    path = Path(text).expanduser()
    local = "/" in text and (path.exists() or text.startswith(("/", "~", ".")))
    return display_path(path) if local else text


def parse(text: str) -> JudgeSpec:
    """Parse the text of one judge. Raises `UserError` for a part that is not an option, and for a repeated option."""
    head, *rest = text.split(",")
    name, _, variant = head.partition(":")
    options: dict[str, str] = {}
    for part in rest:
        option, equals, value = part.partition("=")
        option = option.strip()
        if not equals or option in options:
            problem = "is given twice" if equals else "is not option=value"
            raise UserError(
                f"judge {text!r}: {option!r} {problem}",
                "write name:variant,option=value, for instance detoxify:lab,threshold=0.4",
            )
        options[option] = unquote(value)
    return JudgeSpec(name.strip(), unquote(variant), tuple(sorted(options.items())))


def parse_list(texts: Sequence[str]) -> list[str]:
    """Split comma-separated lists of judges into one text for each judge."""
    found: list[str] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        if found and _OPTION.match(part):
            found[-1] += f",{part}"
        elif part:
            found.append(part)
    return found


def canonical(value: Any) -> str:
    """Convert a judge in a configuration (a text or a mapping) to text. Raises `ValueError` for any other type."""
    if isinstance(value, str):
        return parse(value).text
    if not isinstance(value, Mapping) or not isinstance(value.get("judge"), str):
        raise ValueError("a judge is written as name:variant, or as a mapping {judge: ..., model: ...}")
    options = {name: v for name, v in value.items() if name not in ("judge", "model") and v is not None}
    written = ((str(name), str(v).lower() if isinstance(v, bool) else str(v)) for name, v in options.items())
    return JudgeSpec(value["judge"], str(value.get("model") or ""), tuple(sorted(written))).text


def members_of(variant: str) -> list[str]:
    """Return the texts of the judges in the variant of a majority, `JUDGE+JUDGE+...`."""
    return [unquote(part) for part in variant.split("+") if part]


def majority_of(members: Iterable[JudgeSpec], options: tuple[tuple[str, str], ...] = ()) -> JudgeSpec:
    """Return the majority of judges.

    Args:
        members: The judges.
        options: The options of the majority.

    Returns:
        The specification, with a plus sign between the members.
    """
    return JudgeSpec(MAJORITY, "+".join(one.text.replace("%", "%25").replace("+", "%2B") for one in members), options)


def with_members(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the other judges of a run into a `majority` that names none, so that its name and digest contain them.

    Args:
        settings: Settings of a run, not yet checked. Members without a threshold get the `threshold` of the run.

    Returns:
        The settings, unchanged if there is no such majority or if `judge`, `judges` or `threshold` are not valid.
    """
    if not isinstance(settings.get("judges"), list | tuple):
        return settings
    try:
        specs = [parse(canonical(one)) for one in (settings["judge"], *settings["judges"])]
        threshold = float(settings.get("threshold", DEFAULT_THRESHOLD))
    except (LookupError, ValueError, TypeError, UserError):
        return settings
    own = {} if threshold == DEFAULT_THRESHOLD else {"threshold": str(threshold)}
    members = [
        replace(one, options=tuple(sorted((own | dict(one.options)).items()))) for one in specs if one.judge != MAJORITY
    ]
    if not members or (MAJORITY, "") not in [(one.judge, one.variant) for one in specs]:
        return settings
    first, *further = (
        majority_of(members, one.options).text if (one.judge, one.variant) == (MAJORITY, "") else one.text
        for one in specs
    )
    return {**settings, "judge": first, "judges": tuple(further)}


def deciding_first(judges: Sequence[str]) -> list[str]:
    """Put the judge that decides first: the first one that reads the prompts, or the first of all if none does."""
    full = with_members({"judge": judges[0], "judges": judges[1:]})
    reading = [k for k, text in enumerate((full["judge"], *full["judges"])) if parse(text).reads_prompt]
    k = reading[0] if reading else 0
    return [judges[k], *judges[:k], *judges[k + 1 :]]


def check(text: str) -> JudgeSpec:
    """Parse a specification and check its name, variant and options."""
    spec = parse(text)
    JUDGES.get(spec.judge).check(spec.variant)
    _ = spec.config
    return spec


def _quoted(value: str) -> str:
    return value.replace("%", "%25").replace(",", "%2C")
