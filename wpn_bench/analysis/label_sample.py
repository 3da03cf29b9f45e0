"""Which answers of a run people are asked to label.

The answers of each model are divided into strata by the judge's verdict and score, and a random sample is drawn in each
stratum. Every answer has a random number of its own (a digest of itself), and the sample of a stratum consists of its answers
with the smallest numbers (permanent random numbers, Ohlsson 1995). So the same run gives the same sample, a larger sample
contains the smaller one, and if some answers of the run change, most of the sample stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpn_bench.core.files import digest_of
from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError
from wpn_bench.prompts import WORST_CASE
from wpn_bench.runs.files import BASE
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import BENIGN

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

DEFAULT_N = 50
FEWEST_TO_SPLIT = 8  # answers of one verdict that are still split by score
FEWEST_LABELS = 3  # in a stratum; with fewer, intervals are too narrow (benchmarks/label_coverage.py)
MANY_LABELS = 25  # of a model: from here on its interval can be relied on, and its strata are split by score, too
UPPER = {False: 1 / 3, True: 1 / 2}  # verdict harmful -> share of its answers that form the stratum of higher scores
POWER = 0.7  # between labels in proportion to the stratum (1) and as many in each (0)
_COLUMNS = ("model", "seed", "suite", "set", "item_id", "prompt", "response", "score", "harmless")


@dataclass(frozen=True)
class SampleStratum:
    """A stratum of a model's answers.

    Attributes:
        model: The model.
        name: Its name in the label file.
        called: Whether the judge calls these answers harmful.
        size: The number of answers.
        n: How many of them are drawn.
    """

    model: str
    name: str
    called: bool
    size: int
    n: int


@dataclass(frozen=True)
class DrawnAnswer:
    """A drawn answer. `stratum` is an index into the strata of the sample; the other fields are those of `LabelLine`."""

    stratum: int
    exchange: str
    model: str
    seed: int | None
    stage: str
    set: str
    item: str
    prompt: str
    response: str


@dataclass(frozen=True)
class LabelSample:
    """A sample of a run's answers.

    Attributes:
        strata: The strata, model by model, in the order of the judge's scores.
        drawn: The drawn answers in the order in which they are shown. Within a stratum it is that of the random numbers, so
            that the answers labelled up to any moment are a random sample of their stratum.
        models: The models whose answers were drawn from.
        sets: The prompt sets.
        answers: Model -> (its judged answers, how many of them the judge calls harmless).
    """

    strata: tuple[SampleStratum, ...]
    drawn: tuple[DrawnAnswer, ...]
    models: tuple[str, ...]
    sets: tuple[str, ...]
    answers: dict[str, tuple[int, int]]

    @property
    def exchanges(self) -> list[str]:
        """The distinct exchanges in the order in which they are shown. Equal ones need one label."""
        return list(dict.fromkeys(one.exchange for one in self.drawn))


def draw_sample(run: Run, n: int = DEFAULT_N, models: Sequence[str] = (), sets: Sequence[str] = ()) -> LabelSample:
    """Draw the answers of a run that people are asked to label.

    Args:
        run: The run.
        n: The number of answers; all if there are fewer.
        models: Draw from these models' answers; empty: all but further variants of a method, or, if each would get fewer
            than `MANY_LABELS`, base and the model that the verdict is about.
        sets: Draw from these prompt sets or suites; empty: all but the benign ones.

    Returns:
        The sample.

    Raises:
        UserError: The run has no judged answers of these models and sets, or a name is unknown, or `n` is too small to draw
            `FEWEST_LABELS` answers in each stratum.
    """
    import numpy as np

    frame = _population(run, models, sets)
    if not models and frame["model"].nunique() * MANY_LABELS > n:
        of_verdict = frame["model"].isin([BASE, run.view.primary()])
        frame = frame[of_verdict].reset_index(drop=True) if of_verdict.any() else frame
    order = {name: k for k, name in enumerate(run.view.every_measured())}
    names = sorted(frame["model"].unique(), key=lambda name: (order.get(name, len(order)), name))
    places: list[NDArray[np.int64]] = []
    found: list[tuple[str, str, bool]] = []
    guesses: list[float] = []
    for name in names:
        rows = np.flatnonzero(frame["model"].to_numpy() == name)
        scores, called = frame["score"].to_numpy()[rows], ~frame["harmless"].to_numpy()[rows]
        for code, of_stratum in enumerate(split(scores, called, by_score=n >= MANY_LABELS * len(names))):
            places.append(rows[of_stratum])
            found.append((name, f"{name}/{code}", bool(called[of_stratum[0]])))
            guesses.append(float(scores[of_stratum].mean()))
    sizes = [len(rows) for rows in places]
    if n < (fewest := sum(min(FEWEST_LABELS, size) for size in sizes)):
        raise UserError(
            f"{n} labels are too few for {len(names)} models, whose answers form {len(sizes)} strata",
            f"draw at least --n {fewest}, or from fewer models: --model NAME",
        )
    counts = allocate([model for model, _, _ in found], sizes, guesses, n)
    strata = tuple(SampleStratum(*about, size, k) for about, size, k in zip(found, sizes, counts, strict=True))
    drawn = _drawn(frame, places, counts)
    asked = tuple(dict.fromkeys(frame["set"]))
    judged = {name: frame.loc[frame["model"] == name, "harmless"] for name in names}
    answers = {name: (len(verdicts), int(verdicts.sum())) for name, verdicts in judged.items()}
    return LabelSample(strata, drawn, tuple(names), asked, answers)


def _population(run: Run, models: Sequence[str], sets: Sequence[str]) -> pd.DataFrame:
    """The judged answers of these models and sets."""
    frame = run.samples_with(_COLUMNS)
    if frame.empty:
        raise UserError(f"{run.folder} holds no answers", "label a run with prompt sets")
    frame = frame[frame["score"].notna() & frame["response"].notna() & frame["harmless"].notna()]
    frame = frame[frame["set"] != WORST_CASE].reset_index(drop=True)
    _check_names("model", models, frame["model"])
    _check_names("prompt set", sets, [*frame["suite"], *frame["set"]])
    frame = frame[frame["model"].isin(list(models)) if models else ~frame["model"].isin(list(run.view.varieties))]
    in_sets = frame["suite"].isin(list(sets)) | frame["set"].isin(list(sets))
    chosen = frame[in_sets if sets else frame["suite"] != BENIGN]
    chosen = chosen.assign(harmless=chosen["harmless"].astype(bool)).reset_index(drop=True)
    if chosen.empty:
        raise UserError(f"{run.folder} has no judged answers to label", "choose others with --model and --set")
    return chosen


def _check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    there = list(dict.fromkeys(known))
    for name in names:
        if name not in there:
            raise unknown_name(kind, name, there)


def split(scores: NDArray[np.float64], called: NDArray[np.bool_], *, by_score: bool = True) -> list[NDArray[np.int64]]:
    """Divide one model's answers into strata: by verdict, and by score within a verdict.

    The judge's errors are most often where its score is near the threshold, so harmless answers are split at the upper third
    of their scores and harmful ones at the middle.

    Args:
        scores: The judge's scores, shape (answers,).
        called: Whether the judge calls each answer harmful, shape (answers,).
        by_score: Whether to split by score, not only by verdict.

    Returns:
        The indices of the answers of each stratum, in the order of the scores; no stratum is empty.
    """
    import numpy as np

    found = []
    for side in (False, True):
        rows = np.flatnonzero(called == side)
        if not by_score or len(rows) < FEWEST_TO_SPLIT:
            found.append(rows)
            continue
        above = scores[rows] > np.quantile(scores[rows], 1 - UPPER[side])
        found += [rows[~above], rows[above]]
    return [rows for rows in found if len(rows)]


def allocate(groups: Sequence[str], sizes: Sequence[int], scores: Sequence[float], n: int) -> list[int]:
    """How many answers to draw in each stratum.

    Each group (model) gets as many, since each has a rate of its own to correct. Within a group the numbers are proportional
    to W^0.7 sqrt(p (1 - p)): Neyman's allocation has W, the share of the stratum, but would leave hardly any labels to small
    strata, on which sensitivity and specificity depend. p, the share of harmful answers, is not known; the guess
    0.1 + 0.8 * mean score trusts the judge little. Answers are given out one at a time, so that more of them never mean fewer
    in some stratum.

    Args:
        groups: The group of each stratum.
        sizes: The number of answers of each stratum.
        scores: The mean score of each stratum.
        n: The number of answers to draw.

    Returns:
        The numbers. Each is at least `FEWEST_LABELS`, or all of the stratum; their sum is `n`, or all answers if there are fewer.
    """
    total = {group: sum(s for g, s in zip(groups, sizes, strict=True) if g == group) for group in groups}
    wanted = []
    for group, size, score in zip(groups, sizes, scores, strict=True):
        guess = 0.1 + 0.8 * min(1.0, max(0.0, score))
        wanted.append((size / total[group]) ** POWER * (guess * (1 - guess)) ** 0.5)
    counts = [min(FEWEST_LABELS, size) for size in sizes]
    given = {group: sum(k for g, k in zip(groups, counts, strict=True) if g == group) for group in groups}
    for _ in range(min(n, sum(sizes)) - sum(counts)):
        open_ = [k for k, size in enumerate(sizes) if counts[k] < size]
        k = min(open_, key=lambda k: (given[groups[k]], counts[k] / wanted[k]))
        counts[k] += 1
        given[groups[k]] += 1
    return counts


def _drawn(frame: pd.DataFrame, places: Sequence[NDArray[np.int64]], counts: Sequence[int]) -> tuple[DrawnAnswer, ...]:
    """The answers with the smallest random numbers of each stratum, mixed so that strata fill up evenly."""
    found: list[tuple[float, DrawnAnswer]] = []
    for stratum, (rows, n) in enumerate(zip(places, counts, strict=True)):
        answers = []
        for row in frame.iloc[rows].to_dict("records"):
            seed = row["seed"]
            drawn = DrawnAnswer(
                stratum,
                digest_of([row["prompt"], row["response"]]),
                str(row["model"]),
                None if seed is None or seed != seed or str(seed) == "<NA>" else int(seed),
                str(row["suite"]),
                str(row["set"]),
                str(row["item_id"]),
                str(row["prompt"]),
                str(row["response"]),
            )
            answers.append((_random(drawn, "draw"), drawn))
        answers.sort(key=lambda pair: pair[0])
        found += [((rank + _random(one, "order")) / n, one) for rank, (_, one) in enumerate(answers[:n])]
    return tuple(one for _, one in sorted(found, key=lambda pair: pair[0]))


def _random(answer: DrawnAnswer, purpose: str) -> float:
    """The random number of an answer, from 0 to 1."""
    key = (purpose, answer.model, answer.seed, answer.stage, answer.set, answer.item, answer.exchange)
    return int.from_bytes(hashlib.sha256(repr(key).encode("utf-8", "replace")).digest()[:8], "big") / 2**64
