"""Jobs, and who runs them.

A job is a stage with its parameters and the artifacts it needs. Its digest covers everything that decides its
output, so the whole plan of a run is known before the first job starts, and what the store already holds is not
run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wpn_bench.errors import JobFailed, UserError
from wpn_bench.progress import Advance, Reporter, Stopwatch
from wpn_bench.store import Store, digest_of, read_manifest

# stage -> (function, version of its output, libraries whose version decides the output).
# Raise the version when the same inputs would give another output.
STAGES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "vet": ("wpn_bench.unlearn.vet:run_vet_stage", 1, ("torch", "transformers", "detoxify")),
    "train": ("wpn_bench.unlearn.train:run_train_stage", 2, ("torch", "transformers", "peft")),
    "relearn": ("wpn_bench.attacks.relearn:run_relearn_stage", 1, ("torch", "transformers")),
    "quantise": ("wpn_bench.attacks.quantise:run_quantise_stage", 1, ("torch", "transformers", "torchao")),
    "calibrate": ("wpn_bench.harmless.measure:run_calibrate_stage", 5, ("torch", "transformers")),
    "generate": ("wpn_bench.harmless.measure:run_generate_stage", 3, ("torch", "transformers")),
    "judge": ("wpn_bench.harmless.measure:run_judge_stage", 6, ("torch", "transformers", "detoxify")),
    "further_judge": ("wpn_bench.harmless.measure:run_further_judge_stage", 1, ("torch", "transformers", "detoxify")),
    "benchmark": ("wpn_bench.benchmarks.run:run_benchmark_stage", 2, ("torch", "transformers", "lm-eval")),
    "gcg": ("wpn_bench.attacks.gcg:run_gcg_stage", 1, ("torch", "transformers")),
    "soft_prompt": ("wpn_bench.attacks.soft_prompt:run_soft_prompt_stage", 1, ("torch", "transformers")),
    "perplexity": ("wpn_bench.benchmarks.perplexity:run_perplexity_stage", 2, ("torch", "transformers")),
}


@dataclass(frozen=True)
class External:
    """Something made outside the plan (the base model, a prompt set): where it lies and what it is."""

    path: Path
    digest: str


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
        _, stage_version, libraries = STAGES[self.stage]
        return {
            "stage": self.stage,
            "version": stage_version,
            "libraries": {name: version(name) for name in libraries},
            "params": dict(self.params),
            "needs": {role: need.digest for role, need in sorted(self.needs.items())},
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
    """How a job ended: `done`, `cached`, `failed` or `skipped` (something it needs failed)."""

    job: Job
    status: str
    seconds: float
    path: Path | None = None
    reason: str | None = None


class LocalExecutor:
    """Runs jobs one after another in this process. A failed job fails those that need it and no others."""

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self.store = store
        self.reporter = reporter

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        """Run `jobs` in order (a job comes after those it needs). Returns outcomes by job digest.

        `announce` False: the reporter was told of these jobs already.
        """
        plan = list({job.digest: job for job in jobs}.values())
        if announce:
            self.reporter.plan(len(plan))
        outcomes: dict[str, Outcome] = {}
        for job in plan:
            self.reporter.start(job.label)
            outcome = self._run_one(job, outcomes)
            outcomes[job.digest] = outcome
            self.reporter.finish(job.label, outcome.status, outcome.seconds)
        return outcomes

    def _run_one(self, job: Job, outcomes: Mapping[str, Outcome]) -> Outcome:
        found = self.store.find(job.stage, job.digest)
        if found is not None:
            manifest = read_manifest(found) or {}
            return Outcome(job, "cached", float(manifest.get("seconds", 0.0)), found)
        needs: dict[str, Path] = {}
        for role, need in job.needs.items():
            if isinstance(need, External):
                needs[role] = need.path
                continue
            before = outcomes[need.digest]
            if before.path is None:
                return Outcome(job, "skipped", 0.0, None, f"{need.label}: {before.reason}")
            needs[role] = before.path
        watch = Stopwatch()
        try:
            with self.store.build(job.stage, job.digest, job.inputs) as out:
                module, _, name = STAGES[job.stage][0].partition(":")
                stage = getattr(import_module(module), name)
                scratch = self.store.scratch(job.stage, job.digest)
                stage(StageContext(job.params, needs, out, job.local, self.reporter.items, scratch))
        except UserError:
            raise
        except (JobFailed, RuntimeError, ValueError, OSError) as e:
            if isinstance(e, JobFailed):  # the same would happen again; short memory or a full disk may pass
                self.store.clear_scratch(job.stage, job.digest)
            reason = " ".join(str(e).split())[:500] or type(e).__name__
            return Outcome(job, "failed", watch.seconds, None, reason)
        self.store.clear_scratch(job.stage, job.digest)
        return Outcome(job, "done", watch.seconds, self.store.path(job.stage, job.digest))
