"""Evaluate models on benchmarks with lm-eval (Gao et al., "A framework for few-shot language model evaluation").

Tasks are zero-shot unless they set a number of few-shot examples. The default metric is the accuracy `acc` of lm-eval
0.4. For multiple choice, the answer is the choice with the highest summed log-likelihood. `engine.likelihood` computes
the log-likelihoods. They equal those of `lm_eval --model hf` up to the last digits of a float32. The answers are
therefore equal, unless two choices differ only in these digits.

lm-eval's response cache is not used, because its keys do not depend on the weights of the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import hub
from wpn_bench.benchmarks.checks import check_fields, rehearse
from wpn_bench.benchmarks.definitions import short_name, task_folders
from wpn_bench.benchmarks.loading import (
    clear_task_cache,
    declared_revision,
    load_configured,
    permitted_definition,
    pinned_fields,
    quiet_lm_eval,
    zero_shot,
)
from wpn_bench.benchmarks.scores import Score, choose_score
from wpn_bench.benchmarks.units import MEAN, Parts, higher_is_better
from wpn_bench.errors import UserError
from wpn_bench.hub import resolve_revision
from wpn_bench.jobs import journal
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wpn_bench.jobs.job import StageContext

__all__ = [
    "BenchmarkInfo",
    "BenchmarkResult",
    "DocumentResult",
    "clear_task_cache",
    "describe",
    "evaluate_task",
    "prefetch",
    "resolve_revision",
    "run_benchmark_stage",
    "short_name",
    "task_folders",
]

Progress = Callable[[int | None, str], Callable[[int], None]]


@dataclass(frozen=True)
class BenchmarkInfo:
    """Description of a benchmark.

    Attributes:
        name: Name of its task.
        short: Name in results.
        title: Name in reports.
        dataset_path: Name or path of its data set.
        dataset_name: Configuration of its data set.
        revision: Commit of its data set; None for local data, or if it was not resolved.
        digest: SHA-256 of its definition (see `TaskDefinition`).
        chance: Accuracy of random guesses, from 0 to 1; None if it is not declared.
        licence: Licence of its data.
        citation: Its paper.
        score: The metric and filter that score it; empty for the accuracy of a task without its own scoring.
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
    score: str = ""


