"""Measure how long the calibration of the coherence bounds takes, and how precise the bounds are.

    python benchmarks/calibration.py --model HuggingFaceTB/SmolLM2-135M-Instruct --forget pku_forget rtp_triples_train.jsonl \\
        --exchanges labelled_exchanges.jsonl.gz --keep FOLDER
    python benchmarks/calibration.py --model HuggingFaceTB/SmolLM2-135M-Instruct --forget pku_forget --time chosen

Calibration uses some of the references of a forget set (`wpn_bench/harmless/references.py`). The script computes the likelihoods of
all references that it chooses from, and compares the bounds from the chosen ones with the bounds from all. Then it repeats the
choice many times with other members of the groups. For each choice, it counts how many of all references both rules on
likelihoods accept. It prints how many percentage points this share differs from that of the bounds from all references. It exits
with 1 if the share of one side differs by more than the stated precision in more than 5 % of the choices. All references of a
real model take minutes. With `--keep FOLDER`, their likelihoods are written to that folder and read from there.

With `--time chosen` or `--time all`, the script only times the calibration with the chosen or with all references, and counts its
operations: the multiply-adds in the matrix products of the linear layers and of the head.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coherence import items_of

from wpn_bench import models
from wpn_bench.engine import likelihood
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.harmless import references
from wpn_bench.harmless.judges import coherence
from wpn_bench.harmless.judges.coherence import Bounds, Likelihood
from wpn_bench.harmless.references import Reference
from wpn_bench.harmless.stages import REFERENCES
from wpn_bench.prompts import Item
from wpn_bench.prompts.templates import choose_template

SIDES = ("harmless", "harmful")
EXCHANGES = "gptfuzz"  # source of the labelled exchanges that are used as a forget set
CONFIDENCE = 0.95
CHUNK = 48  # references between two writes of the file of likelihoods


class Work:
    """Counts the multiply-adds of a model's linear layers and of its head."""

    def __init__(self, model: Any) -> None:
        self.multiply_adds = 0
        self._head = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not self._head:
                module.register_forward_pre_hook(self._linear)
        computed = likelihood.log_softmax_at

        def counted(head: Any, inputs: Any, *others: Any) -> Any:
            self.multiply_adds += len(inputs) * self._head.weight.numel()
            return computed(head, inputs, *others)

        likelihood.log_softmax_at = counted

    def _linear(self, module: Any, inputs: Any) -> None:
        self.multiply_adds += inputs[0].numel() // inputs[0].shape[-1] * module.weight.numel()


def exchanges(file: Path) -> list[Item]:
    """Return the prompts of labelled exchanges as a forget set. Prompts without a harmful or harmless response are left out."""
    responses: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {False: [], True: []})
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        for row in map(json.loads, opened):
            if row["source"] == EXCHANGES:
                responses[row["prompt"]][row["harmful"]].append(row["response"])
    return [
        Item(str(n), prompt, harmful=tuple(of[True]), harmless=tuple(of[False]))
        for n, (prompt, of) in enumerate(responses.items())
        if of[True] and of[False]
    ]


