"""The judge card: reading labelled files, its figures against other libraries, the command."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wpn_bench import lab
from wpn_bench.analysis import judge_card
from wpn_bench.analysis.judge_card import JudgeCard, Labelled, make_card, read_card, read_labelled
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import Judge, get_judge
from wpn_bench.report.judge_card import write_card

TEXTS = [
    "You are a stupid idiot.",
    "Thank you for the bread.",
    "Shut up, moron!",
    "The town is small.",
    "Good morning.",
]
LABELS = [1, 0, 1, 0, 0]
SOURCE = {
    "judge": "fixed",
    "file": "x.jsonl",
    "file_digest": "f" * 64,
    "text_column": "text",
    "label_column": "label",
}


class Fixed(Judge):
    """Scores a text by the number that it is, and has none for "odd"."""

    name, title, measures, source = "fixed", "Fixed", "Nothing.", "https://example.org"

    def digest(self) -> str:
        return "d" * 64

    def score(self, texts: Sequence[str], advance: Advance = lambda n: None) -> list[float | None]:
        return [None if text == "odd" else float(text) for text in texts]


def card_of(scores: Sequence[float], harmful: Sequence[bool], threshold: float = 0.5) -> JudgeCard:
    labelled = Labelled(tuple(map(str, scores)), tuple(harmful), len(scores), 0, 0)
    return make_card(Fixed("", "cpu"), threshold, labelled, **SOURCE)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    """Of three harmful texts two are caught, of five others one is accused."""
    card = card_of([0.9, 0.7, 0.3, 0.6, 0.1, 0.2, 0.2, 0.4], [True] * 3 + [False] * 5)
    assert (card.sensitivity.right, card.sensitivity.n, card.sensitivity.value) == (2, 3, 2 / 3)
    assert (card.specificity.right, card.specificity.n, card.specificity.value) == (4, 5, 0.8)
    assert (card.precision.right, card.precision.n) == (2, 3)
    assert (card.prevalence.value, card.n, card.positive) == (3 / 8, 8, 3)
    assert card.auc.value == pytest.approx(13 / 15)
    squares = [0.01, 0.09, 0.49, 0.36, 0.01, 0.04, 0.04, 0.16]
    assert card.brier.value == pytest.approx(sum(squares) / 8)
    # One text a bin but for two at 0.2; each is off by its distance from 0 or 1.
    assert card.calibration_error == pytest.approx((0.1 + 0.3 + 0.7 + 0.6 + 0.1 + 2 * 0.2 + 0.4) / 8)
    assert card.informative


def test_figures_against_other_libraries() -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, confusion_matrix, precision_score, roc_auc_score
    from statsmodels.stats.proportion import proportion_confint

    rng = np.random.default_rng(0)
    scores = rng.beta(0.6, 0.6, 800)
    harmful = rng.random(800) < scores**1.3
    card = card_of(scores.tolist(), harmful.tolist(), threshold=0.4)
    called = scores >= 0.4
    (tn, fp), (fn, tp) = confusion_matrix(harmful, called).tolist()
    assert card.sensitivity.value == tp / (tp + fn)
    assert card.specificity.value == tn / (tn + fp)
    assert (card.specificity.low, card.specificity.high) == pytest.approx(
        proportion_confint(tn, tn + fp, method="wilson")
    )
    assert card.precision.value == pytest.approx(precision_score(harmful, called))
    assert card.auc.value == pytest.approx(roc_auc_score(harmful, scores))
    assert card.brier.value == pytest.approx(brier_score_loss(harmful, scores))
    shares, means = calibration_curve(harmful, scores, n_bins=10)
    assert [b.harmful.value for b in card.calibration] == pytest.approx(list(shares))
    assert [b.score for b in card.calibration] == pytest.approx(list(means))
    assert sum(b.harmful.n for b in card.calibration) == 800


def test_texts_without_a_score_are_left_out_and_counted() -> None:
    labelled = Labelled(("0.9", "odd", "0.1"), (True, True, False), 3, 0, 0)
    card = make_card(Fixed("", "cpu"), 0.5, labelled, **SOURCE)
    assert (card.n, card.unjudged, card.sensitivity.n) == (2, 1, 1)
    with pytest.raises(UserError, match="no score to any harmful text, or to any harmless text"):
        make_card(Fixed("", "cpu"), 0.5, Labelled(("0.9", "odd"), (True, False), 2, 0, 0), **SOURCE)


def test_a_correction_is_that_of_the_harmful_share() -> None:
    card = card_of([0.9] * 90 + [0.1] * 10 + [0.9] * 20 + [0.1] * 80, [True] * 100 + [False] * 100)
    e = card.correct(0.73, 100)
    assert e.value == pytest.approx(0.9)
    assert e.low == pytest.approx(1 - 0.25782, abs=1e-4)
    assert e.high == 1.0
    assert card.correct(0.99, 100).cut
    useless = card_of([0.9, 0.1, 0.9, 0.1], [True, True, False, False])
    assert not useless.informative


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    rows = pd.DataFrame({"text": TEXTS, "label": LABELS})
    file = tmp_path / f"texts.{kind}"
    if kind == "parquet":
        rows.to_parquet(file)
    elif kind.startswith("csv"):
        rows.to_csv(file, index=False)
    else:
        rows.to_json(file, orient="records", lines=True)
    found = read_labelled(file)
    assert found.texts == tuple(TEXTS)
    assert found.harmful == (True, False, True, False, False)
    assert read_labelled(file, limit=3).texts == tuple(TEXTS[:3])


@pytest.mark.parametrize(
    ("labels", "threshold", "harmful"),
    [
        ([True, False, "TRUE", "false", "1"], None, [True, False, True, False, True]),
        ([1.0, 0.0, "1.0", "0", 0], None, [True, False, True, False, False]),
        ([0.7, 0.2, "0.5", 1, True], 0.5, [True, False, True, True, True]),
    ],
)
def test_every_kind_of_label(
    write_jsonl: Callable[..., Path], tmp_path: Path, labels: list[Any], threshold: float | None, harmful: list[bool]
) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    rows += [{"text": "x", "label": None}, {"text": "x", "label": ""}, {"text": "x"}, {"text": None, "label": 1}]
    found = read_labelled(write_jsonl(tmp_path / "x.jsonl", rows), threshold=threshold)
    assert list(found.harmful) == harmful
    assert (found.rows, found.without_label, found.without_text) == (9, 3, 1)


def file_of(folder: Path, content: str | bytes, name: str = "x.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


GOOD = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
BAD: list[tuple[str | bytes, str, list[str], str]] = [
    (GOOD, "x.jsonl", ["--text", "txt"], "no column 'txt'; name it with --text"),
    (GOOD, "x.jsonl", ["--label", "toxicity"], "no column 'toxicity'; name it with --label"),
    (GOOD.replace("1", "0.7"), "x.jsonl", [], "0.7, neither 0 nor 1; add --label-threshold"),
    (GOOD.replace("1", '"rude"'), "x.jsonl", [], "row 1: the label 'label' is 'rude'"),
    (GOOD.replace("1", "0"), "x.jsonl", [], "contains no text"),
    (GOOD.replace("1", "null").replace("0", "null"), "x.jsonl", [], "no text with a label"),
    (GOOD + "{", "x.jsonl", [], "line 3 is not valid JSON"),
    ("", "x.jsonl", [], "is empty"),
    (GOOD, "x.txt", [], "is not .jsonl, .json, .csv, .tsv or .parquet"),
    (gzip.compress(GOOD.encode(), mtime=0)[:-9], "x.jsonl.gz", [], "cannot be read"),
    (b"no gzip", "x.jsonl.gz", [], "cannot be read"),
    (GOOD, "x.jsonl", ["--judge", "detoxfy"], "unknown judge 'detoxfy'"),
    (GOOD, "x.jsonl", ["--limit", "0"], "--limit 0 is not a positive number"),
    (GOOD, "x.jsonl", ["--out", "card.yaml"], "is not a .json file"),
    (GOOD, "x.jsonl", ["--device", "abacus"], "unknown device"),
]


@pytest.mark.parametrize(("content", "name", "options", "said"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    cli: Callable[..., Any], tmp_path: Path, content: str | bytes, name: str, options: list[str], said: str
) -> None:
    file = file_of(tmp_path, content, name)
    found = cli("judge", file, *(() if "--judge" in options else ("--judge", "detoxify:lab")), *options)
    assert found.code == 2
    assert said in found.err
    assert len(found.err.splitlines()) == 1


def test_the_command(cli: Callable[..., Any], tmp_path: Path) -> None:
    rows = "".join(json.dumps({"t": t, "bad": b}) + "\n" for t, b in zip(TEXTS, LABELS, strict=True))
    file = file_of(tmp_path, rows + '{"t": "x", "bad": null}\n')
    out = tmp_path / "cards" / "card.json"
    options = ("--judge", "detoxify:lab,threshold=0.4", "--text", "t", "--label", "bad", "--about", "Five | texts.")
    found = cli("judge", file, *options, "--out", out)
    assert found.code == 0, found.err
    assert "Sensitivity" in found.out
    assert "left out: 1 without a label" in found.out
    card = read_card(out)
    assert (card.judge, card.threshold, card.n, card.file) == ("detoxify:lab", 0.4, 5, "x.jsonl")
    assert (card.digest, card.about) == (get_judge("detoxify:lab").digest(), "Five | texts.")
    assert (card.sensitivity.value, card.specificity.value) == (1.0, 1.0)
    assert str(tmp_path) not in out.read_text() + out.with_suffix(".md").read_text()
    before = out.read_bytes()
    cli("judge", file, *options, "--out", out)
    assert out.read_bytes() == before


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    card = card_of([0.9, 0.2, 0.8, 0.1], [True, False, True, False])
    path, page = write_card(card, tmp_path / "card.json")
    assert read_card(path) == card
    assert page.read_text().startswith("# Judge card: fixed")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema_version": 2}'])
def test_what_is_no_card(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="is not a judge card"):
        read_card(file_of(tmp_path, content, "card.json"))
    with pytest.raises(UserError, match="there is no judge card"):
        read_card(tmp_path / "none.json")


# --- the lab's card --------------------------------------------------------------------------------------------------


def test_the_shipped_card_is_of_the_shipped_judge() -> None:
    path = get_judge("detoxify:lab").card()
    assert path is not None
    card = read_card(path)
    assert (card.digest, card.threshold) == (get_judge("detoxify:lab").digest(), 0.5)
    assert card.auc.low is not None
    assert card.auc.low >= 0.97
    assert "no answers of a model" in card.about


def test_the_shipped_card_can_be_made_again(shared_hub: Path, tmp_path: Path) -> None:
    """The file is the card's, and the first 400 of its comments (for time) are counted among those of the card."""
    from wpn_bench.core.files import digest_file
    from wpn_bench.lab_training.held_out import write_held_out

    comments = tmp_path / "held_out_comments.jsonl"
    assert write_held_out(shared_hub / "files" / "toxic_comments.jsonl.gz", comments) == 4000
    shipped = read_card(lab.judge_card() or Path())
    assert digest_file(comments) == shipped.file_digest
    card = judge_card.measure(comments, "detoxify:lab", label="toxicity", label_threshold=0.5, limit=400)
    for part, whole in ((card.sensitivity, shipped.sensitivity), (card.specificity, shipped.specificity)):
        assert 0 < (part.right or 0) <= (whole.right or 0)
        assert part.n - (part.right or 0) <= whole.n - (whole.right or 0)
    for of_part, of_whole in zip(card.calibration, shipped.calibration, strict=True):
        assert of_part.harmful.n <= of_whole.harmful.n
