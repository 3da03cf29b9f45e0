"""Let the base model write harmless references for the forget set (`written_references`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wpn_bench.core.files import digest_of
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Executor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.planning import AskedSet
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.pipeline.plan import Plan, Target, path_of
from wpn_bench.pipeline.planner import Planner
from wpn_bench.prompts import PromptSet
from wpn_bench.prompts.items import put_prompts, read_items
from wpn_bench.runs.files import BASE
from wpn_bench.unlearn.written import LEAST_WORDS

NAME = "written_references"


def plan_written(planner: Planner) -> Plan:
    """Plan the sampled answers of the base to the forget set, their judging, and the choice. The choice is the last job.

    Args:
        planner: Plans the jobs, from inputs with the vetted forget set.

    Returns:
        The plan, which is empty if the run lets the base write no references.
    """
    config, inputs, plan = planner.config, planner.inputs, Plan()
    settings = config.written_references
    if settings is None or not config.methods:
        return plan
    stored = put_prompts(planner.store, _asked(inputs.forget, settings.limit))
    decoding = {
        **planner.decoding,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": 0,
        "independent": True,
    }
    params: dict[str, Any] = {
        "decoding": decoding,
        "dtype": config.dtype,
        **planner.templates(BASE),
        "samples": settings.samples,
    }
    judging = replace(planner, inputs=replace(inputs, further=())).calibrated(plan)
    needs: dict[str, Job | External] = {"model": planner.base, "prompts": stored}
    label = f"{BASE}: sample {settings.samples} answers each to the forget set"
    answered = plan.add(BASE, Job("generate", params, needs, label, planner.placement))
    target = Target(BASE, None, planner.base, BASE)
    (asked,) = judging.judge(plan, target, [AskedSet("training", NAME, stored, answered)])
    assert isinstance(asked.judged, Job)
    chosen = {
        "threshold": config.threshold_of(config.judge),
        "max_new_tokens": config.decoding.max_new_tokens,
        "keep": settings.keep,
        **({} if settings.sentences is None else {"sentences": settings.sentences}),
        **({"rejected": settings.rejected} if settings.rejected else {}),
        **({"least_words": settings.least_words} if settings.least_words != LEAST_WORDS else {}),
    }
    needs = {"prompts": stored, "judged": asked.judged}
    plan.add(BASE, Job("write_references", chosen, needs, "choose written references"))
    return plan


def write_references(planner: Planner, executor: Executor) -> tuple[Inputs, dict[str, Outcome]]:
    """Replace the harmless references to train on by answers of the base model (see `unlearn/written.py`).

    Everything else, such as the calibration of coherence, still uses the references of the file.

    Args:
        planner: Plans the jobs, from inputs with the vetted forget set.
        executor: Executes them.

    Returns:
        The inputs with the items to train on and a note on their number, and the outcomes of the jobs. An item without a usable answer
        keeps its references.

    Raises:
        UserError: No item got a reference.
        JobFailed: A job failed.
    """
    inputs, settings = planner.inputs, planner.config.written_references
    plan = plan_written(planner)
    if settings is None or not plan.jobs:
        return inputs, {}
    outcomes = executor.run(plan.jobs)
    written = {item.id: item for item in read_items(path_of(plan.jobs[-1], outcomes))}
    asked = _asked(inputs.forget, settings.limit)
    if not written:
        raise UserError(
            f"the base model gives no harmless and coherent answer to any of the {len(asked.items)} prompts of {asked.name!r}",
            "raise `written_references: {samples: ...}`, or leave this setting out",
        )
    note = f"the base wrote the harmless references of {len(written)} of {len(asked.items)} items of {asked.name}"
    if len(written) < len(asked.items):
        note += "; the others keep those of the file"
    executor.reporter.note(f"note: {note}")
    items = tuple(written.get(item.id, item) for item in asked.items)
    return replace(inputs, trained_on=replace(asked, items=items), notes=(*inputs.notes, note)), outcomes


def _asked(forget: PromptSet, limit: int | None) -> PromptSet:
    """Return the items to write for: all, or a sample that does not depend on the order of the file."""
    if limit is None or limit >= len(forget.items):
        return forget
    ranked = sorted(forget.items, key=lambda item: digest_of(["written", item.id]))
    return replace(forget, items=tuple(ranked[:limit]))