class Forget:
    """A forget set: the references of each side that calibration chooses from, and their likelihoods."""

    def __init__(self, name: str, items: Sequence[Item], model: LocalBackend) -> None:
        self.name, self.model = name, model
        template = choose_template("auto", model.tokenizer, None)
        self.pairs: dict[str, list[tuple[str, str]]] = {}
        for side in SIDES:
            every = [(template.render(item), text) for item in items for text in getattr(item, side)]
            self.pairs[side] = every[:: max(1, len(every) // REFERENCES)]

    def chosen(self, parameters: int | None = None) -> list[list[Reference]]:
        """Return the references of each side that a run uses, by default with this model; all of them with 0 parameters."""
        n = self.model.parameters() if parameters is None else parameters
        return [references.choose(pairs, len(pairs), coherence.QUANTILE, n) for pairs in self.pairs.values()]

    def all(self, keep: Path | None) -> list[list[Likelihood]]:
        """Return the likelihoods of all references, from the kept file as far as it has them."""
        known: dict[tuple[str, int], Likelihood] = {}
        if keep is not None and (file := keep / f"{self.name}.jsonl").exists():
            for row in map(json.loads, file.read_text().splitlines()):
                known[row["side"], row["n"]] = Likelihood(*(row[k] for k in ("loss", "gain", "per_byte", "tokens")))
        missing = [(side, n) for side in SIDES for n in range(len(self.pairs[side])) if (side, n) not in known]
        for at in range(0, len(missing), CHUNK):
            part = missing[at : at + CHUNK]
            prompts, texts = zip(*(self.pairs[side][n] for side, n in part), strict=True)
            found = dict(zip(part, coherence.likelihoods(self.model, texts, after=prompts), strict=True))
            known |= found
            self.store(keep, found)
        return [[known[side, n] for n in range(len(self.pairs[side]))] for side in SIDES]

    def store(self, keep: Path | None, found: Mapping[tuple[str, int], Likelihood]) -> None:
        """Append likelihoods, by side and position, to the kept file, if there is one."""
        if keep is not None:
            with (keep / f"{self.name}.jsonl").open("a") as opened:
                opened.writelines(json.dumps({"side": s, "n": n} | asdict(one)) + "\n" for (s, n), one in found.items())


def accepted(likelihoods: Sequence[Likelihood], bounds: Bounds) -> float:
    """Return the share of references that the rules on likelihoods accept, in per cent."""
    # The words of these texts break no rule, so that only the likelihoods decide.
    found = [coherence.judge_coherence("a b c", "", one, bounds).reason is None for one in likelihoods if one.tokens]
    return 100 * sum(found) / len(found)


def resampled(
    forget: Forget, sides: Sequence[Sequence[Likelihood]], full: Bounds, times: int
) -> tuple[list[Bounds], np.ndarray]:
    """Repeat the choice: bounds of each choice, and the change (choices, sides) of the share that they accept."""
    draw = random.Random(1).choice
    divided = [
        references.groups([len(text.encode()) for _, text in pairs], coherence.QUANTILE)
        for pairs in forget.pairs.values()
    ]
    before = [accepted(side, full) for side in sides]
    found, changes = [], []
    for _ in range(times):
        drawn = (
            [one for group in of for one in [side[draw(group)]] * len(group)]
            for side, of in zip(sides, divided, strict=True)
        )
        bounds = coherence.bounds_from(*drawn)
        found.append(bounds)
        changes.append([accepted(side, bounds) - share for side, share in zip(sides, before, strict=True)])
    return found, np.array(changes)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share, in per cent."""
    z = 1.959964
    middle, half = (hits + z * z / 2) / (n + z * z), z * (hits * (n - hits) / n + z * z / 4) ** 0.5 / (n + z * z)
    return 100 * (middle - half), 100 * (middle + half)


def timed(forget: Forget, work: Work, every: bool, keep: Path | None) -> str:
    """Calibrate, and return a row of the table of times. The likelihoods of all references are kept."""
    used = forget.chosen(0 if every else None)
    work.multiply_adds, begun, cpu = 0, time.perf_counter(), time.process_time()
    sides = references.likelihoods(forget.model, used)
    coherence.bounds_from(*sides)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    if every:
        forget.store(
            keep, {(name, n): one for name, side in zip(SIDES, sides, strict=True) for n, one in enumerate(side)}
        )
    counts = " + ".join(str(len(side)) for side in used)
    return f"| {forget.name} | {counts} | {work.multiply_adds / 1e12:.2f} | {wall:.1f} | {cpu:.1f} |"


def compared(forget: Forget, keep: Path | None, times: int) -> tuple[list[str], bool]:
    """Compare the bounds from chosen and from all references: rows of the table, and whether they are precise enough."""
    sides = forget.all(keep)
    full = coherence.bounds_from(*sides)
    used = forget.chosen(references.SMALL)
    chosen = coherence.bounds_from(
        *(
            [side[pairs.index((one.prompt, one.text))] for one in references_used for _ in range(one.count)]
            for side, pairs, references_used in zip(sides, forget.pairs.values(), used, strict=True)
        )
    )
    found, changes = resampled(forget, sides, full, times)
    hits = np.sum(np.abs(changes) <= 100 * references.PRECISION + 1e-9, axis=0)
    rows = []
    for k, side in enumerate(SIDES):
        low, high = np.quantile(changes[:, k], [0.025, 0.975])
        rows.append(
            f"| {forget.name}, {side} | {len(used[k])} of {len(forget.pairs[side])} | {accepted(sides[k], full):.2f} | "
            f"{accepted(sides[k], chosen):.2f} | {low:+.2f} to {high:+.2f} | {100 * hits[k] / times:.1f} "
            "[{:.1f}, {:.1f}] | ".format(*wilson(int(hits[k]), times))
            + " | ".join(
                f"{getattr(full, name):.3f}, {getattr(chosen, name):.3f}, {np.std([getattr(b, name) for b in found]):.3f}"
                for name in ("surprise", "gain_weight", "gain")
            )
            + " |"
        )
    return rows, bool((hits >= CONFIDENCE * times).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--forget", nargs="*", default=["lab_forget"], help="prompt sets or files")
    parser.add_argument(
        "--exchanges", type=Path, help="labelled exchanges (JSON lines, gzip), used as one more forget set"
    )
    parser.add_argument("--kind", default="continuation", help="of the prompts in a file: question or continuation")
    parser.add_argument("--time", choices=("chosen", "all"), help="only time the calibration")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="folder for the likelihoods of all references")
    options = parser.parse_args()
    model = LocalBackend.open(models.resolve(options.model).path)
    sets = [Forget(Path(name).stem, items_of(name, options.kind, "forget"), model) for name in options.forget]
    if options.exchanges:
        sets.append(Forget(EXCHANGES, exchanges(options.exchanges), model))
    if options.time:
        work = Work(model.model)
        print("| forget set | references | multiply-adds, 1e12 | calibration, s | CPU, s |")
        print("| --- | --- | ---: | ---: | ---: |")
        for forget in sets:
            print(timed(forget, work, options.time == "all", options.keep), flush=True)
        return 0
    print("| | references | all accept, % | chosen accept, % | 95 % of choices, points | ", end="")
    print(f"within {100 * references.PRECISION:g} points, % | ", end="")
    print("surprise: all, chosen, standard deviation | gain_weight | gain |")
    print("| --- | --- | ---: | ---: | --- | --- | --- | --- | --- |")
    good = True
    for forget in sets:
        rows, precise = compared(forget, options.keep, options.resamples)
        good &= precise
        print("\n".join(rows), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
