"""The order of stages: what a run reads, which jobs it consists of, and what it writes in the end.

`prepare` reads and checks everything (all that a person can get wrong is said there, before hours of work), `tuned`
chooses each method's options where that is asked for, `plan` lists the jobs, an executor runs them, `curves` measures
methods while they train, `relearning` what comes back when they are trained on, `write` puts results, samples, manifest
and reports into the run folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import attacks, compare, consent, exports, leakage, models, prompts, resources, tuning
from wpn_bench.attacks import AttackContext, quantise, relearn
from wpn_bench.attacks.search import NOT_IN_DIGEST as NOT_IN_SEARCH
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.compare import Measurement
from wpn_bench.config import STAGES, RelearnKind, RunConfig
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.executors import Executor, External, Fleet, Job, LocalExecutor, Outcome
from wpn_bench.exports import Export
from wpn_bench.generation import too_long
from wpn_bench.harmless.card import JudgeCard, read_card
from wpn_bench.harmless.judges import JUDGES, forget_judges, get_judge
from wpn_bench.harmless.judges.spec import parse
from wpn_bench.harmless.measure import ITEMS, item_row, read_items, write_rows
from wpn_bench.leakage import Leak, Reference
from wpn_bench.model_files import check_causal
from wpn_bench.models import ModelRef
from wpn_bench.paths import shown
from wpn_bench.progress import Reporter, peak_memory_mb
from wpn_bench.prompts import PromptSet, TextSet, render
from wpn_bench.results import BASE, DOCUMENTS, MANIFEST, RESULTS, SAMPLES, SCHEMA_VERSION, validate
from wpn_bench.store import Store, claimed, digest_of, no_room, write_json
from wpn_bench.tuning import Bound, Options, Score, Tuning
from wpn_bench.unlearn import preflight
from wpn_bench.unlearn.launch import Launch, local_of
from wpn_bench.unlearn.methods import method_of, title_of
from wpn_bench.unlearn.methods.base import NOT_IN_DIGEST, code_of

if TYPE_CHECKING:
    import pandas as pd

    from wpn_bench.benchmarks.run import TaskInfo

VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
STOP_PROMPTS = 100  # validation prompts that a stop rule looks at
TUNE_PROMPTS = 200  # validation prompts that a trial answers
TUNE_TEXT_SHARE = 0.1  # of the retain texts, where no text to tune on is named
TUNE_TEXTS = 300
SHOWN_NAMES = 8  # attacks of one file that a note names
_LIBRARIES = ("torch", "transformers", "lm-eval", "detoxify", "datasets", "accelerate", "peft", "pandas", "wpn-bench")


# --- what a run reads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """What trials are measured on, all of it apart from the tests: validation prompts, and either tasks or texts."""

    prompts: PromptSet
    tasks: tuple[TaskInfo, ...]
    texts: TextSet | None
    bound: Bound


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads, resolved and checked. `sets` holds (suite, prompt set) in the order of the report."""

    model: ModelRef
    device: str
    forget: PromptSet
    validation: PromptSet
    sets: tuple[tuple[str, PromptSet], ...]
    retain: TextSet
    heldout: TextSet | None
    tasks: tuple[TaskInfo, ...]
    judge_digest: str
    notes: tuple[str, ...]
    skipped: tuple[dict[str, Any], ...]
    leaks: tuple[Leak, ...] = ()
    ground: Ground | None = None
    attacked: PromptSet | None = None  # what attacks on weights and by gradients ask; None: there are none
    schemes: tuple[str, ...] = ()  # of quantisation, those that can be had here
    further: tuple[FurtherJudge, ...] = ()
    card: JudgeCard | None = None
    judged_from: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict
    )  # judge -> what of it was fetched -> commit

    @property
    def answers(self) -> bool:
        """Whether any model is asked anything, so that there are answers to judge."""
        return bool(self.sets) or self.attacked is not None


@dataclass(frozen=True)
class FurtherJudge:
    """A judge beside the one that decides: how it is spelt, what results call it, which it is, and its threshold."""

    spec: str
    name: str
    digest: str
    threshold: float


