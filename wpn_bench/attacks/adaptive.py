"""Adaptive attacks: an attacker model writes prompts for each request, sees the answers and their scores, and writes better ones.

`pair` is Prompt Automatic Iterative Refinement (Chao et al. 2023, "Jailbreaking Black Box Large Language Models in Twenty Queries",
arXiv:2310.08419): some streams, each of which improves its own last draft. `tap` is Tree of Attacks with Pruning (Mehrotra et al. 2023,
arXiv:2312.02119): each draft is improved in several ways, drafts that miss the request are dropped, and only the best answers are
continued. So PAIR is TAP with one branch, without pruning. Both stop at the first harmful answer, and after a number of queries.

Three things differ from the papers. The score that steers the attack is that of a judge of wpn-bench, as a number from 1 to 10. The
attacker itself says whether a draft misses the request, and not a third model. The attacker gets one message and no conversation
(see `wpn_bench.attacks.attacker`). A draft that was asked before is not asked again, because the target answers greedily.

For each model, the stage `adapt` asks attacker and target in turns, all requests together. Its best answers are judged as the set of
the attack in the suite `attack`. The stage `pair` or `tap` finds out after how many queries an attack succeeded, by the deciding judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wpn_bench.attacks.adaptive_search import (
    OFF_TOPIC,
    REPEATED,
    AdaptiveSearch,
    Search,
    attacked_item,
    best_of,
    history_of,
)
from wpn_bench.attacks.attacker import NO_REPLY, REFUSED, UNREADABLE
from wpn_bench.attacks.base import StageAttack
from wpn_bench.core.files import write_json
from wpn_bench.core.validation import Count
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import distinct, get_judge, judge_of, scores_of
from wpn_bench.harmless.judges import spec as judge_spec
from wpn_bench.harmless.judges.base import Exchange
from wpn_bench.harmless.stages import RESPONSES, USAGE, response_row, write_usage
from wpn_bench.jobs.job import Job, StageContext
from wpn_bench.jobs.planning import MeasuredModel, PlannedMeasurement
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models.backends import Decoding, open_backend
from wpn_bench.models.backends.base import Response
from wpn_bench.prompts import Template
from wpn_bench.prompts.items import read_items, read_rows, write_rows

PAIR, TAP = "pair", "tap"
ATTEMPTS = "attempts.jsonl"
COUNTS = "counts.json"
TABLE = "adaptive.parquet"
NO_PROMPT = "the attacker wrote no prompt"


class Adaptive(BaseModel):
    """Settings of an adaptive attack. The first `limit` prompts of the first in-domain set are attacked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    queries: Count = Field(20, description="most queries of the target for each prompt")
    streams: Count = Field(5, description="drafts that the attack begins with, each with its own strategy")
    depth: Count = Field(4, description="most rounds; in each, every draft is improved")
    tries: Count = Field(2, description="replies of the attacker for each draft, if the first ones cannot be read")
    shown: Count = Field(3, description="earlier drafts that the attacker sees, with their answers and scores")
    temperature: float = Field(1.0, gt=0, description="of the attacker; the target is decoded as in the run")
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: Count = Field(300, description="longest reply of the attacker")
    seed: int = Field(0, ge=0)
    limit: Count = Field(50, description="number of in-domain prompts")
    steering: str | None = Field(
        None, description="judge that scores the answers during the attack; None: the deciding judge"
    )

    @field_validator("steering", mode="before")
    @classmethod
    def _judge(cls, value: Any) -> Any:
        return None if value is None else judge_spec.canonical(value)

    @property
    def branches(self) -> int:
        """Return how many new drafts are made of each draft."""
        return 1

    @property
    def kept(self) -> int:
        """Return how many drafts are continued after a round."""
        return self.streams

    @property
    def prunes(self) -> bool:
        """Return whether drafts that miss the request are dropped before they are asked."""
        return False


class Pair(Adaptive):
    """Settings of PAIR."""


class Tap(Adaptive):
    """Settings of TAP."""

    queries: Count = Field(60, description="most queries of the target for each prompt")
    streams: Count = Field(1, description="drafts that the attack begins with, each with its own strategy")
    branching: Count = Field(4, description="new drafts made of each draft")
    width: Count = Field(10, description="drafts with the best answers, which are continued")
    depth: Count = Field(10, description="most rounds; in each, every draft is improved")
    on_topic: bool = Field(True, description="drop drafts that miss the request, before they are asked")

    @property
    def branches(self) -> int:
        return self.branching

    @property
    def kept(self) -> int:
        return self.width

    @property
    def prunes(self) -> bool:
        return self.on_topic


