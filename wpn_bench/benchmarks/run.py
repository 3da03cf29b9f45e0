"""Zero-shot benchmarks with lm-eval (Gao et al., "A framework for few-shot language model evaluation").

The metric is the accuracy `acc` of lm-eval 0.4. For multiple choice, the answer is the choice with the highest summed
log-likelihood. Log-likelihoods are computed by `engine.likelihood`. They equal those of `lm_eval --model hf` except for the
last digits of a float32, and so do the answers, unless two choices differ only in these digits.

lm-eval's response cache is not used, because its keys do not depend on the weights of the model.
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

# Metrics that count as accuracy, in order of preference. `acc_norm` is only reported in addition.
_ACCURACIES = ("acc", "exact_match")
FEWSHOT_SEED = 1234  # lm-eval's default


@dataclass(frozen=True)
class BenchmarkInfo:
    """Description of a benchmark.

    Attributes:
        name: Name of its task.
        short: Its name in results.
        title: Its name in reports.
        dataset_path: Name or path of its data set.
        dataset_name: Configuration of its data set.
        revision: Commit of its data set; None for local data, and if it was not resolved.
        digest: SHA-256 of its definition, see `TaskDefinition`.
        chance: Accuracy of random guessing, from 0 to 1; None if it is not declared.
        licence: Licence of its data.
        citation: Its paper.
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
    """The result of one document.

    Attributes:
        doc_id: Its index in the data set.
        doc_hash: lm-eval's hash of its content.
        target: Text of the correct choice.
        prediction: Text of the predicted choice. For tasks without choices, the target if greedy decoding would generate
            it, else None.
        correct: Whether the prediction is correct.
        loglikelihoods: Nats of each choice.
    """

    doc_id: int
    doc_hash: str
    target: str
    prediction: str | None
    correct: bool
    loglikelihoods: tuple[float, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one benchmark.

    Attributes:
        task: Name of the task.
        short: Its name in results.
        accuracy: Fraction of correct documents.
        n: Number of documents.
        metrics: All metrics that lm-eval reports for the task.
        documents: Results of the documents.
    """

    task: str
    short: str
    accuracy: float
    n: int
    metrics: Mapping[str, float]
    documents: tuple[DocumentResult, ...] = field(repr=False)


# --- definitions ---


def describe(task: str, include_paths: Sequence[Path], *, resolve: bool = True) -> BenchmarkInfo:
    """Describe a task and its data.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.
        resolve: Resolve the commit of the data set on the hub; False makes no requests and leaves `revision` None.

    Returns:
        The description.

    Raises:
        UserError: The task is unknown or a group, or its data is neither reachable nor cached.
    """
    definition = _permitted_definition(task, include_paths)
    if definition.is_group:
        raise UserError(
            f"{task!r} is a group of tasks", f"give its tasks instead: {', '.join(expand([task], include_paths))}"
        )
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
    """Download a task's data into the cache, so that the task can run offline.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.

    Returns:
        The description of the task.

    Raises:
        UserError: The task is unknown, or its data cannot be downloaded.
    """
    info = describe(task, include_paths)
    if info.dataset_path is not None and info.revision is not None:
        definition = _permitted_definition(task, include_paths)
        if "custom_dataset" in _pinned_fields(definition, info.revision):
            hub.load_dataset(info.dataset_path, info.dataset_name, info.revision)
        else:  # the task has data set options, which lm-eval passes to `datasets` itself
            with quiet_lm_eval():
                _load_task(definition, include_paths, info.revision)
    return info


def _permitted_definition(task: str, include_paths: Sequence[Path]) -> TaskDefinition:
    """Return the definition of a task. Raises `UserError` if it needs code that the user has not permitted."""
    definition = _find_definition(task, include_paths)
    require_code_consent(definition)
    return definition


def _find_definition(task: str, include_paths: Sequence[Path]) -> TaskDefinition:
    known = read_folders(tuple(include_paths))
    if task in known:
        return known[task]
    if task.startswith(("wpn_", "lab_")):
        raise unknown_name("task", task, known)  # a misspelt name of our tasks: reading all of lm-eval's is not needed
    lm_eval_tasks = _task_manager(tuple(include_paths), True).task_index
    entry = lm_eval_tasks.get(task)
    if entry is None or entry.yaml_path is None:
        raise unknown_name("task", task, close_matches(task, [*known, *lm_eval_tasks]) or known)
    return read_folders((Path(entry.yaml_path).parent,))[task]


# --- evaluation ---


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
    """Evaluate a model on one task.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        task: Name of the task.
        limit: Number of documents; None is all.
        batch_size: Prompts per batch of tasks that generate text.
        device: The model is moved to this device, unless it is spread over several or offloaded.
        include_paths: Folders of task files.
        revision: Commit of the data set; None resolves it.
        progress: Called with the number of requests (documents x choices) and the unit; returns the function to call
            with each n done.

    Returns:
        The result.

    Raises:
        UserError: The task is unknown or reports no accuracy, or its data is not available at that commit.
    """
    import lm_eval

    from wpn_bench.engine.placement import is_spread

    definition = _permitted_definition(task, include_paths)
    if not is_spread(model):
        model.to(device)
    with quiet_lm_eval():
        loaded = _zero_shot(_load_task(definition, include_paths, revision))
        # `simple_evaluate` would also set the seeds of Python, numpy and torch, which changes the caller's state (nothing
        # here is random), and run git and pip to describe the machine, which takes seconds and prints errors of git.
        results = lm_eval.evaluate(
            lm=_language_model(model, tokenizer, batch_size, progress),
            task_dict={"tasks": {task: loaded}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert results is not None  # it is None only on ranks other than 0, and this is a single process
    reported = results["results"][task]
    metrics = {
        name.partition(",")[0]: float(value)
        for name, value in reported.items()
        if name.endswith(",none") and isinstance(value, (int, float)) and "_stderr" not in name
    }
    accuracy = next((a for a in _ACCURACIES if a in metrics), None)
    if accuracy is None:
        known = ", ".join(sorted(metrics)) or "none"
        raise UserError(f"the task {task!r} reports no accuracy (its metrics: {known})", "remove it from --tasks")
    documents = tuple(_document(loaded, sample, accuracy) for sample in results["samples"][task])
    return BenchmarkResult(task, short_name(task), metrics[accuracy], len(documents), metrics, documents)


def run_benchmark_stage(ctx: StageContext) -> None:
    """Run the stage `benchmark`, which evaluates the input `model` on one task.

    Parameters: `task`, `limit`, `batch_size`, `revision`, `dtype` and, optionally, `definition`, the expected digest of the
    task. Local settings: `include_paths` (names of folders in tasks/, or paths), `device`, `offload`. Writes `result.json`
    and `documents.parquet` (the fields of `DocumentResult`, in order of doc_id).
    """
    import pandas as pd

    from wpn_bench import models
    from wpn_bench.core.files import write_json

    params = ctx.params
    folders = task_folders(ctx.local.get("include_paths", ("benchmarks",)))
    # The files may have changed, or may differ on this machine, since the run computed the digest.
    if params.get("definition", digest := _permitted_definition(params["task"], folders).digest) != digest:
        raise UserError(
            f"the file of task {params['task']!r} has changed since the start of the run",
            "run the command again (all machines need the same task files)",
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
        # JSON has no infinity, which occurs as LAMBADA's perplexity of a broken model.
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
    """Create the task manager, once per process. Reading lm-eval's 14,000 task files takes ten seconds."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=[str(f) for f in folders], include_defaults=with_defaults)


def clear_task_cache() -> None:
    """Forget all task files, so that they are read again."""
    read_folders.cache_clear()
    _task_manager.cache_clear()


def _load_task(definition: TaskDefinition, include_paths: Sequence[Path], revision: str | None) -> ConfigurableTask:
    """Load a task and its data, at `revision` if the data is on the hub."""
    manager = _task_manager(*_manager_key(definition.name, include_paths))
    entry = manager.task_index.get(definition.name)
    if entry is None or entry.yaml_path is None or entry.yaml_path.resolve() != definition.path.resolve():
        # The task is declared twice. lm-eval takes the first file, which is not the one whose consent was checked.
        raise UserError(f"the task {definition.name!r} is declared twice in its folder", "rename one of them")
    _check_metrics(definition)
    # lm-eval's documented way to change fields of a task is a group with one member.
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
    """Reject unknown metrics: lm-eval would search the hub for them and run the code that it finds."""
    from lm_eval.api import metrics, registry  # noqa: F401 - importing metrics fills the registry

    metric_names = [m.get("metric") for m in definition.fields.get("metric_list") or () if isinstance(m, dict)]
    names = [name for name in metric_names if isinstance(name, str) and name not in definition.functions]
    unknown = [name for name in names if name not in registry.metric_registry]
    if unknown and not consent.code_allowed():
        raise UserError(
            f"the task {definition.name!r} has the metric {unknown[0]!r}, which lm-eval would download from the hub and run",
            "add --trust-remote-code (`trust_remote_code: true`), or use a metric that lm-eval knows",
        )


def _zero_shot(task: ConfigurableTask) -> ConfigurableTask:
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def load_task(task: str, include_paths: Sequence[Path], revision: str | None) -> ConfigurableTask:
    """Load a task as `evaluate_task` uses it.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.
        revision: Commit of the data set; None resolves it.

    Returns:
        The lm-eval task.

    Raises:
        UserError: The task is unknown, or its data cannot be read.
    """
    with quiet_lm_eval():
        return _zero_shot(_load_task(_permitted_definition(task, include_paths), include_paths, revision))


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval and `datasets`, run templates in a sandbox, and stop lm-eval from starting processes."""
    # The processes that its bootstrap forks sometimes hang.
    with _quiet(), hub.quiet_libraries(), _sandboxed_templates(), environment_variables(DISABLE_MULTIPROC="1"):
        yield


@contextmanager
def _sandboxed_templates() -> Iterator[None]:
    """Render templates of task files in a sandbox. In lm-eval's own environment they could access any Python object."""
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
    """Return the fields that make a task read its data at a fixed commit; none for local data and data made by code."""
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
    """Return the branch, tag or commit of the data set in a task file."""
    options = fields.get("dataset_kwargs")
    revision = options.get("revision") if isinstance(options, dict) else None
    return None if revision is None else str(revision)


def _language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress | None
) -> Any:
    from lm_eval.api.model import CacheHook

    from wpn_bench.benchmarks.language_model import WpnHF

    class CountingHook(CacheHook):
        """Counts generated answers: lm-eval calls its cache hook for each of them (no cache is used here)."""

        def __init__(self, advance: Callable[[int], None]) -> None:
            super().__init__(None)
            self.advance = advance

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            if attr == "generate_until":
                self.advance(1)

    class SilentModel(WpnHF):
        """Reports progress to the caller in place of lm-eval's progress bars."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            if journal.is_sharded():  # lm-eval's own loop has no per-item checkpoint
                return [""] * len(requests)
            if progress is not None:
                self.set_cache_hook(CountingHook(progress(len(requests), "requests")))
            return super().generate_until(requests, disable_tqdm=True)

        @contextmanager
        def counting(self, total: int, disable: bool) -> Iterator[Callable[[int], object]]:
            yield progress(total, "requests") if progress is not None else lambda n: None

    # A copy, because lm-eval may add a padding token to the tokenizer.
    return SilentModel(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


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
    """Return the correct choice. If the choices are contexts (WinoGrande), lm-eval's "text" is its index."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    first = gold[0] if isinstance(gold, list) else gold
    return choices[first] if isinstance(first, int) else str(first)


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable progress bars and messages of lm-eval. Errors are still raised."""
    import lm_eval.api.task as task_module

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.ERROR)
    # The progress bar over the construction of prompts is the only one without a switch.
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