def prepare(config: RunConfig, reporter: Reporter, *, force: bool = False) -> Inputs:
    """Find the model, read the prompts, resolve the tasks. Raises `UserError` for whatever cannot work; with `force`, an
    estimate that says so is a warning."""
    from wpn_bench.benchmarks.run import describe, expand, forget_tasks

    # Those of a run before, in the same process, may have other files by now.
    forget_judges()
    forget_tasks()
    # In order of cost: names and local files first, then what may have to be fetched.
    notes: list[str] = []
    tasks: tuple[TaskInfo, ...] = ()
    names: list[str] = []
    tune_names: list[str] = []
    if config.tune:
        tuning.require_optuna()
    if "benchmarks" in config.stages or config.tune:
        folders = task_folders(config.benchmark_folders)
        names = expand(config.benchmarks, folders) if "benchmarks" in config.stages else []
        tune_names = expand(config.tune_benchmarks, folders) if config.tune else []
        for name in (*names, *tune_names):
            describe(name, folders, resolve=False)
    kind = config.file_kind
    preflight.check_report_to(config.report_to)
    launch = Launch.of(config.processes, config.accelerate)
    _read_files(config)
    device = models.pick_device(config.device)
    # The files of a model that lies here are looked at first, for an estimate takes config.json at its word; one that lies on
    # the hub is not fetched for nothing.
    found = models.resolve(config.model, config.revision) if models.lies_here(config.model) else None
    resources.check(config, force=force, warn=reporter.note)
    model = found or models.resolve(config.model, config.revision)
    check_causal(model.path)
    preflight.check_training([config.method_config(m) for m in config.methods], model.path, device, config.dtype)
    if launch:
        launch.check([method_of(m)(config.method_config(m)) for m in config.methods], device)
    forget = prompts.load_prompts(prompts.spec_for(config.forget, role="forget", kind=kind))
    reading: list[tuple[str, PromptSet]] = []
    for suite, role, names_ in (
        ("harmless", "in_domain", config.in_domain),
        ("ood", "ood", config.ood),
        ("benign", "benign", config.benign),
    ):
        for entry in names_:
            name_, source = _named(entry)
            spec = prompts.spec_for(source, role=role, kind=kind, name=name_)  # type: ignore[arg-type]
            reading.append((suite, prompts.load_prompts(spec)))
    if not config.in_domain:
        forget, held = prompts.split_off(forget, name="in_domain", role="in_domain", share=TEST_SHARE)
        reading.insert(0, ("harmless", held))
        notes.append(f"no in-domain prompts were named: {len(held.items)} of the forget set were held back for testing")
    if config.validation:
        validation = prompts.load_prompts(prompts.spec_for(config.validation, role="validation", kind=kind))
    else:
        forget, validation = prompts.split_off(forget, name="validation", role="validation", share=VALIDATION_SHARE)
    kept, validation, leaks = _apart(config, forget, reading, validation)
    notes += [line for leak in leaks for line in leakage.notes(leak)]
    named = [_short(name.name) for _, name in kept]
    if len(set(named)) != len(named):
        raise UserError("two prompt sets have the same name", "give one another name: --prompts NAME=FILE")
    kept = [(suite, replace(s, name=_short(s.name)).head(config.limit)) for suite, s in kept]
    taken = {s.name for _, s in kept}
    target = next((s for suite, s in kept if suite == "harmless"), None) if "attack" in config.stages else None
    kept = [*kept, *_attacked(config, forget, target, taken, notes)]
    if "harmless" not in config.stages:
        kept = [(suite, s) for suite, s in kept if suite == "attack"]
    retain = prompts.load_texts(prompts.spec_for(config.retain, role="retain", kind="text"))
    heldout = (
        prompts.load_texts(prompts.spec_for(config.heldout, role="heldout", kind="text")) if config.heldout else None
    )
    if heldout is not None and config.limit is not None:
        heldout = replace(heldout, texts=heldout.texts[: config.limit])
    tasks = tuple(describe(name, folders) for name in names)
    ground = None
    if config.tune:
        ground, retain = _ground(config, validation, retain, heldout, notes)
        ground = replace(ground, tasks=tuple(describe(name, folders) for name in tune_names))
    skipped = _check_lengths(config, model, kept)
    attacked = target if config.relearn or config.quantise or config.gradient_attacks else None
    schemes, cannot = _schemes(config, device) if attacked else ((), [])
    judge = get_judge(config.judge, device).digest() if kept or attacked or config.tune else ""
    for note in notes:
        reporter.note(f"note: {note}")
    return Inputs(
        model,
        device,
        forget,
        validation,
        tuple(kept),
        retain,
        heldout,
        tasks,
        judge,
        tuple(notes),
        (*skipped, *cannot),
        tuple(replace(leak, set=_short(leak.set)) for leak in leaks),
        ground,
        attacked,
        schemes,
        _further_judges(config, device) if kept or attacked else (),
        _card(config, judge, device) if kept or attacked else None,
        _judged_from(config, device) if judge else {},
    )


def _judged_from(config: RunConfig, device: str) -> dict[str, dict[str, str]]:
    return {
        parse(text).name: {one.name: one.revision for one in get_judge(text, device).fetched()}
        for text in (config.judge, *config.judges)
    }


def _further_judges(config: RunConfig, device: str) -> tuple[FurtherJudge, ...]:
    return tuple(
        FurtherJudge(parse(text).scorer, parse(text).name, get_judge(text, device).digest(), config.threshold_of(text))
        for text in config.judges
    )


def _card(config: RunConfig, digest: str, device: str) -> JudgeCard | None:
    """The deciding judge's card: the one that is named, which must be of this judge at this threshold, else the one that
    comes with the judge, if it is of both."""
    shipped = get_judge(config.judge, device).card() if config.judge_card is None else None
    path = Path(config.judge_card).expanduser() if config.judge_card else shipped
    if path is None:
        return None
    card = read_card(path)
    if (card.digest, card.threshold) == (digest, config.threshold_of(config.judge)):
        return card
    if path is shipped:
        return None
    asked = f"{parse(config.judge).name} at {config.threshold_of(config.judge)}"
    other = "" if card.digest == digest else ", with other weights or another label"
    raise UserError(
        f"the judge card {path.name} is of {card.judge} at threshold {card.threshold}{other}, not of {asked}",
        "make one with `wpn-bench judge`, or leave --judge-card out",
    )


