"""Write the run folder: results.json, samples, documents, manifest and reports."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.analysis import benchmark_rows, cost_rows, judge_rows, metric_rows
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.analysis.oracle_rows import oracle_rows
from wpn_bench.analysis.transfer_rows import transfer_rows
from wpn_bench.analysis.utility_rows import utility_rows
from wpn_bench.analysis.verdict import NonInferiority
from wpn_bench.benchmarks.definitions import short_name as short_task
from wpn_bench.benchmarks.selection import Aggregate, TaskGroup
from wpn_bench.config import STAGES, RunConfig
from wpn_bench.core.files import write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.core.paths import display_path
from wpn_bench.core.progress import peak_memory_mb
from wpn_bench.core.registry import import_attribute
from wpn_bench.harmless.judges import JUDGES, get_judge
from wpn_bench.harmless.judges.refusals import WORDING, describe
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.harmless.stages import USAGE
from wpn_bench.jobs.job import Outcome
from wpn_bench.jobs.stages import stage_of
from wpn_bench.pipeline import export_models
from wpn_bench.pipeline.candidates import Candidate
from wpn_bench.pipeline.export_models import Export
from wpn_bench.pipeline.followups import FollowUpResults
from wpn_bench.pipeline.inputs import Inputs, short_name
from wpn_bench.pipeline.judges import RunJudge, deciding_judge
from wpn_bench.pipeline.manifest import manifest_of
from wpn_bench.pipeline.plan import Plan, Planned, measurements
from wpn_bench.pipeline.relearn_search import RelearnSearches
from wpn_bench.pipeline.trials import Trials
from wpn_bench.runs.files import (
    BASE,
    DOCUMENTS,
    MANIFEST,
    RESULTS,
    SAMPLES,
    SCHEMA_VERSION,
    Row,
    validate,
    validate_rows,
)
from wpn_bench.runs.metrics import TRANSFER
from wpn_bench.unlearn.methods import title_of, variant_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CompletedRun:
    """Settings, inputs and job outcomes of a finished run.

    Attributes:
        config: The configuration before tuning.
        inputs: The inputs, with the vetted forget set.
        plan: The jobs of the run itself, without tuning and follow-ups.
        outcomes: Outcomes of these jobs and of vetting, by digest.
        trials: Results of tuning.
        curves: Measurements during training.
        relearning: Measurements during relearning.
        relearn_search: Results of the relearning search.
    """

    config: RunConfig
    inputs: Inputs
    plan: Plan
    outcomes: Mapping[str, Outcome]
    trials: Trials
    curves: FollowUpResults
    relearning: FollowUpResults
    relearn_search: RelearnSearches = field(default_factory=RelearnSearches)

    @property
    def all_outcomes(self) -> dict[str, Outcome]:
        """Return the outcomes of all jobs, in the order in which they ran."""
        after = {**self.curves.outcomes, **self.relearning.outcomes, **self.relearn_search.outcomes}
        return {**self.trials.outcomes, **self.outcomes, **after}

    def measured(self, planned: Iterable[Planned]) -> list[Measurement]:
        """Return the planned measurements whose jobs did not fail."""
        return measurements(planned, self.outcomes)


def write(run: CompletedRun, out: Path, command: str) -> dict[str, Any]:
    """Write results.json, samples, documents, models, the manifest and the reports.

    The manifest is written after the results, so its existence means that the run is complete.

    Args:
        run: The run.
        out: The run folder.
        command: The command line, which is recorded.

    Returns:
        The results.
    """
    config, inputs = run.config, run.inputs
    threshold = config.threshold_of(config.judge)
    further = {j.name: (j.threshold, run.measured(run.plan.further.get(j.name, []))) for j in inputs.further}
    samples = metric_rows.read_samples(run.measured(run.plan.judged), threshold, further)
    documents = benchmark_rows.read_documents(run.measured(run.plan.scored))
    not_to_refuse = [(suite, one.name) for suite, one in inputs.sets if one.refusal == "wrong"]
    rows = metric_rows.prompt_rows(samples, threshold, not_to_refuse)
    rows += metric_rows.worst_case_rows(samples, threshold)
    rows += benchmark_rows.benchmark_rows(documents, [_average(*one) for one in inputs.task_groups])
    rows += benchmark_rows.turned_rows(documents)
    rows += transfer_rows(samples, threshold)
    rows += oracle_rows(samples[samples["suite"] != TRANSFER] if len(samples) else samples)
    rows += utility_rows(samples)
    of_stages, failed = rows_of_stages(run)
    rows += of_stages
    rows = metric_rows.adjust_for_attacks(metric_rows.sum_up(rows))
    notes = list(inputs.notes)
    judges = (deciding_judge(config, inputs.judge_digest), *inputs.further)
    decides = judges[0].name
    for name, card in inputs.cards.items():
        corrected, said = judge_rows.corrected_rows(rows, card, None if name == decides else name)
        rows += corrected
        notes += said
    # Their intervals are clustered by fact, which a correction by the judge's errors would ignore.
    rows += metric_rows.sum_up(run.relearn_search.rows)
    verdicts = metric_rows.verdicts(rows, config.margin_points)
    peak = max([peak_memory_mb(), *(o.peak_mb for o in run.outcomes.values())])
    rows += cost_rows.cost_rows(_seconds(run), peak, cost_rows.token_rows(samples))
    failed = [
        {"job": o.job.label, "reason": o.reason or ""}
        for o in {**run.outcomes, **run.curves.outcomes, **run.relearning.outcomes}.values()
        if o.status in ("failed", "skipped")
    ] + [*failed, *run.relearn_search.failed]
    trained = {key: run.outcomes[job.digest].path for key, job in run.plan.trained.items()}
    exports = export_models.collect(trained, config.seeds)
    results = {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "name": out.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "preset": config.preset,
            "title": config.title,
            "model": config.model if inputs.model.revision or inputs.model.is_lab else display_path(config.model),
            "revision": inputs.model.revision,
            "command": command,
            "seeds": list(config.seeds),
            "limit": config.limit,
            "limits": config.limits.model_dump(exclude_none=True),
            "partial": bool(failed) or config.limit is not None or set(config.stages) != set(STAGES),
            "margin_points": config.margin_points,
            "threshold": threshold,
            "judge": decides,
            # None if no response was judged.
            "judges": _judges_of(run, judges) if inputs.answers else [],
            "judge_card": inputs.cards[decides].model_dump(mode="json") if decides in inputs.cards else None,
            "agreement": judge_rows.agreement(samples, decides, list(further)),
            **_alpha_of(samples, judges),
            **({} if config.refusals == WORDING else {"refusals": describe(config.refusals)}),
            "template": inputs.template.label,
            "decoding": config.decoding.model_dump(mode="json"),
            "lab": inputs.model.is_lab,
            **({"attacker": inputs.attacker.name} if inputs.attacker else {}),
            "tuning": _tuning_of(config, inputs, run.trials.answered),
            "notes": notes,
            "leakage": _leakage_of(config, inputs),
            "worst_case": _worst_case_of(samples),
            "skipped": list(inputs.skipped),
            "failed": failed,
        },
        "models": _models(run, verdicts, exports),
        "metrics": [row.json() for row in rows],
    }
    validate(results)
    for frame, name in ((samples, SAMPLES), (documents, DOCUMENTS)):
        if len(frame):
            _write_parquet(frame, out / name)
    manifest = manifest_of(config, inputs, run.all_outcomes, command, exports)
    export_models.write(out, exports, results, manifest)
    write_json(out / RESULTS, results, indent=1)
    write_json(out / MANIFEST, manifest)
    from wpn_bench.report.render import render as render_report

    render_report(out)
    return results


def _average(group: TaskGroup, aggregate: Aggregate) -> benchmark_rows.TaskAverage:
    return benchmark_rows.TaskAverage(group.name, tuple(map(short_task, group.tasks)), aggregate.weighted)


def rows_of_stages(run: CompletedRun) -> tuple[list[Row], list[dict[str, str]]]:
    """Return the rows of stages that plan their own measurements, and the failures of these stages.

    If a plug-in raises an error or returns invalid rows, this is recorded as a failure, and the other results are
    written.
    """
    rows: list[Row] = []
    failed: list[dict[str, str]] = []
    for name, planned in run.plan.measured.items():
        stage = stage_of(name)
        if not stage.rows:
            continue
        try:
            made = list(import_attribute(stage.rows)(run.measured(planned)))
            validate_rows(made)
            rows += made
        except Exception as e:
            if stage.source is None:
                raise
            failed.append({"job": f"rows of the stage {name}", "reason": f"{type(e).__name__}: {e}"[:500]})
    return rows, failed


def usage_of(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """Return what the scores of each judge took that spends tokens, in all jobs together, whenever they ran.

    Args:
        outcomes: How the jobs ended.

    Returns:
        The sums by the judge's name; judges that spend nothing are missing.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in (outcome.path / USAGE for outcome in outcomes if outcome.path):
        if not file.is_file():
            continue
        usage = load_json(file, "repeat the run with --recompute")
        total = found.setdefault(usage.pop("judge"), {})
        if missing := usage.pop("missing", None):
            total["missing"] = dict(Counter(total.get("missing", {})) + Counter(missing))
        for name, value in usage.items():
            total[name] = total.get(name, 0) + value
    return found


