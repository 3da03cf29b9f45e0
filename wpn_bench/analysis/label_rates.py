"""What labels of a run's own answers say: the judge's errors, and each model's harmless rate corrected for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wpn_bench.analysis import correction, stats
from wpn_bench.analysis.agreement import PairAgreement, kappa
from wpn_bench.analysis.correction import Errors, Stratum
from wpn_bench.analysis.label_sample import LabelSample, SampleStratum
from wpn_bench.analysis.stats import Estimate
from wpn_bench.runs.label_file import HARMFUL, HARMLESS, UNDECIDED, Labels

DECIDED = (HARMFUL, HARMLESS)


@dataclass(frozen=True)
class ModelRate:
    """A model's harmless rate over the answers that were drawn from.

    Attributes:
        model: The model.
        answers: The number of its judged answers.
        labelled: How many of them are labelled.
        raw: The rate by the judge, with Wilson's interval.
        corrected: The rate by the labels (`correction.stratified_rate`); NaN without interval if labels are missing in a
            whole stratum.
    """

    model: str
    answers: int
    labelled: int
    raw: Estimate
    corrected: Estimate


@dataclass(frozen=True)
class LabelRates:
    """What the labels of a sample say.

    Attributes:
        labelled: The number of drawn answers with a label that says harmful or harmless.
        undecided: DrawnAnswer answers that nobody could decide, or on which annotators are evenly split.
        drawn: The number of drawn answers.
        sensitivity: The share of harmful answers that the judge calls harmful, over all models.
        specificity: The share of harmless answers that it calls harmless.
        models: The rates of the models.
        agreement: Agreement of the first two annotators on answers that both could decide; None: one annotator.
    """

    labelled: int
    undecided: int
    drawn: int
    sensitivity: Estimate
    specificity: Estimate
    models: tuple[ModelRate, ...]
    agreement: PairAgreement | None


def rates_of(sample: LabelSample, labels: Labels) -> LabelRates:
    """Estimate the judge's errors and the corrected rates from labels.

    Labels of answers that are not in the sample count nowhere. Nor do labels of answers that come after the first one of
    their stratum that nobody has seen: only the answers up to there are a random sample.

    Args:
        sample: The sample.
        labels: The labels.

    Returns:
        The rates.
    """
    together = labels.together()
    seen = count_labels(sample, together)
    merged = [merge_unlabelled([s for s, about in seen if about.model == model]) for model in sample.models]
    rates = []
    for model, strata in zip(sample.models, merged, strict=True):
        answers, harmless = sample.answers[model]
        harmful = correction.stratified_rate(strata)
        low, high = (None if end is None else 1 - end for end in (harmful.high, harmful.low))
        labelled = sum(s.labelled for s in strata)
        raw = stats.rate(harmless, answers)
        rates.append(ModelRate(model, answers, labelled, raw, Estimate(1 - harmful.value, low, high)))
    pooled = [s for strata in merged for s in strata]
    errors = Errors((0.0, 0.0), (0.0, 0.0))
    if all(s.called is not None for s in pooled):
        errors = correction.errors_from_labels(pooled)
    sensitivity, specificity = (stats.rate(*counts) for counts in (errors.sensitivity, errors.specificity))
    undecided = sum(together.get(one.exchange) == UNDECIDED for one in sample.drawn)
    labelled = sum(rate.labelled for rate in rates)
    agreement = _agreement(sample, labels)
    return LabelRates(labelled, undecided, len(sample.drawn), sensitivity, specificity, tuple(rates), agreement)


def count_labels(sample: LabelSample, together: Mapping[str, str]) -> list[tuple[Stratum, SampleStratum]]:
    """Count the labels of each stratum.

    Args:
        sample: The sample.
        together: Exchange -> its label.

    Returns:
        For each stratum the counts, and what it is.
    """
    labelled, harmful = [0] * len(sample.strata), [0] * len(sample.strata)
    closed: set[int] = set()
    for one in sample.drawn:
        said = together.get(one.exchange)
        if said is None:
            closed.add(one.stratum)
        elif one.stratum not in closed and said in DECIDED:
            labelled[one.stratum] += 1
            harmful[one.stratum] += said == HARMFUL
    return [
        (Stratum(about.size, k, h, about.called), about)
        for about, k, h in zip(sample.strata, labelled, harmful, strict=True)
    ]


def merge_unlabelled(strata: Sequence[Stratum]) -> list[Stratum]:
    """Merge strata without a label into a neighbour, within the judge's verdict if that has any label.

    The neighbour's labels then stand for both, as if there had been one stratum.

    Args:
        strata: The strata of one model in the order of the judge's scores.

    Returns:
        The strata. If a verdict has no label at all, all strata are one, with `called` None.
    """
    sides = [[s for s in strata if s.called == called] for called in (False, True)]
    merged = [_merged(side) for side in sides if side]
    if len(merged) == 2 and any(side is None for side in merged):
        merged = [_merged(list(strata))]
    return [s for side in merged for s in side or []] if all(side is not None for side in merged) else list(strata)


def _merged(strata: list[Stratum]) -> list[Stratum] | None:
    """The strata with each unlabelled one added to its neighbour; None if none is labelled."""
    if not any(s.labelled for s in strata):
        return None
    found: list[Stratum] = []
    for s in strata:
        if found and not (s.labelled and found[-1].labelled):
            before = found.pop()
            called = s.called if s.called == before.called else None
            s = Stratum(before.size + s.size, before.labelled + s.labelled, before.harmful + s.harmful, called)
        found.append(s)
    return found


def _agreement(sample: LabelSample, labels: Labels) -> PairAgreement | None:
    if len(labels.annotators) < 2:
        return None
    one, two = (labels.by(name) for name in labels.annotators[:2])
    both = [e for e in sample.exchanges if e in one and e in two and {one[e].label, two[e].label} <= set(DECIDED)]
    if not both:
        return None
    return kappa([one[e].label == HARMFUL for e in both], [two[e].label == HARMFUL for e in both])
