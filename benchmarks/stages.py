"""Where the time of a run went: seconds of each stage, and for answers and verdicts the operations that no program can save.

    wpn-bench full --store STORE --out RUN
    python benchmarks/stages.py RUN STORE

Seconds are those that the jobs recorded. "Start and report" is the rest of the time between the first and the last line of the
run's log, so it is only meaningful for a run with one process (`--workers 1`) and an empty store.

The floor counts a multiply-add as two operations: the matrix products of the model for each distinct prefix of the inputs and
each generated token, and the output head where a token is generated or scored. It leaves out attention, which adds some per cent,
and the classifier that judges. "Peak" is --peak, the speed of large float32 products on this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from wpn_bench import models
from wpn_bench.engine.tree import trees


def artifacts(store: Path, stage: str) -> Iterator[Path]:
    """Yield the folders of a stage's artifacts."""
    for manifest in sorted((store / stage).glob("*/manifest.json")):
        yield manifest.parent


def distinct_tokens(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return the number of distinct prefixes of the sequences that are not empty."""
    return sum(map(len, trees(sorted({s for s in sequences if s}), 1 << 30, 1 << 30)))


def answered(folder: Path, tokenizer: Any) -> tuple[int, int]:
    """Return how many tokens an artifact of `generate` needs in the body of the model, and how many in the head."""
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()]
    once = {row["input"]: row["n_tokens"] for row in rows}
    prompts = [tuple(ids) for ids in tokenizer(list(once))["input_ids"]]
    made = sum(once.values())
    return distinct_tokens(prompts) + made, made


def judged(folder: Path, tokenizer: Any) -> tuple[int, int]:
    """Return the tokens in body and head that the coherence of an artifact of `judge` needs: with and without the prompt."""
    import pandas as pd

    frame = pd.read_parquet(folder / "samples.parquet").dropna(subset=["response"])
    pairs = sorted({(str(p), str(r)) for p, r in zip(frame["prompt"], frame["response"], strict=True) if r})
    if not pairs:
        return 0, 0
    prompts = tokenizer([p for p, _ in pairs])["input_ids"]
    answers = tokenizer([r for _, r in pairs], add_special_tokens=False)["input_ids"]
    after = [(*p, *a) for p, a in zip(prompts, answers, strict=True)]
    alone = [(tokenizer.bos_token_id or 0, *a) for a in answers]
    return distinct_tokens(after) + distinct_tokens(alone), sum(map(len, answers)) + distinct_tokens(alone)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("store", type=Path, help="a store that holds the artifacts of this run only")
    parser.add_argument("--model", default="lab")
    parser.add_argument("--peak", type=float, default=200.0, help="10^9 operations per second of the machine")
    options = parser.parse_args()
    results = json.loads((options.run / "results.json").read_text(encoding="utf-8"))
    spent: Counter[str] = Counter()
    jobs: Counter[str] = Counter()
    for row in results["metrics"]:
        if row["suite"] == "cost" and row["metric"] == "seconds":
            spent[row["set"]] += row["value"]
            jobs[row["set"]] += row["n"]
    lines = (options.run / "log.txt").read_text(encoding="utf-8").splitlines()
    first, *_, last = (datetime.fromisoformat(line[:19]) for line in lines if line[:2] == "20")
    whole = (last - first).total_seconds()
    model, tokenizer = models.load(models.resolve(options.model).path)
    head = model.get_output_embeddings().weight.numel()
    body = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n
    )
    floors = {}
    for stage, count in (("generate", answered), ("judge", judged)):
        needed = [count(folder, tokenizer) for folder in artifacts(options.store, stage)]
        inside, at_head = sum(one for one, _ in needed), sum(other for _, other in needed)
        floors[stage] = inside, 2 * (inside * body + at_head * head) / 1e9
    print("| stage | jobs | seconds | share | tokens, floor | 10^9 operations, floor | share of peak |")
    print("|---|---|---|---|---|---|---|")
    for stage, seconds in spent.most_common():
        tokens, operations = floors.get(stage, (0, 0.0))
        floor = f"{tokens:,} | {operations:,.0f} | {operations / seconds / options.peak:.0%}" if tokens else "| |"
        print(f"| {stage} | {jobs[stage]} | {seconds:.1f} | {seconds / whole:.0%} | {floor} |")
    rest = whole - sum(spent.values())
    print(f"| start and report | | {rest:.1f} | {rest / whole:.0%} | | | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