def _judges_of(run: CompletedRun, judges: Sequence[RunJudge]) -> list[dict[str, Any]]:
    """Return the judges of the run, the deciding one first, whose card is stored as `judge_card`."""
    usage, cards = usage_of(run.all_outcomes.values()), run.inputs.cards
    return [
        {
            "name": judge.name,
            "title": JUDGES.get(parse(judge.spec).judge).title,
            "measures": get_judge(judge.spec, run.inputs.device).measures,
            "threshold": judge.threshold,
            "digest": judge.digest,
            "decides": k == 0,
            "reads_prompt": parse(judge.spec).reads_prompt,
            **({"usage": parse(judge.spec).config.with_cost(usage[judge.name])} if judge.name in usage else {}),
            **({"card": cards[judge.name].model_dump(mode="json")} if k and judge.name in cards else {}),
        }
        for k, judge in enumerate(judges)
    ]


def _alpha_of(samples: pd.DataFrame, judges: Sequence[RunJudge]) -> dict[str, Any]:
    """Krippendorff's alpha of all judges but majorities, which repeat the votes of others."""
    voting = [judge.name for judge in judges if not judge.members]
    rows = judge_rows.alphas(samples, judges[0].name, voting)
    return {"alpha": {"judges": voting, "rows": rows}} if rows else {}