@dataclass(frozen=True)
class DocumentResult:
    """The result of one document.

    Attributes:
        doc_id: Index of the document in the data set.
        doc_hash: lm-eval's hash of its content.
        target: Text of the correct choice.
        prediction: Text of the predicted choice. For tasks without choices, the target if greedy decoding would
            generate it, else None.
        correct: Whether the prediction is correct, that is, whether its score is 1. False for a score with its own unit.
        loglikelihoods: Log-likelihood of each choice in nats, or that of the document if the task measures whole documents.
        score: Score from 0 to 1, or in the unit of the task's metric (see `units.py`).
        response: The generated text before any filter; None for tasks that generate no text.
        weight: Weight of the document in the score of the task.
    """

    doc_id: int
    doc_hash: str
    target: str
    prediction: str | None
    correct: bool
    loglikelihoods: tuple[float, ...]
    score: float
    response: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class OwnUnit:
    """The score of a task that is no accuracy.

    Attributes:
        metric: lm-eval's name of the metric.
        higher_is_better: Its direction.
        scale: How its documents make up the score of the task: `mean`, `log` or `whole` (see `units.py`).
    """

    metric: str
    higher_is_better: bool
    scale: str


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of one benchmark.

    Attributes:
        task: Name of the task.
        short: Name in results.
        accuracy: Score of the task: the mean score over the documents, or a value in the unit of its metric.
        n: Number of documents.
        metrics: All metrics that lm-eval reports for the task.
        documents: Results of the documents.
        unit: The metric of a score that is no accuracy; None for an accuracy.
    """

    task: str
    short: str
    accuracy: float
    n: int
    metrics: Mapping[str, float]
    documents: tuple[DocumentResult, ...] = field(repr=False)
    unit: OwnUnit | None = None


# --- definitions ---


def describe(
    task: str,
    include_paths: Sequence[Path],
    *,
    resolve: bool = True,
    metrics: Mapping[str, str] | None = None,
    preferred: Sequence[Score] = (),
) -> BenchmarkInfo:
    """Describe a task and its data.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.
        resolve: Whether to find the commit of the data set on the hub. If not, no request is made and `revision` is
            None.
        metrics: Maps the name or pattern of tasks to the `METRIC[,FILTER]` that scores them.
        preferred: Scores that are chosen if the task has them and the user names none.

    Returns:
        The description.

    Raises:
        UserError: The task is unknown or a group, its file is wrong, it has no usable score, or its data is neither
            reachable nor cached.
    """
    definition = permitted_definition(task, include_paths)
    if definition.is_group:
        raise UserError(f"{task!r} is a group of tasks", "give the names of its tasks instead")
    if not definition.is_shipped:
        check_fields(definition)
    score = choose_score(definition, metrics, preferred)
    plain = score == Score("acc") and "process_results" not in definition.fields and "class" not in definition.fields
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
        revision=resolve_revision(path, name, declared_revision(fields))
        if resolve and path and not from_code
        else None,
        digest=definition.digest,
        chance=None if chance is None else float(chance),
        licence=str(about.get("licence", "")),
        citation=str(about.get("citation", "")),
        score="" if plain else str(score),
    )


def prefetch(task: str, include_paths: Sequence[Path], metrics: Mapping[str, str] | None = None) -> BenchmarkInfo:
    """Download a task's data into the cache, so that the task can run offline.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.
        metrics: See `describe`.

    Returns:
        The description of the task.

    Raises:
        UserError: The task is unknown, or its data cannot be downloaded.
    """
    info = describe(task, include_paths, metrics=metrics)
    if info.dataset_path is not None and info.revision is not None:
        definition = permitted_definition(task, include_paths)
        if reads_whole_data(task, include_paths, info.revision):
            hub.load_dataset(info.dataset_path, info.dataset_name, info.revision)
        else:  # lm-eval itself passes the data set options of this task to `datasets`
            with quiet_lm_eval():
                load_configured(definition, include_paths, info.revision)
    return info


def reads_whole_data(task: str, include_paths: Sequence[Path], revision: str | None) -> bool:
    """Return whether a task reads its data set on the hub without further options.

    Args:
        task: Name of the task.
        include_paths: Folders of task files.
        revision: Commit of the data set.

    Returns:
        True if the task sets no options for `datasets`.
    """
    return "custom_dataset" in pinned_fields(permitted_definition(task, include_paths), revision)


def rehearse_task(
    info: BenchmarkInfo,
    include_paths: Sequence[Path],
    limit: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    multiturn: bool = False,
) -> None:
    """Check a task with its data before a run. The tasks that come with wpn-bench need no check.

    Args:
        info: The task.
        include_paths: Folders of task files.
        limit: Number of documents; None means all.
        tokenizer: Tokenizer whose chat template is applied; None applies no chat template.
        multiturn: Whether few-shot examples are turns of the conversation.

    Raises:
        UserError: The task cannot be used. The message names the file and the field.
    """
    definition = permitted_definition(info.name, include_paths)
    if definition.is_shipped:
        return

    def chat(messages: Any, add_generation_prompt: bool = True) -> str:
        from lm_eval.models.huggingface import HFLM

        holder: Any = type("Holder", (), {"tokenizer": tokenizer, "chat_template_args": {}})()
        return str(HFLM.apply_chat_template(holder, messages, add_generation_prompt))

    score = Score.parse(info.score or "acc")
    rehearse(definition, include_paths, info.revision, score, limit, chat if tokenizer else None, multiturn)


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
    score: str = "",
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = False,
) -> BenchmarkResult:
    """Evaluate a model on one task.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        task: Name of the task.
        limit: Number of documents; None means all.
        batch_size: Number of prompts in a batch, for tasks that generate text.
        device: Device to which the model is moved, unless it is spread over several devices or offloaded.
        include_paths: Folders of task files.
        revision: Commit of the data set; None uses the latest commit.
        progress: Is called with the number of requests (documents x choices) and the unit. It returns a function that
            is called with the number of newly finished requests.
        score: The metric and filter that score the task; empty for the default.
        apply_chat_template: Whether prompts are put into the tokenizer's chat template, as in lm-eval.
        fewshot_as_multiturn: Whether few-shot examples are turns of the conversation, as in lm-eval.

    Returns:
        The result.

    Raises:
        UserError: The task is unknown, does not report its score, or does not say whether a higher score is better; or
            its data is not available at this commit.
    """
    import lm_eval

    from wpn_bench.engine.placement import is_spread

    definition = permitted_definition(task, include_paths)
    if not is_spread(model):
        model.to(device)
    with quiet_lm_eval():
        loaded = zero_shot(load_configured(definition, include_paths, revision))
        # `simple_evaluate` is not used. It would change the caller's random state, although nothing here is random. It
        # would also run git and pip to describe the machine, which takes seconds and prints errors of git.
        results = lm_eval.evaluate(
            lm=_language_model(model, tokenizer, batch_size, progress),
            task_dict={"tasks": {task: loaded}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
        )
        assert results is not None  # lm-eval returns None only on ranks other than 0, but this is a single process
        reported = results["results"][task]
        chosen = Score.parse(score) if score else choose_score(definition)
        metrics = {
            name.removesuffix(",none"): float(value)
            for name, value in reported.items()
            if "," in name and isinstance(value, (int, float)) and "_stderr" not in name
        }
        if (value := reported.get(chosen.key)) is None:
            known = ", ".join(sorted(metrics)) or "none"
            raise UserError(
                f"the task {task!r} reports no {chosen.key} (its metrics: {known})",
                f"choose one: --metric {task}=METRIC[,FILTER]",
            )
        higher = higher_is_better(task, results["higher_is_better"][task], chosen)
        parts = Parts(loaded, chosen.metric)
        samples = [sample for sample in results["samples"][task] if sample["filter"] == chosen.filter]
        found = [_document(loaded, one, *parts.of(one[chosen.metric], float(value))) for one in samples]
    unit = OwnUnit(chosen.metric, higher, parts.scale)
    if higher and parts.scale == MEAN and (broken := [one.doc_id for one in found if math.isnan(one.score)]):
        raise UserError(
            f"{chosen.metric!r} of the task {task!r} is not a number for document {broken[0]}",
            f"choose another: --metric {task}=METRIC[,FILTER]",
        )
    # A mean of values from 0 to 1 is an accuracy.
    if higher and parts.scale == MEAN and all(one.weight == 1.0 and 0 <= one.score <= 1 for one in found):
        return BenchmarkResult(task, short_name(task), float(value), len(found), metrics, tuple(found))
    documents = tuple(replace(one, correct=False) for one in found)
    return BenchmarkResult(task, short_name(task), float(value), len(documents), metrics, documents, unit)


def run_benchmark_stage(ctx: StageContext) -> None:
    """Run the stage `benchmark`, which evaluates the input `model` on one task.

    The parameters are `task`, `limit`, `batch_size`, `revision` and `dtype`. Optional parameters are `definition` (the
    expected digest of the task), `score`, `apply_chat_template` and `fewshot_as_multiturn`. The local settings are
    `include_paths` (names of folders in tasks/, or paths), `device` and `offload`. The stage writes `result.json` and
    `documents.parquet`, which has the fields of `DocumentResult` in the order of doc_id. Its columns `score` and
    `response` exist only with the parameter `score`. Its column `weight` and the fields of `OwnUnit` exist only if the
    score is no accuracy.
    """
    import pandas as pd

    from wpn_bench import models
    from wpn_bench.core.files import write_json

    params = ctx.params
    folders = task_folders(ctx.local.get("include_paths", ("benchmarks",)))
    # The files may have changed since the run computed the digest, or may differ on this machine.
    if params.get("definition", digest := permitted_definition(params["task"], folders).digest) != digest:
        raise UserError(
            f"the file of task {params['task']!r} has changed since the start of the run",
            "repeat the command (all machines need the same task files)",
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
        score=params.get("score", ""),
        apply_chat_template=params.get("apply_chat_template", False),
        fewshot_as_multiturn=params.get("fewshot_as_multiturn", False),
    )
    summary = {
        "task": result.task,
        "short": result.short,
        "accuracy": result.accuracy if math.isfinite(result.accuracy) else None,
        "n": result.n,
        # JSON has no infinity, which can be the perplexity of a broken model on LAMBADA.
        "metrics": {k: v if math.isfinite(v) else None for k, v in result.metrics.items()},
        "revision": params.get("revision"),
    }
    frame = pd.DataFrame([asdict(d) for d in result.documents]).sort_values("doc_id")
    if result.unit is None:
        frame = frame.drop(columns=["weight"] if "score" in params else ["weight", "score", "response"])
    else:
        frame = frame.assign(**asdict(result.unit))
    frame.to_parquet(ctx.out / "documents.parquet", index=False)
    write_json(ctx.out / "result.json", summary)


def _language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress | None
) -> Any:
    from lm_eval.api.model import CacheHook

    from wpn_bench.benchmarks.language_model import WpnHF

    class CountingHook(CacheHook):
        """Counts generated answers. lm-eval calls its cache hook for each of them, although no cache is used."""

        def __init__(self, advance: Callable[[int], None]) -> None:
            super().__init__(None)
            self.advance = advance

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            if attr == "generate_until":
                self.advance(1)

    class SilentModel(WpnHF):
        """Reports progress to the caller instead of showing lm-eval's progress bars."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            if journal.is_sharded():  # lm-eval's own loop does not use the journal
                return [""] * len(requests)
            if progress is not None:
                self.set_cache_hook(CountingHook(progress(len(requests), "requests")))
            return super().generate_until(requests, disable_tqdm=True)

        @contextmanager
        def counting(self, total: int, disable: bool) -> Iterator[Callable[[int], object]]:
            yield progress(total, "requests") if progress is not None else lambda n: None

    # The tokenizer is copied, because lm-eval may add a padding token to it.
    return SilentModel(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


def _document(task: ConfigurableTask, sample: Mapping[str, Any], score: float, weight: float) -> DocumentResult:
    answers = sample["filtered_resps"]
    lls: tuple[float, ...] = ()
    response = None
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(sample["doc"])
        lls = tuple(float(ll) for ll, _ in answers)
        best = max(range(len(choices)), key=lambda i: lls[i]) if not any(map(math.isnan, lls)) else None
        prediction = None if best is None else choices[best].strip()
        target = _gold(task, sample["doc"], choices).strip()
    elif task.OUTPUT_TYPE == "loglikelihood":
        lls = (float(answers[0][0]),)
        target = str(sample["target"]).strip()
        prediction = target if answers[0][1] else None
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":  # there is no answer, and the text is in the data set
        lls, target, prediction = (float(answers[0]),), "", None
    else:
        target, prediction, response = str(sample["target"]), str(answers[0]), str(sample["resps"][0][0])
    ids = int(sample["doc_id"]), str(sample["doc_hash"])
    return DocumentResult(*ids, target, prediction, score == 1.0, lls, score, response, weight)


def _gold(task: ConfigurableTask, doc: Any, choices: Sequence[str]) -> str:
    """Return the correct choice. If the choices are contexts (WinoGrande), lm-eval's target text is its index."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    first = gold[0] if isinstance(gold, list) else gold
    return choices[first] if isinstance(first, int) and 0 <= first < len(choices) else str(first)


STAGE = Stage(
    "wpn_bench.benchmarks.run:run_benchmark_stage",
    2,
    (*LM_LIBRARIES, "lm-eval", "datasets"),
    resumable=True,
    shardable=True,
    speed_params=("task",),
)
