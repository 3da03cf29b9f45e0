"""Decide whether two runs measured the same items in the same way.

`wpn-bench check` and comparisons of runs use this module. Answers to prompts are comparable if template, decoding,
judge and threshold are equal. A prompt set or a task is comparable if both runs read it from the same source (the
digest in the manifest) and used the same items. An attack that depends on the model (a search for an input, or
quantised weights) has no digest. It is comparable if its name, options and prompts are equal.

Base models are not compared here. `wpn-bench check` may compare a new base with an old one, and notes that they differ.
A comparison of runs is about the methods, so it also requires the same base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.core.files import digest_of
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.refusals import WORDING
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import ANSWERED_RATE, ATTACK, BENCHMARK, REFUSAL_RATE, TRANSFER, found_on
from wpn_bench.runs.settings import part

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = ("judge", "judge_digest", "threshold", "template")
_SAMPLES = ("model", "suite", "set", "item_id", "prompt")
_DOCUMENTS = ("model", "task", "doc_id", "doc_hash")


class Asked(BaseModel):
    """A prompt set or a benchmark task with which models were measured.

    Attributes:
        suite: Suite of the set.
        name: Name of the set.
        n: Number of items.
        items: Digest of the items, in the order of their names.
        source: Digest of the definition and data; empty if the manifest does not give it.
        about: Where the set comes from, for messages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    suite: str
    name: str
    n: int = Field(ge=1)
    items: str
    source: str
    about: dict[str, str | None] = {}


@dataclass(frozen=True)
class Protocol:
    """How a run measured its models.

    `settings` tell how responses were generated and judged. `sets` are the prompt sets and benchmark tasks.
    """

    settings: Mapping[str, Any]
    sets: Sequence[Asked]

    def of(self, suite: str, name: str) -> Asked | None:
        return next((one for one in self.sets if (one.suite, one.name) == (suite, name)), None)


@dataclass(frozen=True)
class Differences:
    """Why answers cannot be compared.

    Differences in `settings` apply to all answers to prompts. `sets` has a reason for each (suite, name) that differs.
    `metrics` has a reason for each metric that was measured differently. All other metrics can be compared.
    """

    settings: Sequence[str]
    sets: Mapping[tuple[str, str], str]
    metrics: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.settings or self.sets)

    def lines(self) -> list[str]:
        """Return the differences in settings and sets, each as a line of text."""
        kinds = {key: "task" if key[0] == BENCHMARK else "prompt set" for key in self.sets}
        return [*self.settings, *(f"{kinds[key]} {key[1]}: {reason}" for key, reason in self.sets.items())]


def protocol_of(run: Run, models: Sequence[str]) -> Protocol:
    """Describe how a run measured some of its models.

    Args:
        run: The run.
        models: Names of the models. Those that were not measured are ignored.

    Returns:
        The settings and the sets.

    Raises:
        UserError: Two of the models were measured on different items of a set.
    """
    about, manifest = run.results.get("run") or {}, run.manifest
    settings = {
        "limit": about.get("limit"),
        "limits": about.get("limits") or {},
        "template": about.get("template"),
        # The batch size does not change the answers.
        "decoding": {k: v for k, v in part(about, "decoding").items() if k != "batch_size"},
        "judge": about.get("judge"),
        "judge_digest": part(manifest, "judge").get("digest"),
        "threshold": about.get("threshold"),
        "refusals": part(about, "refusals").get("digest") or WORDING,
    }
    sets: dict[tuple[str, str], Asked] = {}
    for (suite, name), frame in _parts(run.samples_with(_SAMPLES), ("suite", "set"), models):
        # The digest uses the original prompts, because inputs from a search differ between models.
        items = zip(frame["item_id"], frame["prompt"], strict=True)
        _add(
            sets,
            Asked(suite=suite, name=name, n=len(frame), items=digest_of(list(items)), **_set(manifest, suite, name)),
        )
    for (task,), frame in _parts(run.documents_with(_DOCUMENTS), ("task",), models):
        items = zip(frame["doc_id"].astype(int), frame["doc_hash"], strict=True)
        _add(
            sets, Asked(suite=BENCHMARK, name=task, n=len(frame), items=digest_of(list(items)), **_task(manifest, task))
        )
    return Protocol(settings, list(sets.values()))


