"""Measure the error rates of `wpn-bench check` on synthetic paired answers with a known true change.

    python benchmarks/check_errors.py                       # 1,000 repetitions each
    python benchmarks/check_errors.py --repetitions 100 --sizes lab

Each repetition draws the answers of two models to the nine tasks and the prompt sets. Each item changes at random with
probability `--churn`, equally often in both directions, as benchmark answers do after any training. In addition, the new model
loses the true drop on every task, and nothing on the prompt sets. The required rates are:

    no drop            says "regression" at most 5 % of the time
    twice the margin   says "regression" at least 90 %
    the margin         says "pass" at most 5 %
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from wpn_bench.analysis.baselines import JUDGED, Answers, Bits, Reference
from wpn_bench.analysis.check import Checked, compared
from wpn_bench.analysis.comparability import Asked
from wpn_bench.runs.metrics import ACCURACY, BENCHMARK, BENCHMARK_AVERAGE, CHANCE

# Documents of the nine real tasks, and of the lab's; prompts by suite and set.
SIZES: dict[str, tuple[dict[str, int], dict[tuple[str, str], int]]] = {
    "real": (
        {
            "lambada": 5153,
            "hellaswag": 10042,
            "winogrande": 1267,
            "copa": 100,
            "arc_easy": 2376,
            "arc_challenge": 1172,
            "piqa": 1838,
            "mathqa": 2985,
            "pubmedqa": 1000,
        },
        {
            ("harmless", "in_domain"): 1000,
            ("ood", "a"): 500,
            ("ood", "b"): 400,
            ("attack", "typos"): 500,
            ("attack", "role_play"): 500,
            ("benign", "questions"): 800,
        },
    ),
    "lab": (
        dict.fromkeys(CHANCE, 180),
        {
            ("harmless", "in_domain"): 231,
            ("ood", "a"): 120,
            ("ood", "b"): 120,
            ("attack", "typos"): 231,
            ("attack", "role_play"): 231,
            ("benign", "questions"): 240,
        },
    ),
    "tiny": (dict.fromkeys(("lambada", "piqa"), 20), {("harmless", "in_domain"): 20}),
}
RIGHT = 0.6  # accuracy of the old model
HARMLESS = 0.95


def draw(
    rng: np.random.Generator, sizes: str, churn: float, drop: float, seeds: int, spread: float
) -> tuple[Reference, Reference]:
    """Draw old and new answers. `spread`: standard deviation between trainings of the true accuracy on the nine tasks."""
    tasks, prompts = SIZES[sizes]
    asked = [Asked(suite=BENCHMARK, name=t, n=n, items="", source="") for t, n in tasks.items()]
    asked += [Asked(suite=suite, name=name, n=n, items="", source="") for (suite, name), n in prompts.items()]
    sides: tuple[list[Answers], list[Answers]] = ([], [])
    shifts = [[float(rng.normal(0, spread)) if spread else 0.0 for _ in range(seeds)] for _ in sides]
    for one in asked:
        of_task = one.suite == BENCHMARK
        share = RIGHT if of_task else 0.02 if one.suite == "benign" else HARMLESS
        ground = rng.random(one.n) < share
        for side, answers in enumerate(sides):
            for seed in range(seeds):
                # Each training contributes half of the churn, also between two trainings of the same model.
                change = (drop * side - shifts[side][seed]) if of_task else 0.0
                values = _changed(rng, ground, churn / 2, change)
                flags = (
                    {ACCURACY: Bits.of(values)}
                    if of_task
                    else {
                        "harmless": Bits.of(values),
                        "coherent": Bits.of(np.ones(one.n, dtype=bool)),
                        "refusal": Bits.of(values),
                        JUDGED: Bits.of(np.ones(one.n, dtype=bool)),
                    }
                )
                answers.append(Answers(model="wpn", seed=seed, suite=one.suite, name=one.name, flags=flags))
    made: list[Any] = [Reference(about={}, ground={}, asked=asked, answers=answers) for answers in sides]
    return made[0], made[1]


def _changed(rng: np.random.Generator, ground: Any, churn: float, drop: float) -> Any:
    """Change an expected fraction `churn` of the answers, equally in both directions, and lose another fraction `drop`."""
    right = float(ground.mean())
    lose = (churn / 2 + max(drop, 0.0)) / max(right, 1e-9)
    gain = (churn / 2 + max(-drop, 0.0)) / max(1 - right, 1e-9)
    u = rng.random(len(ground))
    return np.where(ground, u >= lose, u < gain)


def verdicts(
    sizes: str, churn: float, drop: float, margin: float, seeds: int, spread: float, repetitions: int
) -> Iterator[Checked]:
    rng = np.random.default_rng([repetitions, round(1e4 * churn), round(1e4 * drop), seeds, round(1e4 * margin)])
    for _ in range(repetitions):
        old, new = draw(rng, sizes, churn, drop, seeds, spread)
        yield Checked("wpn", "", tuple(compared(new, old, "wpn", "wpn", margin)), ())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--sizes", default="real,lab", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--churn", default="0.05,0.1", help="fractions of items that change at random")
    parser.add_argument("--margin", type=float, default=2.0, help="points")
    parser.add_argument("--seeds", default="1,3", help="trainings a side")
    parser.add_argument(
        "--spread", type=float, default=0.5, help="standard deviation between trainings, in percentage points"
    )
    options = parser.parse_args()
    margin = options.margin / 100
    # statsmodels runs the garbage collector in every call; freezing makes it skip the imported modules.
    list(verdicts("tiny", 0.1, 0.0, margin, 1, 0.0, 1))
    gc.freeze()
    print(
        "| items | churn | trainings | true drop | regression | pass | inconclusive | benchmark average alone: regression |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for sizes in options.sizes.split(","):
        for churn in map(float, options.churn.split(",")):
            for seeds in map(int, options.seeds.split(",")):
                for drop in (0.0, margin, 2 * margin):
                    spread = options.spread / 100 if seeds > 1 else 0.0
                    found = Counter[str]()
                    for checked in verdicts(sizes, churn, drop, margin, seeds, spread, options.repetitions):
                        found[checked.outcome] += 1
                        average = next(f for f in checked.findings if f.target.where == BENCHMARK_AVERAGE)
                        found["average"] += average.outcome == "regression"
                    shares = [found[k] / options.repetitions for k in ("regression", "pass", "inconclusive", "average")]
                    cells = " | ".join(f"{share:.1%}" for share in shares)
                    print(f"| {sizes} | {churn:.0%} | {seeds} | {100 * drop:g} points | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
