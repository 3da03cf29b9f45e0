"""Benchmarks through lm-eval (Gao et al., "A framework for few-shot language model evaluation"), zero shot.

Measured: the share of documents answered right (`acc`), as lm-eval 0.4 computes it; for multiple choice,
the choice with the highest summed log-likelihood is the answer. Log-likelihoods are `engine.likelihood`'s and equal those of
`lm_eval --model hf` but for the last digits of a float32; so do answers, ties within these digits aside.

Only this file, `language_model` and `replay` import lm_eval. Its response cache is never used: it ignores which weights it speaks of.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import hub
from wpn_bench.benchmarks.definitions import (
    TaskDefinition,
    expand,
    read_folders,
    require_code_consent,
    short_name,
    task_folders,
)
from wpn_bench.core import consent
from wpn_bench.core.machine import environment_variables
from wpn_bench.core.registry import close_matches, unknown_name
from wpn_bench.errors import UserError
from wpn_bench.hub import resolve_revision
from wpn_bench.jobs import journal
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wpn_bench.jobs.job import StageContext

__all__ = [
    "BenchmarkInfo",
    "BenchmarkResult",
    "DocumentResult",
    "clear_task_cache",
    "describe",
    "evaluate_task",
    "expand",
    "prefetch",
    "resolve_revision",
    "run_benchmark_stage",
    "short_name",
    "task_folders",
]

Progress = Callable[[int | None, str], Callable[[int], None]]

# What counts as accuracy, first found first taken; `acc_norm` is reported beside it, never in its place.
_ACCURACIES = ("acc", "exact_match")
FEWSHOT_SEED = 1234  # lm-eval's own


@dataclass(frozen=True)
class BenchmarkInfo:
    """A benchmark before it is run.

    short: its name in results. revision: commit of its data set (None: local data, or not asked for).
    digest: SHA-256 of its definition, see `TaskDefinition`. chance: accuracy of a blind guess, 0 to 1 (None:
    not declared).
    """

    name: str
    short: str
    title: str
    dataset_path: str | None
    dataset_name: str | None
    revision: str | None
    digest: str
    chance: float | None
    licence: str
    citation: str


@dataclass(frozen=True)
class DocumentResult:
    """One document's outcome.

    doc_hash: lm-eval's, the same for the same data. target, prediction: texts of the choices; for tasks
    without choices the prediction is the target if greedy decoding would write it, else None.
    loglikelihoods: nats, one a choice.
    """

    doc_id: int
    doc_hash: str
    target: str
    prediction: str | None
    correct: bool
    loglikelihoods: tuple[float, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """accuracy: share of the `n` documents answered right. metrics: all that lm-eval reports for the task."""

    task: str
    short: str
    accuracy: float
    n: int
    metrics: Mapping[str, float]
    documents: tuple[DocumentResult, ...] = field(repr=False)


# --- before a run ---


def describe(task: str, include_paths: Sequence[Path], *, resolve: bool = True) -> BenchmarkInfo:
    """What a task is and which data it reads.

    `resolve=False` asks no hub and leaves `revision` None. Raises `UserError` for an unknown task (with the
    nearest names), for a group, and, when resolving, for data that is neither reachable nor cached.
    """
    definition = _permitted_definition(task, include_paths)
    if definition.is_group:
        raise UserError(f"{task!r} is a group of tasks", f"name its tasks: {', '.join(expand([task], include_paths))}")
    fields, about = definition.fields, definition.metadata
    path, name = fields.get("dataset_path"), fields.get("dataset_name")
    from_code = "custom_dataset" in fields or "class" in fields
    chance = about.get("chance")
    return BenchmarkInfo(
        name=task,
        short=short_name(task),
        title=str(about.get("title", task)),
        dataset_path=path,
        dataset_name=name,
        revision=resolve_revision(path, name, _declared_revision(fields))
        if resolve and path and not from_code
        else None,
        digest=definition.digest,
        chance=None if chance is None else float(chance),
        licence=str(about.get("licence", "")),
        citation=str(about.get("citation", "")),
    )


def prefetch(task: str, include_paths: Sequence[Path]) -> BenchmarkInfo:
    """Resolve a task's data and put it into the cache, so that it can be measured without network."""
    info = describe(task, include_paths)
    if info.dataset_path is not None and info.revision is not None:
        definition = _permitted_definition(task, include_paths)
        if "custom_dataset" in _pinned_fields(definition, info.revision):
            hub.load_dataset(info.dataset_path, info.dataset_name, info.revision)
        else:  # with options, which lm-eval hands to `datasets` itself
            with quiet_lm_eval():
                _load_task(definition, include_paths, info.revision)
    return info


