"""Measure how time per item and memory of scoring, generation and judging change with the number of items.

    python benchmarks/growth.py                                             # the lab's model and judge, 100 to 10,000 items
    python benchmarks/growth.py --what judging --judge detoxify:original --sizes 5000,50000 \\
        --texts comments.jsonl.gz --key text

Items are distinct pieces of real texts with 5 to 60 words, drawn in the same way for every size: a document with four
continuations to score, a prompt to answer with up to `--new-tokens` tokens, or a text to judge (with `--texts`: the unchanged texts
of the file). Every size runs in its own process, so that its peak memory is its own. Loading the model is not timed. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import seconds
from texts import texts_of

from wpn_bench import lab, models

WHAT = ("scoring", "generation", "judging")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--judge", default="detoxify:lab")
    parser.add_argument("--what", default=",".join(WHAT), help="of scoring, generation, judging")
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--texts", type=Path, help="JSONL file (or .gz) of texts to judge")
    parser.add_argument("--key", default="text", help="key of the text in its rows")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options, options.what, int(options.sizes))))
        return 0
    print("| | items | s | ms an item | peak memory, MB | of it while at work |", flush=True)
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for what in options.what.split(","):
        for n in options.sizes.split(","):
            again = [sys.executable, *sys.argv, "--one", "--what", what, "--sizes", n]
            told = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(told.strip().splitlines()[-1])
            print(
                f"| {what} | {found['n']} | {found['seconds']:.1f} | {1000 * found['seconds'] / found['n']:.2f} |"
                f" {found['peak']:.0f} | {found['peak'] - found['before']:.0f} |",
                flush=True,
            )
    return 0


def measured(options: argparse.Namespace, what: str, n: int) -> dict[str, float]:
    """Return seconds, and megabytes before the work and at its peak, after a warm-up with a few items."""
    do, items = {"scoring": scoring, "generation": generation, "judging": judging}[what](options, n)
    do(items[:8])
    before = peak()
    took, _ = seconds(lambda: do(items))
    return {"n": len(items), "seconds": took, "before": before, "peak": peak()}


def peak() -> float:
    """Return the peak memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


Work = tuple[Callable[[Any], Any], list[Any]]


def scoring(options: argparse.Namespace, n: int) -> Work:
    from wpn_bench.engine.likelihood import loglikelihoods
    from wpn_bench.models import context_length

    model, tokenizer = models.load(models.resolve(options.model).path, "cpu", "float32")
    piece = pieces(random.Random(n))
    documents = [(piece(), [" " + piece() for _ in range(4)]) for _ in range(n)]

    def do(documents: list[tuple[str, list[str]]]) -> None:
        pairs = []
        for context, choices in documents:
            begin = tokenizer(context)["input_ids"]
            pairs += [(begin, tokenizer(choice, add_special_tokens=False)["input_ids"]) for choice in choices]
        loglikelihoods(model, pairs, max_length=context_length(model))

    return do, documents


def generation(options: argparse.Namespace, n: int) -> Work:
    from wpn_bench.engine.generation import Decoding, generate

    model, tokenizer = models.load(models.resolve(options.model).path, "cpu", "float32")
    piece = pieces(random.Random(n))
    return partial(generate, model, tokenizer, decoding=Decoding(max_new_tokens=options.new_tokens)), [
        piece() for _ in range(n)
    ]


def judging(options: argparse.Namespace, n: int) -> Work:
    from wpn_bench.harmless.judges import get_judge

    judge = get_judge(options.judge, "cpu")
    if options.texts is None:
        piece = pieces(random.Random(n))
        return judge.score, [piece() for _ in range(n)]
    texts = texts_of(options.texts, options.key)
    random.Random(0).shuffle(texts)
    return judge.score, texts[:n]


def pieces(rng: random.Random) -> Callable[[], str]:
    """Generates texts of 5 to 60 words from pieces of the lab's texts."""
    words = " ".join(lab.texts("retain")).split()

    def piece() -> str:
        at, length = rng.randrange(len(words) - 60), rng.randint(5, 60)
        other = rng.randrange(len(words) - 60)
        return " ".join(words[at : at + length // 2] + words[other : other + length - length // 2])

    return piece


if __name__ == "__main__":
    sys.exit(main())
