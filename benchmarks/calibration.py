"""Measure how long the calibration of the coherence bounds takes, and how precise the bounds are.

    python benchmarks/calibration.py --model HuggingFaceTB/SmolLM2-135M-Instruct --forget pku_forget rtp_triples_train.jsonl
    python benchmarks/calibration.py --model HuggingFaceTB/SmolLM2-135M-Instruct --forget pku_forget --time

Calibration uses some of the references of a forget set (`wpn_bench/harmless/references.py`). The script computes the likelihoods of
all references that it chooses from, and compares the bounds from the chosen ones with the bounds from all. Then it repeats the
choice many times with other members of the groups. For each choice, it counts how many of all references both rules on
likelihoods accept. It prints how many percentage points this share differs from that of the bounds from all references. It exits
with 1 if the share of one side differs by more than 1 point in more than 5 % of the choices.

All references of a real model take long. With `--keep FOLDER`, their likelihoods are written to that folder and read from there.

With `--time`, the script only times the calibration, with the floor: the multiply-adds of its matrix products, with prefixes
computed once as the engine does it, at the speed that this machine reaches in a large matrix product.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coherence import items_of

from wpn_bench import models
from wpn_bench.engine import tree
from wpn_bench.engine.likelihood import ROW
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.harmless import references
from wpn_bench.harmless.judges import coherence
from wpn_bench.harmless.judges.coherence import Bounds, Likelihood
from wpn_bench.harmless.stages import REFERENCES
from wpn_bench.prompts.templates import choose_template

SIDES = ("harmless", "harmful")
CONFIDENCE = 0.95
CHUNK = 48  # references between two writes of the file of likelihoods


@dataclass
class Work:
    """The work of a calibration: tokens of the prefix trees, predicted tokens, multiply-adds."""

    tokens: int = 0
    predicted: int = 0
    multiply_adds: float = 0.0


class Measured(LocalBackend):
    """A backend that measures its work."""

    work: Work

    def loglikelihoods(self, pairs: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
        found = super().loglikelihoods(pairs, **options)
        sequences = list({tuple([*context, *continuation][:-1]) for context, continuation in pairs})
        tokens, predicted = sum(map(len, tree.trees(sequences, ROW, 1 << 30))), sum(len(pair[1]) for pair in pairs)
        head = self.model.get_output_embeddings()
        linear = (m for m in self.model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        self.work.tokens += tokens
        self.work.predicted += predicted
        self.work.multiply_adds += sum(m.weight.numel() for m in linear) * tokens + head.weight.numel() * predicted
        return found


def speed() -> float:
    """Return the multiply-adds per second of a matrix product: the best of several."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(40):
        begun = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begun)
    return 1024**3 / min(times)


