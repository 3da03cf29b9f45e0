"""A sitting: what is shown, and what each key does to the file."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from made_run import write_run

from wpn_bench.analysis.label_sample import LabelSample, draw_sample
from wpn_bench.errors import UserError
from wpn_bench.report.label_session import Session
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import HARMFUL, HARMLESS, SKIPPED, UNDECIDED, read_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", n=30, tasks=())


@pytest.fixture
def sample(folder: Path) -> LabelSample:
    return draw_sample(Run.read(folder), 12)


def labels(folder: Path, annotator: str = "1") -> dict[str, str | None]:
    return {exchange: line.label for exchange, line in read_labels(folder).by(annotator).items()}


def label_all(session: Session, label: str = HARMLESS) -> list[str]:
    order = []
    while (key := session.show().key) is not None:
        order.append(key)
        session.say(key, label)
    return order


def test_all_are_shown_once_in_the_order_of_the_sample(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    assert label_all(session) == sample.exchanges
    shown = session.show()
    assert (shown.done, shown.total, shown.key) == (len(sample.exchanges), len(sample.exchanges), None)
    assert set(labels(folder).values()) == {HARMLESS}


def test_what_is_shown_says_nothing_of_model_and_judge(folder: Path, sample: LabelSample) -> None:
    shown = asdict(Session(folder, sample, "1").show())
    assert set(shown) == {"key", "prompt", "response", "done", "total", "undecided", "skipped", "can_undo"}
    assert not {"base", "wpn", "ga", "detoxify:lab"} & set(map(str, shown.values()))


def test_a_label_line_says_where_the_answer_is_from(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "Zoë")
    first = sample.drawn[0]
    session.say(first.exchange, HARMFUL)
    (line,) = read_labels(folder).lines
    stratum = sample.strata[first.stratum]
    assert (line.model, line.stage, line.set, line.item) == (first.model, first.stage, first.set, first.item)
    assert (line.label, line.annotator, line.stratum) == (HARMFUL, "Zoë", stratum.name)
    assert line.inclusion == stratum.n / stratum.size
    assert str(folder) not in (folder / "labels.jsonl").read_text()


def test_a_new_sitting_continues(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    for exchange in sample.exchanges[:3]:
        session.say(exchange, HARMLESS)
    assert Session(folder, sample, "1").show().key == sample.exchanges[3]
    assert Session(folder, sample, "2").show().key == sample.exchanges[0]


def test_the_skipped_come_again_at_the_end_and_can_be_skipped_again(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    one, two, *rest = sample.exchanges
    session.say(one, SKIPPED)
    session.say(two, SKIPPED)
    for exchange in rest:
        assert session.show().key == exchange
        session.say(exchange, HARMLESS)
    assert (session.show().key, session.show().skipped) == (one, 2)
    assert session.say(one, SKIPPED).key == two
    assert Session(folder, sample, "1").show().key == two
    assert session.say(two, UNDECIDED).key == one
    last = session.say(one, HARMFUL)
    assert (last.key, last.skipped, last.undecided) == (None, 0, 1)


def test_undo_takes_back_one_after_the_other_also_of_an_earlier_sitting(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    one, two, three, *_ = sample.exchanges
    session.say(one, HARMLESS)
    session.say(two, SKIPPED)
    session.say(three, HARMFUL)
    again = Session(folder, sample, "1")
    assert again.undo().key == three
    assert again.undo().key == two
    shown = again.undo()
    assert (shown.key, shown.done, shown.can_undo) == (one, 0, False)
    assert again.undo() == shown
    assert labels(folder) == {}
    assert len(read_labels(folder).lines) == 6  # nothing is deleted


def test_undo_leaves_the_labels_of_others(folder: Path, sample: LabelSample) -> None:
    Session(folder, sample, "1").say(sample.exchanges[0], HARMFUL)
    two = Session(folder, sample, "2")
    assert not two.undo().can_undo
    assert labels(folder) == {sample.exchanges[0]: HARMFUL}


def test_the_same_label_twice_is_written_once(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    key = sample.exchanges[0]
    session.say(key, HARMFUL)
    assert session.say(key, HARMFUL).key == sample.exchanges[1]
    assert len(read_labels(folder).lines) == 1


def test_a_second_tab_may_change_a_label_but_not_skip_it_away(folder: Path, sample: LabelSample) -> None:
    key = sample.exchanges[0]
    one, two = Session(folder, sample, "1"), Session(folder, sample, "1")
    one.say(key, HARMFUL)
    two.say(key, SKIPPED)
    assert labels(folder) == {key: HARMFUL}
    two.say(key, HARMLESS)
    assert labels(folder) == {key: HARMLESS}
    assert one.show().done == 1


def test_an_unknown_answer_or_label_is_refused(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    for key, label in (("nothing", HARMFUL), (sample.exchanges[0], "maybe"), (sample.exchanges[0], "")):
        with pytest.raises(UserError):
            session.say(key, label)
    assert read_labels(folder).lines == ()


def test_requests_at_the_same_time_write_each_label_once(folder: Path, sample: LabelSample) -> None:
    session = Session(folder, sample, "1")
    threads = [threading.Thread(target=session.say, args=(key, HARMLESS)) for key in sample.exchanges for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_labels(folder).lines) == len(sample.exchanges)
