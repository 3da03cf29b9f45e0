"""Stored answers through lm-eval once more: its own code makes results and samples of them, without any model.

What a run does not keep is not made up: of multiple choice whether greedy decoding would write the choice (`is_greedy`)
is "n/a" in the samples.
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
from wpn_bench.benchmarks.run import FEWSHOT_SEED, load_task, quiet_lm_eval
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "n/a"


class Unknown(int):
    """Zero to lm-eval's arithmetic (it looks at `is_greedy` for a metric that our tasks do not report), "n/a" in print."""

    def __repr__(self) -> str:
        return UNKNOWN

    __str__ = __repr__


def replay(
    answers: Mapping[tuple[str, str | None], pd.DataFrame], folders: Sequence[str], limit: int | None
) -> dict[str, Any]:
    """lm-eval's results, with `samples`, of the documents of each (task, revision of its data).

    Raises `UserError` where the data is not what was answered: another document hash, or another verdict.
    """
    import lm_eval
    from lm_eval.api.model import LM

    tasks: dict[str, Any] = {}
    stored: dict[str, dict[int, Any]] = {}
    for (task, revision), frame in answers.items():
        tasks[task] = load_task(task, task_folders(folders), revision)
        stored[task] = {int(row["doc_id"]): row for row in frame.to_dict("records")}

    class Stored(LM):
        """Answers from the table in place of a model's."""

        def loglikelihood(self, requests: Any) -> list[tuple[float, Any]]:
            return [self._answer(request) for request in requests]

        def _answer(self, request: Any) -> tuple[float, Any]:
            row = self._row(request)
            greedy = row["prediction"] is not None and row["prediction"] == row["prediction"]
            alone = tasks[request.task_name].OUTPUT_TYPE == "loglikelihood"
            return float(row["loglikelihoods"][request.idx]), greedy if alone else Unknown(0)

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            raise UserError("a task of rolling log-likelihoods cannot be exported", "leave it out of --benchmarks")

        def generate_until(self, requests: Any) -> list[str]:
            return [str(self._row(request)["prediction"]) for request in requests]

        def _row(self, request: Any) -> Any:
            row = stored[request.task_name].get(request.doc_id)
            if row is None:
                raise _changed(request.task_name)
            return row

    # A bootstrap has a bar and a line of its own, without a switch.
    rest = io.StringIO()
    with quiet_lm_eval(), contextlib.redirect_stderr(rest), contextlib.redirect_stdout(rest):
        # Errors in closed form need a positive number; so few draws, for a bootstrapped one, cost nothing.
        found: Any = lm_eval.evaluate(
            lm=Stored(), task_dict={"tasks": tasks}, limit=limit, bootstrap_iters=100, log_samples=True
        )
    for task, samples in found["samples"].items():
        for sample in samples:
            row = stored[task][sample["doc_id"]]
            accuracy = sample.get("acc", sample.get("exact_match"))
            if row["doc_hash"] != sample["doc_hash"] or bool(row["correct"]) != (float(accuracy) == 1.0):
                raise _changed(task)
    # As `simple_evaluate` says it; nothing in a run draws lots but the few-shot examples, and there are none.
    found["config"] = {"bootstrap_iters": 100, "gen_kwargs": {}, "use_cache": None, "batch_sizes": []}
    found["config"] |= {"random_seed": None, "numpy_seed": None, "torch_seed": None, "fewshot_seed": FEWSHOT_SEED}
    return dict(found)


def _changed(task: str) -> UserError:
    return UserError(
        f"the data of task {task!r} is not what this run was measured on",
        "export with the version of wpn-bench and the tasks that made the run",
    )


def save(results: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write `results_*.json` and `samples_*.jsonl` into `folder`/`name`, by lm-eval's own tracker; the paths."""
    from lm_eval.loggers import EvaluationTracker

    samples = results.pop("samples")
    # Who wrote this, in lm-eval's words; nothing is said of the machine, which need not be the one that measured.
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
    # The tracker warns of a file that it could not write and goes on.
    if len(written) != 1 + len(samples):
        raise UserError(f"{folder / name} cannot be written", "give another folder with --out")
    for path in written:
        os.chmod(path, 0o644)
    return written