class Forget:
    """A forget set: the references of each side that calibration chooses from, and their likelihoods."""

    def __init__(self, name: str, kind: Any, model: Measured) -> None:
        self.name, self.model = Path(name).stem, model
        items, template = items_of(name, kind, "forget"), choose_template("auto", model.tokenizer, None)
        self.pairs: dict[str, list[tuple[str, str]]] = {}
        for side in SIDES:
            every = [(template.render(item), text) for item in items for text in getattr(item, side)]
            self.pairs[side] = every[:: max(1, len(every) // REFERENCES)]
        self.chosen = {
            side: references.choose(pairs, len(pairs), coherence.QUANTILE) for side, pairs in self.pairs.items()
        }

    def calibrate(self) -> tuple[Bounds, Work]:
        """Calibrate as a run does."""
        self.model.work = Work()
        sides = references.likelihoods(self.model, list(self.chosen.values()))
        return coherence.bounds_from(*sides), self.model.work

    def all(self, keep: Path | None) -> list[list[Likelihood]]:
        """Return the likelihoods of all references, from the kept file as far as it has them."""
        file = None if keep is None else keep / f"{self.name}.jsonl"
        known: dict[tuple[str, int], Likelihood] = {}
        if file is not None and file.exists():
            for row in map(json.loads, file.read_text().splitlines()):
                known[row["side"], row["n"]] = Likelihood(*(row[k] for k in ("loss", "gain", "per_byte", "tokens")))
        self.model.work = Work()
        missing = [(side, n) for side in SIDES for n in range(len(self.pairs[side])) if (side, n) not in known]
        for at in range(0, len(missing), CHUNK):
            part = missing[at : at + CHUNK]
            prompts, texts = zip(*(self.pairs[side][n] for side, n in part), strict=True)
            found = dict(zip(part, coherence.likelihoods(self.model, texts, after=prompts), strict=True))
            known |= found
            if file is not None:
                with file.open("a") as opened:
                    opened.writelines(
                        json.dumps({"side": s, "n": n} | asdict(one)) + "\n" for (s, n), one in found.items()
                    )
        return [[known[side, n] for n in range(len(self.pairs[side]))] for side in SIDES]


def accepted(likelihoods: Sequence[Likelihood], bounds: Bounds) -> float:
    """Return the share of references that the rules on likelihoods accept, in per cent."""
    # The words of these texts break no rule, so that only the likelihoods decide.
    found = [coherence.judge_coherence("a b c", "", one, bounds).reason is None for one in likelihoods if one.tokens]
    return 100 * sum(found) / len(found)


def resampled(forget: Forget, sides: Sequence[Sequence[Likelihood]], times: int) -> tuple[list[Bounds], np.ndarray]:
    """Repeat the choice: bounds of each choice, and the change (choices, sides) of the share that they accept."""
    draw = random.Random(1).choice
    divided = [
        references.groups([len(text.encode()) for _, text in pairs], coherence.QUANTILE)
        for pairs in forget.pairs.values()
    ]
    full = coherence.bounds_from(*sides)
    before = [accepted(side, full) for side in sides]
    found, changes = [], []
    for _ in range(times):
        bounds = coherence.bounds_from(
            *(
                [one for group in of for one in [side[draw(group)]] * len(group)]
                for side, of in zip(sides, divided, strict=True)
            )
        )
        found.append(bounds)
        changes.append([accepted(side, bounds) - share for side, share in zip(sides, before, strict=True)])
    return found, np.array(changes)


def timed(forget: Forget) -> str:
    """Calibrate, and return a row of the table of times."""
    begun, cpu = time.perf_counter(), time.process_time()
    _, work = forget.calibrate()
    wall, cpu, peak = time.perf_counter() - begun, time.process_time() - cpu, speed()
    used, every = (sum(map(len, of.values())) for of in (forget.chosen, forget.pairs))
    floor = work.multiply_adds / peak
    return (
        f"| {forget.name} | {used} of {every} | {work.tokens} | {work.predicted} | {work.multiply_adds / 1e12:.2f} | "
        f"{floor:.1f} | {wall:.1f} | {cpu:.1f} | {100 * floor / wall:.0f} |"
    )


def compared(forget: Forget, keep: Path | None, times: int) -> tuple[list[str], bool]:
    """Compare the bounds from chosen and from all references: rows of the table, and whether they are precise enough."""
    sides = forget.all(keep)
    full = coherence.bounds_from(*sides)
    chosen = coherence.bounds_from(
        *(
            [side[pairs.index((one.prompt, one.text))] for one in used for _ in range(one.count)]
            for side, pairs, used in zip(sides, forget.pairs.values(), forget.chosen.values(), strict=True)
        )
    )
    found, changes = resampled(forget, sides, times)
    shares = np.mean(np.abs(changes) <= 100 * references.PRECISION + 1e-9, axis=0)
    rows = []
    for k, side in enumerate(SIDES):
        low, high = np.quantile(changes[:, k], [0.025, 0.975])
        rows.append(
            f"| {forget.name}, {side} | {len(forget.chosen[side])} of {len(forget.pairs[side])} | "
            f"{accepted(sides[k], full):.2f} | {accepted(sides[k], chosen):.2f} | {low:+.2f} to {high:+.2f} | {100 * shares[k]:.1f} | "
            + " | ".join(
                f"{getattr(full, name):.2f}, {getattr(chosen, name):.2f}, {np.std([getattr(b, name) for b in found]):.2f}"
                for name in ("surprise", "gain_weight", "gain")
            )
            + " |"
        )
    return rows, bool((shares >= CONFIDENCE).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--forget", nargs="+", default=["lab_forget"], help="prompt sets or files")
    parser.add_argument("--kind", default="continuation", help="of the prompts in a file: question or continuation")
    parser.add_argument("--time", action="store_true", help="only time the calibration")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="folder for the likelihoods of all references")
    options = parser.parse_args()
    model = Measured.open(models.resolve(options.model).path)
    sets = [Forget(name, options.kind, model) for name in options.forget]
    if options.time:
        print("| forget set | references | tokens | predicted | multiply-adds, 1e12 | floor, s ", end="")
        print("| calibration, s | CPU, s | share, % |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for forget in sets:
            print(timed(forget), flush=True)
        return 0
    print("| | references | all accept, % | chosen accept, % | 95 % of choices, points | within 1 point, % | ", end="")
    print("surprise: all, chosen, standard deviation | gain_weight | gain |")
    print("| --- | --- | ---: | ---: | --- | ---: | --- | --- | --- |")
    good = True
    for forget in sets:
        rows, precise = compared(forget, options.keep, options.resamples)
        good &= precise
        print("\n".join(rows), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
