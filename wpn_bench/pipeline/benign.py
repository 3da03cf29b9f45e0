"""Let the base model answer the benign prompts of the training data (`--benign-prompts`), and make training items of them."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.refusals import detector_params
from wpn_bench.jobs.executor import Executor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.pipeline.plan import Plan, Target, path_of
from wpn_bench.pipeline.planner import Planner
from wpn_bench.prompts.items import put_prompts, read_items
from wpn_bench.runs.files import BASE


def plan_benign(planner: Planner) -> Plan:
    """Plan the answers of the base to the benign prompts, their judging, and the training items. These are the last job.

    Args:
        planner: Plans the jobs, from inputs with the vetted forget set.

    Returns:
        The plan, which is empty if the run trains nothing on benign prompts.
    """
    config, inputs, plan = planner.config, planner.inputs, Plan()
    if inputs.benign is None or not config.methods:
        return plan
    stored = put_prompts(planner.store, inputs.benign)
    only_answers = replace(planner, inputs=replace(inputs, tasks=(), further=())).calibrated(plan)
    target = Target(BASE, None, planner.base, BASE)
    (asked,) = only_answers.measure(plan, target, [("benign_prompts", inputs.benign, stored)])
    assert isinstance(asked.judged, Job)
    params = {
        "threshold": config.threshold_of(config.judge),
        "max_new_tokens": config.decoding.max_new_tokens,
        **detector_params(config.refusals),
    }
    needs: dict[str, Job | External] = {
        "prompts": stored,
        "judged": asked.judged,
        "forget": put_prompts(planner.store, inputs.forget),
    }
    plan.add(BASE, Job("benign", params, needs, "make training items of the benign prompts"))
    return plan


def answer_benign(planner: Planner, executor: Executor) -> tuple[Inputs, dict[str, Outcome]]:
    """Replace the benign prompts of the inputs by training items (see `unlearn/benign.py`).

    Args:
        planner: Plans the jobs, from inputs with the vetted forget set.
        executor: Executes them.

    Returns:
        The inputs with the items and a note on their number, and the outcomes of the jobs. Without benign prompts, the
        inputs stay the same.

    Raises:
        UserError: No item could be made.
        JobFailed: A job failed.
    """
    inputs = planner.inputs
    plan = plan_benign(planner)
    if not plan.jobs:
        return inputs, {}
    assert inputs.benign is not None
    outcomes = executor.run(plan.jobs)
    items = tuple(read_items(path_of(plan.jobs[-1], outcomes)))
    n = len(inputs.benign.items)
    if not items:
        raise UserError(
            f"none of the {n} benign prompts can be trained on: the base gives no harmless and coherent"
            f" answer to them, or no harmless reference of the forget set {inputs.forget.name!r} is a refusal",
            "give other benign prompts, or leave out --benign-prompts",
        )
    note = f"{len(items)} of {n} benign prompts are trained on"
    if len(items) < n:
        note += "; the base refused the others, or its answer was harmful, incoherent or had no complete sentence"
    executor.reporter.note(f"note: {note}")
    return replace(inputs, benign=replace(inputs.benign, items=items), notes=(*inputs.notes, note)), outcomes
