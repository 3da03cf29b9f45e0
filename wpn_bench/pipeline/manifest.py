"""The manifest of a run, which records its inputs and jobs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wpn_bench.analysis import metric_rows
from wpn_bench.config import RunConfig
from wpn_bench.core.files import digest_of
from wpn_bench.core.paths import display_path
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.jobs.job import Outcome
from wpn_bench.models.backends import identity_of
from wpn_bench.pipeline.export_models import Export
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.preflight.sets import split_set_name

_LIBRARIES = ("torch", "transformers", "lm-eval", "detoxify", "datasets", "accelerate", "peft", "pandas", "wpn-bench")


def manifest_of(
    config: RunConfig, inputs: Inputs, outcomes: Mapping[str, Outcome], command: str, trained: Iterable[Export]
) -> dict[str, Any]:
    """Return the manifest of a run: the digests of everything that it used, and how its jobs ended.

    Args:
        config: The configuration as it was given. The user's paths in it are shortened.
        inputs: The inputs of the run.
        outcomes: Outcomes of all its jobs, by digest.
        command: The command line.
        trained: The exported models.

    Returns:
        The content of manifest.json.
    """
    settings = config.model_dump(mode="json")
    for name in ("model", "forget", "validation", "retain", "heldout", "tune_text", "benign_prompts", "tune_benign"):
        if settings[name]:
            settings[name] = _without_home(settings[name])
    settings["judge"] = parse(config.judge).shown
    settings["judges"] = [parse(judge).shown for judge in config.judges]
    settings["judge_card"] = [display_path(card) for card in config.judge_card] or None
    for name in ("in_domain", "ood", "benign", "benchmark_folders"):
        settings[name] = [_without_home(s) for s in settings[name]]
    if config.attacker and Path(config.attacker).expanduser().exists():
        settings["attacker"] = display_path(os.path.expanduser(config.attacker))
    settings["accelerate"] = display_path(os.path.expanduser(config.accelerate)) if config.accelerate else None
    settings["attack_files"] = [display_path(os.path.expanduser(file)) for file in config.attack_files]
    tuned = inputs.tuning_data.benign if inputs.tuning_data else None
    backend = identity_of(config.backend, inputs.device, config.offload)
    by_method: dict[str, dict[str, Any]] = {}
    for one in trained:
        described: dict[str, Any] = {"folder": one.folder, "digest": one.digest, "files": dict(one.files)}
        training = metric_rows.training_of(one.artifact)
        described |= {"processes": training.get("processes", 1), "parallel": training.get("parallel")}
        by_method.setdefault(one.method, {})[str(one.seed)] = described
    return {
        "wpn_bench": version("wpn-bench"),
        "command": command,
        "config": settings,
        "config_digest": digest_of(settings),
        "model": {"asked": settings["model"], "revision": inputs.model.revision, "digest": inputs.model.digest},
        "models": by_method,
        "candidates": {one.name: one.json() for one in inputs.candidates},
        **(
            {"attacker": {"name": inputs.attacker.name, "digest": inputs.attacker.artifact.digest}}
            if inputs.attacker
            else {}
        ),
        "judge": {"name": parse(config.judge).name, "digest": inputs.judge_digest},
        "further_judges": {judge.name: judge.digest for judge in inputs.further},
        "judged_from": {name: dict(found) for name, found in inputs.judged_from.items() if found},
        "prompt_sets": {
            s.name: {
                "suite": suite,
                "n": len(s.items),
                "digest": s.digest,
                "refusal": s.refusal,
                "source": dict(s.source),
            }
            for suite, s in (
                ("forget", inputs.forget),
                ("validation", inputs.validation),
                *([("benign_prompts", inputs.benign)] if inputs.benign else []),
                *([("tune_benign", tuned)] if tuned else []),
                *inputs.sets,
            )
        },
        "texts": {
            t.name: {"role": t.role, "n": len(t.texts), "digest": t.digest, "source": dict(t.source)}
            for t in (inputs.retain, inputs.heldout, inputs.tuning_data.texts if inputs.tuning_data else None)
            if t is not None
        },
        "tasks": {
            t.short: {"task": t.name, "dataset": t.dataset_path, "revision": t.revision, "digest": t.digest}
            | ({"score": t.score} if t.score else {})
            | (
                {"chat_template": "multiturn" if config.fewshot_as_multiturn else "one turn"}
                if config.apply_chat_template
                else {}
            )
            for t in inputs.tasks
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in (*_LIBRARIES, *(("torchao",) if inputs.schemes else ()))},
            **{one["name"]: one["version"] for one in backend.values()},
        },
        **backend,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "device": inputs.device,
        },
        "stages": [
            {
                "label": o.job.label,
                "stage": o.job.stage,
                "digest": o.job.digest,
                "status": o.status,
                "seconds": round(o.seconds, 3),
            }
            for o in outcomes.values()
        ],
    }


def _without_home(entry: str) -> str:
    """Return `NAME=SOURCE` or `SOURCE`, where a file is named without the user's home folder."""
    name, source = split_set_name(entry)
    source = display_path(Path(source).expanduser()) if Path(source).expanduser().exists() else source
    return f"{name}={source}" if name else source