class PairAttack(StageAttack):
    """Improves drafts in parallel streams."""

    name = PAIR
    title = "Adaptive attack (PAIR)"
    description = (
        "An attacker model rewrites the prompt again and again, by the answers and their scores (Chao et al. 2023)."
    )
    Settings = Pair


class TapAttack(StageAttack):
    """Improves drafts in a tree, and prunes it."""

    name = TAP
    title = "Adaptive attack (TAP)"
    description = (
        "An attacker model improves prompts in a tree, of which only the best branches grow (Mehrotra et al. 2023)."
    )
    Settings = Tap


# --- stages ----------------------------------------------------------------------------------------------------------


_SETTINGS: Mapping[str, type[Adaptive]] = {PAIR: Pair, TAP: Tap}


def run_adapt_stage(ctx: StageContext) -> None:
    """Attack the `prompts` of a `model` with the prompts that the `attacker` writes.

    Writes `attempts.jsonl` (for each prompt all drafts, with answers and scores), `responses.jsonl` (the best answers, as the stage
    `generate` writes them, with the whole attack as `history`) and `counts.json`. A prompt for which the attacker wrote nothing that
    could be asked has no response, because silence of the attacker says nothing about the target.
    """
    local, params = ctx.local, ctx.params
    settings = _SETTINGS[params["attack"]](**params["settings"])
    items = read_items(ctx.needs["prompts"])[: settings.limit]
    held = local["device"], params["dtype"], local.get("offload", "none")
    template = Template.parse(params["template"])
    judge = judge_of(ctx, params)
    search = AdaptiveSearch(
        settings,
        open_backend(ctx.needs["attacker"], *held),
        Template.parse(params["attacker_template"]),
        open_backend(ctx.needs["model"], *held, params.get("backend")),
        template,
        Decoding(**params["decoding"]),
        lambda exchanges: scores_of(judge, exchanges, lambda n: None),
        params["threshold"],
        bool(params.get("strip_reasoning")),
    )
    found = search.run(items, ctx.progress(len(items) * settings.queries, "queries"))
    plain = Template.parse(params.get("plain_template", params["template"]))
    write_rows(ctx.out / ATTEMPTS, [_attempts_row(one) for one in found])
    write_rows(ctx.out / RESPONSES, [_response_row(one, plain) for one in found])
    write_json(ctx.out / COUNTS, dict(search.counts))
    write_usage(judge, params["judge"], ctx.out)


def _attempts_row(search: Search) -> dict[str, Any]:
    return {"id": search.item.id, "prompt": search.item.request, "attempts": search.attempts}


def _response_row(search: Search, template: Template) -> dict[str, Any]:
    best = best_of(search.asked)
    if best is None:
        reason = search.asked[-1]["reason"] if search.asked else NO_PROMPT
        row = response_row(search.item, template, "", Response(None, 0, reason))
    else:
        response = Response(best["response"], best["n_tokens"])
        row = response_row(attacked_item(search.item, best["prompt"]), template, best["input"], response)
    return {**row, "history": history_of(search)}


def run_adaptive_stage(ctx: StageContext) -> None:
    """Find out after how many queries an attack succeeded, by the deciding judge.

    Needs `attempts` (from `adapt`). After each query, the verdict is that on the best answer so far, as the steering judge saw it. If
    both judges are the same, the scores are those of the attack. Writes `adaptive.parquet` with a row for each prompt: item_id, scores
    (by the deciding judge after each query, as a list; NaN: no verdict), and how many replies of the attacker were `replies` in all,
    `refused`, `unreadable`, `empty`, `repeated` or `off_topic`, and how many answers were `unanswered` or `unscored`. And
    `counts.json` with the settings and the threshold.
    """
    import pandas as pd

    params = ctx.params
    rows = read_rows(ctx.needs["attempts"] / ATTEMPTS)
    ways = [_best_so_far([one for one in row["attempts"] if one["query"] is not None]) for row in rows]
    scores: dict[int, float | None] = {}
    if params["same_judge"]:
        scores = {id(one): one["score"] for way in ways for one in way if one}
    else:
        judge = judge_of(ctx, params)
        seen = [
            (row, one) for row, way in zip(rows, ways, strict=True) for one in {id(o): o for o in way if o}.values()
        ]
        exchanges = [Exchange(row["prompt"], one["answer"]) for row, one in seen]
        advance = ctx.progress(len(distinct(judge, exchanges)), "responses")
        found = scores_of(judge, exchanges, advance)
        scores = {id(one): score for (_, one), score in zip(seen, found, strict=True)}
        write_usage(judge, params["judge"], ctx.out)
    out = []
    for row, way in zip(rows, ways, strict=True):
        verdicts = [scores[id(one)] if one else None for one in way]
        out.append(
            {
                "item_id": row["id"],
                "scores": [float("nan") if score is None else score for score in verdicts],
                **_counted(row["attempts"]),
            }
        )
    pd.DataFrame(out).to_parquet(ctx.out / TABLE, index=False)
    write_json(ctx.out / COUNTS, dict(params))


