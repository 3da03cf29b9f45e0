"""Our benchmark scores and time against lm-eval's own `hf` model: same model, tasks, batch size, one process.

    python benchmarks/against_lm_eval.py                                    # the lab's nine on the lab's base model
    python benchmarks/against_lm_eval.py --model facebook/opt-125m --tasks wpn_nine --limit 100

Prints one row a task: both accuracies, whether every document has the same answer and log-likelihoods, and the ratio of
times (below 1: ours is faster). Exits with 1 if any score differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from wpn_bench import models
from wpn_bench.benchmarks.run import evaluate_task, expand, task_folders

LAB = (
    "lab_lambada,lab_hellaswag,lab_winogrande,lab_copa,lab_arc_easy,lab_arc_challenge,lab_piqa,lab_mathqa,lab_pubmedqa"
)


def plain(path: Path, task: str, folders: list[Path], limit: int | None, batch_size: int) -> dict:
    """The task by `lm_eval.simple_evaluate`, model loaded by lm-eval itself."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(path), "dtype": "float32", "device": "cpu"},
        tasks=[task],
        limit=limit,
        batch_size=batch_size,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=TaskManager(include_path=[str(f) for f in folders], include_defaults=False),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--tasks", default=LAB)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    path = models.resolve(options.model).path
    model, tokenizer = models.load(path)
    folders = [Path(f) for f in task_folders(("benchmarks", "lab"))]
    rows, ratios, equal = [], [], True
    for task in expand(options.tasks.split(","), folders):
        pairs = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            ours = evaluate_task(
                model, tokenizer, task, limit=options.limit, batch_size=options.batch_size, include_paths=folders
            )
            middle = time.perf_counter()
            theirs = plain(path, task, folders, options.limit, options.batch_size)
            pairs.append((middle - start) / (time.perf_counter() - middle))
        accuracy = theirs["results"][task]["acc,none"]
        samples = sorted(theirs["samples"][task], key=lambda s: s["doc_id"])
        documents = sorted(ours.documents, key=lambda d: d.doc_id)
        same_answers = [d.correct for d in documents] == [s["acc"] == 1.0 for s in samples]
        apart = max(
            (
                abs(a - float(b[0]))
                for d, s in zip(documents, samples, strict=True)
                for a, b in zip(d.loglikelihoods, s["filtered_resps"], strict=True)
            ),
            default=0.0,
        )
        equal &= accuracy == ours.accuracy and same_answers
        ratios.append(median(pairs))
        rows.append((task, ours.n, ours.accuracy, accuracy, same_answers, apart, median(pairs)))
    print(f"{'task':20s} {'n':>6s} {'ours':>8s} {'lm_eval':>8s} {'answers':>8s} {'max |dll|':>10s} {'time ratio':>10s}")
    for task, n, ours_, theirs_, same, apart, ratio in rows:
        print(
            f"{task:20s} {n:6d} {ours_:8.4f} {theirs_:8.4f} {'equal' if same else 'DIFFER':>8s} {apart:10.2g} {ratio:10.2f}"
        )
    print("every score equal" if equal else "SCORES DIFFER")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
