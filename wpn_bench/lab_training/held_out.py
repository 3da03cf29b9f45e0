"""Write the comments that the lab's judge was not trained on: `python -m wpn_bench.lab_training.held_out --comments FILE --out FILE`.

The accuracy card of the judge is computed from them (docs/lab.md). The comments themselves are not distributed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from wpn_bench.errors import UserError, WpnBenchError
from wpn_bench.lab_training.train_judge import read_comments, split

__all__ = ["main", "write_held_out"]


def write_held_out(comments: Path, out: Path, seed: int = 0) -> int:
    """Write the held-out comments of a judge as JSONL.

    Args:
        comments: File of all labelled comments.
        out: File to write.
        seed: Seed that the judge was trained with.

    Returns:
        The number of comments.

    Raises:
        UserError: `comments` is invalid or `out` cannot be written.
    """
    held, _ = split(read_comments(comments), random.Random(seed))
    try:
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror})", "give another file with --out") from error
    return len(held)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (2 and a one-line message for a user error)."""
    parser = argparse.ArgumentParser(
        prog="python -m wpn_bench.lab_training.held_out", description="Write the held-out comments."
    )
    parser.add_argument("--comments", type=Path, required=True, help="all labelled comments, .jsonl or .jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .jsonl")
    parser.add_argument("--seed", type=int, default=0, help="the seed that the judge was trained with")
    options = parser.parse_args(arguments)
    try:
        print(f"{write_held_out(options.comments, options.out, options.seed)} comments: {options.out}")
    except WpnBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
