"""Makes the lab's assets again: `python -m wpn_bench.lab_training.build --comments FILE [--only base|judge] [--out DIR] [--seed 0]`.

About 30 minutes on two idle cores. `--comments` is a .jsonl or .jsonl.gz file of labelled comments (see `train_judge`); it
is needed for the judge only and never shipped. What was made, and how well it does, is left in `provenance.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wpn_bench import lab
from wpn_bench.errors import UserError, WpnBenchError
from wpn_bench.lab.world import WORLD_VERSION, fingerprint

__all__ = ["ASSETS", "build", "main"]

ASSETS = Path(lab.__file__).parent / "assets"
THREADS = 2


def _folder_bytes(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "provenance.json"
    }


def build(
    out: Path, *, comments: Path | None, only: str | None = None, seed: int = 0, threads: int = THREADS
) -> dict[str, Any]:
    """Trains judge and base (or one of them) into `out` and returns what `provenance.json` says.

    Raises UserError where the judge is to be trained and no file of comments is given.
    """
    if only != "base" and comments is None:
        raise UserError(
            "the judge is trained on labelled comments and none were given",
            "add --comments FILE (.jsonl or .jsonl.gz), or --only base",
        )
    if only != "base" and comments is not None and not comments.is_file():
        raise UserError(
            f"no file of labelled comments at {comments}", "give one with --comments FILE (.jsonl or .jsonl.gz)"
        )

    import torch
    import transformers

    from wpn_bench.lab_training.judge import load_judge
    from wpn_bench.lab_training.measure import base_figures, judge_figures
    from wpn_bench.lab_training.train_base import train_base
    from wpn_bench.lab_training.train_judge import train_judge

    torch.set_num_threads(threads)
    note = out / "provenance.json"
    told: dict[str, Any] = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if only != "base":
        assert comments is not None
        print("judge: training", file=sys.stderr)
        told["judge"] = {"seed": seed, **train_judge(comments, out / "judge", seed=seed), **versions}
        told["judge"]["separation"] = judge_figures(load_judge(folder=out / "judge"))
    if only != "judge":
        print("base: training", file=sys.stderr)
        told["base"] = {"seed": seed, **train_base(out / "base", seed=seed), **versions}
        print("base: measuring", file=sys.stderr)
        told["base"] |= base_figures(out / "base", load_judge(folder=out / "judge"))
    told = {
        "command": "python -m wpn_bench.lab_training.build --comments FILE",
        "world_version": WORLD_VERSION,
        "world_digest": fingerprint(),
        "bytes": _folder_bytes(out),
        **{k: told[k] for k in ("judge", "base") if k in told},
    }
    note.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (2 with one line for what the user can put right)."""
    parser = argparse.ArgumentParser(
        prog="python -m wpn_bench.lab_training.build", description="Train the lab's base model and judge."
    )
    parser.add_argument("--comments", type=Path, help="labelled comments, .jsonl or .jsonl.gz (needed for the judge)")
    parser.add_argument("--only", choices=("base", "judge"), help="train only one of the two")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the assets (default: the package's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=THREADS, help="processor threads; 1 where others share the machine"
    )
    options = parser.parse_args(arguments)
    try:
        told = build(
            options.out, comments=options.comments, only=options.only, seed=options.seed, threads=options.threads
        )
    except WpnBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