def _ground(
    config: RunConfig, validation: PromptSet, retain: TextSet, heldout: TextSet | None, notes: list[str]
) -> tuple[Ground, TextSet]:
    """What trials are measured on (its tasks still to be described), and the retain texts that are left to train on.

    With tasks to tune on the macro accuracy may fall by the margin. Without, the loss of text may rise by
    `tune_loss_bound`: the text named for it, else a tenth of the retain texts, which is then not trained on; a text that
    also stands in the retain or the held-out part is dropped.
    """
    asked = validation.head(TUNE_PROMPTS).head(config.limit)
    if config.tune_benchmarks:
        return Ground(asked, (), None, Bound("macro_accuracy", config.margin_points / 100)), retain
    if config.tune_text:
        texts = prompts.load_texts(prompts.spec_for(config.tune_text, role="validation", kind="text"))
    else:
        ranked = sorted(retain.texts, key=lambda text: digest_of(["tune", text]))
        n = max(1, round(len(ranked) * TUNE_TEXT_SHARE))
        held = set(ranked[:n])
        texts = replace(retain, name="tune_text", role="validation", texts=tuple(ranked[:n]))
        retain = replace(retain, texts=tuple(t for t in retain.texts if t not in held))
        notes.append(f"no text to tune on was named: {n} of the retain texts were held back for it")
    known = {*retain.texts, *(heldout.texts if heldout else ())}
    apart = tuple(t for t in texts.texts if t not in known)[: min(TUNE_TEXTS, config.limit or TUNE_TEXTS)]
    if not apart or not retain.texts:
        raise UserError(
            "there is no text to tune on that is not also trained or tested on",
            "name one with `tune_text:` in a --config file, or more retain texts",
        )
    return Ground(asked, (), replace(texts, texts=apart), Bound("token_loss", config.tune_loss_bound)), retain


def _read_files(config: RunConfig) -> None:
    """Read what lies on this machine once ahead: a slip in a name or a file is said before anything is fetched."""
    kind = config.file_kind
    if config.judge_card:
        read_card(Path(config.judge_card).expanduser())
    tests = [_named(entry)[1] for entry in (*config.in_domain, *config.ood, *config.benign)]
    if config.validation:
        tests.append(config.validation)
    specs = [prompts.spec_for(name, role="ood", kind=kind) for name in tests]
    for spec in (prompts.spec_for(config.forget, role="forget", kind=kind), *specs):
        if spec.source.file:
            prompts.load_prompts(spec)
    for name in filter(None, (config.retain, config.heldout, config.tune_text if config.tune else None)):
        spec = prompts.spec_for(name, role="retain", kind="text")
        if spec.source.file:
            prompts.load_texts(spec)


def _named(entry: str) -> tuple[str | None, str]:
    """`NAME=SOURCE` gives a set another name than its own (None: its own)."""
    name, equals, source = entry.partition("=")
    return (name, source) if equals else (None, entry)


def _short(name: str) -> str:
    return name.removeprefix("lab_")


def _apart(
    config: RunConfig, forget: PromptSet, sets: Sequence[tuple[str, PromptSet]], validation: PromptSet
) -> tuple[list[tuple[str, PromptSet]], PromptSet, list[Leak]]:
    """No prompt of the forget set, nor a near duplicate of one, among the test prompts; none of either among those that
    something is chosen on. `auto`: a user's own file is refused, for its owner can mend it; from a declared set and from
    what was held back of the forget set the shared prompts are dropped, and said."""
    trained = Reference(forget.items, config.near_duplicate)
    kept, leaks = [], []
    for suite, one in sets:
        own = "file" in one.source and "held_out_of" not in one.source
        drop = config.overlap == "drop" or (config.overlap == "auto" and not own)
        clean, leak = leakage.apart(forget, trained, one, suite, drop=drop)
        kept.append((suite, clean))
        leaks.append(leak)
    in_domain = Reference((i for suite, s in kept if suite == "harmless" for i in s.items), config.near_duplicate)
    for k, (suite, one) in enumerate(kept):
        if suite == "ood":
            leaks[k] = replace(leaks[k], in_domain=leakage.shared(in_domain, one))
    others = Reference((i for suite, s in kept if suite != "harmless" for i in s.items), config.near_duplicate)
    validation, leak = leakage.unseen(validation, [trained, in_domain, others])
    return kept, validation, [*leaks, leak]


def _attacked(
    config: RunConfig, forget: PromptSet, target: PromptSet | None, names: set[str], notes: list[str]
) -> list[tuple[str, PromptSet]]:
    """The first in-domain set under every attack, those of the user's files after the others. `names`: those of the sets,
    which no attack may have."""
    if target is None:
        return []
    own = attacks.own_attacks(config.attack_files)
    chosen = list(dict.fromkeys((*config.attacks, *own)))
    if taken := names.intersection((*chosen, *config.gradient_attacks, *config.quantise)):
        raise UserError(
            f"an attack and a prompt set are both called {min(taken)!r}",
            "give the set another name (--prompts NAME=FILE), or the attack of your file",
        )
    for file in dict.fromkeys(attack.file for attack in own.values()):
        of_file = [name for name, attack in own.items() if attack.file == file]
        more = ", ..." if len(of_file) > SHOWN_NAMES else ""
        notes.append(f"prompt attacks read from {file}: {', '.join(of_file[:SHOWN_NAMES])}{more} ({len(of_file)})")
    context = AttackContext(config.template, forget.items, own=own)
    return [("attack", attacks.attacked(target, name, context)) for name in chosen]