def _permitted_definition(task: str, include_paths: Sequence[Path]) -> TaskDefinition:
    """The declaration of a task, whose code, if it has some, may run."""
    definition = _find_definition(task, include_paths)
    require_code_consent(definition)
    return definition


def _find_definition(task: str, include_paths: Sequence[Path]) -> TaskDefinition:
    ours = read_folders(tuple(include_paths))
    if task in ours:
        return ours[task]
    if task.startswith(("wpn_", "lab_")):
        raise unknown_name("task", task, ours)  # a slip in one of our names: no need to read lm-eval's
    theirs = _task_manager(tuple(include_paths), True).task_index
    entry = theirs.get(task)
    if entry is None or entry.yaml_path is None:
        raise unknown_name("task", task, close_matches(task, [*ours, *theirs]) or ours)
    return read_folders((Path(entry.yaml_path).parent,))[task]


# --- running ---


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    include_paths: Sequence[Path],
    revision: str | None = None,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Measure a model on one task.

    limit: the first documents only. device: where the model is moved if it is not there. revision: commit
    of the data set; None resolves it. progress: called with the number of requests (document x choice),
    returns the function that is told of each n done. Raises `UserError` for an unknown task, for data that
    cannot be had at that commit, and for a task that reports no accuracy.
    """
    import lm_eval

    from wpn_bench.engine.placement import is_spread

    definition = _permitted_definition(task, include_paths)
    if not is_spread(model):
        model.to(device)
    with quiet_lm_eval():
        loaded = _zero_shot(_load_task(definition, include_paths, revision))
        # `simple_evaluate` is this and: seeds for Python, numpy and torch (which would disturb the
        # caller's; nothing here is random), and calls of git and pip to describe the machine (seconds, and
        # git's complaints on stderr).
        results = lm_eval.evaluate(
            lm=_language_model(model, tokenizer, batch_size, progress),
            task_dict={"tasks": {task: loaded}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert results is not None  # None on ranks other than 0 only, and this is one process
    reported = results["results"][task]
    metrics = {
        name.partition(",")[0]: float(value)
        for name, value in reported.items()
        if name.endswith(",none") and isinstance(value, (int, float)) and "_stderr" not in name
    }
    accuracy = next((a for a in _ACCURACIES if a in metrics), None)
    if accuracy is None:
        known = ", ".join(sorted(metrics)) or "none"
        raise UserError(f"the task {task!r} reports no accuracy (its metrics: {known})", "leave it out of --tasks")
    documents = tuple(_document(loaded, sample, accuracy) for sample in results["samples"][task])
    return BenchmarkResult(task, short_name(task), metrics[accuracy], len(documents), metrics, documents)


def run_benchmark_stage(ctx: StageContext) -> None:
    """Stage `benchmark`. Needs `model` (a folder).

    Parameters: `task`, `limit`, `batch_size`, `revision`, `dtype`; `definition`, the digest that the task file must have
    (it may be missing). `ctx.local`: `include_paths` (names of folders in tasks/, or paths), `device`, `offload`. Writes
    `result.json` and `documents.parquet` (the fields of `Document`, in order of doc_id).
    """
    import pandas as pd

    from wpn_bench import models
    from wpn_bench.core.files import write_json

    params = ctx.params
    folders = task_folders(ctx.local.get("include_paths", ("benchmarks",)))
    # Of the files as they are now, wherever their names were read.
    if params.get("definition", digest := _permitted_definition(params["task"], folders).digest) != digest:
        raise UserError(
            f"the file of task {params['task']!r} is not the one that this run began with",
            "type the same command again (and give every machine the same task files)",
        )
    device = models.pick_device(ctx.local.get("device", "auto"))
    model, tokenizer = models.load(
        ctx.needs["model"], device, params.get("dtype", "float32"), ctx.local.get("offload", "none")
    )
    result = evaluate_task(
        model,
        tokenizer,
        params["task"],
        limit=params.get("limit"),
        batch_size=params.get("batch_size", 16),
        device=device,
        include_paths=folders,
        revision=params.get("revision"),
        progress=ctx.progress,
    )
    summary = {
        "task": result.task,
        "short": result.short,
        "accuracy": result.accuracy,
        "n": result.n,
        # JSON has no infinity: LAMBADA's perplexity under a broken model.
        "metrics": {k: v if math.isfinite(v) else None for k, v in result.metrics.items()},
        "revision": params.get("revision"),
    }
    frame = pd.DataFrame([asdict(d) for d in result.documents]).sort_values("doc_id")
    frame.to_parquet(ctx.out / "documents.parquet", index=False)
    write_json(ctx.out / "result.json", summary)


# --- lm-eval ---


def _manager_key(task: str, include_paths: Sequence[Path]) -> tuple[tuple[Path, ...], bool]:
    folders = tuple(include_paths)
    return folders, task not in read_folders(folders)


@cache
def _task_manager(folders: tuple[Path, ...], with_defaults: bool) -> TaskManager:
    """Made once a process. Reading lm-eval's own 14,000 files takes ten seconds: only if one is asked for."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=[str(f) for f in folders], include_defaults=with_defaults)


