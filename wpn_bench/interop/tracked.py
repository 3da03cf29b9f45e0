"""The names, settings, digests and metrics that are logged to a tracking service.

They are the same for every service.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpn_bench.core.paths import path_inside
from wpn_bench.errors import UserError
from wpn_bench.runs.files import BASE, DOCUMENTS, MANIFEST, RESULTS, SAMPLES
from wpn_bench.runs.finished import Run

FILES = ("report.html", "report.md", RESULTS, MANIFEST, SAMPLES, DOCUMENTS)
_OTHER_THRESHOLD = re.compile(r"@")
_NOT_IN_A_NAME = re.compile(r"[^\w./ -]+")


@dataclass(frozen=True)
class Tracked:
    """One model in a tracking service.

    `metrics` come from the rows over all seeds. They have names of the form `suite/set/metric`, with the suffix
    `.ci_low`, `.ci_high`, `.delta` or `.p_value` for these numbers.
    """

    model: str
    title: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


def of_run(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters and tags of the whole run."""
    about, manifest = run.results["run"], run.manifest
    params = {
        name: str(about.get(name)) for name in ("model", "revision", "preset", "seeds", "limit", "judge", "threshold")
    }
    params |= {name: str(about.get(name)) for name in ("margin_points", "template", "decoding")}
    tags = {
        "wpn_bench.run": run.name,
        "wpn_bench.version": str(manifest.get("wpn_bench", "")),
        "wpn_bench.command": str(about.get("command", "")),
        "wpn_bench.config_digest": str(manifest.get("config_digest", "")),
        "wpn_bench.model_digest": str(manifest.get("model", {}).get("digest", "")),
        "wpn_bench.judge_digest": str(manifest.get("judge", {}).get("digest", "")),
    }
    return params, {name: value for name, value in tags.items() if value}


def of_models(run: Run) -> Iterator[Tracked]:
    """Every measured model, base first."""
    for name in run.models:
        about = run.results["models"][name]
        config = about.get("config") or {}
        digests = about.get("digest") or {}
        tags = {"wpn_bench.model": name, "wpn_bench.method": str(about.get("method") or BASE)}
        tags |= {f"wpn_bench.weights.seed{seed}": digest for seed, digest in digests.items()}
        params = {key: str(value) for key, value in config.items()}
        yield Tracked(name, str(about["title"]), params, tags, dict(_metrics(run, name)))


def _metrics(run: Run, model: str) -> Iterator[tuple[str, float]]:
    for row in run.results["metrics"]:
        if row["model"] != model or row["seed"] is not None or _OTHER_THRESHOLD.search(row["metric"]):
            continue
        name = _NOT_IN_A_NAME.sub("_", f"{row['suite']}/{row['set']}/{row['metric']}").rstrip("_")
        yield from ((name, v) for v in [row["value"]] if _known(v))
        for number in ("ci_low", "ci_high", "delta", "p_value"):
            if _known(row[number]):
                yield f"{name}.{number}", float(row[number])


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def files(run: Run) -> list[Path]:
    """The files to upload: reports, results, manifest, samples and documents."""
    return [file for name in FILES if (file := path_inside(run.folder, name)).is_file()]


def lacking(package: str, extra: str) -> UserError:
    """Return the error for a service whose package is not installed.

    Args:
        package: Name of the package.
        extra: Name of the extra of wpn-bench that installs it.

    Returns:
        The error, which the caller raises.
    """
    return UserError(f"--format {extra}: the package {package} is not installed", f"pip install 'wpn-bench[{extra}]'")
