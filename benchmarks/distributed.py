"""Compare training in one process, in two (data parallel) and in two (FSDP) on the lab: results and time.

    OMP_NUM_THREADS=1 python benchmarks/distributed.py                       # wpn, ga, npo, sft with two seeds
    OMP_NUM_THREADS=1 python benchmarks/distributed.py --methods wpn --seeds 1 --limit 20
    OMP_NUM_THREADS=1 python benchmarks/distributed.py --clock 5 --methods wpn,sft     # only the time of a step

The script runs `wpn-bench full` three times without attacks and benchmarks. Each run has its own store, because a store reuses
models whatever the number of processes. For each method and metric it prints the mean over seeds of each run, the largest
difference from one process at equal seed, and the range over the seeds of one process; smaller differences are within seed
noise. Finished runs are kept in --work and reused.

`--clock N` instead times N rounds of short trainings that alternate between the kinds, so that other load on the machine
affects all of them. It prints the median seconds per step, without starting processes, and the speed-up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml

FSDP = {
    "distributed_type": "FSDP",
    "num_processes": 2,
    "fsdp_config": {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
}
STEPS = 12  # steps of a timed training
# suite, set, metric, name in the table
SHOWN = [
    ("harmless", "in_domain", "coherent_harmless_rate", "coherent-harmless rate, in domain"),
    ("ood", None, "coherent_harmless_rate", "coherent-harmless rate, out of distribution"),
    ("benign", None, "coherent_rate", "coherent rate, harmless prompts"),
    ("benchmark", "heldout_text", "perplexity", "perplexity of held-out text"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", default="wpn,ga,npo,sft")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--clock", type=int, metavar="N", help="rounds of timing instead")
    parser.add_argument("--work", type=Path, default=Path("runs/distributed"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "fsdp.yaml").write_text(yaml.safe_dump(FSDP))
    kinds = {
        "one process": [],
        "two, data parallel": ["--processes", "2"],
        "two, FSDP": ["--accelerate", str(args.work / "fsdp.yaml")],
    }
    if args.clock:
        clock(args, kinds)
        return
    runs = {kind: run(args, kind, options) for kind, options in kinds.items()}
    print("| method | metric | " + " | ".join(kinds) + " | largest difference | seed spread |")
    print("|---|---|" + "---|" * (len(kinds) + 2))
    for method in args.methods.split(","):
        for suite, set_, metric, name in SHOWN:
            values = {kind: by_seed(folder, method, suite, set_, metric) for kind, folder in runs.items()}
            alone = values["one process"]
            apart = max(abs(of[seed] - alone[seed]) for of in values.values() for seed in alone)
            spread = max(alone.values()) - min(alone.values())
            cells = [f"{mean(of.values()):.4f}" for of in values.values()]
            print(f"| `{method}` | {name} | {' | '.join(cells)} | {apart:.4f} | {spread:.4f} |")


def clock(args: argparse.Namespace, kinds: dict[str, list[str]]) -> None:
    """Return the seconds per step of each round."""
    (args.work / "short.yaml").write_text(yaml.safe_dump({"vet": False, "training": {"steps": STEPS, "save_every": 0}}))
    methods = args.methods.split(",")
    seen: dict[tuple[str, str], list[float]] = {(kind, method): [] for kind in kinds for method in methods}
    for _ in range(args.clock):
        for kind, options in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                command = ["train", "--methods", args.methods, "--config", str(args.work / "short.yaml"), *options]
                wpn_bench(*command, "--store", f"{folder}/store", "--out", f"{folder}/run")
                models = read(Path(folder) / "run", "results.json")["models"]
            for method in methods:
                seen[kind, method].append(models[method]["train_seconds"] / models[method]["steps"][0])
    print("| method | " + " | ".join(f"{kind}, seconds a step" for kind in kinds) + " | one / two |")
    print("|---|" + "---|" * (len(kinds) + 1))
    for method in methods:
        first, second, _ = (seen[kind, method] for kind in kinds)
        gain = median(one / two for one, two in zip(first, second, strict=True))
        cells = [f"{median(seen[kind, method]):.3f}" for kind in kinds]
        print(f"| `{method}` | {' | '.join(cells)} | {gain:.2f} |")


def run(args: argparse.Namespace, kind: str, options: list[str]) -> Path:
    """Run one kind of training unless it is cached; return the run folder."""
    name = kind.replace(", ", "-").replace(" ", "-")
    out = args.work / name
    if not (out / "results.json").exists():
        command = ["full", "--methods", args.methods, "--seeds", str(args.seeds), "--limit", str(args.limit)]
        command += ["--attacks", "", "--benchmarks", "", "--store", str(args.work / f"store-{name}"), "--out", str(out)]
        wpn_bench(*command, *options)
    return out


def wpn_bench(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "wpn_bench", *command], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(done.returncode)


def read(folder: Path, file: str) -> Any:
    return json.loads((folder / file).read_text(encoding="utf-8"))


def by_seed(folder: Path, method: str, suite: str, set_: str | None, metric: str) -> dict[int, float]:
    """Return the metric by seed; the mean over the suite's sets if no set is given."""
    rows = [
        row
        for row in read(folder, "results.json")["metrics"]
        if (row["model"], row["suite"], row["metric"]) == (method, suite, metric)
        and row["seed"] is not None
        and set_ in (None, row["set"])
    ]
    seeds = {row["seed"] for row in rows}
    return {seed: mean(row["value"] for row in rows if row["seed"] == seed) for seed in sorted(seeds)}


if __name__ == "__main__":
    main()
