"""The jobs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wpn_bench import attacks
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.attacks import relearn
from wpn_bench.attacks.base import RelearnKind
from wpn_bench.attacks.search import NOT_IN_DIGEST as NOT_IN_SEARCH
from wpn_bench.config import RunConfig
from wpn_bench.core.files import digest_of
from wpn_bench.errors import JobFailed
from wpn_bench.harmless.judges import get_judge
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.prompts import PromptSet
from wpn_bench.prompts.items import put_prompts, put_texts
from wpn_bench.runs.files import BASE
from wpn_bench.runs.metrics import HELDOUT_TEXT
from wpn_bench.unlearn.launch import Launch, local_of
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.methods.base import NOT_IN_DIGEST, code_of

STOP_PROMPTS = 100  # validation prompts that a stop rule looks at


@dataclass(frozen=True)
class Planned:
    """A job whose artifact is a measurement of `model` (seed None: the base) on `set`."""

    model: str
    seed: int | None
    suite: str
    set: str
    job: Job


@dataclass
class Plan:
    """All jobs in an order that keeps each model's work together."""

    jobs: list[Job] = field(default_factory=list)
    trained: dict[tuple[str, int], Job] = field(default_factory=dict)
    judged: list[Planned] = field(default_factory=list)
    scored: list[Planned] = field(default_factory=list)
    read: list[Planned] = field(default_factory=list)
    further: dict[str, list[Planned]] = field(default_factory=dict)
    searched: list[Planned] = field(default_factory=list)
    owner: dict[str, str] = field(default_factory=dict)

    def add(self, model: str, job: Job) -> Job:
        self.jobs.append(job)
        self.owner[job.digest] = model
        return job


def plan(config: RunConfig, inputs: Inputs, store: Store, logs: Path | None = None) -> Plan:
    """The run as jobs: the base once, then each method with each seed. `logs`: for training curves that are files."""
    made = Plan()
    bound = _calibrated(config, inputs, store, made) if inputs.answers else None
    sets = [(suite, one, put_prompts(store, one)) for suite, one in inputs.sets]
    heldout = put_texts(store, inputs.heldout) if inputs.heldout and "benchmarks" in config.stages else None

    def measure(model: str, seed: int | None, artifact: Job | External) -> None:
        _measure(config, inputs, made, model, seed, artifact, sets, bound, heldout)
        _measure_attacked(config, inputs, store, made, model, seed, artifact, bound)

    measure(BASE, None, _base(inputs))
    for seed in config.seeds:
        for method in config.methods:
            job = made.add(method, _train_job(config, inputs, store, method, seed, logs=logs))
            made.trained[method, seed] = job
            measure(method, seed, job)
    return made


def _base(inputs: Inputs) -> External:
    return External(inputs.model.path, inputs.model.digest, inputs.model.seen)


