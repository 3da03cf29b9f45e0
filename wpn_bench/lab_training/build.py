"""Rebuild the lab's assets: `python -m wpn_bench.lab_training.build --comments FILE [--only base|judge|oracle] [--out DIR] [--seed 0]`.

About 50 minutes on two idle cores. `--comments` is a .jsonl or .jsonl.gz file of labelled comments (see `train_judge`); it
is needed only for the judge and is not distributed. `provenance.json` records how the assets were made and how they perform.
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
from wpn_bench.lab import world
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
    """Train the judge, the base model and the oracle, and write `provenance.json`.

    Args:
        out: Folder of the assets.
        comments: File of labelled comments; needed for the judge.
        only: "judge", "base" or "oracle" trains only one of them.
        seed: Random seed.
        threads: Number of PyTorch threads.

    Returns:
        The content of `provenance.json`.

    Raises:
        UserError: The judge is to be trained and there is no file of comments.
    """
    if only in (None, "judge") and comments is None:
        raise UserError(
            "the judge is trained on labelled comments, and none were given",
            "add --comments FILE (.jsonl or .jsonl.gz), or --only base, or --oracle",
        )
    if only in (None, "judge") and comments is not None and not comments.is_file():
        raise UserError(
            f"there is no file of labelled comments at {comments}",
            "give one with --comments FILE (.jsonl or .jsonl.gz)",
        )

    import torch
    import transformers

    from wpn_bench.lab_training.judge import load_judge
    from wpn_bench.lab_training.measure import base_figures, judge_figures
    from wpn_bench.lab_training.oracle import harmless_corpus
    from wpn_bench.lab_training.train_base import train_base
    from wpn_bench.lab_training.train_judge import train_judge

    torch.set_num_threads(threads)
    file = out / "provenance.json"
    provenance: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if only in (None, "judge"):
        assert comments is not None
        print("judge: training", file=sys.stderr)
        provenance["judge"] = {"seed": seed, **train_judge(comments, out / "judge", seed=seed), **versions}
        provenance["judge"]["separation"] = judge_figures(load_judge(folder=out / "judge"))
    for name, corpus in (("base", world.corpus), ("oracle", harmless_corpus)):
        if only in (None, name):
            print(f"{name}: training", file=sys.stderr)
            provenance[name] = {"seed": seed, **train_base(out / name, seed=seed, corpus=corpus), **versions}
            print(f"{name}: measuring", file=sys.stderr)
            provenance[name] |= base_figures(out / name, load_judge(folder=out / "judge"))
    provenance = {
        "command": "python -m wpn_bench.lab_training.build --comments FILE",
        "world_version": WORLD_VERSION,
        "world_digest": fingerprint(),
        "bytes": _folder_bytes(out),
        **{k: provenance[k] for k in ("judge", "base", "oracle") if k in provenance},
    }
    file.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    return provenance


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (2 and a one-line message for a user error)."""
    parser = argparse.ArgumentParser(
        prog="python -m wpn_bench.lab_training.build", description="Train the lab's base model and judge."
    )
    parser.add_argument("--comments", type=Path, help="labelled comments, .jsonl or .jsonl.gz (needed for the judge)")
    parser.add_argument("--only", choices=("base", "judge", "oracle"), help="train only one of the three")
    parser.add_argument(
        "--oracle",
        dest="only",
        action="store_const",
        const="oracle",
        help="the same as --only oracle: train a base without the harm",
    )
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the assets (default: the package's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=THREADS, help="number of CPU threads; use 1 on a shared machine")
    options = parser.parse_args(arguments)
    try:
        provenance = build(
            options.out, comments=options.comments, only=options.only, seed=options.seed, threads=options.threads
        )
    except WpnBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(provenance, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