def _parts(
    frame: pd.DataFrame, by: Sequence[str], models: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], pd.DataFrame]]:
    """Yield (set, rows sorted by item) for each set, model and seed, in the order of the frame."""
    if not len(frame):
        return
    item = "doc_id" if "task" in by else "item_id"
    chosen = frame[frame["model"].isin(models)]
    keys = [*by, "model", *(["seed"] if "seed" in frame else [])]
    for key, rows in chosen.groupby(keys, sort=False, dropna=False):
        yield tuple(map(str, key[: len(by)])), rows.sort_values(item)


def _add(sets: dict[tuple[str, str], Asked], one: Asked) -> None:
    known = sets.setdefault((one.suite, one.name), one)
    if known.items != one.items:
        what = "documents" if one.suite == BENCHMARK else "prompts"
        raise UserError(f"not all models were measured on the same {what} of {one.name}", "repeat the whole run")


def _set(manifest: Mapping[str, Any], suite: str, name: str) -> dict[str, Any]:
    declared = part(part(manifest, "prompt_sets"), name)
    source = declared.get("digest")
    if source is None and suite == TRANSFER and (found := found_on(name)):
        name, suite = found[0], ATTACK
    if source is None and suite == ATTACK:
        # This is an attack on one model: a search for an input with its options, or quantised weights.
        config = part(manifest, "config")
        rounded = config.get("quantise")
        schemes = rounded if isinstance(rounded, list) else []
        searched = part(config, "gradient_attacks")
        searched = {attack: {k: v for k, v in part(searched, attack).items() if k != "transfer"} for attack in searched}
        attacks = searched | {scheme: {} for scheme in schemes if isinstance(scheme, str)}
        source = digest_of([name, attacks[name]]) if name in attacks else None
    return {"source": str(source or ""), "about": {k: str(v) for k, v in part(declared, "source").items()}}


def _task(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    declared = part(part(manifest, "tasks"), name)
    about = {k: None if (v := declared.get(k)) is None else str(v) for k in ("task", "dataset", "revision")}
    about |= {k: str(declared[k]) for k in ("score", "chat_template") if k in declared}
    return {"source": str(declared.get("digest") or ""), "about": about}


def differences(ours: Protocol, theirs: Protocol, labels: tuple[str, str] = ("run", "baseline")) -> Differences:
    """Return the reasons why answers under two protocols cannot be compared.

    Args:
        ours: One protocol.
        theirs: The other protocol.
        labels: Names of the two protocols in the reasons.

    Returns:
        The differences. The object is false if there are none.
    """

    def both(one: object, two: object) -> str:
        return f"({labels[0]}: {_short(one)}; {labels[1]}: {_short(two)})"

    settings = []
    if any(one.suite != BENCHMARK for one in (*ours.sets, *theirs.sets)):
        for name in _SETTINGS:
            pair = ours.settings.get(name), theirs.settings.get(name)
            if pair[0] != pair[1]:
                settings.append(f"the {name.replace('_', ' ')} differs {both(*pair)}")
        decoding = [dict(side.settings.get("decoding") or {}) for side in (ours, theirs)]
        for name in dict.fromkeys([*decoding[0], *decoding[1]]):
            if decoding[0].get(name) != decoding[1].get(name):
                settings.append(f"the decoding differs: {name} {both(decoding[0].get(name), decoding[1].get(name))}")
    sets = {}
    for key in dict.fromkeys((one.suite, one.name) for one in (*ours.sets, *theirs.sets)):
        mine, other = ours.of(*key), theirs.of(*key)
        if mine is None or other is None:
            sets[key] = f"only in {labels[1] if mine is None else labels[0]}"
        elif not mine.source or not other.source:
            sets[key] = f"the manifest of {labels[1] if mine.source else labels[0]} does not say what it is"
        elif mine.source != other.source:
            apart = [k for k in dict.fromkeys([*mine.about, *other.about]) if mine.about.get(k) != other.about.get(k)]
            said = ", ".join(f"{k} {both(mine.about.get(k), other.about.get(k))}" for k in apart)
            sets[key] = f"another one: {said or 'its definition or its data changed'}"
        elif mine.items != other.items:
            sets[key] = f"other items {both(mine.n, other.n)}"
    # Runs and baselines that name no detector detected refusals by their wording.
    detectors = [str(side.settings.get("refusals") or WORDING) for side in (ours, theirs)]
    metrics = {}
    if detectors[0] != detectors[1]:
        shown = [one if one == WORDING else f"classifier {one[:12]}" for one in detectors]
        said = f"refusals were detected in different ways {both(*shown)}"
        metrics = dict.fromkeys((REFUSAL_RATE, ANSWERED_RATE), said)
    return Differences(settings, sets, metrics)


def _short(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...") if isinstance(value, str | dict | list) else text
