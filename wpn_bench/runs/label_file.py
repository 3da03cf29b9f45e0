"""`labels.jsonl` of a run folder: people's labels of the run's answers. Lines are appended and never changed.

A line of kind `sample` says which answers a sitting drew from, a line of kind `label` what an annotator said of one answer.
Of several lines about one answer by one annotator the last one counts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from wpn_bench.core.files import disk_error_text
from wpn_bench.core.paths import path_inside
from wpn_bench.errors import UserError

LABELS = "labels.jsonl"
HARMFUL, HARMLESS, UNDECIDED, SKIPPED = "harmful", "harmless", "undecided", "skipped"
WORDS = (HARMFUL, HARMLESS, UNDECIDED, SKIPPED)


@dataclass(frozen=True)
class SampleLine:
    """What a sample was drawn from.

    Attributes:
        n: The number of answers that were to be drawn.
        models: The models whose answers were drawn from.
        sets: The prompt sets.
        question: What annotators were asked.
        judge: The deciding judge, whose scores the strata are made of.
        time: When, UTC.
    """

    n: int
    models: tuple[str, ...]
    sets: tuple[str, ...]
    question: str
    judge: str
    time: str


@dataclass(frozen=True)
class LabelLine:
    """What an annotator said of one answer.

    Attributes:
        exchange: Digest of prompt and response. A label counts for every answer with this digest.
        model: The model that gave the answer.
        seed: Its seed of training; None for base.
        stage: The suite of the prompt set: `harmless`, `ood`, `attack` or `benign`.
        set: The prompt set.
        item: The prompt's id.
        label: `harmful`, `harmless`, `undecided` or `skipped`; None takes the annotator's last label of it back.
        annotator: Who said it.
        time: When, UTC.
        stratum: The stratum of the answer.
        inclusion: The probability with which the answer was drawn.
    """

    exchange: str
    model: str
    seed: int | None
    stage: str
    set: str
    item: str
    label: str | None
    annotator: str
    time: str
    stratum: str
    inclusion: float


@dataclass(frozen=True)
class Labels:
    """The content of a label file.

    Attributes:
        samples: The samples that were drawn, oldest first.
        lines: All label lines, oldest first.
        unreadable: The number of lines that could not be read.
    """

    samples: tuple[SampleLine, ...] = ()
    lines: tuple[LabelLine, ...] = ()
    unreadable: int = 0
    _last: dict[tuple[str, str], LabelLine] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, samples: Iterable[SampleLine], lines: Iterable[LabelLine], unreadable: int = 0) -> Self:
        """Make the record, and find the line that counts for each annotator and answer.

        Args:
            samples: The samples, oldest first.
            lines: The label lines, oldest first.
            unreadable: The number of lines that could not be read.

        Returns:
            The record.
        """
        lines = tuple(lines)
        last: dict[tuple[str, str], LabelLine] = {}
        for line in lines:
            last.pop((line.annotator, line.exchange), None)  # so that the order is that of the last lines
            if line.label is not None:
                last[line.annotator, line.exchange] = line
        return cls(tuple(samples), lines, unreadable, last)

    def by(self, annotator: str) -> dict[str, LabelLine]:
        """The annotator's lines that count, by exchange, the oldest first."""
        return {exchange: line for (who, exchange), line in self._last.items() if who == annotator}

    @property
    def annotators(self) -> list[str]:
        """Everybody with a line that counts, in the order of their first one."""
        return list(dict.fromkeys(who for who, _ in self._last))

    def said(self, exchange: str) -> list[str]:
        """The labels of an exchange that count, one of each annotator."""
        return [str(line.label) for (_, other), line in self._last.items() if other == exchange]

    def together(self) -> dict[str, str]:
        """One label for each exchange: that of most annotators who could say; `undecided` if they are evenly split.

        An exchange that all who saw it have skipped is `skipped`.
        """
        votes: dict[str, list[str]] = {}
        for (_, exchange), line in self._last.items():
            votes.setdefault(exchange, []).append(str(line.label))
        return {exchange: _majority(said) for exchange, said in votes.items()}


def _majority(said: list[str]) -> str:
    harmful, harmless = said.count(HARMFUL), said.count(HARMLESS)
    if harmful != harmless:
        return HARMFUL if harmful > harmless else HARMLESS
    return SKIPPED if set(said) == {SKIPPED} else UNDECIDED


def read_labels(run: Path) -> Labels:
    """Read the labels of a run folder.

    A line that was cut off by a crash is left out and counted.

    Args:
        run: The run folder.

    Returns:
        The labels; empty if there is no file.

    Raises:
        UserError: The file cannot be read, or leads out of the folder.
    """
    file = path_inside(run, LABELS)
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Labels()
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror})", "check its permissions") from e
    samples: list[SampleLine] = []
    lines: list[LabelLine] = []
    unreadable = 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            read = _parsed(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            unreadable += 1
            continue
        if isinstance(read, SampleLine):
            samples.append(read)
        else:
            lines.append(read)
    return Labels.of(samples, lines, unreadable)


def _parsed(line: str) -> SampleLine | LabelLine:
    row = json.loads(line)
    kind = row.pop("kind")
    if kind == "sample":
        models, sets = (tuple(map(str, row.pop(key))) for key in ("models", "sets"))
        return SampleLine(n=int(row.pop("n")), models=models, sets=sets, **_texts(row, SampleLine))
    if kind != "label" or (row["label"] is not None and row["label"] not in WORDS):
        raise ValueError(f"not a label line: {kind!r}")
    seed, label, inclusion = row.pop("seed"), row.pop("label"), float(row.pop("inclusion"))
    seed = None if seed is None else int(seed)
    return LabelLine(seed=seed, label=label, inclusion=inclusion, **_texts(row, LabelLine))


def _texts(row: Mapping[str, Any], kind: type[SampleLine | LabelLine]) -> dict[str, Any]:
    """The fields of a line that hold texts. Fields that this version does not know are left out."""
    return {name: str(value) for name, value in row.items() if name in kind.__dataclass_fields__}


def append(run: Path, line: SampleLine | LabelLine) -> None:
    """Append a line to the labels of a run folder, at once and flushed to disk.

    Args:
        run: The run folder.
        line: The line.

    Raises:
        UserError: The file cannot be written.
    """
    kind = "sample" if isinstance(line, SampleLine) else "label"
    text = json.dumps({"kind": kind, **asdict(line)}, ensure_ascii=False, allow_nan=False) + "\n"
    with _opened(run) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        # What a crash has cut off must not swallow the new line.
        if size and os.pread(fd, 1, size - 1) != b"\n":
            text = "\n" + text
        _written(run, fd, text.encode("utf-8", "replace"))


def check_writable(run: Path) -> None:
    """Raise `UserError` if labels cannot be written to a run folder."""
    with _opened(run):
        pass


class _opened:
    """The label file, opened to read and append; created if there is none."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __enter__(self) -> int:
        file = path_inside(self.run, LABELS)
        try:
            self.fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise _cannot_write(self.run, e) from e
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)  # which ends the lock


def _written(run: Path, fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    except OSError as e:
        raise _cannot_write(run, e) from e


def _cannot_write(run: Path, error: OSError) -> UserError:
    why = disk_error_text(error) or error.strerror
    return UserError(
        f"{LABELS} cannot be written to {run} ({why})", "label a copy of the run folder that you may write to"
    )
