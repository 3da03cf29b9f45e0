"""Our task files through `evaluate_task` against lm-eval's own tasks through lm-eval, on real data."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.hub, pytest.mark.slow]

LIMIT = 20

# lm-eval's own name of each. Its pubmedqa reads a script that `datasets` refuses: our file, plain lm-eval.
THEIRS = {
    "lambada": "lambada_openai",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "copa": "copa",
    "arc_easy": "arc_easy",
    "arc_challenge": "arc_challenge",
    "piqa": "piqa",
    "mathqa": "mathqa",
    "pubmedqa": "wpn_pubmedqa",
}

OURS_CODE = """
import json, sys
from dataclasses import asdict
from wpn_bench import models
from wpn_bench.benchmarks.run import describe, evaluate_task, expand, task_folders
folders = task_folders(["benchmarks"])
model, tokenizer = models.load(models.resolve("facebook/opt-125m").path)
out = {}
for task in expand(["wpn_nine"], folders):
    info = describe(task, folders)
    result = evaluate_task(
        model, tokenizer, task, limit=int(sys.argv[1]), include_paths=folders, revision=info.revision)
    out[result.short] = asdict(result) | {"revision": info.revision}
# A user's own list may name lm-eval's tasks.
theirs = evaluate_task(model, tokenizer, "copa", limit=int(sys.argv[1]), include_paths=folders)
out["theirs by name"] = asdict(theirs)
print("RESULT" + json.dumps(out))
"""

PLAIN_CODE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path="tasks/benchmarks")
out = {}
for short, task in json.loads(sys.argv[2]).items():
    results = lm_eval.simple_evaluate(
        model="hf", model_args="pretrained=facebook/opt-125m,dtype=float32", tasks=[task], device="cpu",
        batch_size=16, limit=int(sys.argv[1]), bootstrap_iters=0, log_samples=True, task_manager=manager)
    samples = results["samples"][task]
    out[short] = {
        "accuracy": results["results"][task]["acc,none"],
        "acc_norm": results["results"][task].get("acc_norm,none"),
        "correct": [s["acc"] == 1 for s in samples],
        "loglikelihoods": [[r[0] for r in s["filtered_resps"]] for s in samples],
    }
print("RESULT" + json.dumps(out))
"""


def _result(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.rpartition("RESULT")[2])


@pytest.fixture(scope="module")
def ours(hub_endpoint: dict[str, str], run_python: Run) -> Any:
    return _result(run_python(OURS_CODE, hub_endpoint, str(LIMIT)))


@pytest.fixture(scope="module")
def theirs(hub_endpoint: dict[str, str], run_python: Run) -> Any:
    return _result(run_python(PLAIN_CODE, hub_endpoint, str(LIMIT), json.dumps(THEIRS)))


@pytest.mark.parametrize("name", THEIRS)
def test_accuracies_and_answers_are_equal(name: str, ours: Any, theirs: Any) -> None:
    mine, plain = ours[name], theirs[name]
    assert mine["n"] == LIMIT
    assert mine["accuracy"] == plain["accuracy"]
    assert mine["metrics"].get("acc_norm") == plain["acc_norm"]
    assert [d["correct"] for d in mine["documents"]] == plain["correct"]
    for document, expected in zip(mine["documents"], plain["loglikelihoods"], strict=True):
        assert document["loglikelihoods"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", THEIRS)
def test_prediction_and_target_agree_with_the_score(name: str, ours: Any) -> None:
    for document in ours[name]["documents"]:
        same = document["prediction"] == document["target"]
        # Two choices may read alike (MathQA has such documents): then the same text can be the wrong choice.
        assert same or not document["correct"]


def test_every_revision_is_a_commit(ours: Any) -> None:
    assert all(len(ours[name]["revision"]) == 40 for name in THEIRS)


def test_lm_evals_own_task_by_name(ours: Any) -> None:
    assert [d["loglikelihoods"] for d in ours["theirs by name"]["documents"]] == [
        d["loglikelihoods"] for d in ours["copa"]["documents"]
    ]
