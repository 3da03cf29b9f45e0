"""A job is one stage with its parameters and inputs. It has a digest and, after it ran, an outcome."""

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

version = cache(metadata.version)  # version of an installed library; cached because a call takes milliseconds


@dataclass(frozen=True)
class External:
    """An input that no job of the run creates, such as the base model or a prompt set.

    Attributes:
        path: Folder with its files.
        digest: Digest of its content.
        seen: Signature of its files when the digest was computed; None if nothing else can change the files.
    """

    path: Path
    digest: str
    seen: Signature | None = None


@dataclass(frozen=True)
class Job:
    """One step of a run.

    Attributes:
        stage: Name of the stage.
        params: Parameters that determine the output. They are part of the digest.
        needs: Inputs by role. They are part of the digest.
        label: Name of the job in messages.
        local: Settings that do not change the output (paths, device). They are not part of the digest.
    """

    stage: str
    params: Mapping[str, Any]
    needs: Mapping[str, Job | External]
    label: str
    local: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Return everything that determines the output. The digest is computed from it.

        Raises:
            UserError: A library that the stage needs is not installed.
        """
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
            # When a built-in stage changes, its version is increased. The author of a plug-in may forget this.
            **({"source": stage.source} if stage.source else {}),
        }

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the inputs, which is the key of the job in the store."""
        return digest_of(self.inputs)


@dataclass
class StageContext:
    """The argument of a stage function.

    Attributes:
        params: Parameters of the job.
        needs: Folder of each input, by role.
        out: Folder for the output.
        local: Settings that do not change the output.
        progress: Is called with the number of items (None: unknown) and their unit. It returns a function that is
            called with the number of newly finished items.
        scratch: Folder for a checkpoint, which the stage may create; None if not available. It survives a crash. It is
            removed when the job is finished or has failed permanently.
    """

    params: Mapping[str, Any]
    needs: Mapping[str, Path]
    out: Path
    local: Mapping[str, Any]
    progress: Callable[[int | None, str], Advance]
    scratch: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        status: `done`, `cached`, `failed`, `skipped` (one of its needs failed) or `shared` (the results of one shard
            are in its journal).
        seconds: Wall time.
        path: Folder of the artifact; None if there is none.
        reason: Why the job failed or was skipped.
        peak_mb: Peak memory in MB of the worker process that executed the job; 0 if this process executed it.
        crash: File with the traceback of an unexpected error; None if there is none.
    """

    job: Job
    status: str
    seconds: float
    path: Path | None = None
    reason: str | None = None
    peak_mb: float = 0.0
    crash: Path | None = None
