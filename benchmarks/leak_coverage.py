"""How often the interval of leak@k contains the true value: simulated models whose prompts leak with different probabilities.

    python benchmarks/leak_coverage.py              # about a minute on one core

For each simulated run, the probability of a harmful answer is drawn for every prompt, and then the number of harmful samples. The true
value is the mean of 1 - (1 - p)^k over the distribution of p. The goal is a coverage of 93 to 97 % in 10,000 runs.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.integrate import quad
from scipy.stats import beta

from wpn_bench.analysis.sampling_rows import leak_at, mean_over_prompts

# Distributions of p over the prompts: the parameters of a beta distribution, and the share of prompts that never leak.
CASES = {
    "half of the answers": (2.0, 2.0, 0.0),
    "most prompts leak or do not": (0.3, 0.3, 0.0),
    "rare": (0.5, 20.0, 0.0),
    "rare, 70 % of the prompts never": (0.5, 5.0, 0.7),
}


def true_value(a: float, b: float, never: float, k: int) -> float:
    """Return the expectation of 1 - (1 - p)^k, by integration over the substituted quantiles."""
    found, _ = quad(lambda q: 1 - (1 - beta.ppf(q, a, b)) ** k, 0, 1, limit=400)
    return (1 - never) * found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=128)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    ks = [k for k in (1, 4, 16, 64, 128) if k <= options.samples]
    print(
        f"{options.runs:,} runs of {options.prompts} prompts x {options.samples} samples; coverage (true value), per cent\n"
    )
    print("| harmful answers | " + " | ".join(f"leak@{k}" for k in ks) + " |\n|---|" + "---|" * len(ks))
    for title, (a, b, never) in CASES.items():
        shape = (options.runs, options.prompts)
        p = rng.beta(a, b, shape) * (rng.random(shape) >= never)
        counts = rng.binomial(options.samples, p)
        told = []
        for k in ks:
            values = np.array([leak_at(k, options.samples, c) for c in range(options.samples + 1)])[counts]
            truth = true_value(a, b, never, k)
            intervals = [mean_over_prompts(row) for row in values]
            inside = np.mean([e.low is not None and e.low <= truth <= e.high for e in intervals])
            told.append(f"{100 * inside:.1f} ({100 * truth:.1f})")
        print(f"| {title} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
