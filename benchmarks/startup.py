"""Compare the duration of `wpn-bench --help` and `lm_eval --help`, in alternating processes.

python benchmarks/startup.py [--pairs 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from side_by_side import paired


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    here = Path(sys.executable).parent  # the scripts of this environment

    def help_of(name: str) -> None:
        subprocess.run([here / name, "--help"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    help_of("wpn-bench")  # once each, so that the files are in the page cache
    help_of("lm_eval")
    ours, theirs, ratio, _, _ = paired(lambda: help_of("wpn-bench"), lambda: help_of("lm_eval"), options.pairs)
    print("| `wpn-bench --help`, s | `lm_eval --help`, s | lm_eval / wpn-bench |")
    print("| ---: | ---: | ---: |")
    print(f"| {ours:.2f} | {theirs:.2f} | {ratio:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
