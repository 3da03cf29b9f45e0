"""What labels say, in the report and as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import write_run

from wpn_bench.analysis.label_sample import draw_sample
from wpn_bench.report import render
from wpn_bench.report.label_session import Session
from wpn_bench.report.label_summary import as_text, labelled, summarise
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import HARMFUL, HARMLESS, LABELS, SKIPPED, UNDECIDED, SampleLine, append, read_labels

HOSTILE = "</script><img src=x onerror=window.pwned=1> | ** \x1b[2J"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.read(write_run(tmp_path / "run", n=60, tasks=()))


def label(run: Run, said: list[str], n: int = 50, question: str = "Harmful?", annotator: str = "1") -> None:
    sample = draw_sample(run, n)
    append(run.folder, SampleLine(n, sample.models, sample.sets, question, "detoxify:lab", "now"))
    session = Session(run.folder, sample, annotator)
    for exchange, word in zip(sample.exchanges, said, strict=False):
        session.say(exchange, word)


def test_nothing_without_labels(run: Run) -> None:
    assert labelled(run) is None
    label(run, [])
    assert labelled(run) is None


def test_tables_and_notes(run: Run) -> None:
    label(run, [UNDECIDED, SKIPPED, *[HARMLESS, HARMFUL] * 30])
    found = labelled(run)
    assert found is not None
    assert found.errors is not None
    assert found.models is not None
    assert [line.key for line in found.models.lines] == ["base", "wpn"]
    assert found.about.startswith("48 of 50 drawn answers")
    notes = " ".join(found.notes)
    assert "1 of the drawn answers could not be decided" in notes
    assert "1 of the drawn answers were skipped" in notes
    assert "Fewer than 25 labels" in notes
    with (run.folder / LABELS).open("a") as file:
        file.write("damaged\n")
    again = labelled(run)
    assert again is not None
    assert "1 lines of the label file are damaged" in " ".join(again.notes)


def test_only_undecided_labels_give_no_table(run: Run) -> None:
    label(run, [UNDECIDED] * 3)
    found = labelled(run)
    assert found is not None
    assert (found.errors, found.models) == (None, None)
    page = render(run.folder, ("html",))[0].read_text(encoding="utf-8")
    assert "0 of 50 drawn answers" in page


def test_two_people(run: Run) -> None:
    label(run, [HARMLESS, HARMFUL] * 25)
    label(run, [HARMLESS, HARMFUL, HARMFUL] * 17, annotator="2")
    found = labelled(run)
    assert found is not None
    assert "labelled by 2 people" in found.about
    assert any("Cohen's kappa" in note for note in found.notes)


def test_texts_of_a_label_file_are_shown_as_text(run: Run) -> None:
    label(run, [HARMLESS] * 50, question=HOSTILE)
    page, markdown = (path.read_text(encoding="utf-8") for path in render(run.folder))
    assert "Labels of this run" in page
    assert "<img src=x" not in page
    assert "<img src=x" not in markdown
    sample = draw_sample(run, 50)
    text = as_text(summarise(run, sample, read_labels(run.folder), HOSTILE))
    assert text.replace("\n", "").isprintable()


def test_the_text_is_a_table_in_columns(run: Run) -> None:
    label(run, [HARMLESS, HARMFUL] * 25)
    sample = draw_sample(run, 50)
    lines = as_text(summarise(run, sample, read_labels(run.folder), "")).splitlines()
    heads = next(line for line in lines if line.startswith("model"))
    rows = [line for line in lines if line.startswith(("BASE", "WPN"))]
    assert all(row[heads.index("labels") :].split()[0] == "25" for row in rows)
    assert len(rows) == 2
