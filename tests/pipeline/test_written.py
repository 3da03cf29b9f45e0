"""Harmless references that the base model writes, in whole runs (`written_references`)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop

from wpn_bench.errors import UserError
from wpn_bench.unlearn import written

QUICK = {"stages": ("train",), "methods": {"sft": {"steps": 2, "batch_size": 2}}, "vet": False}


@pytest.fixture
def workshop(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    return Workshop(tmp_path, small_opt, triples)


def test_methods_train_on_what_the_base_wrote(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    # The random model writes no coherent answers, so here all of them count as usable, and end as sentences of enough words.
    monkeypatch.setattr(
        written, "usable", lambda samples, threshold: samples.assign(response=samples["response"] + " and that is all.")
    )
    plain = workshop.run("plain", **QUICK)
    results = workshop.run(**QUICK, written_references={"samples": 3})
    (note,) = (one for one in results["run"]["notes"] if one.startswith("the base wrote"))
    asked = int(re.search(r"of (\d+) of (\d+) items", note).group(2))  # type: ignore[union-attr]
    labels = list(workshop.statuses())
    assert "base: sample 3 answers each to the forget set" in labels
    assert labels.index("choose written references") < labels.index("train sft (seed 0)")
    assert plain["models"]["sft"]["digest"] != results["models"]["sft"]["digest"]
    (chosen,) = (workshop.store / "write_references").glob("*/items.jsonl")
    rows = [json.loads(line) for line in chosen.read_text().splitlines()]
    assert len(rows) == asked
    assert all(1 <= len(row["harmless"]) <= 2 and row["harmful"] for row in rows)
    # The same run again computes nothing. Fewer items are another training.
    workshop.run("again", **QUICK, written_references={"samples": 3})
    assert "done" not in workshop.statuses("again").values()
    before = set((workshop.store / "write_references").iterdir())
    few = workshop.run("few", **QUICK, written_references={"samples": 3, "limit": 4, "least_words": 6, "keep": 1})
    (folder,) = set((workshop.store / "write_references").iterdir()) - before
    references = [json.loads(line)["harmless"] for line in (folder / "items.jsonl").read_text().splitlines()]
    assert {len(texts) for texts in references} == {1}
    assert min(len(text.split()) for (text,) in references) >= 6
    assert min(len(text.split()) for row in rows for text in row["harmless"]) < 6
    assert any(" of 4 items" in one for one in few["run"]["notes"])
    assert few["models"]["sft"]["digest"] != results["models"]["sft"]["digest"]


def test_a_base_that_writes_nothing_usable_is_an_error(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "usable", lambda samples, threshold: samples[:0])
    with pytest.raises(UserError, match=r"no harmless and coherent answer to any of the \d+ prompts.*samples"):
        workshop.run(**QUICK, written_references={"samples": 1})