def clear_task_cache() -> None:
    """Read task files again, as they are then."""
    read_folders.cache_clear()
    _task_manager.cache_clear()


def _load_task(definition: TaskDefinition, include_paths: Sequence[Path], revision: str | None) -> ConfigurableTask:
    """The task with its data, read at `revision` where the data is the hub's."""
    manager = _task_manager(*_manager_key(definition.name, include_paths))
    entry = manager.task_index.get(definition.name)
    if entry is None or entry.yaml_path is None or entry.yaml_path.resolve() != definition.path.resolve():
        # Declared twice: lm-eval takes the first of a folder, and what was checked is another file.
        raise UserError(f"the task {definition.name!r} is declared twice in its folder", "give one another name")
    _check_metrics(definition)
    # Changes to a declared task go through a group of one: lm-eval's documented way.
    member = {"task": definition.name, **_pinned_fields(definition, revision)}
    try:
        loaded = manager.load({"group": "one", "task": [member]})
    except (OSError, ValueError) as e:
        why = " ".join(str(e).split())[:200]
        raise UserError(
            f"the data of task {definition.name!r} cannot be read ({why})",
            "check the network and the task file",
        ) from e
    task: Any = loaded["tasks"][definition.name]
    return task


def _check_metrics(definition: TaskDefinition) -> None:
    """lm-eval looks for a metric that it does not know on the hub, and runs what it finds."""
    from lm_eval.api import metrics, registry  # noqa: F401 - the first fills the second

    named = [m.get("metric") for m in definition.fields.get("metric_list") or () if isinstance(m, dict)]
    names = [name for name in named if isinstance(name, str) and name not in definition.functions]
    other = [name for name in names if name not in registry.metric_registry]
    if other and not consent.code_allowed():
        raise UserError(
            f"the task {definition.name!r} has the metric {other[0]!r}, which lm-eval would fetch from the hub and run",
            "add --trust-remote-code (`trust_remote_code: true`), or use a metric that lm-eval knows",
        )


def _zero_shot(task: ConfigurableTask) -> ConfigurableTask:
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def load_task(task: str, include_paths: Sequence[Path], revision: str | None) -> ConfigurableTask:
    """The task as `evaluate_task` gives it to lm-eval."""
    with quiet_lm_eval():
        return _zero_shot(_load_task(_permitted_definition(task, include_paths), include_paths, revision))


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """No bars and no notes from lm-eval and `datasets`; templates of task files in a sandbox; no processes of lm-eval's own."""
    # Processes that its bootstrap forks hang now and then.
    with _quiet(), hub.quiet_libraries(), _sandboxed_templates(), environment_variables(DISABLE_MULTIPROC="1"):
        yield