def _tuning_of(config: RunConfig, inputs: Inputs, answered: int) -> dict[str, Any] | None:
    """Return the settings of tuning, which all methods share, or None without tuning."""
    data = inputs.tuning_data
    if data is None:
        return None
    return {
        "trials": config.tune,
        "prompt_set": short_name(data.prompts.name),
        "prompts": len(data.prompts.items),
        "benign_prompts": answered,
        "halving": config.tune_halving,
        "ability": data.bound.metric,
        "bound": data.bound.limit,
        "ability_sets": [t.short for t in data.tasks] or [t.name for t in (data.texts,) if t is not None],
        **({"ability_scores": scores} if (scores := {t.short: t.score for t in data.tasks if t.score}) else {}),
    }


def _worst_case_of(samples: pd.DataFrame) -> dict[str, Any] | None:
    """Return the attacks that the worst case includes, or None if there are fewer than two."""
    entered, left_out = metric_rows.attacks_together(samples)
    return {"attacks": entered, "left_out": left_out} if len(entered) > 1 else None


def _leakage_of(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """Return the similarity threshold of near duplicates, and how many prompts each set shares with the forget set."""
    return {
        "threshold": config.near_duplicate,
        "forget": short_name(inputs.forget.name),
        "prompts": len(inputs.forget.items),
        "sets": [leak.json() for leak in inputs.leaks],
    }


def _distillation(trainings: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the history of the distillations after the trainings, or nothing if there were none."""
    found = [{"seed": seed, **h} for seed, t in trainings.items() for h in t.get("undo", {}).get("history", ())]
    return {"undo_history": found} if found else {}


def _models(run: CompletedRun, verdicts: Mapping[str, dict[str, Any]], exports: Sequence[Export]) -> dict[str, Any]:
    described: dict[str, Any] = {
        BASE: {
            "title": "Base model",
            "method": None,
            "config": {},
            "paper": "",
            "status": "ok",
            "reason": None,
            "relearning": run.relearning.by_model.get(BASE),
            "relearn_search": run.relearn_search.by_model.get(BASE),
            "gradient_attacks": _searches(BASE, run),
        }
    }
    config, by_model = run.config, run.trials.by_model
    for name in config.methods:
        mine = {seed: run.outcomes[job.digest] for (n, seed), job in run.plan.trained.items() if n == name}
        reasons = [o.reason for o in mine.values() if o.path is None]
        trainings = {seed: metric_rows.training_of(o.path) for seed, o in mine.items() if o.path is not None}
        described[name] = {
            "title": title_of(name),
            "method": name.partition(":")[0],
            "paper": variant_of(name).paper,
            "options": dict(config.methods[name]),
            "config": run.trials.applied(config).method_config(name).model_dump(mode="json"),
            "status": "failed" if reasons else "ok",
            "reason": reasons[0] if reasons else None,
            "steps": [t["steps"] for t in trainings.values()],
            "stopped": [t["stopped"] for t in trainings.values()],
            "lr": next((t["lr"] for t in trainings.values()), None),
            "train_seconds": round(sum(t["seconds"] for t in trainings.values()), 2),
            "history": [{"seed": seed, **h} for seed, t in trainings.items() for h in t["history"]],
            "checks": [{"seed": seed, **c} for seed, t in trainings.items() for c in t["checks"]],
            **_distillation(trainings),
            "non_inferiority": verdicts.get(name),
            "tuning": by_model[name].json() if name in by_model else None,
            "curve": run.curves.by_model.get(name),
            "relearning": run.relearning.by_model.get(name),
            "relearn_search": run.relearn_search.by_model.get(name),
            "gradient_attacks": _searches(name, run),
            "digest": {str(m.seed): m.digest for m in exports if m.method == name},
            "folder": {str(m.seed): m.folder for m in exports if m.method == name},
        }
    for one in run.inputs.candidates:
        described[one.name] = {
            "title": one.name,
            "method": None,
            "config": {},
            "paper": "",
            "status": "ok",
            "reason": None,
            "candidate": one.json(),
            "non_inferiority": _verdict_of(one, verdicts),
            "relearning": run.relearning.by_model.get(one.name),
            "relearn_search": run.relearn_search.by_model.get(one.name),
            "gradient_attacks": _searches(one.name, run),
            "digest": {str(run.config.seeds[0]): one.digest},
        }
    return described


def _verdict_of(one: Candidate, verdicts: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the non-inferiority of a candidate.

    A candidate with the base's weights that is measured in the same way loses nothing, whatever the interval.
    """
    found = verdicts.get(one.name)
    return {**found, "verdict": NonInferiority.PASS} if found and one.same_as_base else found


def _searches(model: str, run: CompletedRun) -> list[dict[str, Any]] | None:
    """Return the results of the gradient attacks on this model, or None without such attacks."""
    return metric_rows.search_rows(run.measured(p for p in run.plan.searched if p.model == model)) or None


def _seconds(run: CompletedRun) -> dict[tuple[str, str], tuple[float, int]]:
    """Return the seconds and the number of jobs for each (model, stage).

    All jobs of tuning trials count as `tune`, and those of curves, relearning and its search likewise.
    """
    spent: dict[tuple[str, str], tuple[float, int]] = {}

    def add(plan: Plan, outcomes: Mapping[str, Outcome], stage: str | None = None) -> None:
        for digest, outcome in outcomes.items():
            key = (plan.owner.get(digest, BASE), stage or outcome.job.stage)
            total, n = spent.get(key, (0.0, 0))
            spent[key] = (total + outcome.seconds, n + 1)

    add(run.plan, run.outcomes)
    for stage, plan, outcomes in (
        ("tune", run.trials.plan, run.trials.outcomes),
        ("curve", run.curves.plan, run.curves.outcomes),
        ("relearn", run.relearning.plan, run.relearning.outcomes),
        ("relearn_search", run.relearn_search.plan, run.relearn_search.outcomes),
    ):
        # A job that the run itself also needed is only counted there.
        add(plan, {digest: o for digest, o in outcomes.items() if digest not in run.outcomes}, stage)
    return spent


def _write_parquet(frame: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)  # if it is a symbolic link, it must not be followed
    frame.to_parquet(partial, index=False)
    os.replace(partial, path)
