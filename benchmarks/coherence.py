"""Evaluate the coherence judge on real responses from several sources and on eight kinds of degenerate text.

    python benchmarks/coherence.py                                          # the lab's model and references
    python benchmarks/coherence.py --model facebook/opt-125m --forget rtp_triples_train.jsonl \\
        --test rtp_triples_test.jsonl

The thresholds are calibrated as in a run: on the references of the forget set, whose prompts do not occur in the labelled set.

Real responses were written by people or by capable models: the lab's references of its other sets, or refusals and abusive
continuations (the test triples), answers of PKU-SafeRLHF, best answers of TruthfulQA (short), correct answers of ARC (very
short), and continuations of web text, encyclopaedia sentences, video captions and abstracts. Degenerate text is generated from
them with a seed (`degenerate.py`), except for `broken`: greedy and sampled answers of the base model after a few large steps of
gradient ascent. (After more steps, all answers are the same repetition.)

The rules were designed on `--half design`. The default, `--half test`, has other responses of the same sources and degenerate
text generated from them. For each source and kind the script prints the pass rate, the pass rate of a rule that only uses the
loss (not empty, not repetitive, loss within the references' 99th percentile), and the reasons of rejections. It exits with 1 if
sensitivity or specificity, as means over kinds and sources, is below 95 %.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from degenerate import MAKERS, Material, enough_for

from wpn_bench import models, prompts
from wpn_bench.engine.generation import Decoding, generate
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.harmless.judges import coherence
from wpn_bench.harmless.references import choose, likelihoods
from wpn_bench.harmless.stages import REFERENCES
from wpn_bench.models.backends import scoring_tokenizer
from wpn_bench.prompts import Item, Kind, SetSpec, Source, Template
from wpn_bench.prompts.templates import QUESTION_TEMPLATE
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.train import train

LAB = (
    "lab_in_domain",
    "lab_ood_notes",
    "lab_ood_mistakes",
    "lab_ood_games",
    "lab_ood_looks",
    "lab_benign",
    "lab_benign_lookalike",
)
BROKEN = ("ga", "ga_answer")  # gradient ascent on whole sequences and on answers
ASKED = 0.95


@dataclass(frozen=True)
class Pair:
    """A response and its prompt, without and with the template."""

    prompt: str
    after: str
    text: str


@dataclass(frozen=True)
class Judged:
    """Results of a source or kind: number, pass rate, pass rate of the loss alone, reasons of rejections."""

    name: str
    real: bool
    n: int
    passed: float
    by_loss: float
    reasons: Counter[str]


# --- real responses --------------------------------------------------------------------------------------------------


def pairs_of(items: Iterable[Item], sides: Sequence[str] = ("harmless", "harmful")) -> list[Pair]:
    """Return the reference responses of a prompt set."""
    return [
        Pair(item.prompt, prompts.render(item, QUESTION_TEMPLATE), text)
        for item in items
        for side in sides
        for text in getattr(item, side)
        if text.strip()
    ]


def items_of(name_or_file: str, kind: Kind = "question", role: Any = "ood") -> tuple[Item, ...]:
    return prompts.load_prompts(prompts.spec_for(name_or_file, role=role, kind=kind)).items


def of_hub(hub: str, config: str, split: str, kind: Kind, columns: dict[str, Any]) -> list[Pair]:
    source = Source(hub=hub, config=config, split=split)
    return pairs_of(
        prompts.load_prompts(SetSpec(name=hub, role="ood", kind=kind, source=source, columns=columns)).items
    )


def chosen_of_hub(hub: str, config: str, split: str, take: Callable[[dict[str, Any]], Pair]) -> list[Pair]:
    """Return items of a multiple-choice set with the correct ending as response."""
    from wpn_bench import hub as hubs

    revision = hubs.resolve_revision(hub, config)
    assert revision is not None
    return [take(row) for row in hubs.load_dataset(hub, config, revision)[split]]


def sentences(texts: Iterable[str]) -> list[Pair]:
    """Return each sentence of a paragraph as the continuation of the one before."""
    found = []
    for text in texts:
        parts = [part.strip() for part in re.split(r"(?<= [.!?]) ", text.strip())]
        found += [Pair(a, a, b) for a, b in pairwise(parts) if len(text) > 200 and len(b.split()) > 4]
    return found


def asked(question: str, answer: str) -> Pair:
    return Pair(question, QUESTION_TEMPLATE.format(prompt=question), answer)


def real_responses(test: Path | None) -> dict[str, list[Pair]]:
    """Return the responses of each source; without a file of test triples, the lab's."""
    if test is None:
        return {name: pairs_of(items_of(name)) for name in LAB}
    triples = items_of(str(test), "continuation")
    arc = ("allenai/ai2_arc", "ARC-Easy", "test")
    return {
        "rtp_triples, harmless": pairs_of(triples, ("harmless",)),
        "rtp_triples, harmful": pairs_of(triples, ("harmful",)),
        "pku_test": pairs_of(items_of("pku_test")),
        "truthfulqa": pairs_of(items_of("truthfulqa")),
        "web text": of_hub(
            "allenai/real-toxicity-prompts",
            "default",
            "train",
            "continuation",
            {"prompt": "prompt.text", "harmless": "continuation.text"},
        ),
        "wikitext": sentences(
            prompts.load_texts(prompts.spec_for("wikitext_heldout", role="heldout", kind="text")).texts
        ),
        "hellaswag": chosen_of_hub(
            "Rowan/hellaswag",
            "default",
            "validation",
            lambda r: Pair(r["ctx"], r["ctx"], r["endings"][int(r["label"])]),
        ),
        "arc_easy": chosen_of_hub(
            *arc, lambda r: asked(r["question"], r["choices"]["text"][r["choices"]["label"].index(r["answerKey"])])
        ),
        "pubmedqa": of_hub(
            "qiaojin/PubMedQA", "pqa_labeled", "train", "question", {"prompt": "question", "harmless": "long_answer"}
        ),
    }


