"""Estimate how long jobs take from the durations of earlier jobs in the store's manifests.

A job first loads models and data, and then works through its items. The first part is assumed to take the same time for
any number of items, and the second to be proportional to it. Both are assumed to be proportional to the number of model
parameters, which is right if arithmetic or memory bandwidth is the bottleneck. These assumptions fail over large factors: a
few items fill no batch, and a job of a small model is mostly overhead. So the estimate uses jobs of the most similar size: first
the nearest model, then the nearest number of items.
"""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
        setup: Part of `seconds` before the first item.
    """

    seconds: float
    items: int
    parameters: int
    machine: str
    setup: float = 0.0

    @property
    def per_item(self) -> float:
        """Return the seconds per item after the setup."""
        return (self.seconds - self.setup) / self.items


@dataclass(frozen=True)
class Estimate:
    """The estimated duration of a job.

    Attributes:
        seconds: Estimated wall time; 0 if `measured` is `none`.
        measured: `same` if jobs of this kind with a model of this size were measured. `scaled` if the model had another size
            or the job was of another kind of the same stage. `none` if there is no estimate, because no job of the stage was measured.
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
    paths = stage_of(stage).speed_params if stage in stage_names() else ()
    return " ".join([stage, *(json.dumps(_value_at(params, path)) for path in paths)])


def _value_at(params: Mapping[str, Any], path: str) -> Any:
    """Return the parameter at a path of names with dots between them; None if there is none."""
    value: Any = params
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


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
                setup = min(manifest.get("setup", 0.0), manifest["seconds"])
                rate = Rate(manifest["seconds"], items, manifest.get("parameters", 0), manifest["machine"], setup)
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

        If there are none, the earlier jobs of other kinds of the stage are used. Of the jobs, those count whose models are
        nearest in size, and of these the ones whose number of items is nearest, within a factor of two. The estimate is
        their median setup plus the number of items times their median seconds per item, scaled to this model's size.

        Args:
            kind: Kind of the job (see `job_kind`).
            items: Number of items of the job.
            parameters: Number of parameters of the job's model.
            machine: Name of the machine (see `machine_name`).

        Returns:
            The duration in seconds and what it is based on.
        """
        here = {k: [r for r in rates if r.machine == machine] for k, rates in self._found.items()}
        rates = here.get(kind, [])
        same_kind = bool(rates)
        if not rates:
            rates = [r for k, found in here.items() if k.split(" ")[0] == kind.split(" ")[0] for r in found]
        if not rates:
            return Estimate(0.0, "none")
        rates = _nearest(rates, lambda rate: _log_ratio(rate.parameters, parameters), 1e-9)
        rates = _nearest(rates, lambda rate: _log_ratio(rate.items, items), math.log(2))
        seconds = median(rate.setup for rate in rates) + items * median(rate.per_item for rate in rates)
        # A job that reads no model of the run, such as judging, has 0 parameters. Its duration does not depend on the model.
        scale = max(parameters, 1) / rates[0].parameters if rates[0].parameters else 1.0
        same_size = abs(scale - 1) < 0.01
        return Estimate(seconds * (1.0 if same_size else scale), "same" if same_kind and same_size else "scaled")


def _log_ratio(a: int, b: int) -> float:
    return abs(math.log(max(a, 1) / max(b, 1)))


def _nearest(rates: list[Rate], distance: Callable[[Rate], float], slack: float) -> list[Rate]:
    """Return the rates with the smallest distance, and those whose distance is larger by at most `slack`."""
    least = min(map(distance, rates))
    return [rate for rate in rates if distance(rate) <= least + slack]


def count_items(job: Job) -> int | None:
    """Return the number of items that a job processes, times its passes. None if unknown before the job runs."""
    stage = stage_of(job.stage)
    where, *path = stage.items.split(".")
    if where == "params":
        number = sum(int(_value_at(job.params, one) or 0) for one in stage.items.removeprefix("params.").split("+"))
        return min(number, job.params.get("until") or number) * stage.passes
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