def _schemes(config: RunConfig, device: str) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The schemes of quantisation that can be had here, and those that cannot, with the reason."""
    reason = quantise.obstacle(device) if config.quantise else None
    if reason is None:
        return config.quantise, []
    return (), [{"set": scheme, "reason": reason, "n": 0} for scheme in config.quantise]


def _check_lengths(config: RunConfig, model: ModelRef, sets: Iterable[tuple[str, PromptSet]]) -> list[dict[str, Any]]:
    """Prompts with no room for the response are skipped and counted; a set of which none fits is refused."""
    context = models.context_length_of(model.path)
    room = context - config.decoding.max_new_tokens
    if room < 1:
        raise UserError(
            f"{model.asked} attends to {context} tokens, and the response alone may take"
            f" {config.decoding.max_new_tokens}",
            f"use --max-new-tokens below {context}",
        )
    tokenizer = models.load_tokenizer(model.path)
    skipped = []
    for _, one in sets:
        lengths = [len(ids) for ids in tokenizer([render(i, config.template) for i in one.items])["input_ids"]]
        n = sum(too_long(length, config.decoding, context) for length in lengths)
        if n == len(lengths):
            raise UserError(
                f"no prompt of {one.name!r} fits into the {context} tokens of {model.asked}: the shortest has"
                f" {min(lengths)} and the response needs {config.decoding.max_new_tokens}",
                "use a model with a longer context, shorter prompts, or a smaller --max-new-tokens",
            )
        if n:
            skipped.append({"set": one.name, "reason": f"prompt too long for {context} tokens of context", "n": n})
    return skipped


# --- the jobs --------------------------------------------------------------------------------------------------------


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
        made.read.append(Planned(model, seed, "benchmark", compare.HELDOUT, job))


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


def put_prompts(store: Store, prompt_set: PromptSet) -> External:
    """The set's items as an artifact."""
    found = store.find("prompts", prompt_set.digest)
    if found is None:
        with store.build("prompts", prompt_set.digest, {"name": prompt_set.name, **prompt_set.source}) as out:
            write_rows(out / ITEMS, [item_row(i) for i in prompt_set.items])
        found = store.path("prompts", prompt_set.digest)
    return External(found, prompt_set.digest)


def put_texts(store: Store, texts: TextSet) -> External:
    """The texts as an artifact."""
    found = store.find("texts", texts.digest)
    if found is None:
        with store.build("texts", texts.digest, {"name": texts.name, **texts.source}) as out:
            write_rows(out / "texts.jsonl", [{"text": t} for t in texts.texts])
        found = store.path("texts", texts.digest)
    return External(found, texts.digest)


# --- the run ---------------------------------------------------------------------------------------------------------


def run(
    config: RunConfig,
    *,
    out: Path,
    store: Path,
    reporter: Reporter,
    command: str,
    force: bool = False,
    fleet: Fleet = Fleet(),
) -> dict[str, Any]:
    """Do the whole run and write its folder; returns the results. A failed job fails its model, not the run. With `force`
    it begins although it does not seem to fit."""
    check_writable(out)
    logs = out.resolve() / "logs"
    agreed = consent.given(code=config.trust_remote_code, pickles=config.allow_pickle)
    with agreed, reporter, _alone(out), _room(out, store), contextlib.ExitStack() as stack:
        try:
            shelf = Store(store)
            with reporter.aside("find the model, read the prompts"):
                inputs = prepare(config, reporter, force=force)
                plan(config, inputs, shelf, logs)  # what cannot be planned is said before anything is computed
                _check_store(config, inputs, shelf, reporter, force)
        except (UserError, KeyboardInterrupt):
            # Nothing ran: a folder made for nothing goes again (one that holds anything stays).
            with contextlib.suppress(OSError):
                out.rmdir()
            raise
        executor = stack.enter_context(fleet.executing(shelf, reporter))
        inputs, vetting = vetted(config, inputs, shelf, executor)
        trials = tuned(config, inputs, shelf, executor)
        made = plan(trials.applied(config), inputs, shelf, logs)
        outcomes = executor.run(made.jobs)
        drawn = curves(trials.applied(config), inputs, shelf, executor)
        relearnt = relearning(config, inputs, shelf, executor, made, outcomes)
        with reporter.aside("compare and report"):
            return write(config, inputs, made, {**vetting, **outcomes}, out, command, trials, drawn, relearnt)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other process writes this run folder meanwhile."""
    digest = digest_of(str(out.resolve()))[:16]
    with claimed(Path(tempfile.gettempdir()) / f"wpn-bench-{os.getuid()}" / digest) as free:
        if not free:
            raise UserError(
                f"another wpn-bench is at work on the run folder {out}", "wait for it, or give another --out"
            )
        yield


@contextlib.contextmanager
def _room(out: Path, store: Path) -> Iterator[None]:
    """A disk that takes no more is said in one line."""
    try:
        yield
    except OSError as e:
        said = no_room(e)
        if said is None:
            raise
        raise UserError(
            f"{shown(e.filename) if e.filename else f'{out} or {store}'} cannot be written: {said}",
            "mend that, then type the same command again: what is finished is kept",
        ) from e


def _check_store(config: RunConfig, inputs: Inputs, store: Store, reporter: Reporter, force: bool) -> None:
    """Whether what is still to be trained fits into the store. A run that goes on needs less than one that begins."""
    subject = resources.Subject.of(config)
    if subject is None or not config.methods:
        return
    if config.tune:
        # Which trials there will be is not known ahead: any training of this model counts for one of them.
        done = resources.trainings_of(store.root, inputs.model.digest)
    else:
        vet = _vet_job(config, inputs, store) if config.vet else None
        if vet and store.find(vet.stage, vet.digest):
            inputs, _ = vetted(config, inputs, store, LocalExecutor(store, Reporter()))
        trained = plan(config, inputs, store).trained.values()
        done = sum(store.find(job.stage, job.digest) is not None for job in trained)
    resources.refuse([resources.of_store(subject, store.root, done)], force=force, warn=reporter.note)


def vetted(config: RunConfig, inputs: Inputs, store: Store, executor: Executor) -> tuple[Inputs, dict[str, Outcome]]:
    """The inputs with the forget set as it is trained on (see `unlearn/vet.py`) and a note of what was dropped; and what
    was done for it."""
    if not config.vet or not config.methods:
        return inputs, {}
    job = _vet_job(config, inputs, store)
    before = inputs.forget.items
    outcomes = executor.run([job])
    items = tuple(read_items(_done(job, outcomes)))
    if not items:
        raise UserError(
            f"the judge {config.judge} calls every harmless reference of the forget set {inputs.forget.name!r} harmful",
            "look at the file (are the columns swapped?), or train on it all the same with `vet: false` in --config",
        )
    lost = sum(len(i.harmless) for i in before) - sum(len(i.harmless) for i in items)
    if not lost:
        return inputs, outcomes
    note = (
        f"{lost} of {sum(len(i.harmless) for i in before)} harmless references of {inputs.forget.name} are harmful by the"
        f" judge and were not trained on ({len(before) - len(items)} items have none left and were dropped)"
    )
    executor.reporter.note(f"note: {note}")
    forget = replace(inputs.forget, items=items)
    return replace(inputs, forget=forget, notes=(*inputs.notes, note)), outcomes


def _vet_job(config: RunConfig, inputs: Inputs, store: Store) -> Job:
    needs = {"prompts": put_prompts(store, inputs.forget)}
    label = "vet the forget set's harmless references"
    local = {"device": inputs.device, "judge": parse(config.judge).scorer}
    return Job("vet", _judged_by(config, inputs), needs, label, local)


@dataclass(frozen=True)
class Trials:
    """How every method was tuned (nothing without `--tune`), and what it took."""

    by_model: Mapping[str, Tuning] = field(default_factory=dict)
    made: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)

    def applied(self, config: RunConfig) -> RunConfig:
        """The configuration with each method's chosen options."""
        return config.model_copy(update={"methods": {**config.methods, **self._chosen()}})

    def _chosen(self) -> dict[str, Options]:
        return {name: one.chosen.options for name, one in self.by_model.items()}


