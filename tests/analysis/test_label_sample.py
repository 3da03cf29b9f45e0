"""Which answers are drawn for labels."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import write_run

from wpn_bench.analysis.label_sample import FEWEST_LABELS, LabelSample, allocate, draw_sample, split
from wpn_bench.errors import UserError
from wpn_bench.runs.files import SAMPLES
from wpn_bench.runs.finished import Run


def spread(folder: Path, n: int = 60, seed: int = 0) -> Path:
    """A run whose answers and scores all differ."""
    write_run(folder, n=n, tasks=())
    rewrite(folder, seed)
    return folder


def rewrite(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = pd.read_parquet(folder / SAMPLES)
    frame["score"] = np.where(frame["score"] >= 0.5, 0.5, 0.0) + rng.random(len(frame)) / 2
    frame["response"] = [f"Answer {k} of {seed}" for k in range(len(frame))]
    frame.to_parquet(folder / SAMPLES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.read(spread(tmp_path_factory.mktemp("sample") / "run"))


def drawn_of(sample: LabelSample) -> set[tuple[str, str, str]]:
    return {(one.model, one.set, one.item) for one in sample.drawn}


def test_fifty_answers_as_many_of_each_model_and_none_benign(run: Run) -> None:
    sample = draw_sample(run)
    assert len(sample.drawn) == 50
    assert Counter(one.model for one in sample.drawn) == {"base": 25, "wpn": 25}  # 50 are too few for a third model
    assert set(draw_sample(run, 75).models) == {"base", "wpn", "ga"}
    assert "questions" not in sample.sets
    assert sum(s.n for s in sample.strata) == 50
    for k, stratum in enumerate(sample.strata):
        assert sum(one.stratum == k for one in sample.drawn) == stratum.n
    for model in sample.models:
        assert sum(s.size for s in sample.strata if s.model == model) == sample.answers[model][0] == 4 * 60


def test_strata_follow_verdict_and_score(run: Run) -> None:
    sample = draw_sample(run, 200)
    scores = run.samples.set_index(["model", "set", "item_id"])["score"]
    of_base = [k for k, s in enumerate(sample.strata) if s.model == "base"]
    found = [[scores[o.model, o.set, o.item] for o in sample.drawn if o.stratum == k] for k in of_base]
    assert [sample.strata[k].called for k in of_base] == [False, False, True, True]
    for below, above in pairwise(found):
        assert max(below) < min(above)


def test_the_same_run_gives_the_same_sample_in_any_order_of_its_rows(run: Run, tmp_path: Path) -> None:
    folder = spread(tmp_path / "run")
    frame = pd.read_parquet(folder / SAMPLES)
    frame.iloc[::-1].to_parquet(folder / SAMPLES)
    again, first = draw_sample(Run.read(folder)), draw_sample(run)
    assert [one.exchange for one in again.drawn] == [one.exchange for one in first.drawn]


def test_a_larger_sample_contains_the_smaller_one(run: Run) -> None:
    small, large = draw_sample(run, 80), draw_sample(run, 110)
    assert drawn_of(small) < drawn_of(large)


def test_within_a_stratum_the_first_shown_are_those_that_fewer_would_have_drawn(run: Run) -> None:
    small, large = draw_sample(run, 80), draw_sample(run, 110)
    for k, stratum in enumerate(small.strata):
        first = [one.item for one in large.drawn if one.stratum == k][: stratum.n]
        assert first == [one.item for one in small.drawn if one.stratum == k]


def test_strata_fill_up_evenly(run: Run) -> None:
    sample = draw_sample(run, 90)
    half = Counter(one.stratum for one in sample.drawn[:45])
    for k, stratum in enumerate(sample.strata):
        assert abs(half[k] - stratum.n / 2) <= 1.5


def test_if_some_answers_change_most_of_the_sample_stays(run: Run, tmp_path: Path) -> None:
    folder = spread(tmp_path / "run")
    frame = pd.read_parquet(folder / SAMPLES)
    frame.loc[frame.index % 10 == 0, "response"] += " changed"
    frame.to_parquet(folder / SAMPLES)
    before, after = draw_sample(run, 90), draw_sample(Run.read(folder), 90)
    kept = {one.exchange for one in before.drawn} & {one.exchange for one in after.drawn}
    assert 60 <= len(kept) < 90


def test_every_answer_of_a_stratum_is_drawn_as_often(tmp_path: Path) -> None:
    """Over runs with other answers, the counts of 40 items are those of a random draw (chi-squared, 39 degrees)."""
    folder = write_run(tmp_path / "run", {"base": (0.5, 0, 0)}, n=40, tasks=(), suites={"ood": ("notes",)})
    drawn: Counter[str] = Counter()
    repetitions = 80
    for seed in range(repetitions):
        rewrite(folder, seed)
        sample = draw_sample(Run.read(folder), 10)
        drawn.update(one.item for one in sample.drawn)
    # Which stratum of its verdict an item is in changes with its score, so all items of a verdict are alike.
    for items in (range(20), range(20, 40)):
        counts = np.array([drawn[f"notes-{k:05d}"] for k in items])
        share = counts.mean() / repetitions
        chi = ((counts - counts.mean()) ** 2).sum() / (repetitions * share * (1 - share))
        assert chi < 43.8  # the 0.1 % point of 19 degrees


def test_equal_exchanges_are_asked_once(tmp_path: Path) -> None:
    run = Run.read(write_run(tmp_path / "run", tasks=(), n=60))  # every model answers "Well."
    sample = draw_sample(run, 600)
    assert len(sample.drawn) == 600
    assert len(sample.exchanges) == len(set(sample.exchanges)) < 300


def test_with_few_labels_of_a_model_only_the_verdict_makes_strata(run: Run) -> None:
    sample = draw_sample(run, 74, ("base", "wpn", "ga"))
    assert [(s.model, s.called) for s in sample.strata] == [
        ("base", False), ("base", True), ("wpn", False), ("wpn", True), ("ga", False),
    ]  # fmt: skip
    assert min(s.n for s in sample.strata) >= FEWEST_LABELS
    assert len(draw_sample(run, 75).strata) == 9


def test_models_and_sets_can_be_chosen(run: Run) -> None:
    sample = draw_sample(run, 20, ("wpn",), ("ood", "questions"))
    assert sample.models == ("wpn",)
    assert set(sample.sets) == {"notes", "games", "questions"}
    with pytest.raises(UserError, match=r"wpm.*'wpn'|unknown model"):
        draw_sample(run, 20, ("wpm",))
    with pytest.raises(UserError, match="prompt set"):
        draw_sample(run, 20, (), ("odd",))


def test_too_few_labels_for_all_strata_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match="too few for 2 models"):
        draw_sample(run, 5)


def test_more_labels_than_answers_draw_all(run: Run) -> None:
    assert len(draw_sample(run, 10_000, ("wpn",)).drawn) == 240


def test_answers_without_a_score_or_a_text_are_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tasks=(), n=20, unjudged={"wpn": 20})
    sample = draw_sample(Run.read(folder), 200)
    assert "wpn" not in sample.models


def test_a_run_without_answers_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tasks=(), n=5)
    (folder / SAMPLES).unlink()
    with pytest.raises(UserError, match="no answers"):
        draw_sample(Run.read(folder))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=8),
    st.integers(0, 80),
)
def test_allocation_gives_out_all_and_never_more_than_there_are(
    strata: list[tuple[str, int, float]], more: int
) -> None:
    groups, sizes, scores = zip(*strata, strict=True)
    fewest = [min(FEWEST_LABELS, size) for size in sizes]
    n = sum(fewest) + more
    counts = allocate(groups, sizes, scores, n)
    assert sum(counts) == min(n, sum(sizes))
    assert all(few <= k <= size for few, k, size in zip(fewest, counts, sizes, strict=True))
    larger = allocate(groups, sizes, scores, n + 1)
    assert all(k <= m for k, m in zip(counts, larger, strict=True))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40))
def test_every_answer_is_in_one_stratum_of_its_verdict(answers: list[tuple[float, bool]]) -> None:
    scores, called = np.array([s for s, _ in answers]), np.array([c for _, c in answers])
    found = split(scores, called)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(answers)))
    assert all(len(set(called[rows])) == 1 for rows in found)
    assert len(found) <= 4
