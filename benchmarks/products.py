"""Measure the products of a training step in float32: MKL, which PyTorch uses, and oneDNN, which it also has.

    python benchmarks/products.py                                  # the layers of SmolLM2-135M
    python benchmarks/products.py --rows 161,613 --width 768 --inner 3072 --vocabulary 50272

Prints 10^9 operations per second of the outputs, of the gradient of the inputs, and of the gradient of the weights. Each figure
is the best of `--repeats`. The two libraries alternate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch


def product(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return inputs @ weight.T, computed by oneDNN."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")
    return result


def fastest(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """Return the shortest time of each call in seconds."""
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for k, call in enumerate(calls):
            began = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="161,353,620", help="numbers of tokens")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--inner", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--tile", type=int, default=1024, help="token ids of the head that are computed at a time")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    shapes = {
        "attention": (args.width, args.width),
        "up": (args.inner, args.width),
        "down": (args.width, args.inner),
        "head, a tile": (args.tile, args.width),
        "head, whole": (args.vocabulary, args.width),
    }
    print(
        "| tokens | layer | outputs, MKL | oneDNN | inputs' gradient, MKL | oneDNN | weights' gradient, MKL | oneDNN |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rows in map(int, args.rows.split(",")):
        for name, (out, width) in shapes.items():
            x, w, d = torch.randn(rows, width), torch.randn(out, width), torch.randn(rows, out)
            times = fastest(
                args.repeats,
                lambda x=x, w=w: torch.mm(x, w.t()),  # type: ignore[misc]
                lambda x=x, w=w: product(x, w),  # type: ignore[misc]
                lambda d=d, w=w: torch.mm(d, w),  # type: ignore[misc]
                lambda d=d, w=w: product(d, w.t()),  # type: ignore[misc]
                lambda d=d, x=x: torch.mm(d.t(), x),  # type: ignore[misc]
                lambda d=d, x=x: product(d.t(), x.t()),  # type: ignore[misc]
            )
            cells = " | ".join(f"{2 * rows * out * width / t / 1e9:.0f}" for t in times)
            print(f"| {rows} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
