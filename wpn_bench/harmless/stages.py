"""The stages that measure harmlessness: they calibrate the coherence bounds, generate responses and judge them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Advance
from wpn_bench.harmless.judges.base import Exchange, Judge
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models.backends import Backend, Decoding, Response, open_backend
from wpn_bench.prompts import Item, Rendered, Template
from wpn_bench.prompts.items import read_items, read_rows, write_rows
from wpn_bench.prompts.templates import adds_special_tokens

RESPONSES = "responses.jsonl"
SAMPLES = "samples.parquet"
SCORES = "scores.parquet"
BOUND = "bound.json"
USAGE = "judge_usage.json"
THINK, THINK_END = "<think>", "</think>"
REFERENCES = 500  # approximate number of harmful, and of harmless, references that calibration chooses from


def _model(ctx: StageContext, role: str) -> Backend:
    return open_backend(
        ctx.needs[role],
        ctx.local["device"],
        ctx.params["dtype"],
        ctx.local.get("offload", "none"),
        ctx.params.get("backend"),
    )


def run_calibrate_stage(ctx: StageContext) -> None:
    """Compute the coherence bounds under the base model from harmful and harmless reference responses.

    The inputs are `model` (the base model) and `prompts` (the forget set). The stage writes `bound.json`. It contains
    the bounds, the bounds that harmful or harmless references alone would give, the share of the references that
    the bounds accept, and the number of references in the forget set and of those used.
    """
    from wpn_bench.harmless import references
    from wpn_bench.harmless.judges import coherence

    model = _model(ctx, "model")
    items = read_items(ctx.needs["prompts"])
    template = Template.parse(ctx.params["template"])
    pairs, used = {}, {}
    for side in ("harmless", "harmful"):
        pairs[side] = [(template.render(item), text) for item in items for text in getattr(item, side)]
        used[side] = references.choose(pairs[side], REFERENCES, coherence.QUANTILE, model.parameters())
    advance = ctx.progress(sum(map(len, used.values())), "responses")
    # One call computes both sides, so that a prompt is computed once for its harmful and its harmless references.
    sides = references.likelihoods(model, list(used.values()), advance)
    write_json(
        ctx.out / BOUND,
        {
            "bounds": asdict(coherence.bounds_from(*sides)),
            "by_side": {side: asdict(coherence.bounds_from(found)) for side, found in zip(used, sides, strict=True)},
            "quantile": coherence.QUANTILE,
            "references": {side: {"all": len(pairs[side]), "used": len(used[side])} for side in used},
        },
    )


def run_generate_stage(ctx: StageContext) -> None:
    """Generate the responses of `model` to `prompts`: to the first `limit`, and `samples` to each, if these parameters are set.

    The stage writes `responses.jsonl` with one row for each item, in the order of the items. With the parameter
    `prefilled`, a row also says whether `space` stood before the response, which continues the beginning of an answer.
    """
    model = _model(ctx, "model")
    items = read_items(ctx.needs["prompts"])[: ctx.params.get("limit")]
    items = [item for item in items for _ in range(ctx.params.get("samples", 1))]
    template = Template.parse(ctx.params["template"])
    plain = Template.parse(ctx.params.get("plain_template", ctx.params["template"]))
    advance = ctx.progress(len(items), "responses")
    inputs, responses = model.answer(items, template, Decoding(**ctx.params["decoding"]), advance)
    rows = [
        response_row(item, plain, text, response) for item, text, response in zip(items, inputs, responses, strict=True)
    ]
    if ctx.params.get("prefilled"):
        rows = [
            continuing_row(row, item, plain, response.space)
            for row, item, response in zip(rows, items, responses, strict=True)
        ]
    write_rows(ctx.out / RESPONSES, rows)


def response_row(item: Item, template: Template, text: str, response: Response) -> dict[str, Any]:
    """Make one row of `responses.jsonl`.

    Args:
        item: The prompt item, with or without an attack.
        template: The template of the base model, which judges the coherence of the response.
        text: The model's input.
        response: The model's response to `text`.

    Returns:
        The row. `prompt` is the prompt before any attack, and `plain` is the same prompt rendered.
    """
    unattacked = item.unattacked
    plain = template.render(unattacked)
    return {
        "id": item.id,
        "prompt": unattacked.prompt,
        "plain": plain,
        "input": text,
        "response": response.text,
        "n_tokens": response.n_tokens,
        "reason": response.reason,
        **({} if adds_special_tokens(plain) else {"special": False}),
        **({} if getattr(plain, "blank", True) or not adds_special_tokens(plain) else {"blank": False}),
    }


def continuing_row(row: Mapping[str, Any], item: Item, template: Template, space: bool) -> dict[str, Any]:
    """Say in a row that its response continues the beginning of an answer. Its coherence is judged after this beginning.

    Args:
        row: The row from `response_row`.
        item: The prompt item with the beginning of the answer.
        template: The template of the base model.
        space: Whether the model wrote white space before the response. Without it, the response continues a word.

    Returns:
        The row, with the key `space`.
    """
    begun = template.render(replace(item.unattacked, answer_prefix=item.answer_prefix))
    return {**row, "plain": str(begun), "blank": space, "space": space}


def rendered_prompt(row: Mapping[str, Any]) -> Rendered:
    """Return the rendered prompt of a row from `response_row`, marked as the template marked it."""
    return Rendered(row["plain"], row.get("special", True), blank=row.get("blank"))


def run_judge_stage(ctx: StageContext) -> None:
    """Score the `responses` with the deciding judge, and judge their coherence.

    For coherence, the inputs are also `base` (the base model) and `bound` (from calibration). The stage writes
    `samples.parquet` with the columns item_id, prompt, input, response, score (NaN: missing), coherent, nll, gain,
    repetition, refusal, reason and n_tokens. With the parameter `refusals`, refusals are detected by the classifier, and
    there is also the column refusal_kind (full, partial or none). If the responses have a `history` (an attack in several
    attempts), there is a column with it. The threshold on the score is applied later, so a change of the threshold needs no
    new judging.

    Raises:
        UserError: The refusal classifier is not the one that the run began with.
    """
    import pandas as pd

    from wpn_bench.harmless.judges import coherence, distinct, judge_of
    from wpn_bench.harmless.judges.refusals import detector

    rows = _rows_to_judge(ctx)
    refusal_of = detector(ctx.params.get("refusals"))
    bounds = coherence.Bounds(**json.loads((ctx.needs["bound"] / BOUND).read_text(encoding="utf-8"))["bounds"])
    present = [row for row in rows if row["response"] is not None]
    # Equal responses, such as refusals and loops, are common. Each distinct (prompt, response) pair is scored once.
    pairs = list(dict.fromkeys((rendered_prompt(row), row["response"]) for row in present))
    judge = judge_of(ctx, ctx.params)
    advance = ctx.progress(len(distinct(judge, _exchanges(present))) + len(pairs), "responses")
    scores = _scores(ctx, judge, rows, advance)
    base_model = _model(ctx, "base")
    after, texts = [p for p, _ in pairs], [t for _, t in pairs]
    found = dict(zip(pairs, coherence.likelihoods(base_model, texts, advance, after=after), strict=True))
    out = []
    for row in rows:
        text = row["response"]
        sample = {
            "item_id": row["id"],
            "prompt": row["prompt"],
            "input": row["input"],
            "response": text,
            "score": float("nan"),
            "coherent": None,
            "nll": float("nan"),
            "gain": float("nan"),
            "repetition": float("nan"),
            **refusal_of(row["prompt"], ""),
            "reason": row["reason"],
            "n_tokens": row["n_tokens"],
        }
        if text is not None:
            base = found[row["plain"], text]
            verdict = coherence.judge_coherence(text, row["prompt"], base, bounds)
            score = scores[Exchange(row["prompt"], text)]
            sample.update(
                score=float("nan") if score is None else score,
                coherent=verdict.reason is None,
                nll=base.loss,
                gain=base.gain,
                repetition=verdict.repetition,
                **refusal_of(row["prompt"], text),
                reason="judge failed" if score is None else verdict.reason,
            )
        if ctx.params.get("strip_reasoning"):
            sample["reasoning"] = row.get("reasoning", "")
        if "history" in row:
            sample["history"] = row["history"]
        out.append(sample)
    frame = pd.DataFrame(out)
    frame["coherent"] = frame["coherent"].astype("boolean")
    write_usage(judge, ctx.params["judge"], ctx.out)
    frame.to_parquet(ctx.out / SAMPLES, index=False)


def run_further_judge_stage(ctx: StageContext) -> None:
    """Score the `responses` with an additional judge, which does not decide the result.

    The stage writes `scores.parquet` with the columns item_id and score (NaN: missing), in the order of the responses.
    The scores are a separate artifact. So if a judge is added to a finished run, only that judge has to run.
    """
    import pandas as pd

    from wpn_bench.harmless.judges import distinct, judge_of

    rows = _rows_to_judge(ctx)
    judge = judge_of(ctx, ctx.params)
    exchanges = _exchanges([row for row in rows if row["response"] is not None])
    scores = _scores(ctx, judge, rows, ctx.progress(len(distinct(judge, exchanges)), "responses"))
    found = [None if row["response"] is None else scores[Exchange(row["prompt"], row["response"])] for row in rows]
    frame = pd.DataFrame({"item_id": [row["id"] for row in rows]})
    frame["score"] = [float("nan") if score is None else score for score in found]
    write_usage(judge, ctx.params["judge"], ctx.out)
    frame.to_parquet(ctx.out / SCORES, index=False)


def write_usage(judge: Judge, name: str, folder: Path) -> None:
    """Write `judge_usage.json` if the judge spends tokens: how many a job took, and why scores are missing.

    Args:
        judge: The judge.
        name: Its name in results.
        folder: The output folder of the job.
    """
    if usage := judge.take_usage():
        write_json(folder / USAGE, {"judge": name, **usage})


def _scores(
    ctx: StageContext, judge: Judge, rows: Sequence[Mapping[str, Any]], advance: Advance
) -> dict[Exchange, float | None]:
    """Score the responses. A majority counts the votes that other jobs have stored, if they are among the needs.

    Args:
        ctx: The stage. The needs `votes0`, `votes1`, ... are the scored responses of the members of a majority.
        judge: The judge.
        rows: Rows of `responses.jsonl`, as they are judged.
        advance: Called with the number of exchanges scored since its last call.

    Returns:
        The score of each exchange; None: missing.
    """
    import pandas as pd

    from wpn_bench.harmless.judges import scores_of
    from wpn_bench.harmless.judges.majority import MajorityJudge

    exchanges = _exchanges([row for row in rows if row["response"] is not None])
    votes = [ctx.needs[f"votes{k}"] for k in range(len(ctx.needs)) if f"votes{k}" in ctx.needs]
    if not votes or not isinstance(judge, MajorityJudge):
        return dict(zip(exchanges, scores_of(judge, exchanges, advance), strict=True))
    stored = []
    for folder in votes:
        table = pd.read_parquet(folder / (SCORES if (folder / SCORES).exists() else SAMPLES))
        # Older stores call the scores of the deciding judge `toxicity`.
        scores = table["score" if "score" in table else "toxicity"]
        pairs = zip(rows, scores, strict=True)
        stored.append([None if math.isnan(score) else score for row, score in pairs if row["response"] is not None])
    found = judge.combine(stored)
    advance(len(set(exchanges)))
    return dict(zip(exchanges, found, strict=True))


def _rows_to_judge(ctx: StageContext) -> list[dict[str, Any]]:
    """Read the `responses`.

    With `strip_reasoning`, the reasoning in each response is moved to the field `reasoning`.
    """
    rows = read_rows(ctx.needs["responses"] / RESPONSES)
    if ctx.params.get("strip_reasoning"):
        for row in rows:
            if row["response"] is not None:
                row["reasoning"], row["response"] = split_reasoning(row["input"], row["response"])
    return rows


def split_reasoning(text: str, response: str) -> tuple[str, str]:
    """Split a response into its reasoning and the answer after it.

    Reasoning is enclosed in <think> and </think>. Some chat templates write the opening tag at the end of the model's
    input. If the reasoning is not finished, there is no answer.

    Args:
        text: The model's input.
        response: The response to it.

    Returns:
        The reasoning without tags, and the answer. Both may be empty.
    """
    if not (text.rstrip().endswith(THINK) or response.lstrip().startswith(THINK)):
        return "", response
    reasoning, _, answer = response.partition(THINK_END)
    return reasoning.strip().removeprefix(THINK).strip(), answer.strip()


def _exchanges(rows: Sequence[Mapping[str, Any]]) -> list[Exchange]:
    """Make the judge's inputs from rows of `responses.jsonl`, with the prompts before any attack."""
    return [Exchange(row["prompt"], row["response"]) for row in rows]


CALIBRATE = Stage("wpn_bench.harmless.stages:run_calibrate_stage", 6, LM_LIBRARIES, resumable=True, shardable=True)
GENERATE = Stage(
    "wpn_bench.harmless.stages:run_generate_stage",
    3,
    LM_LIBRARIES,
    resumable=True,
    shardable=True,
    items="needs.prompts",
    speed_params=("decoding.max_new_tokens",),
    memory="wpn_bench.preflight.estimates:inference_needs",  # the estimate for all inference-only stages
)
JUDGE = Stage(
    "wpn_bench.harmless.stages:run_judge_stage",
    6,
    (*LM_LIBRARIES, "detoxify"),
    unhashed_files=(USAGE,),
    resumable=True,
    shardable=True,
    items="needs.responses",
    passes=2,  # one pass of the judge, and one pass of the base model for coherence
)
FURTHER_JUDGE = Stage(
    "wpn_bench.harmless.stages:run_further_judge_stage",
    1,
    (*LM_LIBRARIES, "detoxify"),
    unhashed_files=(USAGE,),
    resumable=True,
    shardable=True,
    items="needs.responses",
)
