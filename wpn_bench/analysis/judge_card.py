"""Judge cards: measure a judge's errors on labelled texts or exchanges, and correct a run's harmless rates for them.

A card belongs to one judge (identified by its digest), one threshold and one file of labelled texts. Its figures only
hold for similar texts. A judge that was trained on web comments may be worse, or better, on responses of a model.
Harmful is the positive class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from wpn_bench.analysis import stats
from wpn_bench.analysis.correction import Corrected, Errors, corrected_rate
from wpn_bench.analysis.stats import Estimate
from wpn_bench.core.files import digest_file
from wpn_bench.core.progress import Advance
from wpn_bench.core.validation import as_user_error
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import JUDGES, Exchange, Judge, distinct, get_judge, needs_prompt, scores_of
from wpn_bench.harmless.judges.base import DEFAULT_THRESHOLD
from wpn_bench.harmless.judges.spec import check
from wpn_bench.prompts import read_file

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler

BINS = 10
_TRUTH = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True)
class Labelled:
    """Labelled texts from a file.

    Attributes:
        texts: The texts.
        harmful: Whether each text is harmful.
        rows: Number of rows that were read.
        without_label: Number of rows left out because they have no label.
        without_text: Number of rows left out because they have a label but no text, or no prompt if prompts are read.
        prompts: The prompts that the texts answer; None if they are not read.
    """

    texts: tuple[str, ...]
    harmful: tuple[bool, ...]
    rows: int
    without_label: int
    without_text: int
    prompts: tuple[str, ...] | None = None

    @property
    def exchanges(self) -> list[Exchange] | None:
        """The prompts with the texts; None if the prompts were not read."""
        return (
            None if self.prompts is None else [Exchange(*pair) for pair in zip(self.prompts, self.texts, strict=True)]
        )


class Figure(BaseModel):
    """A value over `n` texts with its 95 % interval. The ends are null if there is no interval.

    For a proportion, `right` is its numerator.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float | None
    low: float | None
    high: float | None
    n: int
    right: int | None = None


