"""The list of a run's jobs, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.core.files import digest_of
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.job import External, Job, Outcome


@dataclass(frozen=True)
class Planned:
    """A job that measures `model` on `set`. `seed` is None for the base."""

    model: str
    seed: int | None
    suite: str
    set: str
    job: Job


@dataclass
class Plan:
    """All jobs, in an order that keeps the work on each model together.

    Attributes:
        jobs: The jobs. Each comes after those whose output it needs.
        trained: Training of each (method, seed).
        judged: Jobs in which the deciding judge scores responses.
        further: Jobs in which each further judge scores responses.
        scored: Benchmarks.
        searched: Searches of gradient attacks.
        measured: For each stage, the measurements that its `plan` returned.
        owner: For the digest of each job, the model for which its cost is counted.
    """

    jobs: list[Job] = field(default_factory=list)
    trained: dict[tuple[str, int], Job] = field(default_factory=dict)
    judged: list[Planned] = field(default_factory=list)
    further: dict[str, list[Planned]] = field(default_factory=dict)
    scored: list[Planned] = field(default_factory=list)
    searched: list[Planned] = field(default_factory=list)
    measured: dict[str, list[Planned]] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)

    def add(self, model: str, job: Job) -> Job:
        """Append a job.

        Args:
            model: The model for which the job's cost is counted.
            job: The job.

        Returns:
            The job.
        """
        self.jobs.append(job)
        self.owner[job.digest] = model
        return job

    def include(self, model: str, label: str, need: Job | External) -> Job | External:
        """Append a job that another one needs, after its own needs, unless the plan has it.

        Args:
            model: The model for which the job's cost is counted.
            label: Name of the model, which precedes the label of the job.
            need: The job. An input that no job makes needs nothing.

        Returns:
            The input, with the label of a job in the plan.
        """
        if isinstance(need, External) or need.digest in self.owner:
            return need
        needs = {role: self.include(model, label, one) for role, one in need.needs.items()}
        named = need.label if need.label.startswith(f"{label}: ") else f"{label}: {need.label}"
        return self.add(model, replace(need, needs=needs, label=named))

    def extend(self, other: Plan) -> None:
        """Append the jobs of another plan."""
        self.jobs += other.jobs
        self.owner |= other.owner


@dataclass(frozen=True)
class Target:
    """A model to measure.

    Attributes:
        model: Name in results.json.
        seed: Seed of its training; None for the base.
        artifact: The job or folder of the model.
        label: Name in labels of jobs.
        remote: Whether it is an endpoint, which only gives responses.
        same_tokens: Whether it has the tokenizer of the base.
    """

    model: str
    seed: int | None
    artifact: Job | External
    label: str
    remote: bool = False
    same_tokens: bool = True


def model_label(model: str, seed: int | None) -> str:
    """Return the name of a model in the labels of its jobs.

    Args:
        model: Name in results.json.
        seed: Seed of its training; None for the base.

    Returns:
        The name, with the seed.
    """
    return model if seed is None else f"{model} (seed {seed})"


def path_of(job: Job, outcomes: Mapping[str, Outcome]) -> Path:
    """Return the artifact of a job.

    Args:
        job: The job.
        outcomes: Outcomes of jobs, by digest.

    Returns:
        The folder of the artifact in the store.

    Raises:
        JobFailed: The job failed.
    """
    path = outcomes[job.digest].path
    if path is None:
        raise JobFailed(f"{job.label}: {outcomes[job.digest].reason}")
    return path


def snapshots_of(path: Path, job: Job) -> dict[int, External]:
    """Return the models that a training stored after some steps, by step.

    Args:
        path: Artifact of the training.
        job: The training. The digest of a model combines the digest of the training and the step.

    Returns:
        The models that exist.
    """
    folders = {step: path / f"step-{step}" for step in job.params.get("snapshots", ())}
    return {
        step: External(folder, digest_of([job.digest, step])) for step, folder in folders.items() if folder.is_dir()
    }


def measurements(planned: Iterable[Planned], outcomes: Mapping[str, Outcome]) -> list[Measurement]:
    """Return the planned measurements whose jobs did not fail.

    Args:
        planned: The planned measurements.
        outcomes: Outcomes of jobs, by digest.

    Returns:
        The measurements, in the same order.
    """
    return [
        Measurement(p.model, p.seed, p.suite, p.set, path)
        for p in planned
        if (path := outcomes[p.job.digest].path) is not None
    ]
