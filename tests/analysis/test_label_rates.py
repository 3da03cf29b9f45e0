"""What labels say of the judge and of each model."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from wpn_bench.analysis.correction import Stratum, stratified_rate
from wpn_bench.analysis.label_rates import merge_unlabelled, rates_of
from wpn_bench.analysis.label_sample import DrawnAnswer, LabelSample, draw_sample
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import HARMFUL, HARMLESS, SKIPPED, UNDECIDED, LabelLine, Labels

from .test_label_sample import spread


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> LabelSample:
    return draw_sample(Run.read(spread(tmp_path_factory.mktemp("rates") / "run")), 90)


def line(one: DrawnAnswer, label: str | None, annotator: str = "1") -> LabelLine:
    return LabelLine(
        one.exchange, one.model, one.seed, one.stage, one.set, one.item, label, annotator, "now", str(one.stratum), 0.1
    )


def says(
    sample: LabelSample, label: str | None = None, annotator: str = "1", first: int | None = None
) -> list[LabelLine]:
    """Lines for the first answers: `label`, or what the judge says."""
    verdict = {True: HARMFUL, False: HARMLESS}
    return [line(one, label or verdict[sample.strata[one.stratum].called], annotator) for one in sample.drawn[:first]]


def test_labels_that_agree_with_the_judge_give_its_rate(sample: LabelSample) -> None:
    found = rates_of(sample, Labels.of([], says(sample)))
    assert (found.sensitivity.value, found.specificity.value) == (1.0, 1.0)
    assert (found.labelled, found.drawn) == (90, 90)
    for rate in found.models:
        assert rate.labelled == 30
        assert rate.corrected.value == pytest.approx(rate.raw.value)
        assert rate.corrected.low is not None
        assert rate.corrected.low < rate.raw.value or rate.raw.value == 0
    assert [round(rate.raw.value, 2) for rate in found.models] == [0.1, 0.98, 1.0]


def test_the_corrected_rate_weights_each_stratum_by_its_size(sample: LabelSample) -> None:
    """If all called harmful are, and one stratum of the others, too, the rate is the share of these strata."""
    base = [k for k, s in enumerate(sample.strata) if s.model == "base"]
    wrong = base[1]
    lines = [
        line(one, HARMFUL if sample.strata[one.stratum].called or one.stratum == wrong else HARMLESS)
        for one in sample.drawn
    ]
    found = rates_of(sample, Labels.of([], lines))
    of_base = found.models[0]
    size = sum(sample.strata[k].size for k in base)
    assert of_base.corrected.value == pytest.approx(sample.strata[base[0]].size / size)
    missed = sample.strata[wrong].size
    harmful = missed + sum(s.size for s in sample.strata if s.called)
    assert found.sensitivity.value == pytest.approx(1 - missed / harmful)
    assert found.specificity.value == 1.0


def test_without_labels_nothing_is_known(sample: LabelSample) -> None:
    found = rates_of(sample, Labels())
    assert found.labelled == 0
    assert math.isnan(found.sensitivity.value)
    assert all(math.isnan(rate.corrected.value) for rate in found.models)


@pytest.mark.parametrize("first", [1, 5, 12, 30, 60])
def test_a_sitting_that_stopped_early_gives_estimates_from_what_there_is(sample: LabelSample, first: int) -> None:
    found = rates_of(sample, Labels.of([], says(sample, first=first)))
    assert found.labelled == first
    for rate in found.models:
        assert (rate.corrected.low is None) == (rate.labelled == 0)


def test_undecided_and_skipped_count_nowhere(sample: LabelSample) -> None:
    lines = says(sample)
    lines[0], lines[1] = line(sample.drawn[0], UNDECIDED), line(sample.drawn[1], SKIPPED)
    found = rates_of(sample, Labels.of([], lines))
    assert (found.labelled, found.undecided) == (88, 1)


def test_what_comes_after_a_gap_is_no_random_sample(sample: LabelSample) -> None:
    """The first answer of a stratum was never shown: its later labels were drawn for another sample."""
    first = sample.drawn[0]
    found = rates_of(sample, Labels.of([], says(sample)[1:]))
    assert found.labelled == 90 - sample.strata[first.stratum].n


def test_labels_of_other_answers_count_nowhere(sample: LabelSample) -> None:
    other = line(sample.drawn[0], HARMFUL)
    gone = LabelLine(**{**other.__dict__, "exchange": "of another run"})
    assert rates_of(sample, Labels.of([], [*says(sample), gone])) == rates_of(sample, Labels.of([], says(sample)))


def test_two_annotators_have_an_agreement(sample: LabelSample) -> None:
    lines = says(sample) + says(sample, annotator="2")
    found = rates_of(sample, Labels.of([], lines))
    assert found.agreement is not None
    assert (found.agreement.agreement, found.agreement.n) == (1.0, 90)
    split = says(sample) + says(sample, HARMFUL, annotator="2")
    found = rates_of(sample, Labels.of([], split))
    assert found.undecided == sum(not sample.strata[one.stratum].called for one in sample.drawn)


def test_unlabelled_strata_join_their_neighbours() -> None:
    a, b, c, d = Stratum(10, 2, 1, False), Stratum(5, 0, 0, False), Stratum(6, 0, 0, True), Stratum(4, 2, 2, True)
    assert merge_unlabelled([a, b, c, d]) == [Stratum(15, 2, 1, False), Stratum(10, 2, 2, True)]
    assert merge_unlabelled([a, b, c]) == [Stratum(21, 2, 1, None)]
    assert merge_unlabelled([a, d]) == [a, d]
    assert merge_unlabelled([b, c]) == [b, c]


def test_the_interval_contains_the_true_rate_in_95_of_100_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three kinds of runs together; `benchmarks/label_coverage.py` has the whole table."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from label_coverage import answers, labelled

    rng = np.random.default_rng(7)
    inside = []
    for rate, auc, n in ((0.05, 0.8, 50), (0.3, 0.95, 50), (0.1, 0.5, 100)):
        for _ in range(250):
            harmful, scores = answers(rng, 400, rate, auc, 0.93)
            e = stratified_rate(list(labelled(rng, harmful, scores, n)), 1000)
            assert e.low is not None
            assert e.high is not None
            inside.append(e.low <= rate <= e.high)
    assert 0.93 <= np.mean(inside) <= 0.97
    sys.modules.pop("label_coverage", None)
