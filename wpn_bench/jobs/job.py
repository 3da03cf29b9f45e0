"""A job of a run: a stage with its parameters and inputs, its digest, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from wpn_bench.core.files import Signature, digest_of
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.jobs.stages import stage_of

version = cache(metadata.version)  # of an installed library; asking for it takes milliseconds


@dataclass(frozen=True)
class External:
    """Something made outside the plan (the base model, a prompt set): where it lies and what it is."""

    path: Path
    digest: str
    seen: Signature | None = None  # of the files when the digest was taken; None: nobody else changes them


@dataclass(frozen=True)
class Job:
    """One step of a run.

    `params` and `needs` decide the output and make up the digest. `local` holds what does not (paths, device);
    `label` is for people.
    """

    stage: str
    params: Mapping[str, Any]
    needs: Mapping[str, Job | External]
    label: str
    local: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides the output, as the digest covers it."""
        stage = stage_of(self.stage)
        try:
            libraries = {name: version(name) for name in stage.libraries}
        except metadata.PackageNotFoundError as e:
            raise UserError(f"the stage {self.stage!r} needs {e.name}, which is not installed", "install it") from e
        return {
            "stage": self.stage,
            "version": stage.version,
            "libraries": libraries,
            "params": dict(self.params),
            "needs": {role: need.digest for role, need in sorted(self.needs.items())},
            # Our own stages raise their version; the author of a plug-in may forget to.
            **({"source": stage.source} if stage.source else {}),
        }

    @cached_property
    def digest(self) -> str:
        return digest_of(self.inputs)


@dataclass
class StageContext:
    """What a stage function gets: its parameters, the artifacts it needs, the folder to fill, a progress handle.

    `scratch` (not made yet; None: nowhere) survives a crash and goes when the job is done or failed for good: a stage may
    keep there what lets it go on.
    """

    params: Mapping[str, Any]
    needs: Mapping[str, Path]
    out: Path
    local: Mapping[str, Any]
    progress: Callable[[int | None, str], Advance]
    scratch: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `done`, `cached`, `failed`, `skipped` (something it needs failed), or `shared` (a share of it is in
    its journal). `peak_mb`: memory of another process that did it."""

    job: Job
    status: str
    seconds: float
    path: Path | None = None
    reason: str | None = None
    peak_mb: float = 0.0
