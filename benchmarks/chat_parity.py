"""Compare answers and benchmark scores of a chat model with those of transformers and lm-eval.

    python benchmarks/chat_parity.py --prompts instructions.jsonl --cache parity.jsonl

The model comes from the hub (`HF_ENDPOINT` names another hub), or is a folder. All comparisons are in float32.

Answers: the greedy tokens after each prompt in the model's chat template, against `transformers.generate` after
`apply_chat_template`, one prompt at a time. Scores: the benchmarks of `wpn_nine` against lm-eval's `hf` with lm-eval's own task
files, without and with its option `apply_chat_template`.

Every difference is printed with its near tie, the difference of the two largest logits or log-likelihoods. The exit code is 1
if an answer differs where there is no near tie, or if a score differs. With --cache, an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wpn_bench import models
from wpn_bench.benchmarks.definitions import task_folders
from wpn_bench.benchmarks.run import evaluate_task
from wpn_bench.benchmarks.selection import select
from wpn_bench.engine.decode import Rules, decode
from wpn_bench.engine.generation import end_tokens
from wpn_bench.models.ends import ends_of_model
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts.templates import choose_template

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEAR_TIE = 1e-3
# lm-eval's own names. Its pubmedqa needs a data set script, which `datasets` refuses; lm-eval reads our file instead.
THEIRS = {"wpn_lambada": "lambada_openai"} | {
    f"wpn_{name}": name for name in ("hellaswag", "winogrande", "copa", "arc_easy", "arc_challenge", "piqa", "mathqa")
}


class Cache:
    """Results by key, one JSON line each."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file and file.exists() else []
        self.known = {json.dumps(key): value for key, value in map(json.loads, lines)}

    def get(self, key: list[Any], compute: Callable[[], Any]) -> Any:
        """Return the result of a key, computed unless it is known."""
        name = json.dumps(key)
        if name not in self.known:
            self.known[name] = compute()
            if self.file:
                with self.file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps([key, self.known[name]]) + "\n")
        return self.known[name]


def without_ends(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens before the first end token."""
    return next((tokens[:k] for k, token in enumerate(tokens) if token in ends), tokens)


def compare_answers(model: Any, tokenizer: Any, prompts: list[str], new_tokens: int, cache: Cache) -> bool:
    """Print the comparison of the answers. Returns whether they differ only after near ties."""
    import torch

    rendered = [choose_template("chat", tokenizer).render(prompt) for prompt in prompts]
    ends = ends_of_model(model, tokenizer) | frozenset(end_tokens(tokenizer, rendered))
    encoded = encode_prompts(tokenizer, rendered)
    ours = decode(model, encoded, Rules(new_tokens, ends))
    equal, near, prompts_equal, ended = 0, 0, 0, 0
    for prompt, ids, mine in zip(prompts, encoded, ours, strict=True):
        messages = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        size = given["input_ids"].shape[1]

        def generate(given: Any = given, size: int = size) -> Any:
            with torch.inference_mode():
                out = model.generate(**given, max_new_tokens=new_tokens, do_sample=False)
            return out[0, size:].tolist()

        prompts_equal += given["input_ids"][0].tolist() == ids
        theirs = cache.get(["answer", prompt, new_tokens], generate)
        ended += any(token in ends for token in theirs)
        mine, theirs = without_ends(mine, ends), without_ends(theirs, ends)
        if mine == theirs:
            equal += 1
            continue
        shared = next(
            (k for k, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
        )
        with torch.inference_mode():
            top = model(torch.tensor([[*ids, *theirs[:shared]]])).logits[0, -1].topk(2)
        gap = float(top.values[0] - top.values[1])
        near += gap < NEAR_TIE
        words = [tokenizer.decode([int(k)]) for k in top.indices]
        print(f"{prompt[:60]!r}: differs at token {shared}, {words[0]!r} before {words[1]!r} by {gap:.2g}")
    print(
        f"prompts with equal tokens: {prompts_equal} of {len(prompts)}; answers with equal tokens: {equal}, different after a"
        f" near tie: {near}; answers that end by themselves: {ended}",
        flush=True,
    )
    return prompts_equal == len(prompts) and equal + near == len(prompts)


def their_scores(folder: Path, task: str, limit: int, chat: bool) -> dict[str, Any]:
    """Return lm-eval's accuracies and the log-likelihoods of each document."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = THEIRS.get(task, task)
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8),
        tasks=[theirs],
        limit=limit,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=[str(f) for f in task_folders(("benchmarks",))]),
        apply_chat_template=chat,
    )
    assert results is not None
    documents = sorted(results["samples"][theirs], key=lambda sample: sample["doc_id"])
    return {
        "accuracy": results["results"][theirs]["acc,none"],
        "acc_norm": results["results"][theirs].get("acc_norm,none"),
        "correct": [sample["acc"] == 1 for sample in documents],
        "loglikelihoods": [[answer[0] for answer in sample["filtered_resps"]] for sample in documents],
    }