def tuned(config: RunConfig, inputs: Inputs, store: Store, executor: Executor) -> Trials:
    """Tune every method: rounds of one trial each, whose jobs the store keeps as any others."""
    ground = inputs.ground
    if not config.tune or ground is None:
        return Trials()
    seen = replace(inputs, tasks=ground.tasks, further=())
    asked = [("validation", ground.prompts, put_prompts(store, ground.prompts))]
    texts = put_texts(store, ground.texts) if ground.texts else None
    every = Plan()
    bound = _calibrated(config, inputs, store, every)
    _measure(config, seen, every, BASE, None, _base(inputs), [], bound, texts, "tune, base model")
    a_trial = 1 + 2 * len(asked) + len(ground.tasks) + (texts is not None)
    executor.reporter.plan(len(every.jobs) + config.tune * len(config.methods) * a_trial)
    outcomes = executor.run(every.jobs, announce=False)
    before = _ability(every, outcomes)
    # Done, so that the rounds do not wait for it.
    known = External(_done(bound, outcomes), bound.digest)

    def measure(number: int, options: Mapping[str, Options]) -> dict[str, Score | str]:
        trial = config.model_copy(update={"methods": dict(options)})
        plans = {}
        for name in options:
            made = plans[name] = Plan()
            who = f"tune {name}, trial {number}/{(config.tune or 1) - 1}"
            train = replace(_train_job(trial, inputs, store, name, tuning.SEED), label=f"{who}: train")
            _measure(trial, seen, made, name, tuning.SEED, made.add(name, train), asked, known, texts, who)
        done = executor.run([job for made in plans.values() for job in made.jobs], announce=False)
        outcomes.update(done)
        for made in plans.values():
            every.jobs += made.jobs
            every.owner |= made.owner
        return {name: _score(config, made, done, before) for name, made in plans.items()}

    width = models.width_of(inputs.model.path)
    # What `training` says of every method decides where the search begins (the rate of adapters, the steps).
    given = {name: {**config.training, **options} for name, options in config.methods.items()}
    found = tuning.tune(given, config.tune, ground.bound, width, measure)
    return Trials(found, every, outcomes)


def _done(job: Job, outcomes: Mapping[str, Outcome]) -> Path:
    path = outcomes[job.digest].path
    if path is None:
        raise JobFailed(f"{job.label}: {outcomes[job.digest].reason}")
    return path


def _score(config: RunConfig, made: Plan, outcomes: Mapping[str, Outcome], before: float) -> Score | str:
    """What one trial measured, or why it could not be."""
    for job in made.jobs:
        if outcomes[job.digest].path is None:
            return outcomes[job.digest].reason or "failed"
    threshold = config.threshold_of(config.judge)
    samples = compare.read_samples(_found(made.judged, outcomes), threshold)
    rates = {r.metric: r.value for r in compare.prompt_rows(samples, threshold)}
    harmless, coherent = rates["harmless_rate"], rates["coherent_harmless_rate"]
    if harmless is None or coherent is None or harmless != harmless:
        return "no answer could be judged"
    return Score(coherent, harmless, _ability(made, outcomes) - before)


def _ability(made: Plan, outcomes: Mapping[str, Outcome]) -> float:
    """Macro accuracy of the tasks to tune on, or the token loss of the text."""
    for planned in (*made.scored, *made.read):
        _done(planned.job, outcomes)
    if made.scored:
        return compare.macro_accuracy(_found(made.scored, outcomes))
    (text,) = _found(made.read, outcomes)
    return compare.token_loss(text)


@dataclass(frozen=True)
class Drawn:
    """Curves over training steps: rows by model, and what they took."""

    by_model: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    made: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


