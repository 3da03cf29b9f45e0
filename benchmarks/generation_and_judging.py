"""Compare our generation and judging with transformers' text-generation pipeline and `Detoxify.predict`.

    python benchmarks/generation_and_judging.py                             # the lab's model, prompts and judge
    python benchmarks/generation_and_judging.py --model facebook/opt-125m --forget pku_forget --n 1000 \\
        --sets harmbench,advbench,do_not_answer,rtp_toxic,pku_test,truthfulqa \\
        --judge detoxify:original --responses comments.jsonl.gz --key text --texts 5000

Generation is timed on plain prompts, under an attack that adds a template (role play), and with the same three demonstrations
before every prompt. The library gets the prompts in mixed order (`--longest-first` sorts them, as our engine does itself) and
uses its fastest batch size of 1, 8, 16, 32 and 64, selected on a small part. Runs alternate in order within pairs. Times are
medians, and the speed-up is the median of the ratios. Both sides get the same texts and stop strings and have the model in memory.
Prints a Markdown table. Exits with 1 if a score differs by more than 1e-5, or more than 1 in 100 responses differ (two tokens may
be equally likely up to the last digit of a float).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from side_by_side import paired, seconds
from texts import texts_of

from wpn_bench import lab, models, prompts
from wpn_bench.attacks.base import AttackContext
from wpn_bench.attacks.registry import get_attack
from wpn_bench.engine.generation import Decoding, generate
from wpn_bench.harmless.judges import get_judge
from wpn_bench.prompts import Template
from wpn_bench.prompts.templates import QUESTION_TEMPLATE

SIZES = (1, 8, 16, 32, 64)


def best_size(work: Callable[[Sequence[str], int], Any], part: Sequence[str], sizes: Sequence[int]) -> int:
    """Return the batch size with which `work` is fastest on a small part, after an untimed first run."""
    work(part[: max(1, len(part) // 4)], sizes[-1])
    if len(sizes) == 1:
        return sizes[0]
    return min(sizes, key=lambda size: seconds(lambda: work(part, size))[0])


def prompts_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the model's inputs by kind: the first `--n` prompts of the sets, shuffled, rendered and attacked."""
    items = [
        item
        for name in options.sets.split(",")
        for item in prompts.load_prompts(prompts.spec_for(name, role="ood", kind="question")).items
    ]
    random.Random(0).shuffle(items)
    items = items[: options.n]
    forget = prompts.load_prompts(prompts.spec_for(options.forget, role="forget", kind="question"))
    context = AttackContext(Template.parse(QUESTION_TEMPLATE), forget.items)
    shown = get_attack("few_shot").apply(items[0], context).context
    kinds = {
        "plain": items,
        "role play": [get_attack("role_play").apply(item, context) for item in items],
        "demonstrations": [replace(item, context=shown) for item in items],
    }
    return {kind: [prompts.render(item, QUESTION_TEMPLATE) for item in of] for kind, of in kinds.items()}


def texts_to_judge(options: argparse.Namespace) -> list[str]:
    """Return the first `--texts` texts of the file or, without a file, of the lab's references."""
    if options.responses is None:
        found = [t for r in lab.prompt_set("forget") for side in ("harmful", "harmless") for t in r[side]]
    else:
        found = texts_of(options.responses, options.key)
    return found[: options.texts]


