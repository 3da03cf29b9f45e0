"""Convert stored answers to lm-eval's result and sample files with lm-eval's own code, without a model.

A value that a run does not store is "n/a" in the samples. For multiple choice, this is `is_greedy`, which tells whether
greedy decoding would generate the choice.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.benchmarks.loading import FEWSHOT_SEED, load_task, quiet_lm_eval
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "n/a"


class Unknown(int):
    """A 0 that prints as "n/a".

    lm-eval computes with the unknown value `is_greedy`, but only for a metric that wpn-bench does not report.
    """

    def __repr__(self) -> str:
        return UNKNOWN

    __str__ = __repr__


def replay(
    answers: Mapping[tuple[str, str | None], pd.DataFrame], folders: Sequence[str], limit: int | None
) -> dict[str, Any]:
    """Evaluate stored answers with lm-eval.

    Args:
        answers: Rows of `documents.parquet`, by task and revision of its data.
        folders: Names or paths of folders of task files.
        limit: Number of documents of each task that the run used; None means all.

    Returns:
        lm-eval's results, with `samples`.

    Raises:
        UserError: The data differs from that of the run: a document has another hash, or an answer another correctness.
    """
    import lm_eval
    import pandas as pd
    from lm_eval.api.model import LM

    tasks: dict[str, Any] = {}
    stored: dict[str, dict[int, Any]] = {}
    for (task, revision), frame in answers.items():
        tasks[task] = load_task(task, task_folders(folders), revision)
        stored[task] = {int(row["doc_id"]): row for row in frame.to_dict("records")}

    class Stored(LM):
        """A "model" that returns the stored answers."""

        def loglikelihood(self, requests: Any) -> list[tuple[float, Any]]:
            return [self._answer(request) for request in requests]

        def _answer(self, request: Any) -> tuple[float, Any]:
            row = self._row(request)
            greedy = row["prediction"] is not None and row["prediction"] == row["prediction"]
            alone = tasks[request.task_name].OUTPUT_TYPE == "loglikelihood"
            return float(row["loglikelihoods"][request.idx]), greedy if alone else Unknown(0)

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return [float(self._row(request)["loglikelihoods"][0]) for request in requests]

        def generate_until(self, requests: Any) -> list[str]:
            rows = [self._row(request) for request in requests]
            return [str(row["prediction"] if pd.isna(row.get("response")) else row["response"]) for row in rows]

        def _row(self, request: Any) -> Any:
            row = stored[request.task_name].get(request.doc_id)
            if row is None:
                raise _changed(request.task_name)
            return row

    # lm-eval's bootstrap prints a progress bar and a message, which cannot be disabled.
    output = io.StringIO()
    with quiet_lm_eval(), contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        # lm-eval needs a positive number even for standard errors in closed form. 100 samples cost almost nothing.
        found: Any = lm_eval.evaluate(
            lm=Stored(), task_dict={"tasks": tasks}, limit=limit, bootstrap_iters=100, log_samples=True
        )
    for task, samples in found["samples"].items():
        for sample in samples:
            row = stored[task][sample["doc_id"]]
            accuracy = sample.get("acc", sample.get("exact_match"))
            scored = accuracy is None or not pd.isna(
                row.get("score")
            )  # whether the user chose another metric or filter
            if row["doc_hash"] != sample["doc_hash"] or (
                not scored and bool(row["correct"]) != (float(accuracy) == 1.0)
            ):
                raise _changed(task)
    # `simple_evaluate` would add these entries. There are no seeds, because nothing in the evaluation is random. Only
    # few-shot examples would be, but there are none.
    found["config"] = {"bootstrap_iters": 100, "gen_kwargs": {}, "use_cache": None, "batch_sizes": []}
    found["config"] |= {"random_seed": None, "numpy_seed": None, "torch_seed": None, "fewshot_seed": FEWSHOT_SEED}
    return dict(found)


def _changed(task: str) -> UserError:
    return UserError(
        f"the data of task {task!r} differs from the data of this run",
        "export with the version of wpn-bench and the task files that were used for the run",
    )


def save(results: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write `results_*.json` and `samples_*.jsonl` with lm-eval's own code.

    Args:
        results: lm-eval's results, with `samples`.
        folder: Folder for the files.
        name: Name of the model, which is also the name of the subfolder.

    Returns:
        The written files.

    Raises:
        UserError: A file cannot be written.
    """
    from lm_eval.loggers import EvaluationTracker

    samples = results.pop("samples")
    # lm-eval would add these entries. Those about the machine are empty, because it may not be the one of the run.
    results |= {"git_hash": None, "date": time.time(), "pretty_env_info": None, "upper_git_hash": None}
    results |= {"transformers_version": version("transformers"), "lm_eval_version": version("lm_eval")}
    before = set((folder / name).glob("*"))
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_source = "wpn-bench"
    tracker.general_config_tracker.model_name = tracker.general_config_tracker.model_name_sanitized = name
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    finally:
        logger.setLevel(level)
    written = sorted(set((folder / name).glob("*")) - before)
    # lm-eval only prints a warning if it cannot write a file.
    if len(written) != 1 + len(samples):
        raise UserError(f"{folder / name} cannot be written", "choose another folder with --out")
    for path in written:
        os.chmod(path, 0o644)
    return written