def _judged_by(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """The judge of a job that decides by it while it trains or chooses what to train on."""
    # A run that judges no answers has not asked for the digest before.
    digest = inputs.judge_digest or get_judge(config.judge, inputs.device).digest()
    return {"judge": parse(config.judge).name, "judge_digest": digest, "threshold": config.threshold_of(config.judge)}


def _calibrated(config: RunConfig, inputs: Inputs, store: Store, made: Plan) -> Job:
    params = {"dtype": config.dtype, "template": config.template}
    needs = {"model": _base(inputs), "prompts": put_prompts(store, inputs.forget)}
    return made.add(BASE, Job("calibrate", params, needs, "calibrate coherence", _where(config, inputs)))


def _where(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """Where a model is held while it is asked."""
    return {"device": inputs.device, "offload": config.offload}


def _train_job(
    config: RunConfig,
    inputs: Inputs,
    store: Store,
    method: str,
    seed: int,
    snapshots: Sequence[int] = (),
    logs: Path | None = None,
) -> Job:
    settings = config.method_config(method)
    params: dict[str, Any] = {
        "method": method.partition(":")[0],
        "code": code_of(method_of(method)),
        "config": settings.model_dump(mode="json", exclude=set(NOT_IN_DIGEST)),
        "seed": seed,
        "template": config.template,
        "dtype": config.dtype,
    }
    needs: dict[str, Job | External] = {
        "model": _base(inputs),
        "forget": put_prompts(store, inputs.forget),
        "retain": put_texts(store, inputs.retain),
    }
    if snapshots:
        params["snapshots"] = list(snapshots)
    if settings.stop_at_harmless_rate is not None:
        params["stop"] = {**_judged_by(config, inputs), "decoding": config.decoding.model_dump(mode="json")}
        needs["validation"] = put_prompts(store, inputs.validation.head(STOP_PROMPTS))
    local: dict[str, Any] = {
        "device": inputs.device,
        "config": settings.model_dump(include=set(NOT_IN_DIGEST)),
        "curves": {"report_to": config.report_to, "name": f"{method}-seed{seed}", "folder": logs},
        **local_of(Launch.of(config.processes, config.accelerate)),
        "judge": parse(config.judge).scorer,
    }
    return Job("train", params, needs, f"train {method} (seed {seed})", local)


def _measure(
    config: RunConfig,
    inputs: Inputs,
    made: Plan,
    model: str,
    seed: int | None,
    artifact: Job | External,
    sets: Iterable[tuple[str, PromptSet, Job | External]],
    bound: Job | External | None,
    heldout: External | None,
    who: str = "",
) -> None:
    """Everything asked of one model, which is called `who` to people."""
    who = who or _who(model, seed)
    local = _where(config, inputs)
    asked: list[Answers] = []
    params: dict[str, Any]
    for suite, one, stored in sets:
        params = {
            "template": config.template,
            "decoding": config.decoding.model_dump(mode="json"),
            "dtype": config.dtype,
        }
        needs: dict[str, Job | External] = {"model": artifact, "prompts": stored}
        label = f"{who}: answer {one.name}"
        asked.append((suite, one.name, made.add(model, Job("generate", params, needs, label, local))))
    _judge(config, inputs, made, model, seed, asked, bound, who)
    for task in inputs.tasks:
        params = {
            "task": task.name,
            "definition": task.digest,
            "revision": task.revision,
            "limit": config.limit,
            "batch_size": config.benchmark_batch_size,
            "dtype": config.dtype,
        }
        where = {**local, "include_paths": config.benchmark_folders}
        job = made.add(model, Job("benchmark", params, {"model": artifact}, f"{who}: {task.short}", where))
        made.scored.append(Planned(model, seed, "benchmark", task.short, job))
    if heldout is not None:
        needs = {"model": artifact, "texts": heldout}
        job = made.add(model, Job("perplexity", {"dtype": config.dtype}, needs, f"{who}: held-out text", local))
        made.read.append(Planned(model, seed, "benchmark", HELDOUT_TEXT, job))


Answers = tuple[str, str, Job]  # suite, set, and the job that leaves the responses


def _judge(
    config: RunConfig,
    inputs: Inputs,
    made: Plan,
    model: str,
    seed: int | None,
    asked: Sequence[Answers],
    bound: Job | External | None,
    who: str,
) -> None:
    """Responses judged by the judge that decides, then by those beside it."""
    local = _where(config, inputs)
    for suite, name, answers in asked:
        assert bound is not None
        params = {"judge": parse(config.judge).name, "judge_digest": inputs.judge_digest, "dtype": config.dtype}
        where = {**local, "judge": parse(config.judge).scorer}
        needs = {"responses": answers, "bound": bound, "base": _base(inputs)}
        job = made.add(model, Job("judge", params, needs, f"{who}: judge {name}", where))
        made.judged.append(Planned(model, seed, suite, name, job))
    for suite, name, answers in asked:
        for judge in inputs.further:
            label = f"{who}: judge {name} by {judge.name}"
            params = {"judge": judge.name, "judge_digest": judge.digest}
            where = {**local, "judge": judge.spec}
            job = made.add(model, Job("further_judge", params, {"responses": answers}, label, where))
            made.further.setdefault(judge.name, []).append(Planned(model, seed, suite, name, job))


def _who(model: str, seed: int | None) -> str:
    return model if seed is None else f"{model} (seed {seed})"


def _measure_attacked(
    config: RunConfig,
    inputs: Inputs,
    store: Store,
    made: Plan,
    model: str,
    seed: int | None,
    artifact: Job | External,
    bound: Job | External | None,
) -> None:
    """The in-domain prompts asked with the model's weights rounded by each scheme, then the first of them under each
    gradient attack, which is searched against this very model: sets of the suite `attack` that are called like scheme or
    attack, so they are paired with the base that was attacked alike. A search for all prompts together is made on the
    forget set, so that no prompt is asked that was searched on."""
    if inputs.attacked is None:
        return
    who = _who(model, seed)
    only_these = replace(inputs, tasks=())
    for scheme in inputs.schemes:
        job = Job(
            "quantise",
            {"scheme": scheme, "dtype": config.dtype},
            {"model": artifact},
            f"{who}: round weights to {scheme}",
            {"device": inputs.device},
        )
        sets = [("attack", replace(inputs.attacked, name=scheme), put_prompts(store, inputs.attacked))]
        _measure(config, only_these, made, model, seed, made.add(model, job), sets, bound, None)
    target = inputs.attacked.head(config.gradient_limit)
    for name in config.gradient_attacks:
        attack, settings = attacks.GRADIENT.get(name), config.gradient_config(name)
        params: dict[str, Any] = {
            "config": settings.model_dump(mode="json", exclude=set(NOT_IN_SEARCH)),
            "template": config.template,
            "dtype": config.dtype,
        }
        needs: dict[str, Job | External] = {"model": artifact, "prompts": put_prompts(store, target)}
        if settings.universal:
            needs["train"] = put_prompts(store, inputs.forget)
        if attack.responds:
            params["decoding"] = config.decoding.model_dump(mode="json")
        local = {"device": inputs.device, "config": settings.model_dump(include=set(NOT_IN_SEARCH))}
        search = made.add(model, Job(name, params, needs, f"{who}: search {name}", local))
        made.searched.append(Planned(model, seed, "attack", name, search))
        if attack.responds:
            _judge(config, inputs, made, model, seed, [("attack", name, search)], bound, who)
        else:
            _measure(
                config,
                only_these,
                made,
                model,
                seed,
                artifact,
                [("attack", replace(target, name=name), search)],
                bound,
                None,
            )


def _vet_job(config: RunConfig, inputs: Inputs, store: Store) -> Job:
    needs = {"prompts": put_prompts(store, inputs.forget)}
    label = "vet the forget set's harmless references"
    local = {"device": inputs.device, "judge": parse(config.judge).scorer}
    return Job("vet", _judged_by(config, inputs), needs, label, local)


def _done(job: Job, outcomes: Mapping[str, Outcome]) -> Path:
    path = outcomes[job.digest].path
    if path is None:
        raise JobFailed(f"{job.label}: {outcomes[job.digest].reason}")
    return path


def _snapshots(path: Path, job: Job) -> dict[int, External]:
    """The models that a training kept on its way, by step."""
    folders = {step: path / f"step-{step}" for step in job.params.get("snapshots", ())}
    return {
        step: External(folder, digest_of([job.digest, step])) for step, folder in folders.items() if folder.is_dir()
    }


def _relearn_job(config: RunConfig, inputs: Inputs, store: Store, model: External, kind: RelearnKind, seed: int) -> Job:
    assert config.relearn is not None
    settings = relearn.RelearnConfig(
        kind=kind,
        steps=max(config.relearn.steps),
        batch_size=config.relearn.batch_size,
        retain_batch_size=config.relearn.batch_size,
        lr=config.relearn.lr,
    )
    params = {
        "code": code_of(relearn.Relearning),
        "config": settings.model_dump(mode="json", exclude=set(NOT_IN_DIGEST)),
        "snapshots": [step for step in config.relearn.steps if step],
        "seed": seed,
        "template": config.template,
    }
    needs: dict[str, Job | External] = {"model": model}
    if kind == "harmful":
        needs["forget"] = put_prompts(store, relearn.few(inputs.forget, config.relearn.items, seed))
    else:
        needs["retain"] = put_texts(store, inputs.retain)
    return Job("relearn", params, needs, f"relearn from {kind} text", {"device": inputs.device})


def _found(planned: Iterable[Planned], outcomes: Mapping[str, Outcome]) -> list[Measurement]:
    return [
        Measurement(p.model, p.seed, p.suite, p.set, path)
        for p in planned
        if (path := outcomes[p.job.digest].path) is not None
    ]
