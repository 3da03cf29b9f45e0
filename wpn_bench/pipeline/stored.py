"""The steps before training, as far as the store has their results.

Vetting, answers to benign prompts and written references decide what the methods train on. A plan that does not know their results
would take trainings that are in the store for new ones.
"""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.core.progress import Reporter
from wpn_bench.jobs.executor import LocalExecutor
from wpn_bench.jobs.job import Job
from wpn_bench.pipeline.benign import answer_benign, plan_benign
from wpn_bench.pipeline.followups import select_references, vet_forget_set
from wpn_bench.pipeline.planner import Planner
from wpn_bench.pipeline.written import plan_written, write_references


def with_stored_inputs(planner: Planner) -> tuple[Planner, list[Job]]:
    """Apply the steps before training whose results are in the store. Nothing is computed.

    Args:
        planner: Plans the jobs, from the original inputs.

    Returns:
        A planner with the inputs after these steps, and the jobs of all steps, also of those that are not in the store.

    Raises:
        UserError: The results are of no use, as in the run itself.
    """
    config, store = planner.config, planner.store
    executor = LocalExecutor(store, Reporter())
    jobs: list[Job] = []
    if config.vet and config.methods:
        vet = planner.vetting()
        jobs.append(vet)
        if store.find(vet.stage, vet.digest):
            planner = replace(planner, inputs=vet_forget_set(planner, executor)[0])
    for plan_of, apply in ((plan_benign, answer_benign), (plan_written, write_references)):
        planned = plan_of(planner).jobs
        jobs += planned
        if all(store.find(job.stage, job.digest) for job in planned):
            planner = replace(planner, inputs=apply(planner, executor)[0])
    return replace(planner, inputs=select_references(planner, Reporter())), jobs
