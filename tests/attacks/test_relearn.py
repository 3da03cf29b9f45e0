"""Relearning: what it draws, what it learns from, and that every step kept is the step it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from wpn_bench import models
from wpn_bench.attacks.relearn import RelearnConfig, Relearning, few, run_relearn_stage
from wpn_bench.jobs.job import StageContext
from wpn_bench.prompts import FormatTemplate, Item, PromptSet, item_id
from wpn_bench.prompts.items import item_row, write_rows
from wpn_bench.unlearn.batches import Batch, Batches

TEMPLATE = FormatTemplate("Q: {prompt} A:")


@pytest.fixture(scope="module")
def forget(triples: list[dict[str, Any]]) -> PromptSet:
    items = [Item(item_id(t["prompt"]), t["prompt"], "question", tuple(t["harmful"]), tuple(t["harmless"])) for t in triples]  # fmt: skip
    return PromptSet("forget", "forget", tuple(items))


def kept(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def relearnt(model: Path, out: Path, needs: dict[str, Path], snapshots: list[int], **options: Any) -> Path:
    """The stage's folder."""
    config = RelearnConfig(steps=max(snapshots), batch_size=3, retain_batch_size=3, lr=1e-2, **options)
    params = {"config": config.model_dump(), "snapshots": snapshots, "seed": 0, "template": TEMPLATE.value}
    out.mkdir()
    run_relearn_stage(StageContext(params, {"model": model, **needs}, out, {"device": "cpu"}, lambda n, what: lambda k: None))  # fmt: skip
    return out


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory, forget: PromptSet) -> dict[str, dict[str, Path]]:
    """kind -> what its stage needs beside the model."""
    folder = tmp_path_factory.mktemp("needs")
    write_rows(folder / "items.jsonl", [item_row(i) for i in forget.items[:4]])
    write_rows(folder / "texts.jsonl", [{"text": f"The farmer sells {k} apples in the town."} for k in range(6)])
    return {"harmful": {"forget": folder}, "benign": {"retain": folder}}


def test_a_few_items_are_drawn_by_the_seed(forget: PromptSet) -> None:
    assert [i.id for i in few(forget, 4, 0).items] == [i.id for i in few(forget, 4, 0).items]
    drawn = [{i.id for i in few(forget, 4, seed).items} for seed in range(5)]
    assert len({frozenset(d) for d in drawn}) > 1
    assert all(len(d) == 4 and d <= {i.id for i in forget.items} for d in drawn)
    assert len(few(forget, 99, 0).items) == len(forget.items)
    harmless = PromptSet("x", "forget", (Item("1", "Nothing harmful?", harmless=("fine",)), *forget.items[:1]))
    assert few(harmless, 5, 0).items == forget.items[:1]
    # More items are the fewer ones and others, so budgets can be compared.
    assert few(forget, 6, 3).items[:4] == few(forget, 4, 3).items


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_the_loss_is_transformers_own(small_opt: Path, forget: PromptSet, kind: Any) -> None:
    model, tokenizer = models.load(small_opt)
    method = Relearning(RelearnConfig(kind=kind))
    texts = ["The farmer sells apples.", "The teacher came late to school this year."]
    batches = Batches(tokenizer, forget.items, texts, template=TEMPLATE, uses=method.uses, steps=1, batch_size=3,
                      retain_batch_size=2, negatives=method.negatives, max_length=64, retain_max_length=64, seed=0)  # fmt: skip
    batch = Batch.from_tensors(batches[0])
    rows = batch.harmful if kind == "harmful" else batch.retain
    assert rows is not None
    assert (batch.harmless, batch.random) == (None, None)
    assert (batch.retain if kind == "harmful" else batch.harmful) is None
    said = tokenizer.batch_decode(rows.input_ids, skip_special_tokens=True)
    assert all(("silly goose" in text) == (kind == "harmful") for text in said)
    labels = rows.input_ids.masked_fill(rows.response_mask == 0, -100)
    with torch.no_grad():
        theirs = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=labels).loss
        ours = method.loss(model, batch, None)
    assert float(ours.total) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("kind", ["harmful", "benign"])
def test_a_step_kept_on_the_way_is_a_training_of_so_many_steps(
    small_opt: Path, tmp_path: Path, needs: dict[str, dict[str, Path]], kind: str
) -> None:
    """Else the points of one curve would be of different attacks. And the base stays as it is."""
    before = kept(small_opt)
    long = relearnt(small_opt, tmp_path / "long", needs[kind], [2, 5], kind=kind)
    short = relearnt(small_opt, tmp_path / "short", needs[kind], [2], kind=kind)
    assert sorted(p.name for p in long.iterdir()) == ["step-2", "step-5"]
    at_two, at_five, alone = kept(long / "step-2"), kept(long / "step-5"), kept(short / "step-2")
    assert all(torch.equal(at_two[name], alone[name]) for name in alone)
    assert any(not torch.equal(at_two[name], at_five[name]) for name in at_two)
    assert all(torch.equal(kept(small_opt)[name], tensor) for name, tensor in before.items())
    loaded, tokenizer = models.load(long / "step-5")
    assert loaded(**tokenizer("Q: Who?", return_tensors="pt")).logits.isfinite().all()


def test_harmful_pairs_become_likelier(small_opt: Path, tmp_path: Path, needs: dict[str, dict[str, Path]]) -> None:
    out = relearnt(small_opt, tmp_path / "out", needs["harmful"], [8], kind="harmful")
    row = json.loads((needs["harmful"]["forget"] / "items.jsonl").read_text().split("\n")[0])
    text = TEMPLATE.render(row["prompt"]) + " " + row["harmful"][0]
    losses = []
    for folder in (small_opt, out / "step-8"):
        model, tokenizer = models.load(folder)
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            losses.append(float(model(**ids, labels=ids["input_ids"]).loss))
    assert losses[1] < 0.9 * losses[0]


def test_it_is_trained_in_float32(small_opt: Path, tmp_path: Path, needs: dict[str, dict[str, Path]]) -> None:
    half = tmp_path / "half"
    models.load_fresh(small_opt, dtype="bfloat16").save_pretrained(half)
    models.load_tokenizer(small_opt).save_pretrained(half)
    out = relearnt(half, tmp_path / "out", needs["benign"], [1], kind="benign")
    assert {t.dtype for t in kept(out / "step-1").values()} == {torch.float32}