def curves(config: RunConfig, inputs: Inputs, store: Store, executor: Executor) -> Drawn:
    """Train the methods of the curve once more, keeping the model at some steps, and measure each of these.

    A training of its own, so that the models of the run have the same digest with and without a curve.
    """
    inputs = replace(inputs, further=())  # what decides is what is drawn
    targets = [(suite, s) for suite, s in inputs.sets if suite == "harmless"][:1]
    if config.curve is None or not (targets or inputs.tasks):
        return Drawn()
    small = config.model_copy(update={"limit": min(config.curve.limit, config.limit or config.curve.limit)})
    sets = [(suite, head, put_prompts(store, head)) for suite, s in targets for head in [s.head(small.limit)]]
    every = Plan()
    for seed in config.seeds:
        for name in config.curve_methods():
            last = config.method_config(name).steps
            kept = [step for step in config.curve.steps if 0 < step < last]
            job = _train_job(config, inputs, store, name, seed, kept)
            label = f"{name} (seed {seed}): train for the curve"
            every.trained[name, seed] = every.add(name, replace(job, label=label))
    outcomes = executor.run(every.jobs)
    bound = _calibrated(config, inputs, store, every) if sets else None
    points: dict[str, dict[tuple[int, int], Plan]] = {name: {} for name in config.curve_methods()}
    for (name, seed), job in every.trained.items():
        path = outcomes[job.digest].path
        if path is None:
            continue
        at: dict[int, External] = {0: _base(inputs)} if 0 in config.curve.steps else {}
        at |= _snapshots(path, job)
        at[int(compare.training_of(path)["steps"])] = External(path, job.digest)
        for step, model in sorted(at.items()):
            made = points[name][seed, step] = Plan()
            who = f"{name} (seed {seed}) after step {step}" if step else "base, for the curve"
            _measure(small, inputs, made, name, seed, model, sets, bound, None, who)
            every.jobs += made.jobs
            every.owner |= made.owner
    outcomes |= executor.run(every.jobs[len(every.trained) :])
    rows = {
        name: compare.curve_rows(
            {at: _found([*made.judged, *made.scored], outcomes) for at, made in of_model.items()},
            config.threshold_of(config.judge),
        )
        for name, of_model in points.items()
    }
    return Drawn(rows, every, outcomes)


def _snapshots(path: Path, job: Job) -> dict[int, External]:
    """The models that a training kept on its way, by step."""
    folders = {step: path / f"step-{step}" for step in job.params.get("snapshots", ())}
    return {
        step: External(folder, digest_of([job.digest, step])) for step, folder in folders.items() if folder.is_dir()
    }


def relearning(
    config: RunConfig,
    inputs: Inputs,
    store: Store,
    executor: Executor,
    made: Plan,
    before: Mapping[str, Outcome],
) -> Drawn:
    """Fine-tune every model that there is a little, the base once a seed, and measure it after some of the steps."""
    if config.relearn is None or inputs.attacked is None:
        return Drawn()
    asked = inputs.attacked.head(config.relearn.limit)
    inputs = replace(inputs, tasks=(), further=())  # what decides is what is drawn
    sets = [("harmless", asked, put_prompts(store, asked))]
    models = {(BASE, seed): _base(inputs) for seed in config.seeds}
    for key, training in made.trained.items():
        if (path := before[training.digest].path) is not None:
            models[key] = External(path, training.digest)
    every = Plan()
    started: dict[tuple[str, int, RelearnKind], Job] = {}
    for (name, seed), model in models.items():
        for kind in config.relearn.kinds:
            job = _relearn_job(config, inputs, store, model, kind, seed)
            label = f"{_who(name, seed)}: relearn from {kind} text"
            started[name, seed, kind] = every.add(name, replace(job, label=label))
    outcomes = executor.run(every.jobs)
    bound = _calibrated(config, inputs, store, every)
    points: dict[tuple[str, RelearnKind], dict[tuple[int, int], Plan]] = {}
    for (name, seed, kind), job in started.items():
        path = outcomes[job.digest].path
        at = {0: models[name, seed]} if 0 in config.relearn.steps else {}
        at |= _snapshots(path, job) if path else {}
        for step, model in at.items():
            point = points.setdefault((name, kind), {})[seed, step] = Plan()
            who = f"{_who(name, seed)} after {step} steps of relearning ({kind})"
            _measure(config, inputs, point, name, seed, model, sets, bound, None, who)
            every.jobs += point.jobs
            every.owner |= point.owner
    outcomes |= executor.run(every.jobs[len(started) :])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in models}
    for (name, kind), of_kind in points.items():
        found = {at: _found(point.judged, outcomes) for at, point in of_kind.items()}
        rows[name] += [{"kind": kind, **row} for row in compare.curve_rows(found, config.threshold_of(config.judge))]
    return Drawn(rows, every, outcomes)


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


