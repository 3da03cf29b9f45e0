from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.jobs.journal import Journal, Section, Shard, fingerprint, section, use_journal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def stored(folder: Path, name: str = "answers", inputs: str = "x") -> Any:
    return Journal(folder).section(name, inputs).known


def test_added_values_are_known_to_the_next_process(tmp_path: Path) -> None:
    one = Journal(tmp_path / "job")
    assert not (tmp_path / "job").exists()  # nothing was written yet
    answers = one.section("answers", "x")
    answers.add({3: [1, 2], 0: 0.1})
    answers.add({7: None})
    assert answers.known == {3: [1, 2], 0: 0.1, 7: None}
    # The journal is not closed, as after a kill.
    assert stored(tmp_path / "job") == {3: [1, 2], 0: 0.1, 7: None}
    assert stored(tmp_path / "job", inputs="y") == {}


@given(st.dictionaries(st.integers(0, 9), VALUES), st.data())
def test_a_truncated_or_damaged_journal_only_loses_lines(found: dict[int, Any], data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        journal = Journal(Path(place))
        answers = journal.section("answers", "x")
        for position, value in found.items():
            answers.add({position: value})
        journal.close()
        for file in Path(place).glob("*.jsonl"):
            whole = bytearray(file.read_bytes())
            # As fractions of its length, which varies because it contains durations.
            whole = whole[: round(data.draw(st.floats(0, 1)) * len(whole))]
            at, bit = data.draw(st.none() | st.floats(0, 1)), data.draw(st.integers(0, 7))
            if whole and at is not None:
                whole[round(at * (len(whole) - 1))] ^= 1 << bit
            file.write_bytes(bytes(whole))
        left = stored(Path(place))
        assert all(json.dumps(left[k]) == json.dumps(found[k]) for k in left)


def test_floats_are_stored_exactly(tmp_path: Path) -> None:
    values = {0: 0.1 + 0.2, 1: -1.2345678901234567e-300, 2: math.inf, 3: math.nan}
    Journal(tmp_path).section("answers", "x").add(values)
    found = stored(tmp_path)
    assert [found[k] for k in range(3)] == [values[k] for k in range(3)]
    assert math.isnan(found[3])


def test_a_repeated_call_has_its_own_section(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = journal.section("answers", "x"), journal.section("answers", "x")
    first.add({0: "of the first"})
    second.add({0: "of the second"})
    again = Journal(tmp_path)
    assert [again.section("answers", "x").known[0] for _ in range(2)] == ["of the first", "of the second"]


def test_the_newest_value_counts(tmp_path: Path) -> None:
    for value in range(12):  # each from another process
        Journal(tmp_path).section("search", "x").add({0: value})
    assert stored(tmp_path, "search") == {0: 11}


def test_two_processes_write_at_the_same_time(tmp_path: Path) -> None:
    one, other = Journal(tmp_path, Shard(0, 2)), Journal(tmp_path, Shard(1, 2))
    for journal in (one, other):
        answers = journal.section("answers", "x")
        answers.add({k: k * 10 for k in range(6) if answers.in_shard(k)})
    assert stored(tmp_path) == {k: k * 10 for k in range(6)}
    assert len(list(tmp_path.glob("items-*.jsonl"))) == 2


def test_each_item_belongs_to_exactly_one_shard() -> None:
    for count in (1, 2, 3, 7):
        owners = [sum(Shard(index, count).contains(k) for index in range(count)) for k in range(20)]
        assert owners == [1] * 20


def test_without_a_journal_nothing_is_stored() -> None:
    plain = section("answers", lambda: pytest.fail("no fingerprint is needed"))
    assert type(plain) is Section
    plain.add({0: 1})
    assert plain.known == {}
    assert plain.in_shard(5)
    assert not plain.save_due()


def test_section_uses_the_journal_of_the_current_job(tmp_path: Path) -> None:
    with use_journal(Journal(tmp_path)):
        section("answers", lambda: "x").add({1: 2})
    assert type(section("answers", lambda: "x")) is Section
    assert stored(tmp_path) == {1: 2}


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    answers = Journal(tmp_path).section("answers", "x")
    monkeypatch.setattr("wpn_bench.jobs.journal.os.write", full)
    with pytest.raises(OSError, match="No space"):
        answers.add({0: 1})
    assert 0 not in answers.known


def test_fingerprints_of_different_parts_differ() -> None:
    different = [
        fingerprint([[1, 2], [3]]),
        fingerprint([[1], [2, 3]]),
        fingerprint([[12, 3]]),
        fingerprint([[1, 2], [3]], 5),
        fingerprint(["ab", "c"]),
        fingerprint(["a", "bc"]),
        fingerprint(["\ud800"]),
        fingerprint([]),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint([[1, 2], [3]]) == fingerprint(iter([(1, 2), (3,)]))
