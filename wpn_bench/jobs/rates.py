"""How fast jobs went: what the store's manifests say of seconds, items and model sizes, and what that means for others.

A job's seconds are taken to grow in proportion to its items and to the model's parameters. That holds where arithmetic or
memory traffic decides, and overstates large models measured by small ones, whose jobs are mostly overhead; so the nearest
size that was measured on the machine is what counts.
"""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from wpn_bench.jobs.store import read_manifest

# What makes jobs of one stage alike: answers of the same length, the same task, the same method.
_KIND_PARAMS = {"generate": ("decoding", "max_new_tokens"), "benchmark": ("task",), "train": ("method",), "relearn": ()}


@dataclass(frozen=True)
class Rate:
    """What one job took: `seconds` for `items` with a model of `parameters` weights on `machine`."""

    seconds: float
    items: int
    parameters: int
    machine: str


@dataclass(frozen=True)
class Estimate:
    """Seconds that a job will take; `measured` says by what: `same` (jobs of this model), `scaled` (jobs of a model of
    another size), or `none` (nothing alike was measured: 0 seconds, which is no forecast)."""

    seconds: float
    measured: str


def machine_name(device: str) -> str:
    """The machine as far as it decides how long jobs take."""
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def job_kind(stage: str, params: Mapping[str, Any]) -> str:
    """Jobs of the same kind are held to go equally fast, item by item."""
    value: Any = params
    for name in _KIND_PARAMS.get(stage, ()):
        value = value.get(name) if isinstance(value, Mapping) else None
    return stage if value is params else f"{stage} {json.dumps(value)}"


class Rates:
    """Rates by kind of job."""

    def __init__(self, found: Mapping[str, list[Rate]]) -> None:
        self._found = found

    @classmethod
    def of_store(cls, root: Path) -> Rates:
        """From every artifact of the store that says what it took."""
        found: dict[str, list[Rate]] = defaultdict(list)
        for manifest in _manifests(root):
            items = max(manifest.get("work", {}).values(), default=0)
            params = manifest.get("inputs", {}).get("params", {})
            if items and "machine" in manifest:
                rate = Rate(manifest["seconds"], items, manifest.get("parameters", 0), manifest["machine"])
                found[job_kind(manifest["stage"], params)].append(rate)
        return cls(found)

    def machines(self) -> list[str]:
        return sorted({rate.machine for rates in self._found.values() for rate in rates})

    def items(self, kind: str) -> int | None:
        """Items of such a job when it was done before (the requests of a benchmark); None if it never was."""
        return max((rate.items for rate in self._found.get(kind, [])), default=None)

    def expected(self, kind: str, items: int, parameters: int, machine: str) -> Estimate:
        """From the jobs of this kind on this machine whose model is nearest in size: the median of their seconds an item."""
        rates = [rate for rate in self._found.get(kind, []) if rate.machine == machine]
        if not rates:
            return Estimate(0.0, "none")

        def distance(rate: Rate) -> float:
            return abs(math.log(max(rate.parameters, 1) / max(parameters, 1)))

        nearest = min(map(distance, rates))
        chosen = [rate for rate in rates if distance(rate) <= nearest + 1e-9]
        an_item = median(rate.seconds / rate.items for rate in chosen)
        scale = max(parameters, 1) / max(chosen[0].parameters, 1)
        same = abs(scale - 1) < 0.01
        return Estimate(an_item * items * (1.0 if same else scale), "same" if same else "scaled")


def _manifests(root: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(root.glob("*/*/manifest.json")):
        manifest = read_manifest(file.parent)
        if manifest is not None:
            yield manifest
