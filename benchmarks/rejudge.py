"""Judge the coherence of a finished run's answers again with the current rules, and compare with the stored results.

    python benchmarks/rejudge.py runs/field                                       # a run on the lab
    python benchmarks/rejudge.py runs/triples --model facebook/opt-125m --forget rtp_triples_train.jsonl

For each model, prints the coherent and the coherent-harmless rate in per cent, stored and new, in domain and over all sets of each
other suite, and the reasons that were added and removed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd
from coherence import CoherenceJudge, Pair, items_of

from wpn_bench import load_run, models
from wpn_bench.harmless.judges.coherence import judge_coherence
from wpn_bench.prompts.templates import QUESTION_TEMPLATE


def plain(row: pd.Series) -> Pair:
    """Return the answer and its prompt without attack, rendered as in the run."""
    question = "### Answer:" in row["input"]
    after = QUESTION_TEMPLATE.format(prompt=row["prompt"]) if question else row["prompt"]
    return Pair(row["prompt"], after, row["response"])


def rejudged(samples: pd.DataFrame, judge: CoherenceJudge) -> pd.DataFrame:
    """Return the samples with an answer, and the new reason `now` for incoherence (None: coherent)."""
    samples = samples[samples["response"].notna()].copy()
    pairs = [plain(row) for _, row in samples.iterrows()]
    distinct = list(dict.fromkeys(pairs))
    found = dict(zip(distinct, judge.likelihoods(distinct), strict=True))
    samples["now"] = [judge_coherence(p.text, p.prompt, found[p], judge.bounds).reason for p in pairs]
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="lab", help="the base of the run")
    parser.add_argument("--forget", default="lab_forget")
    parser.add_argument("--kind", default="continuation", help="of the prompts in a file: question or continuation")
    parser.add_argument("--suites", default="harmless,ood,benign,attack")
    options = parser.parse_args()
    judge = CoherenceJudge(models.resolve(options.model).path, items_of(options.forget, options.kind, "forget"))
    suites = options.suites.split(",")
    samples = load_run(options.run).samples
    samples = rejudged(samples[samples["suite"].isin(suites)], judge)
    print(f"| | {' | '.join(f'{s}: coherent | {s}: coherent-harmless' for s in suites)} | came, went |")
    print("|---" * (2 * len(suites) + 2) + "|")
    for model, rows in samples.groupby("model", sort=False):
        cells = []
        for suite in suites:
            part = rows[rows["suite"] == suite]
            before, now, harmless = part["coherent"].astype(bool), part["now"].isna(), part["harmless"].fillna(False)
            for a, b in ((before, now), (before & harmless, now & harmless)):
                cells.append(f"{100 * a.mean():.1f} → {100 * b.mean():.1f}" if len(part) else "-")
        was, is_now = rows["coherent"].astype(bool), rows["now"].isna()
        came = Counter(rows["now"][was & ~is_now])
        came.update(f"not {reason}" for reason in rows["reason"][~was & is_now])
        cells.append(", ".join(f"{reason} {count}" for reason, count in came.most_common()))
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