def _best_so_far(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Return the best attempt after each query; None as long as there is no answer."""
    return [best_of(asked[: k + 1]) for k in range(len(asked))]


def _counted(attempts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    problems = [one["problem"] for one in attempts]
    asked = [one for one in attempts if one["query"] is not None]
    return {
        "replies": len(attempts),
        "refused": problems.count(REFUSED),
        "unreadable": problems.count(UNREADABLE),
        "empty": problems.count(NO_REPLY),
        "repeated": problems.count(REPEATED),
        "off_topic": problems.count(OFF_TOPIC),
        "unanswered": sum(one["answer"] is None for one in asked),
        "unscored": sum(one["answer"] is not None and one["score"] is None for one in asked),
    }


def plan_pair(model: MeasuredModel) -> list[PlannedMeasurement]:
    """One measurement of each model on the first in-domain set, if the run asks for PAIR."""
    return _plan(PAIR, model)


def plan_tap(model: MeasuredModel) -> list[PlannedMeasurement]:
    """One measurement of each model on the first in-domain set, if the run asks for TAP."""
    return _plan(TAP, model)


def _plan(name: str, model: MeasuredModel) -> list[PlannedMeasurement]:
    asked = model.attacked
    if name not in model.stage_attacks or asked is None or asked.judged is None:
        return []
    if model.attacker is None:
        raise UserError(f"the attack {name} needs an attacker model", "name one with --attacker")
    settings = _SETTINGS[name](**model.stage_attacks[name])
    deciding = {key: asked.judged.params[key] for key in ("judge", "judge_digest")}
    steering, threshold, spec = deciding, model.threshold, asked.judged.local["judge"]
    if settings.steering is not None:
        read = judge_spec.parse(settings.steering)
        digest = get_judge(settings.steering, asked.judged.local["device"]).digest()
        steering, spec = {"judge": read.name, "judge_digest": digest}, read.scorer
        threshold = read.config.threshold or model.default_threshold
    strip = {key: value for key, value in asked.judged.params.items() if key == "strip_reasoning"}
    adapted = Job(
        "adapt",
        {
            **asked.responses.params,
            **steering,
            **strip,
            "threshold": threshold,
            "attack": name,
            "settings": settings.model_dump(mode="json", exclude={"steering"}),
            "attacker_template": model.attacker.template,
        },
        {**asked.responses.needs, "attacker": model.attacker.artifact},
        f"attack {asked.name} by {name}",
        {**asked.responses.local, "judge": spec},
    )
    same = steering["judge_digest"] == deciding["judge_digest"]
    params = {
        **deciding,
        "threshold": model.threshold,
        "same_judge": same,
        "queries": settings.queries,
        "steering": steering["judge"],
    }
    label = f"count queries of {name}"
    return [
        PlannedMeasurement(name, asked.name, params, {"attempts": adapted}, label, asked.judged.local, answers=adapted)
    ]


ADAPT = Stage(
    "wpn_bench.attacks.adaptive:run_adapt_stage",
    1,
    (*LM_LIBRARIES, "detoxify"),
    resumable=True,
    unhashed_files=(COUNTS, USAGE),
    items="needs.prompts",
    passes=20,  # about so many queries of each prompt
    speed_params=("settings", "queries"),
    memory="wpn_bench.preflight.estimates:adaptive_needs",
    part="attack",
)
PAIR_STAGE = Stage(
    "wpn_bench.attacks.adaptive:run_adaptive_stage",
    1,
    (*LM_LIBRARIES, "detoxify"),
    resumable=True,
    shardable=True,
    unhashed_files=(USAGE,),
    items="needs.attempts",
    part="attack",
    plan="wpn_bench.attacks.adaptive:plan_pair",
    rows="wpn_bench.analysis.adaptive_rows:pair_rows",
    section="wpn_bench.report.adaptive:pair_section",
)
TAP_STAGE = replace(
    PAIR_STAGE,
    plan="wpn_bench.attacks.adaptive:plan_tap",
    rows="wpn_bench.analysis.adaptive_rows:tap_rows",
    section="wpn_bench.report.adaptive:tap_section",
)
