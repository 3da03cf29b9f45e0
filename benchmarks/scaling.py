"""Time the same run with the local executor and over Ray with one and two workers, each with an empty store.

    python benchmarks/scaling.py                            # the lab, 40 items of everything
    python benchmarks/scaling.py --limit 200 --workers 1,2,4 -- --methods wpn,npo --attacks typos

Arguments after `--` are passed to `wpn-bench full`. Every worker and the local executor (`1 thread`) have one thread; the local
executor also runs with one thread per CPU. Seconds are those of the whole command, including the start of Ray and the report.
Prints a Markdown table. Exits with 1 if a run with one thread per worker has other results than the local one (except names,
times and costs). Several threads sum in another order, so their last digits may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default="40")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("rest", nargs="*", help="arguments for `wpn-bench full`, after `--`")
    options = parser.parse_args()
    rest = ["--limit", options.limit, *options.rest]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runs = {"local, 1 thread": (1, []), f"local, {cpus} threads": (cpus, [])}
    for n in options.workers.split(","):
        runs[f"ray, {n} worker{'s' * (n != '1')}"] = (1, ["--executor", "ray", "--workers", n, "--cpus-per-job", "1"])
    print("| | s | local, 1 thread / this | results |", flush=True)
    print("| --- | ---: | ---: | --- |", flush=True)
    first: tuple[float, dict[str, Any]] | None = None
    differ = False
    for name, (threads, more) in runs.items():
        took, found = run([*rest, *more], threads)
        first = first or (took, found)
        same = found == first[1]
        differ |= threads == 1 and not same
        print(f"| {name} | {took:.1f} | {first[0] / took:.2f} | {'equal' if same else 'differ'} |", flush=True)
    return int(differ)


def run(arguments: list[str], threads: int) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a run, and its results without values that differ between any two runs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "wpn_bench", "full", "--quiet", *arguments]
        command += ["--out", f"{folder}/run", "--store", f"{folder}/store"]
        start = time.perf_counter()
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
        took = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
    for key in ("created", "name", "command"):
        del found["run"][key]
    for model in found["models"].values():
        model.pop("train_seconds", None)
    found["metrics"] = [row for row in found["metrics"] if row["suite"] != "cost"]
    return took, found


if __name__ == "__main__":
    sys.exit(main())
