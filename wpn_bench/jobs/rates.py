"""Estimate how long jobs take from the durations of earlier jobs in the store's manifests.

The duration is assumed to be proportional to the number of items and to the number of model parameters. This is right
if arithmetic or memory bandwidth is the bottleneck. Jobs of small models are mostly overhead, so an estimate for a
large model from them is too high. The estimate therefore uses the measured model of the nearest size on the same
machine.
"""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any

from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.stages import stage_names, stage_of
from wpn_bench.jobs.store import read_manifest

ITEM_FILES = ("items.jsonl", "texts.jsonl")  # files of a prompt set and of a set of texts


@dataclass(frozen=True)
class Rate:
    """The duration of one finished job.

    Attributes:
        seconds: Wall time.
        items: Number of items that it processed.
        parameters: Number of parameters of its model.
        machine: Name of the machine (see `machine_name`).
    """

    seconds: float
    items: int
    parameters: int
    machine: str


@dataclass(frozen=True)
class Estimate:
    """The estimated duration of a job.

    Attributes:
        seconds: Estimated wall time; 0 if `measured` is `none`.
        measured: `same` if jobs with a model of this size were measured, `scaled` if the models had another size, and
            `none` if there is no estimate because no such job was measured.
    """

    seconds: float
    measured: str


def machine_name(device: str) -> str:
    """Return a name of the hardware that determines the speed: the GPU, or the CPU architecture and thread count."""
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def job_kind(stage: str, params: Mapping[str, Any]) -> str:
    """Return the kind of a job. Jobs of one kind are assumed to take the same time per item.

    Args:
        stage: Name of its stage, which may be that of an uninstalled plug-in.
        params: Parameters of the job.

    Returns:
        The name of the kind.
    """
    value: Any = params
    for name in stage_of(stage).speed_params if stage in stage_names() else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    return stage if value is params else f"{stage} {json.dumps(value)}"


class Rates:
    """Durations of finished jobs, by kind of job."""

    def __init__(self, found: Mapping[str, list[Rate]]) -> None:
        self._found = found

    @classmethod
    def from_store(cls, root: Path) -> Rates:
        """Read the durations of all artifacts in a store."""
        found: dict[str, list[Rate]] = defaultdict(list)
        for manifest in _manifests(root):
            items = max(manifest.get("work", {}).values(), default=0)
            params = manifest.get("inputs", {}).get("params", {})
            if items and "machine" in manifest:
                rate = Rate(manifest["seconds"], items, manifest.get("parameters", 0), manifest["machine"])
                found[job_kind(manifest["stage"], params)].append(rate)
        return cls(found)

    def machines(self) -> list[str]:
        """Return the names of all machines on which jobs were measured."""
        return sorted({rate.machine for rates in self._found.values() for rate in rates})

    def items(self, kind: str) -> int | None:
        """Return the largest number of items in earlier jobs of this kind, or None if there are none."""
        return max((rate.items for rate in self._found.get(kind, [])), default=None)

    def estimate(self, kind: str, items: int, parameters: int, machine: str) -> Estimate:
        """Estimate the duration of a job from earlier jobs of the same kind on the same machine.

        It is the number of items times the median seconds per item of those jobs whose models are nearest in size,
        scaled to this model's size.

        Args:
            kind: Kind of the job (see `job_kind`).
            items: Number of items of the job.
            parameters: Number of parameters of the job's model.
            machine: Name of the machine (see `machine_name`).

        Returns:
            The duration in seconds and what it is based on.
        """
        rates = [rate for rate in self._found.get(kind, []) if rate.machine == machine]
        if not rates:
            return Estimate(0.0, "none")

        def distance(rate: Rate) -> float:
            return abs(math.log(max(rate.parameters, 1) / max(parameters, 1)))

        nearest = min(map(distance, rates))
        chosen = [rate for rate in rates if distance(rate) <= nearest + 1e-9]
        seconds_per_item = median(rate.seconds / rate.items for rate in chosen)
        # A job that reads no model of the run, such as judging, has 0 parameters. Its duration does not depend on the model.
        scale = max(parameters, 1) / chosen[0].parameters if chosen[0].parameters else 1.0
        same = abs(scale - 1) < 0.01
        return Estimate(seconds_per_item * items * (1.0 if same else scale), "same" if same else "scaled")


def count_items(job: Job) -> int | None:
    """Return the number of items that a job processes, times its passes. None if unknown before the job runs."""
    stage = stage_of(job.stage)
    where, *path = stage.items.split(".")
    if where == "params":
        number: Any = reduce(lambda value, name: value[name], path, job.params)
        return min(int(number), job.params.get("until") or int(number)) * stage.passes
    need = job.needs.get(path[0]) if path else None
    if isinstance(need, Job):
        found = count_items(need)
        return None if found is None else found * stage.passes
    if not isinstance(need, External):
        return None
    file = next((need.path / name for name in ITEM_FILES if (need.path / name).is_file()), None)
    if file is None:
        return None
    with file.open("rb") as f:
        found = sum(1 for line in f if line.strip())
    return min(found, job.params.get("limit") or found) * int(job.params.get("samples", 1)) * stage.passes


def _manifests(root: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(root.glob("*/*/manifest.json")):
        manifest = read_manifest(file.parent)
        if manifest is not None:
            yield manifest