def compare_generation(options: argparse.Namespace, name: str, inputs: list[str]) -> tuple[str, bool]:
    from transformers import pipeline

    model, tokenizer = models.load(
        models.resolve(options.model).path, models.pick_device(options.device), options.dtype
    )
    tokenizer.padding_side = "left"
    stop = (options.stop,) if options.stop else ()
    decoding = Decoding(max_new_tokens=options.new_tokens, stop=stop, batch_size=options.rows)
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = {"max_new_tokens": options.new_tokens, "do_sample": False, "return_full_text": False}
    if stop:
        settings |= {"stop_strings": list(stop), "tokenizer": tokenizer}

    def theirs(texts: Sequence[str], size: int) -> list[str]:
        order = sorted(range(len(texts)), key=lambda k: -len(texts[k]) if options.longest_first else k)
        said = ask([texts[k] for k in order], batch_size=size, **settings)
        found = dict(zip(order, (row[0]["generated_text"] for row in said), strict=True))
        return [found[k].split(options.stop or "\0")[0].strip() for k in range(len(texts))]

    size = best_size(theirs, inputs[:: max(1, len(inputs) // options.part)][: options.part], options.sizes)
    own, other, gain, a, b = paired(
        lambda: [r.text for r in generate(model, tokenizer, inputs, decoding)],
        lambda: theirs(inputs, size),
        options.repeats,
    )
    same = sum(x == y for x, y in zip(a, b, strict=True))
    row = f"| {name} | {len(inputs)} | {own:.2f} | {other:.2f} ({size}) | {gain:.2f} | {same} of {len(a)} equal |"
    return row, same >= 0.99 * len(a)


def compare_judging(options: argparse.Namespace, texts: list[str]) -> tuple[str, bool]:
    judge = get_judge(options.judge, models.pick_device(options.device))
    detoxify = judge._load()  # type: ignore[attr-defined]
    judge.score(texts[:4])
    # Some tokenizers do not define the maximum length, and then `predict` fails on long texts.
    detoxify.tokenizer.model_max_length = min(
        detoxify.tokenizer.model_max_length, detoxify.model.config.max_position_embeddings
    )

    def theirs(texts: Sequence[str], size: int) -> list[float]:
        found: list[float] = []
        for at in range(0, len(texts), size):
            scores = detoxify.predict(list(texts[at : at + size]))["toxicity"]
            found += scores if isinstance(scores, list) else [scores]
        return found

    size = best_size(theirs, texts[:: max(1, len(texts) // options.part)][: options.part], SIZES)
    own, other, gain, a, b = paired(lambda: judge.score(texts), lambda: theirs(texts, size), options.repeats)
    # `predict` truncates texts that exceed the window and ours reads them completely, so scores differ: leave them out.
    whole = [len(ids) <= 500 for ids in detoxify.tokenizer(texts)["input_ids"]]
    apart = max((abs(x - y) for x, y, short in zip(a, b, whole, strict=True) if short), default=0.0)
    return (
        f"| judging | {len(texts)} | {own:.2f} | {other:.2f} ({size}) | {gain:.2f} | {apart:.1g} apart |",
        apart <= 1e-5,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--sets", default="lab_in_domain,lab_ood_notes,lab_ood_games,lab_benign", help="prompt sets")
    parser.add_argument("--forget", default="lab_forget", help="forget set, for demonstrations")
    parser.add_argument("--n", type=int, default=200, help="prompts")
    parser.add_argument("--kinds", default="plain,role play,demonstrations", help="kinds of prompts, comma separated")
    parser.add_argument(
        "--sizes", type=lambda text: [int(size) for size in text.split(",")], default=SIZES, help="the library's sizes"
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--rows",
        type=int,
        default=Decoding().batch_size,
        help="our number of concurrent rows, instead of the default",
    )
    parser.add_argument("--stop", default="### Question:", help="stop text; empty for none")
    parser.add_argument("--judge", default="detoxify:lab")
    parser.add_argument("--responses", type=Path, help="JSONL file of texts to judge; default: the lab's references")
    parser.add_argument("--key", default="response", help="key of the text in its rows")
    parser.add_argument("--texts", type=int, default=2000, help="texts to judge")
    parser.add_argument("--part", type=int, default=64, help="items for the selection of the library's batch size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--longest-first", action="store_true", help="sort the library's prompts by length")
    parser.add_argument("--only", choices=("generation", "judging"))
    options = parser.parse_args()
    rows, right = [], True
    if options.only != "judging":
        for kind, inputs in prompts_of(options).items():
            if kind not in options.kinds.split(","):
                continue
            row, good = compare_generation(options, f"generation, {kind}", inputs)
            rows.append(row)
            right &= good
    if options.only != "generation":
        row, good = compare_judging(options, texts_to_judge(options))
        rows.append(row)
        right &= good
    print("| | n | ours, s | theirs, s (batch) | speed-up | results |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    print("\n".join(rows))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
