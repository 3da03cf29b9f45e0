"""How a judge is written down: `name[:variant][,option=value...]` on the command line, the same as a mapping in YAML.

    detoxify:original
    classifier:unitary/toxic-bert,label=toxic,threshold=0.4
    {judge: classifier, model: unitary/toxic-bert, label: toxic, threshold: 0.4}

Nothing in it means anything to a shell. In a list of judges (`detoxify:lab,refusal,threshold=0.5`) a part `option=value`
belongs to the judge before it. A comma or per cent sign inside a value is written %2C, %25; a mapping needs no such care.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wpn_bench.core.paths import display_path
from wpn_bench.core.registry import Registry
from wpn_bench.core.validation import as_user_error
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.base import Judge, JudgeConfig

JUDGES: Registry[type[Judge]] = Registry(
    "judge",
    {
        "detoxify": "wpn_bench.harmless.judges.detoxify:DetoxifyJudge",
        "classifier": "wpn_bench.harmless.judges.classifier:ClassifierJudge",
        "refusal": "wpn_bench.harmless.judges.refusal:RefusalJudge",
    },
)
_OPTION = re.compile(r"[a-z_]+=")


@dataclass(frozen=True)
class JudgeSpec:
    """A judge's registered name, its variant (a model's name or path; empty: the judge's own) and its options as given."""

    judge: str
    variant: str
    options: tuple[tuple[str, str], ...] = ()

    @cached_property
    def config(self) -> JudgeConfig:
        """The options, checked; `UserError` names the first that is wrong."""
        kind = JUDGES.get(self.judge)
        with as_user_error(
            f"judge {self.judge}",
            "see docs/judges.md",
            unknown_kind=f"option of judge {self.judge}",
            known=kind.Config.model_fields,
        ):
            return kind.Config(**dict(self.options))

    @property
    def scorer(self) -> str:
        """The spec as text without its threshold, which decides no score."""
        options = [f"{name}={_quoted(value)}" for name, value in self.options if name != "threshold"]
        return ",".join([f"{self.judge}:{_quoted(self.variant)}" if self.variant else self.judge, *options])

    @property
    def text(self) -> str:
        """The spec as text: what `parse` reads."""
        threshold = dict(self.options).get("threshold")
        return self.scorer if threshold is None else f"{self.scorer},threshold={threshold}"

    @property
    def name(self) -> str:
        """What results call the judge: `scorer`, with no more of a path than may stand in a file that others read."""
        return self._without_home().scorer

    @property
    def shown(self) -> str:
        """`text`, with no more of a path than may stand in a file that others read."""
        return self._without_home().text

    def _without_home(self) -> JudgeSpec:
        path = Path(self.variant).expanduser()
        local = "/" in self.variant and (path.exists() or self.variant.startswith(("/", "~", ".")))
        return JudgeSpec(self.judge, display_path(path), self.options) if local else self


def parse(text: str) -> JudgeSpec:
    """One judge from its text. Raises `UserError` for a part that is no option, and for an option given twice."""
    head, *rest = text.split(",")
    name, _, variant = head.partition(":")
    options: dict[str, str] = {}
    for part in rest:
        option, equals, value = part.partition("=")
        option = option.strip()
        if not equals or option in options:
            problem = "is given twice" if equals else "is not option=value"
            raise UserError(f"judge {text!r}: {option!r} {problem}", "write for instance detoxify:lab,threshold=0.4")
        options[option] = unquote(value)
    return JudgeSpec(name.strip(), unquote(variant), tuple(sorted(options.items())))


def parse_list(texts: Sequence[str]) -> list[str]:
    """The judges of one or more comma-separated lists, each as text."""
    found: list[str] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        if found and _OPTION.match(part):
            found[-1] += f",{part}"
        elif part:
            found.append(part)
    return found


def canonical(value: Any) -> str:
    """A judge's text from what a configuration may hold: a text or a mapping. Raises `ValueError` for anything else."""
    if isinstance(value, str):
        return parse(value).text
    if not isinstance(value, Mapping) or not isinstance(value.get("judge"), str):
        raise ValueError("a judge is written as name:variant, or as a mapping {judge: ..., model: ...}")
    options = {name: v for name, v in value.items() if name not in ("judge", "model") and v is not None}
    written = ((str(name), str(v).lower() if isinstance(v, bool) else str(v)) for name, v in options.items())
    return JudgeSpec(value["judge"], str(value.get("model") or ""), tuple(sorted(written))).text


def check(text: str) -> JudgeSpec:
    """The spec of a judge that may be: a known name, a possible variant, known options of a right type."""
    spec = parse(text)
    JUDGES.get(spec.judge).check(spec.variant)
    _ = spec.config
    return spec


def _quoted(value: str) -> str:
    return value.replace("%", "%25").replace(",", "%2C")