class Bin(BaseModel):
    """The texts with scores from `low` to `high`: their mean score, and the proportion of them that is harmful."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: float
    high: float
    score: float | None
    harmful: Figure


class JudgeCard(BaseModel):
    """The result of `wpn-bench judge`. `n` texts were scored, of which `positive` are labelled harmful."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    judge: str
    digest: str = Field(description="digest of the judge")
    threshold: float = Field(gt=0, lt=1)
    about: str = Field("", description="one sentence that describes the texts")
    file: str
    file_digest: str
    text_column: str
    prompt_column: str | None = Field(None, description="the prompts that the texts answer")
    label_column: str
    label_threshold: float | None = Field(
        None, description="lowest label that counts as harmful; None if labels are 0 or 1"
    )
    limit: int | None = None
    rows: int
    without_label: int
    without_text: int
    unjudged: int = Field(description="number of texts to which the judge gave no score")
    n: int
    positive: int
    auc: Figure
    sensitivity: Figure
    specificity: Figure
    precision: Figure
    prevalence: Figure
    brier: Figure
    calibration_error: float
    calibration: tuple[Bin, ...]
    usage: dict[str, Any] | None = Field(None, description="what the scores took, of a judge that spends tokens")

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what only cards of exchanges and of endpoints have, so that other cards stay as they were."""
        told: dict[str, Any] = handler(self)
        return {
            name: value for name, value in told.items() if value is not None or name not in ("prompt_column", "usage")
        }

    def correct(self, harmless: float, n: int, variance: float | None = None) -> Corrected:
        """Correct a harmless rate for the errors of this judge.

        `stats.rogan_gladen` corrects the proportion of positives, so it gets the harmful share.

        Args:
            harmless: Proportion of answers that this judge calls harmless.
            n: Number of judged answers.
            variance: Variance of `harmless` if it is a mean over seeds, else None.

        Returns:
            The corrected harmless rate with its 95 % interval.
        """
        of_harmful, of_harmless = ((float(f.right or 0), float(f.n)) for f in (self.sensitivity, self.specificity))
        harm = corrected_rate(1 - harmless, n, Errors(of_harmful, of_harmless), variance)
        low, high = (None if end is None else 1 - end for end in (harm.high, harm.low))
        return Corrected(1 - harm.value, low, high, harm.cut)

    @property
    def informative(self) -> bool:
        """Return whether the judge is better than chance. If not, no rate can be corrected."""
        return (self.sensitivity.value or 0.0) + (self.specificity.value or 0.0) > 1


def read_labelled(
    path: Path,
    text: str = "text",
    label: str = "label",
    threshold: float | None = None,
    limit: int | None = None,
    prompt: str | None = None,
) -> Labelled:
    """Read labelled texts from a .jsonl, .csv (also gzipped) or .parquet file.

    Rows without a label (null, empty, NaN) are left out.

    Args:
        path: The file.
        text: Column of the texts.
        label: Column of the labels: 0 or 1, true or false, or any number if `threshold` is given.
        threshold: Lowest label that means harmful; None if labels are 0 or 1.
        limit: Number of texts with a label that are used; None means all.
        prompt: Column of the prompts that the texts answer; None reads no prompts.

    Returns:
        The texts and labels, with the prompts if `prompt` is given.

    Raises:
        UserError: A column is missing, a label is not valid, or there are no harmful or no harmless texts.
    """
    rows = read_file(path)
    known = {column for row in rows for column in row}
    for column, option in ((text, "--text"), (label, "--label"), (prompt, "--prompt")):
        if column is not None and column not in known:
            raise UserError(
                f"{path} has no column {column!r}", f"name it with {option} (there are: {', '.join(sorted(known))})"
            )
    texts: list[str] = []
    prompts: list[str] = []
    harmful: list[bool] = []
    without_label = without_text = seen = 0
    for seen, row in enumerate(rows, 1):
        verdict = _harmful(row.get(label), threshold, f"{path} row {seen}: the label {label!r}")
        if verdict is None:
            without_label += 1
        elif not isinstance(row.get(text), str) or (prompt is not None and not isinstance(row.get(prompt), str)):
            without_text += 1
        else:
            texts.append(row[text])
            prompts += [row[prompt]] if prompt is not None else []
            harmful.append(verdict)
        if len(texts) == limit:
            break
    if len(set(harmful)) < 2:
        kind = "with a label" if not harmful else "harmless" if harmful[0] else "harmful"
        raise UserError(f"{path} contains no text {kind} by the column {label!r}", "a card needs texts of both kinds")
    asked = None if prompt is None else tuple(prompts)
    return Labelled(tuple(texts), tuple(harmful), seen, without_label, without_text, asked)


def _harmful(value: Any, threshold: float | None, where: str) -> bool | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if (known := _TRUTH.get(str(value).strip().casefold())) is not None:
        return known if threshold is None else float(known) >= threshold
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise UserError(f"{where} is {str(value)[:40]!r}", "write 0 or 1, true or false, or leave it empty")
    if threshold is None and number not in (0.0, 1.0):
        raise UserError(f"{where} is {number:g}, neither 0 nor 1", "add --label-threshold 0.5 if labels are scores")
    return number >= (0.5 if threshold is None else threshold)


def make_card(
    judge: Judge, threshold: float, labelled: Labelled, advance: Advance = lambda n: None, /, **about: Any
) -> JudgeCard:
    """Score labelled texts with a judge, and measure its errors.

    Args:
        judge: The judge.
        threshold: Lowest score at which the judge calls a text harmful.
        labelled: The texts and labels.
        advance: Called with the number of texts scored since its last call.
        **about: Fields of the card that describe the judge and the origin of the texts.

    Returns:
        The card.

    Raises:
        UserError: The judge gave no score to any harmful text, or to any harmless text.
    """
    exchanges = labelled.exchanges
    scored = judge.score(labelled.texts, advance) if exchanges is None else scores_of(judge, exchanges, advance)
    pairs = [(s, h) for s, h in zip(scored, labelled.harmful, strict=True) if s is not None]
    scores, harmful = [s for s, _ in pairs], [h for _, h in pairs]
    positive = sum(harmful)
    if not 0 < positive < len(pairs):
        reasons = ", ".join(f"{n} {why}" for why, n in judge.take_usage().get("missing", {}).items())
        raise UserError(
            "the judge gave no score to any harmful text, or to any harmless text"
            + (f" ({reasons})" if reasons else ""),
            "check the texts and the judge",
        )
    called = [s >= threshold for s in scores]
    hit = sum(c and h for c, h in zip(called, harmful, strict=True))
    clear = sum(not c and not h for c, h in zip(called, harmful, strict=True))
    bins = _bins(scores, harmful)
    return JudgeCard(
        threshold=threshold,
        digest=judge.digest(),
        rows=labelled.rows,
        without_label=labelled.without_label,
        without_text=labelled.without_text,
        unjudged=len(scored) - len(pairs),
        n=len(pairs),
        positive=positive,
        auc=_figure(stats.auc(scores, harmful), len(pairs)),
        sensitivity=_share(hit, positive),
        specificity=_share(clear, len(pairs) - positive),
        precision=_share(hit, sum(called)),
        prevalence=_share(positive, len(pairs)),
        brier=_figure(stats.mean_by_bootstrap([[(s - h) ** 2 for s, h in pairs]]), len(pairs)),
        calibration_error=sum(
            b.harmful.n / len(pairs) * abs(b.score - b.harmful.value)
            for b in bins
            if b.score is not None and b.harmful.value is not None
        ),
        calibration=tuple(bins),
        usage=judge.config.with_cost(judge.take_usage()) or None,
        **about,
    )


def measure(
    file: Path,
    judge: str,
    *,
    text: str = "text",
    prompt: str | None = None,
    label: str = "label",
    label_threshold: float | None = None,
    limit: int | None = None,
    about: str = "",
    device: str = "auto",
    quiet: bool = False,
) -> JudgeCard:
    """Measure a judge on a file of labelled texts, as `wpn-bench judge` does.

    Args:
        file: The file (see `read_labelled`).
        judge: The judge with its options, as on the command line.
        text: Column of the texts.
        prompt: Column of the prompts that the texts answer; None if the judge scores the texts alone.
        label: Column of the labels.
        label_threshold: Lowest label that means harmful; None if labels are 0 or 1.
        limit: Number of texts with a label that are used; None means all.
        about: A sentence that describes the texts.
        device: Device of the judge; `auto` uses a GPU if there is one.
        quiet: Whether to show no progress.

    Returns:
        The card.

    Raises:
        UserError: The judge reads prompts and no column is named, a file or column is wrong, or the judge cannot be
            used.
    """
    from wpn_bench.core.progress import reporter
    from wpn_bench.models import pick_device

    spec = check(judge)
    if prompt is None and needs_prompt(JUDGES.get(spec.judge)):
        raise UserError(f"the judge {spec.name} reads the prompt", "name the column of the prompts with --prompt")
    labelled = read_labelled(file, text, label, label_threshold, limit, prompt)
    scorer = get_judge(judge, pick_device(device))
    n = len(labelled.texts if labelled.exchanges is None else distinct(scorer, labelled.exchanges))
    shower = reporter(quiet=quiet)
    with shower:
        shower.start(f"judge {file.name} by {spec.name}")
        return make_card(
            scorer,
            spec.config.threshold or DEFAULT_THRESHOLD,
            labelled,
            shower.items(n, "texts"),
            judge=spec.name,
            about=about,
            file=file.name,
            file_digest=digest_file(file),
            text_column=text,
            prompt_column=prompt,
            label_column=label,
            label_threshold=label_threshold,
            limit=limit,
        )


def _bins(scores: Sequence[float], harmful: Sequence[bool]) -> list[Bin]:
    """Return the texts in `BINS` score bins of equal width.

    The expected calibration error (Naeini et al. 2015) is computed from these bins. It is the mean absolute difference
    between a bin's mean score and its proportion of harmful texts, weighted by the number of texts in the bin.
    """
    found: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for score, h in zip(scores, harmful, strict=True):
        found[min(BINS - 1, int(score * BINS))].append((score, h))
    return [
        Bin(
            low=k / BINS,
            high=(k + 1) / BINS,
            score=sum(s for s, _ in pairs) / len(pairs) if pairs else None,
            harmful=_share(sum(h for _, h in pairs), len(pairs)),
        )
        for k, pairs in enumerate(found)
    ]


def _share(right: int, n: int) -> Figure:
    return _figure(stats.rate(right, n), n, right)


def _figure(e: Estimate, n: int, right: int | None = None) -> Figure:
    return Figure(value=None if math.isnan(e.value) else e.value, low=e.low, high=e.high, n=n, right=right)


def read_card(path: Path) -> JudgeCard:
    """Read a card that `wpn-bench judge` wrote. Raises `UserError` for any other file."""
    make_one = "make a card: wpn-bench judge FILE --out CARD.json"
    try:
        with as_user_error(f"{path} is not a judge card", make_one):
            return JudgeCard.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"there is no judge card {path}", make_one) from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read ({' '.join(str(e).split())[:120]})", "check the file") from e
