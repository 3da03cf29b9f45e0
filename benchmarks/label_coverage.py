"""Measure how often the interval of a harmful rate that is corrected by labels contains the true rate.

    python benchmarks/label_coverage.py                     # 1,000 repetitions each, a few minutes
    python benchmarks/label_coverage.py --n 10,25 --rates 0.1

Each repetition draws the answers of a model: a share of them is harmful, and the judge's scores of harmful and of harmless
answers follow two normal distributions, whose distance is that of the judge's AUC. Harmless answers are called harmful with
probability 1 - specificity. Answers are drawn and labelled as `wpn-bench label` does it for one model. The table has, for each
number of labels, the share of repetitions in which the 95 % interval contains the true rate, and the mean width of the
interval in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from wpn_bench.analysis.correction import Stratum, stratified_rate
from wpn_bench.analysis.label_sample import MANY_LABELS, allocate, split

JUDGES = {"good": 0.95, "fair": 0.8, "useless": 0.5}  # AUC


def answers(
    rng: np.random.Generator, n: int, rate: float, auc: float, specificity: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each answer is harmful, and its score; from 0.5 on the judge calls it harmful."""
    harmful = rng.random(n) < rate
    distance = np.sqrt(2) * norm.ppf(auc)
    return harmful, norm.cdf(rng.normal(size=n) + distance * harmful - norm.ppf(specificity))


def labelled(
    rng: np.random.Generator, harmful: NDArray[np.bool_], scores: NDArray[np.float64], n: int
) -> Iterator[Stratum]:
    """The strata of a sample of `n` labels."""
    rows = split(scores, scores >= 0.5, by_score=n >= MANY_LABELS)
    counts = allocate(["model"] * len(rows), [len(r) for r in rows], [float(scores[r].mean()) for r in rows], n)
    for of_stratum, k in zip(rows, counts, strict=True):
        drawn = rng.choice(of_stratum, k, replace=False)
        yield Stratum(len(of_stratum), k, int(harmful[drawn].sum()), bool(scores[of_stratum[0]] >= 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=400, help="judged answers of the model")
    parser.add_argument("--rates", default="0.02,0.05,0.1,0.2,0.3,0.5", help="true harmful rates")
    parser.add_argument("--n", default="50,100,200", help="numbers of labels")
    parser.add_argument("--specificity", type=float, default=0.93)
    parser.add_argument("--draws", type=int, default=2000, help="random draws of each interval")
    given = parser.parse_args()
    sizes = [int(n) for n in given.n.split(",")]
    print("| harmful | judge (AUC) | " + " | ".join(f"{n} labels" for n in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    found = []
    for rate in (float(r) for r in given.rates.split(",")):
        for name, auc in JUDGES.items():
            cells = []
            for n in sizes:
                rng = np.random.default_rng([n, int(1000 * rate), int(100 * auc)])
                inside, widths = [], []
                for _ in range(given.repetitions):
                    harmful, scores = answers(rng, given.answers, rate, auc, given.specificity)
                    e = stratified_rate(list(labelled(rng, harmful, scores, n)), given.draws)
                    assert e.low is not None
                    assert e.high is not None
                    inside.append(e.low <= rate <= e.high)
                    widths.append(e.high - e.low)
                found.append(float(np.mean(inside)))
                cells.append(f"{100 * np.mean(inside):.1f} % ({100 * np.mean(widths):.1f})")
            print(f"| {100 * rate:g} % | {name} ({auc}) | " + " | ".join(cells) + " |", flush=True)
    within = sum(0.93 <= share <= 0.97 for share in found)
    print(f"\n{within} of {len(found)} within 93 to 97 %; all from {100 * min(found):.1f} to {100 * max(found):.1f} %")


if __name__ == "__main__":
    main()
