"""Write the run folder: results.json, samples, documents, manifest, reports."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.analysis import metric_rows
from wpn_bench.config import STAGES, RunConfig
from wpn_bench.core.files import write_json
from wpn_bench.core.paths import display_path
from wpn_bench.core.progress import peak_memory_mb
from wpn_bench.harmless.judges import JUDGES
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.jobs.job import Outcome
from wpn_bench.pipeline import export_models
from wpn_bench.pipeline.export_models import Export
from wpn_bench.pipeline.followups import Drawn, Trials
from wpn_bench.pipeline.inputs import FurtherJudge, Inputs, short_name
from wpn_bench.pipeline.manifest import _manifest
from wpn_bench.pipeline.planner import Plan, _found
from wpn_bench.runs.files import BASE, DOCUMENTS, MANIFEST, RESULTS, SAMPLES, SCHEMA_VERSION, validate
from wpn_bench.unlearn.methods import method_of, title_of

if TYPE_CHECKING:
    import pandas as pd


def write(
    config: RunConfig,
    inputs: Inputs,
    made: Plan,
    outcomes: Mapping[str, Outcome],
    out: Path,
    command: str,
    trials: Trials = Trials(),
    drawn: Drawn = Drawn(),
    relearnt: Drawn = Drawn(),
) -> dict[str, Any]:
    """results.json, samples, documents, manifest and reports, the manifest after the rest."""
    threshold = config.threshold_of(config.judge)
    further = {j.name: (j.threshold, _found(made.further.get(j.name, []), outcomes)) for j in inputs.further}
    samples = metric_rows.read_samples(_found(made.judged, outcomes), threshold, further)
    documents = metric_rows.read_documents(_found(made.scored, outcomes))
    rows = metric_rows.prompt_rows(samples, threshold)
    rows += metric_rows.worst_case_rows(samples, threshold)
    rows += metric_rows.benchmark_rows(documents)
    rows += metric_rows.turned_rows(documents)
    rows += metric_rows.text_rows(_found(made.read, outcomes))
    rows = metric_rows.adjust_for_attacks(metric_rows.sum_up(rows))
    notes = list(inputs.notes)
    if inputs.card is not None:
        corrected, said = metric_rows.corrected_rows(rows, inputs.card)
        rows += corrected
        notes += said
    verdicts = metric_rows.verdicts(rows, config.margin_points)
    seconds = _seconds(made, outcomes)
    for stage, plan_, ended in (
        ("tune", trials.made, trials.outcomes),
        ("curve", drawn.made, drawn.outcomes),
        ("relearn", relearnt.made, relearnt.outcomes),
    ):
        more = {digest: outcome for digest, outcome in ended.items() if digest not in outcomes}  # each job counts once
        for (name, _), (total, n) in _seconds(plan_, more).items():
            before = seconds.get((name, stage), (0.0, 0))
            seconds[name, stage] = (before[0] + total, before[1] + n)
    peak = max([peak_memory_mb(), *(o.peak_mb for o in outcomes.values())])
    rows += metric_rows.cost_rows(seconds, peak, metric_rows.token_rows(samples))
    failed = [
        {"job": o.job.label, "reason": o.reason or ""}
        for o in {**outcomes, **drawn.outcomes, **relearnt.outcomes}.values()
        if o.status in ("failed", "skipped")
    ]
    made_models = export_models.collect({k: outcomes[j.digest].path for k, j in made.trained.items()}, config.seeds)
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
            "partial": bool(failed) or config.limit is not None or set(config.stages) != set(STAGES),
            "margin_points": config.margin_points,
            "threshold": threshold,
            "judge": parse(config.judge).name,
            "judges": _judges_of(config, inputs),
            "judge_card": None if inputs.card is None else inputs.card.model_dump(mode="json"),
            "agreement": metric_rows.agreement(samples, parse(config.judge).name, list(further)),
            "template": config.template,
            "decoding": config.decoding.model_dump(mode="json"),
            "lab": inputs.model.is_lab,
            "tuning": _tuning_of(config, inputs),
            "notes": notes,
            "leakage": _leakage_of(config, inputs),
            "worst_case": _worst_case_of(samples),
            "skipped": list(inputs.skipped),
            "failed": failed,
        },
        "models": _models(config, made, outcomes, verdicts, trials, drawn, relearnt, made_models),
        "metrics": [row.json() for row in rows],
    }
    validate(results)
    for frame, name in ((samples, SAMPLES), (documents, DOCUMENTS)):
        if len(frame):
            _write_parquet(frame, out / name)
    ended = {**trials.outcomes, **outcomes, **drawn.outcomes, **relearnt.outcomes}
    manifest = _manifest(config, inputs, ended, command, made_models)
    export_models.write(out, made_models, results, manifest)
    write_json(out / RESULTS, results, indent=1)
    write_json(out / MANIFEST, manifest)
    from wpn_bench.report.render import render as render_report

    render_report(out)
    return results


def _judges_of(config: RunConfig, inputs: Inputs) -> list[dict[str, Any]]:
    """The judges of the run, the one that decides first; none where no answer was judged."""
    if not inputs.answers:
        return []
    deciding = FurtherJudge(
        config.judge, parse(config.judge).name, inputs.judge_digest, config.threshold_of(config.judge)
    )
    return [
        {
            "name": judge.name,
            "title": JUDGES.get(parse(judge.spec).judge).title,
            "measures": JUDGES.get(parse(judge.spec).judge).measures,
            "threshold": judge.threshold,
            "digest": judge.digest,
            "decides": judge is deciding,
        }
        for judge in (deciding, *inputs.further)
    ]


def _tuning_of(config: RunConfig, inputs: Inputs) -> dict[str, Any] | None:
    """What all methods were tuned by; None without tuning."""
    ground = inputs.ground
    if ground is None:
        return None
    return {
        "trials": config.tune,
        "prompt_set": short_name(ground.prompts.name),
        "prompts": len(ground.prompts.items),
        "ability": ground.bound.metric,
        "bound": ground.bound.limit,
        "ability_sets": [t.short for t in ground.tasks] or [t.name for t in (ground.texts,) if t is not None],
    }


def _worst_case_of(samples: pd.DataFrame) -> dict[str, Any] | None:
    """Which attacks the worst case is taken over; None where there are not two."""
    entered, left_out = metric_rows.attacks_together(samples)
    return {"attacks": entered, "left_out": left_out} if len(entered) > 1 else None


def _leakage_of(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """By what prompts were called alike, and what each set was found to share."""
    return {
        "threshold": config.near_duplicate,
        "forget": short_name(inputs.forget.name),
        "prompts": len(inputs.forget.items),
        "sets": [leak.json() for leak in inputs.leaks],
    }


def _models(
    config: RunConfig,
    made: Plan,
    outcomes: Mapping[str, Outcome],
    verdicts: Mapping[str, dict[str, Any]],
    trials: Trials,
    drawn: Drawn,
    relearnt: Drawn,
    models: Iterable[Export],
) -> dict[str, Any]:
    described: dict[str, Any] = {
        BASE: {
            "title": "Base model",
            "method": None,
            "config": {},
            "paper": "",
            "status": "ok",
            "reason": None,
            "relearning": relearnt.by_model.get(BASE),
            "gradient_attacks": _searches(BASE, made, outcomes),
        }
    }
    for name in config.methods:
        method = method_of(name)
        mine = {seed: outcomes[job.digest] for (n, seed), job in made.trained.items() if n == name}
        reasons = [o.reason for o in mine.values() if o.path is None]
        trainings = {seed: metric_rows.training_of(o.path) for seed, o in mine.items() if o.path is not None}
        described[name] = {
            "title": title_of(name),
            "method": name.partition(":")[0],
            "paper": method.paper,
            "options": dict(config.methods[name]),
            "config": trials.applied(config).method_config(name).model_dump(mode="json"),
            "status": "failed" if reasons else "ok",
            "reason": reasons[0] if reasons else None,
            "steps": [t["steps"] for t in trainings.values()],
            "stopped": [t["stopped"] for t in trainings.values()],
            "lr": next((t["lr"] for t in trainings.values()), None),
            "train_seconds": round(sum(t["seconds"] for t in trainings.values()), 2),
            "history": [{"seed": seed, **h} for seed, t in trainings.items() for h in t["history"]],
            "checks": [{"seed": seed, **c} for seed, t in trainings.items() for c in t["checks"]],
            "non_inferiority": verdicts.get(name),
            "tuning": trials.by_model[name].json() if name in trials.by_model else None,
            "curve": drawn.by_model.get(name),
            "relearning": relearnt.by_model.get(name),
            "gradient_attacks": _searches(name, made, outcomes),
            "digest": {str(m.seed): m.digest for m in models if m.method == name},
            "folder": {str(m.seed): m.folder for m in models if m.method == name},
        }
    return described


def _searches(model: str, made: Plan, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]] | None:
    """What the gradient attacks on this model came to; None where there was none."""
    return metric_rows.search_rows(_found((p for p in made.searched if p.model == model), outcomes)) or None


def _seconds(made: Plan, outcomes: Mapping[str, Outcome]) -> dict[tuple[str, str], tuple[float, int]]:
    spent: dict[tuple[str, str], tuple[float, int]] = {}
    for digest, outcome in outcomes.items():
        key = (made.owner.get(digest, BASE), outcome.job.stage)
        total, n = spent.get(key, (0.0, 0))
        spent[key] = (total + outcome.seconds, n + 1)
    return spent


def _write_parquet(frame: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)  # never through a link that somebody left there
    frame.to_parquet(partial, index=False)
    os.replace(partial, path)