@contextmanager
def _sandboxed_templates() -> Iterator[None]:
    """A template is text of a task file; lm-eval's own environment would let it reach any object of Python."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    before = utils.env
    safe = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    safe.filters.update(before.filters)
    utils.env = safe
    try:
        yield
    finally:
        utils.env = before


def _pinned_fields(definition: TaskDefinition, revision: str | None) -> dict[str, Any]:
    """Fields that make a task read its data at one commit; none for local data and data made by code."""
    fields = definition.fields
    path, name = fields.get("dataset_path"), fields.get("dataset_name")
    if "custom_dataset" in fields or "class" in fields or path is None or hub.is_local(path):
        return {}
    commit = revision or resolve_revision(path, name, _declared_revision(fields))
    options = {
        k: v for k, v in (fields.get("dataset_kwargs") or {}).items() if k not in ("trust_remote_code", "revision")
    }
    if options or commit is None:
        return {"dataset_kwargs": {**options, "revision": commit}}

    def at_commit(**_: Any) -> Any:
        return hub.load_dataset(path, name, commit)

    return {"custom_dataset": at_commit}


def _declared_revision(fields: Mapping[str, Any]) -> str | None:
    """The branch, tag or commit of its data that a task file names."""
    options = fields.get("dataset_kwargs")
    named = options.get("revision") if isinstance(options, dict) else None
    return None if named is None else str(named)


def _language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress | None
) -> Any:
    from lm_eval.api.model import CacheHook

    from wpn_bench.benchmarks.language_model import WpnHF

    class Told(CacheHook):
        """lm-eval tells its cache of each answer; there is none here, so this is the place to count generated ones."""

        def __init__(self, advance: Callable[[int], None]) -> None:
            super().__init__(None)
            self.advance = advance

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            if attr == "generate_until":
                self.advance(1)

    class Quiet(WpnHF):
        """With our progress in place of lm-eval's bars."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            if journal.is_sharded():  # lm-eval's own loop keeps no journal
                return [""] * len(requests)
            if progress is not None:
                self.set_cache_hook(Told(progress(len(requests), "requests")))
            return super().generate_until(requests, disable_tqdm=True)

        @contextmanager
        def counting(self, total: int, disable: bool) -> Iterator[Callable[[int], object]]:
            yield progress(total, "requests") if progress is not None else lambda n: None

    # lm-eval may give the tokenizer a padding token; the caller's stays as it is.
    return Quiet(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


def _document(task: ConfigurableTask, sample: Mapping[str, Any], accuracy: str) -> DocumentResult:
    correct = bool(float(sample[accuracy]) == 1.0)
    answers = sample["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        lls = tuple(float(ll) for ll, _ in answers)
        choices = task.doc_to_choice(sample["doc"])
        best = max(range(len(choices)), key=lambda i: lls[i]) if not any(map(math.isnan, lls)) else None
        prediction = None if best is None else choices[best].strip()
        target = _gold(task, sample["doc"], choices).strip()
    elif task.OUTPUT_TYPE == "loglikelihood":
        lls = (float(answers[0][0]),)
        target = str(sample["target"]).strip()
        prediction = target if answers[0][1] else None
    else:
        lls = ()
        target, prediction = str(sample["target"]), str(answers[0])
    return DocumentResult(int(sample["doc_id"]), str(sample["doc_hash"]), target, prediction, correct, lls)


def _gold(task: ConfigurableTask, doc: Any, choices: Sequence[str]) -> str:
    """The right choice. Where the choices are contexts (WinoGrande), lm-eval's "text" is its index."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    first = gold[0] if isinstance(gold, list) else gold
    return choices[first] if isinstance(first, int) else str(first)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no notes from lm-eval; errors are raised as ever."""
    import lm_eval.api.task as task_module

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.ERROR)
    # The one bar of lm-eval that has no switch: it counts prompts while they are built.
    task_module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        task_module.tqdm = bar


STAGE = Stage(
    "wpn_bench.benchmarks.run:run_benchmark_stage",
    2,
    (*LM_LIBRARIES, "lm-eval", "datasets"),
    resumable=True,
    shardable=True,
    speed_params=("task",),
)