def check_writable(out: Path) -> None:
    """Make the run folder, or say why not, before anything is computed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"the output folder {out} cannot be written ({e.strerror})", "give another with --out") from e


def write(
    config: RunConfig,
    inputs: Inputs,
    made: Plan,
    outcomes: Mapping[str, Outcome],
    out: Path,
    command: str,
    trials: Trials = Trials(),
    drawn: Drawn = Drawn(),
    relearnt: Drawn = Drawn(),
) -> dict[str, Any]:
    """results.json, samples, documents, manifest and reports, the manifest after the rest."""
    threshold = config.threshold_of(config.judge)
    further = {j.name: (j.threshold, _found(made.further.get(j.name, []), outcomes)) for j in inputs.further}
    samples = compare.read_samples(_found(made.judged, outcomes), threshold, further)
    documents = compare.read_documents(_found(made.scored, outcomes))
    rows = compare.prompt_rows(samples, threshold)
    rows += compare.worst_case_rows(samples, threshold)
    rows += compare.benchmark_rows(documents)
    rows += compare.turned_rows(documents)
    rows += compare.text_rows(_found(made.read, outcomes))
    rows = compare.adjust_for_attacks(compare.sum_up(rows))
    notes = list(inputs.notes)
    if inputs.card is not None:
        corrected, said = compare.corrected_rows(rows, inputs.card)
        rows += corrected
        notes += said
    verdicts = compare.verdicts(rows, config.margin_points)
    seconds = _seconds(made, outcomes)
    for stage, plan_, ended in (
        ("tune", trials.made, trials.outcomes),
        ("curve", drawn.made, drawn.outcomes),
        ("relearn", relearnt.made, relearnt.outcomes),
    ):
        more = {digest: outcome for digest, outcome in ended.items() if digest not in outcomes}  # each job counts once
        for (name, _), (total, n) in _seconds(plan_, more).items():
            before = seconds.get((name, stage), (0.0, 0))
            seconds[name, stage] = (before[0] + total, before[1] + n)
    peak = max([peak_memory_mb(), *(o.peak_mb for o in outcomes.values())])
    rows += compare.cost_rows(seconds, peak, compare.token_rows(samples))
    failed = [
        {"job": o.job.label, "reason": o.reason or ""}
        for o in {**outcomes, **drawn.outcomes, **relearnt.outcomes}.values()
        if o.status in ("failed", "skipped")
    ]
    made_models = exports.collect({k: outcomes[j.digest].path for k, j in made.trained.items()}, config.seeds)
    results = {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "name": out.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "preset": config.preset,
            "title": config.title,
            "model": config.model if inputs.model.revision or inputs.model.is_lab else shown(config.model),
            "revision": inputs.model.revision,
            "command": command,
            "seeds": list(config.seeds),
            "limit": config.limit,
            "partial": bool(failed) or config.limit is not None or set(config.stages) != set(STAGES),
            "margin_points": config.margin_points,
            "threshold": threshold,
            "judge": parse(config.judge).name,
            "judges": _judges_of(config, inputs),
            "judge_card": None if inputs.card is None else inputs.card.model_dump(mode="json"),
            "agreement": compare.agreement(samples, parse(config.judge).name, list(further)),
            "template": config.template,
            "decoding": config.decoding.model_dump(mode="json"),
            "lab": inputs.model.is_lab,
            "tuning": _tuning_of(config, inputs),
            "notes": notes,
            "leakage": _leakage_of(config, inputs),
            "worst_case": _worst_case_of(samples),
            "skipped": list(inputs.skipped),
            "failed": failed,
        },
        "models": _models(config, made, outcomes, verdicts, trials, drawn, relearnt, made_models),
        "metrics": [row.json() for row in rows],
    }
    validate(results)
    for frame, name in ((samples, SAMPLES), (documents, DOCUMENTS)):
        if len(frame):
            _write_parquet(frame, out / name)
    ended = {**trials.outcomes, **outcomes, **drawn.outcomes, **relearnt.outcomes}
    manifest = _manifest(config, inputs, ended, command, made_models)
    exports.write(out, made_models, results, manifest)
    write_json(out / RESULTS, results, indent=1)
    write_json(out / MANIFEST, manifest)
    from wpn_bench.report.render import render as render_report

    render_report(out)
    return results


def _found(planned: Iterable[Planned], outcomes: Mapping[str, Outcome]) -> list[Measurement]:
    return [
        Measurement(p.model, p.seed, p.suite, p.set, path)
        for p in planned
        if (path := outcomes[p.job.digest].path) is not None
    ]


def _judges_of(config: RunConfig, inputs: Inputs) -> list[dict[str, Any]]:
    """The judges of the run, the one that decides first; none where no answer was judged."""
    if not inputs.answers:
        return []
    deciding = FurtherJudge(
        config.judge, parse(config.judge).name, inputs.judge_digest, config.threshold_of(config.judge)
    )
    return [
        {
            "name": judge.name,
            "title": JUDGES.get(parse(judge.spec).judge).title,
            "measures": JUDGES.get(parse(judge.spec).judge).measures,
            "threshold": judge.threshold,
            "digest": judge.digest,
            "decides": judge is deciding,
        }
        for judge in (deciding, *inputs.further)
    ]


def _tuning_of(config: RunConfig, inputs: Inputs) -> dict[str, Any] | None:
    """What all methods were tuned by; None without tuning."""
    ground = inputs.ground
    if ground is None:
        return None
    return {
        "trials": config.tune,
        "prompt_set": _short(ground.prompts.name),
        "prompts": len(ground.prompts.items),
        "ability": ground.bound.metric,
        "bound": ground.bound.limit,
        "ability_sets": [t.short for t in ground.tasks] or [t.name for t in (ground.texts,) if t is not None],
    }


def _worst_case_of(samples: pd.DataFrame) -> dict[str, Any] | None:
    """Which attacks the worst case is taken over; None where there are not two."""
    entered, left_out = compare.attacks_together(samples)
    return {"attacks": entered, "left_out": left_out} if len(entered) > 1 else None


def _leakage_of(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """By what prompts were called alike, and what each set was found to share."""
    return {
        "threshold": config.near_duplicate,
        "forget": _short(inputs.forget.name),
        "prompts": len(inputs.forget.items),
        "sets": [leak.json() for leak in inputs.leaks],
    }


def _models(
    config: RunConfig,
    made: Plan,
    outcomes: Mapping[str, Outcome],
    verdicts: Mapping[str, dict[str, Any]],
    trials: Trials,
    drawn: Drawn,
    relearnt: Drawn,
    models: Iterable[Export],
) -> dict[str, Any]:
    described: dict[str, Any] = {
        BASE: {
            "title": "Base model",
            "method": None,
            "config": {},
            "paper": "",
            "status": "ok",
            "reason": None,
            "relearning": relearnt.by_model.get(BASE),
            "gradient_attacks": _searches(BASE, made, outcomes),
        }
    }
    for name in config.methods:
        method = method_of(name)
        mine = {seed: outcomes[job.digest] for (n, seed), job in made.trained.items() if n == name}
        reasons = [o.reason for o in mine.values() if o.path is None]
        trainings = {seed: compare.training_of(o.path) for seed, o in mine.items() if o.path is not None}
        described[name] = {
            "title": title_of(name),
            "method": name.partition(":")[0],
            "paper": method.paper,
            "options": dict(config.methods[name]),
            "config": trials.applied(config).method_config(name).model_dump(mode="json"),
            "status": "failed" if reasons else "ok",
            "reason": reasons[0] if reasons else None,
            "steps": [t["steps"] for t in trainings.values()],
            "stopped": [t["stopped"] for t in trainings.values()],
            "lr": next((t["lr"] for t in trainings.values()), None),
            "train_seconds": round(sum(t["seconds"] for t in trainings.values()), 2),
            "history": [{"seed": seed, **h} for seed, t in trainings.items() for h in t["history"]],
            "checks": [{"seed": seed, **c} for seed, t in trainings.items() for c in t["checks"]],
            "non_inferiority": verdicts.get(name),
            "tuning": trials.by_model[name].json() if name in trials.by_model else None,
            "curve": drawn.by_model.get(name),
            "relearning": relearnt.by_model.get(name),
            "gradient_attacks": _searches(name, made, outcomes),
            "digest": {str(m.seed): m.digest for m in models if m.method == name},
            "folder": {str(m.seed): m.folder for m in models if m.method == name},
        }
    return described


def _searches(model: str, made: Plan, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]] | None:
    """What the gradient attacks on this model came to; None where there was none."""
    return compare.search_rows(_found((p for p in made.searched if p.model == model), outcomes)) or None


def _seconds(made: Plan, outcomes: Mapping[str, Outcome]) -> dict[tuple[str, str], tuple[float, int]]:
    spent: dict[tuple[str, str], tuple[float, int]] = {}
    for digest, outcome in outcomes.items():
        key = (made.owner.get(digest, BASE), outcome.job.stage)
        total, n = spent.get(key, (0.0, 0))
        spent[key] = (total + outcome.seconds, n + 1)
    return spent


def _manifest(
    config: RunConfig, inputs: Inputs, outcomes: Mapping[str, Outcome], command: str, trained: Iterable[Export]
) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    for name in ("model", "forget", "validation", "retain", "heldout", "tune_text"):
        if settings[name]:
            settings[name] = _no_home(settings[name])
    settings["judge"] = parse(config.judge).shown
    settings["judges"] = [parse(judge).shown for judge in config.judges]
    settings["judge_card"] = shown(config.judge_card) if config.judge_card else None
    for name in ("in_domain", "ood", "benign", "benchmark_folders"):
        settings[name] = [_no_home(s) for s in settings[name]]
    settings["accelerate"] = shown(os.path.expanduser(config.accelerate)) if config.accelerate else None
    settings["attack_files"] = [shown(os.path.expanduser(file)) for file in config.attack_files]
    by_method: dict[str, dict[str, Any]] = {}
    for one in trained:
        described: dict[str, Any] = {"folder": one.folder, "digest": one.digest, "files": dict(one.files)}
        training = compare.training_of(one.artifact)
        described |= {"processes": training.get("processes", 1), "parallel": training.get("parallel")}
        by_method.setdefault(one.method, {})[str(one.seed)] = described
    return {
        "wpn_bench": version("wpn-bench"),
        "command": command,
        "config": settings,
        "config_digest": digest_of(settings),
        "model": {"asked": settings["model"], "revision": inputs.model.revision, "digest": inputs.model.digest},
        "models": by_method,
        "judge": {"name": parse(config.judge).name, "digest": inputs.judge_digest},
        "further_judges": {judge.name: judge.digest for judge in inputs.further},
        "judged_from": {name: dict(found) for name, found in inputs.judged_from.items() if found},
        "prompt_sets": {
            s.name: {"suite": suite, "n": len(s.items), "digest": s.digest, "source": dict(s.source)}
            for suite, s in (("forget", inputs.forget), ("validation", inputs.validation), *inputs.sets)
        },
        "texts": {
            t.name: {"role": t.role, "n": len(t.texts), "digest": t.digest, "source": dict(t.source)}
            for t in (inputs.retain, inputs.heldout, inputs.ground.texts if inputs.ground else None)
            if t is not None
        },
        "tasks": {
            t.short: {"task": t.name, "dataset": t.dataset_path, "revision": t.revision, "digest": t.digest}
            for t in inputs.tasks
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in (*_LIBRARIES, *(("torchao",) if inputs.schemes else ()))},
        },
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


def _no_home(entry: str) -> str:
    name, source = _named(entry)
    source = shown(Path(source).expanduser()) if Path(source).expanduser().exists() else source
    return f"{name}={source}" if name else source


def _write_parquet(frame: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)  # never through a link that somebody left there
    frame.to_parquet(partial, index=False)
    os.replace(partial, path)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """manifest.json of a run folder."""
    loaded: dict[str, Any] = json.loads((run_dir / MANIFEST).read_text(encoding="utf-8"))
    return loaded