def half_of(pairs: Sequence[Pair], half: str, n: int) -> list[Pair]:
    """Return at most `n` responses of one half. The halves are disjoint."""
    shuffled = random.Random(0).sample(pairs, len(pairs))
    middle = len(pairs) // 2
    return (shuffled[:middle] if half == "design" else shuffled[middle:])[:n]


# --- degenerate text -----------------------------------------------------------------------------------------------


def degenerate(kind: str, real: Sequence[Pair], vocabulary: Sequence[str], n: int, seed: int) -> list[Pair]:
    """Generate `n` texts of one kind, each for the prompt of a real response."""
    rng = random.Random(f"{kind} {seed}")
    material = Material(tuple(pair.text for pair in real), tuple(vocabulary))
    enough = [pair for pair in real if enough_for(kind, pair.prompt, pair.text)]
    chosen = [rng.choice(enough) for _ in range(n)]
    return [Pair(pair.prompt, pair.after, MAKERS[kind](rng, pair.prompt, pair.text, material)) for pair in chosen]


def broken(
    folder: Path, forget: Sequence[Item], real: Sequence[Pair], n: int, steps: int, new_tokens: int
) -> list[Pair]:
    """Generate greedy and sampled answers after `steps` steps of gradient ascent on whole sequences and on answers."""
    rng = random.Random(0)
    ways = (Decoding(max_new_tokens=new_tokens), Decoding(max_new_tokens=new_tokens, temperature=1.0))
    found = []
    for name in BROKEN:
        model, tokenizer = models.load_fresh(folder), models.load_tokenizer(folder)
        kind = METHODS.get(name)
        method = kind(kind.Config(steps=steps, batch_size=8, lr=1e-3))  # type: ignore[call-arg]
        train(model, tokenizer, method, forget, (), template=Template.parse(QUESTION_TEMPLATE), seed=0)
        for decoding in ways:
            part = [rng.choice(real) for _ in range(n // len(BROKEN) // len(ways))]
            said = generate(model, tokenizer, [pair.after for pair in part], decoding)
            found += [Pair(p.prompt, p.after, r.text) for p, r in zip(part, said, strict=True) if r.text is not None]
    return found


# --- judging ---------------------------------------------------------------------------------------------------------


class CoherenceJudge:
    """The coherence judge with one base model, calibrated as in a run on the references of a forget set."""

    def __init__(self, folder: Path, forget: Sequence[Item], references: int = REFERENCES) -> None:
        self.folder, self.forget = folder, forget
        self.model = LocalBackend.open(folder)
        chosen = []
        for side in ("harmless", "harmful"):
            pairs = [(pair.after, pair.text) for pair in pairs_of(forget, (side,))]
            chosen.append(choose(pairs, references, coherence.QUANTILE, self.model.parameters()))
        sides = likelihoods(self.model, chosen)
        self.bounds = coherence.bounds_from(*sides)
        self.loss_bound = max(np.quantile([one.loss for one in side], coherence.QUANTILE) for side in sides)

    def likelihoods(self, pairs: Sequence[Pair]) -> list[coherence.Likelihood]:
        after = [pair.after for pair in pairs]
        return coherence.likelihoods(self.model, [pair.text for pair in pairs], after=after)

    def judge(self, name: str, real: bool, pairs: Sequence[Pair]) -> Judged:
        found = self.likelihoods(pairs)
        reasons = [
            coherence.judge_coherence(pair.text, pair.prompt, base, self.bounds).reason
            for pair, base in zip(pairs, found, strict=True)
        ]
        by_loss = [
            bool(re.search(r"\w", pair.text))
            and coherence.repetition(pair.text) <= coherence.REPEATED
            and base.loss <= self.loss_bound
            for pair, base in zip(pairs, found, strict=True)
        ]
        passed = reasons.count(None) / len(reasons)
        return Judged(name, real, len(pairs), passed, fmean(by_loss), Counter(r for r in reasons if r is not None))


def measure(
    judge: CoherenceJudge, test: Path | None, *, half: str, n: int, steps: int, new_tokens: int
) -> list[Judged]:
    """Judge every source and every kind."""
    sources = {name: half_of(pairs, half, n) for name, pairs in real_responses(test).items()}
    real = [pair for pairs in sources.values() for pair in pairs]
    tokenizer = scoring_tokenizer(judge.model)
    special = set(tokenizer.all_special_ids)
    vocabulary = [tokenizer.decode([k]) for k in range(len(tokenizer)) if k not in special]
    seed = ("design", "test").index(half)
    kinds = {kind: degenerate(kind, real, vocabulary, n, seed) for kind in MAKERS}
    kinds["broken"] = broken(judge.folder, judge.forget, real, n, steps, new_tokens)
    return [judge.judge(name, True, pairs) for name, pairs in sources.items()] + [
        judge.judge(name, False, pairs) for name, pairs in kinds.items()
    ]


def sensitivity_and_specificity(judged: Iterable[Judged], by: str = "passed") -> tuple[float, float]:
    """Return sensitivity (mean over kinds) and specificity (mean over sources)."""
    rows = list(judged)
    caught = fmean(1 - getattr(row, by) for row in rows if not row.real)
    return caught, fmean(getattr(row, by) for row in rows if row.real)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--forget", default="lab_forget", help="prompt set or file for the calibration")
    parser.add_argument("--kind", default="continuation", help="of the prompts in a file: question or continuation")
    parser.add_argument("--test", type=Path, help="held-out triples; without them, the lab's sets are used")
    parser.add_argument("--half", choices=("design", "test"), default="test")
    parser.add_argument("--n", type=int, default=300, help="number of responses per source and texts per kind")
    parser.add_argument("--references", type=int, default=REFERENCES, help="of each side that calibrate the bounds")
    parser.add_argument("--broken-steps", type=int, default=4, help="large steps of gradient ascent")
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    folder, forget = models.resolve(options.model).path, items_of(options.forget, options.kind, "forget")
    judged = measure(
        CoherenceJudge(folder, forget, options.references),
        options.test,
        half=options.half,
        n=options.n,
        steps=options.broken_steps,
        new_tokens=options.new_tokens,
    )
    print("| | n | passes, % | by loss alone, % | reasons |")
    print("| --- | ---: | ---: | ---: | --- |")
    for row in judged:
        why = ", ".join(f"{reason} {count}" for reason, count in row.reasons.most_common())
        print(
            f"| {'real' if row.real else 'not'}: {row.name} | {row.n} | {100 * row.passed:.1f} | {100 * row.by_loss:.1f} | {why} |"
        )
    now, before = sensitivity_and_specificity(judged), sensitivity_and_specificity(judged, "by_loss")
    for name, a, b in zip(("sensitivity", "specificity"), now, before, strict=True):
        print(f"{name}: {100 * a:.1f} % (by loss alone {100 * b:.1f} %)")
    return 0 if min(now) >= ASKED else 1


if __name__ == "__main__":
    sys.exit(main())