def our_scores(model: Any, tokenizer: Any, task: str, limit: int, chat: bool) -> dict[str, Any]:
    """Return our accuracies and the log-likelihoods of each document."""
    folders = task_folders(("benchmarks",))
    found = evaluate_task(model, tokenizer, task, limit=limit, include_paths=folders, apply_chat_template=chat)
    documents = sorted(found.documents, key=lambda document: document.doc_id)
    return {
        "accuracy": found.accuracy,
        "acc_norm": found.metrics.get("acc_norm"),
        "correct": [document.correct for document in documents],
        "loglikelihoods": [list(document.loglikelihoods) for document in documents],
    }


def compare_scores(model: Any, tokenizer: Any, folder: Path, tasks: list[str], limit: int, cache: Cache) -> bool:
    """Print the comparison of the scores. Returns whether they are equal."""
    print("| task | chat template | n | acc | lm-eval's acc | same documents correct | largest difference, nats |")
    print("|---|---|---|---|---|---|---|")
    same = True
    for task in select(tasks, task_folders(("benchmarks",))).tasks:
        for chat in (False, True):
            ours = our_scores(model, tokenizer, task, limit, chat)
            theirs = cache.get(
                ["scores", task, limit, chat],
                lambda task=task, chat=chat: their_scores(folder, task, limit, chat),
            )
            pairs = list(zip(ours["loglikelihoods"], theirs["loglikelihoods"], strict=True))
            apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
            equal = all(ours[key] == theirs[key] for key in ("accuracy", "acc_norm", "correct"))
            same &= equal
            print(
                f"| {task} | {'yes' if chat else 'no'} | {len(pairs)} | {ours['accuracy']:.4f} | {theirs['accuracy']:.4f} |"
                f" {'yes' if equal else 'NO'} | {apart:.1e} |",
                flush=True,
            )
            for k, (mine, other) in enumerate(zip(ours["correct"], theirs["correct"], strict=True)):
                if mine != other:
                    best = sorted(theirs["loglikelihoods"][k])[-2:]
                    print(
                        f"  document {k}: {mine}, lm-eval {other}; the two most likely choices differ by {best[-1] - best[0]:.2g}"
                    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--prompts", type=Path, help="file with a JSON object with `prompt` on each line")
    parser.add_argument("--n", type=int, default=200, help="number of prompts")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--tasks", default="wpn_nine", help="names of our task files, comma separated")
    parser.add_argument("--limit", type=int, default=50, help="documents of each benchmark; 0: no benchmarks")
    parser.add_argument("--cache", type=Path, help="file for the results of transformers and lm-eval")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = models.resolve(options.model).path
    model, tokenizer = models.load(folder, "cpu", "float32")
    cache, passed = Cache(options.cache), True
    if options.prompts:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()[: options.n]
        passed &= compare_answers(
            model, tokenizer, [json.loads(line)["prompt"] for line in lines], options.new_tokens, cache
        )
    if options.limit:
        passed &= compare_scores(model, tokenizer, folder, options.tasks.split(","), options.limit, cache)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
