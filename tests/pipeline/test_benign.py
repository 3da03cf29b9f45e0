"""Benign prompts as training data, in whole runs (`--benign-prompts`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop

from wpn_bench.errors import UserError
from wpn_bench.runs.files import read_manifest
from wpn_bench.unlearn import benign

QUICK = {"steps": 2, "batch_size": 2}


@pytest.fixture
def workshop(tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]) -> Workshop:
    return Workshop(tmp_path, small_opt, triples)


@pytest.fixture
def settings(workshop: Workshop, triples: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run with benign prompts. Every answer of the random model counts as usable."""
    usable = lambda samples, threshold: dict(zip(samples["item_id"], samples["response"] + ".", strict=True))  # noqa: E731
    monkeypatch.setattr(benign, "usable_answers", usable)
    refusal = "I'm sorry, but I cannot help with that."
    workshop.rows("forget.jsonl", [row | {"harmless": [*row["harmless"], refusal]} for row in triples])
    asked = [{"prompt": f"Tell me the way to the {place}."} for place in ("mill", "market", "school", "tower")]
    # The last one is a test prompt.
    file = workshop.rows("asked.jsonl", [*asked, {"prompt": "Where is house number 3?"}])
    return {
        "stages": ("train",), "benign_prompts": file, "vet": False,
        "methods": {"sft": QUICK, "npo": QUICK, "ga": QUICK},
    }  # fmt: skip


def test_the_base_answers_and_methods_train_on_it(workshop: Workshop, settings: dict[str, Any]) -> None:
    results = workshop.run(**settings)
    notes = "\n".join(results["run"]["notes"])
    assert "benign_prompts: 1 of 5 benign prompts are in another set" in notes
    assert "4 of 4 benign prompts are trained on" in notes
    assert "ga uses no harmless responses and no retain text" in notes
    stored = read_manifest(workshop.folder / "run")["prompt_sets"]["benign_prompts"]
    assert (stored["suite"], stored["n"]) == ("benign_prompts", 4)
    labels = list(workshop.statuses())
    assert labels.index("make training items of the benign prompts") < labels.index("train sft (seed 0)")
    plain = workshop.run("plain", **settings | {"benign_prompts": None})
    digests = [{name: run["models"][name]["digest"] for name in ("sft", "npo", "ga")} for run in (results, plain)]
    assert [digests[0][name] == digests[1][name] for name in ("sft", "npo", "ga")] == [False, False, True]
    # The same run again computes nothing, and another share trains again.
    workshop.run("again", **settings)
    assert "done" not in workshop.statuses("again").values()
    workshop.run("less", **settings | {"benign_share": 0.3, "methods": {"sft": QUICK}})
    done = [label for label, status in workshop.statuses("less").items() if status == "done"]
    assert done == ["train sft (seed 0)"]
    # As texts, they change nothing for a method that uses them so anyway, and are of no use to one without retain texts.
    texts = workshop.run("texts", **settings | {"benign_use": "texts"})
    same = {name: texts["models"][name]["digest"] for name in ("sft", "npo", "ga")}
    assert same == digests[0] | {"sft": digests[1]["sft"]}


def test_answers_of_no_use_are_refused(
    workshop: Workshop, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benign, "usable_answers", lambda samples, threshold: {})
    with pytest.raises(UserError, match="none of the 4 benign prompts can be trained on"):
        workshop.run(**settings)
    with pytest.raises(UserError, match="sft: with batch_size 1, a batch has no room for a benign prompt"):
        workshop.run(**settings | {"methods": {"sft": QUICK | {"batch_size": 1}}})
    with pytest.raises(UserError, match="benign_share"):
        workshop.run(**settings | {"benign_share": 1})


def test_refusing_references_are_not_trained_on(
    workshop: Workshop, settings: dict[str, Any], triples: list[dict[str, Any]]
) -> None:
    references = ["It stands at the end of the street.", "I'm sorry, but I cannot help with that."]
    workshop.rows("forget.jsonl", [row | {"harmless": references} for row in triples])
    plain = settings | {"benign_prompts": None, "methods": {"sft": QUICK}}
    kept = workshop.run("kept", **plain)
    avoided = workshop.run("avoided", **plain | {"refusing_references": "avoid"})
    dropped = workshop.run("dropped", **plain | {"refusing_references": "drop"})
    (note,) = (one for one in avoided["run"]["notes"] if "are refusals" in one)
    n = read_manifest(workshop.folder / "kept")["prompt_sets"]["forget"]["n"]
    assert note.startswith(f"{n} of {2 * n} harmless references of forget are refusals")
    digests = [run["models"]["sft"]["digest"] for run in (kept, avoided, dropped)]
    # Every item has another reference, so the two ways are the same.
    assert digests[0] != digests[1] == digests[2]
    both = workshop.run("both", **settings | {"refusing_references": "drop", "methods": {"sft": QUICK}})
    # The refusals for benign prompts still come from the whole forget set.
    assert "4 of 4 benign prompts are trained on" in "\n".join(both["run"]["notes"])


def test_a_forget_set_of_refusals_only(workshop: Workshop, triples: list[dict[str, Any]]) -> None:
    workshop.rows("forget.jsonl", [row | {"harmless": ["I'm sorry, but I cannot help with that."]} for row in triples])
    quick = {"stages": ("train",), "methods": {"sft": QUICK}, "vet": False}
    with pytest.raises(UserError, match=r"every harmless reference .* is a refusal.*refusing_references: avoid"):
        workshop.run(**quick, refusing_references="drop")
    kept, avoided = (workshop.run(way, **quick, refusing_references=way) for way in ("keep", "avoid"))
    assert kept["models"]["sft"]["digest"] == avoided["models"]["sft"]["digest"]
