"""Count the near duplicates between test sets and a forget set by threshold, print pairs around the threshold, and time the search.

    python benchmarks/leakage.py --forget lab_forget --tests lab_in_domain,lab_ood_games
    python benchmarks/leakage.py --forget advbench --tests advbench        # a set against itself
    python benchmarks/leakage.py --forget pku_forget --tests pku_test,advbench --time 10000

Sets are names or files, as for `wpn-bench full`. A cell shows near duplicates + siblings (prompts that differ only in a name or
number).
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence

from wpn_bench.prompts import Item, item_id, load_prompts, spec_for
from wpn_bench.prompts.leakage import Match, Reference

THRESHOLDS = (0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


def load(name: str) -> tuple[Item, ...]:
    return load_prompts(spec_for(name, role="ood", kind="question")).items


def matches(reference: Reference, items: Sequence[Item]) -> list[Match]:
    """Return the matches as in a run; for a set against itself, those between its two halves."""
    if reference.items != tuple(items):
        return reference.matches(items)
    half = len(items) // 2
    return Reference(items[:half], reference.threshold).matches(items[half:])


def mixed(prompts: Sequence[str], n: int, seed: int) -> list[Item]:
    """Return `n` distinct prompts, each made of the beginning of one of `prompts` and the end of another."""
    draw = random.Random(seed)
    made: dict[str, Item] = {}
    while len(made) < n:
        one, other = draw.choice(prompts).split(), draw.choice(prompts).split()
        prompt = " ".join([*one[: draw.randint(2, 7)], *other[-draw.randint(2, 8) :]])
        made.setdefault(item_id(prompt), Item(item_id(prompt), prompt))
    return list(made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forget", default="lab_forget")
    parser.add_argument("--tests", default="lab_in_domain,lab_ood_notes,lab_ood_mistakes,lab_ood_games,lab_ood_looks")
    parser.add_argument("--examples", type=int, default=6, help="pairs of each set, the nearest to 0.75 first")
    parser.add_argument("--time", type=int, default=0, help="prompts on either side")
    args = parser.parse_args()
    forget = load(args.forget)
    tests = {name: load(name) for name in args.tests.split(",")}
    references = {t: Reference(forget, t) for t in THRESHOLDS}
    print(f"| set, against {args.forget} ({len(forget)}) | n |", *(f" {t} |" for t in THRESHOLDS))
    print("|---|---|" + "---|" * len(THRESHOLDS))
    for name, items in tests.items():
        found = [Counter(m.kind for m in matches(references[t], items)) for t in THRESHOLDS]
        cells = [f"{kinds['near']} + {kinds['sibling']}" for kinds in found]
        same = f" ({found[0]['same']} the same)" if found[0]["same"] else ""
        print(f"| {name}{same} | {len(items)} | {' | '.join(cells)} |")
    for name, items in tests.items():
        pairs = [m for m in matches(references[min(THRESHOLDS)], items) if m.kind != "same"]
        for m in sorted(pairs, key=lambda m: abs(m.similarity - 0.75))[: args.examples]:
            print(f"{name}: {m.kind} {m.similarity:.2f}: {m.item.prompt!r} beside {m.other.prompt!r}")
    if args.time:
        prompts = [i.prompt for items in (forget, *tests.values()) for i in items]
        one, other = mixed(prompts, args.time, 1), mixed(prompts, args.time, 2)
        began, worked = time.perf_counter(), time.process_time()
        found_ = Reference(one).matches(other)
        print(
            f"{args.time:,} against {args.time:,}: {time.process_time() - worked:.1f} s of processor,"
            f" {time.perf_counter() - began:.1f} s of the clock; {len(found_)} matches"
        )


if __name__ == "__main__":
    main()
