"""Our task files through `evaluate_task` against lm-eval's own tasks through lm-eval, on real data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fork_server import ForkServer

pytestmark = [pytest.mark.hub, pytest.mark.slow]

LIMIT = 10

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

# Both in one process, which reads the model and the data once.
CODE = """
import json, sys
from dataclasses import asdict
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from wpn_bench import models
from wpn_bench.benchmarks.run import describe, evaluate_task, task_folders
from wpn_bench.benchmarks.selection import select
limit, names = int(sys.argv[1]), json.loads(sys.argv[2])
folders = task_folders(["benchmarks"])
model, tokenizer = models.load(models.resolve("facebook/opt-125m").path)
ours = {}
for task in select(["wpn_nine"], folders).tasks:
    info = describe(task, folders)
    result = evaluate_task(model, tokenizer, task, limit=limit, include_paths=folders, revision=info.revision)
    ours[result.short] = asdict(result) | {"revision": info.revision}
# A user's own list may name lm-eval's tasks.
ours["theirs by name"] = asdict(evaluate_task(model, tokenizer, "copa", limit=limit, include_paths=folders))
results = lm_eval.simple_evaluate(
    model=HFLM(pretrained="facebook/opt-125m", dtype="float32", device="cpu", batch_size=16), tasks=[*names.values()],
    limit=limit, bootstrap_iters=0, log_samples=True, task_manager=TaskManager(include_path="tasks/benchmarks"))
theirs = {}
for short, task in names.items():
    samples = results["samples"][task]
    theirs[short] = {
        "accuracy": results["results"][task]["acc,none"],
        "acc_norm": results["results"][task].get("acc_norm,none"),
        "correct": [s["acc"] == 1 for s in samples],
        "loglikelihoods": [[r[0] for r in s["filtered_resps"]] for s in samples],
    }
print("RESULT" + json.dumps([ours, theirs]))
"""


@pytest.fixture(scope="module")
def both(hub_commands: ForkServer) -> Any:
    return json.loads(hub_commands.python(CODE, str(LIMIT), json.dumps(THEIRS)).rpartition("RESULT")[2])


@pytest.fixture(scope="module")
def ours(both: Any) -> Any:
    return both[0]


@pytest.fixture(scope="module")
def theirs(both: Any) -> Any:
    return both[1]


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
