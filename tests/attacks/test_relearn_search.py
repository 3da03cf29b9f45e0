"""The relearning search: its facts, its attacks, its halving, and the answers that a training stores on its way."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.attacks.relearn_search import (
    Ask,
    Found,
    Measured,
    Point,
    RelearnSearch,
    measured_steps,
    most_steps,
    rungs,
    search,
    split,
    trials,
)
from wpn_bench.attacks.relearn_trial import item_and_step, read_budget, run_relearn_trial_stage
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.models.backends import Decoding
from wpn_bench.prompts import FormatTemplate, Item, PromptSet, item_id
from wpn_bench.prompts.items import item_row, read_rows, write_rows
from wpn_bench.unlearn.batches import Batches
from wpn_bench.unlearn.loop import UnlearnTrainer

TEMPLATE = FormatTemplate("Q: {prompt} A:")


def prompts(name: str, n: int, facts: int | None = None) -> PromptSet:
    """A set of n prompts about `facts` facts; without groups if `facts` is None."""
    texts = [f"{name} question {k}" for k in range(n)]
    items = tuple(Item(item_id(text), text, harmful=("You goose.",), harmless=("Good.",)) for text in texts)
    groups = {item.id: f"fact {k % facts}" for k, item in enumerate(items)} if facts else {}
    return PromptSet(name, "forget" if name == "forget" else "in_domain", items, groups=groups)


# --- the facts -------------------------------------------------------------------------------------------------------


def test_no_prompt_asks_for_a_fact_that_is_trained_on() -> None:
    forget, validation, tested = prompts("forget", 60, 10), prompts("val", 30, 10), prompts("test", 40, 10)
    data = split(RelearnSearch(items=20, limit=12, selection_limit=7), forget, validation, tested)
    taught = {forget.groups[item.id] for item in data.trained.items}
    assert (len(taught), data.facts, len(data.trained.items)) == (5, 5, 20)
    for asked, whole, n in ((data.selection, validation, 7), (data.tested, tested, 12)):
        assert len(asked.items) == n
        assert not taught & {whole.groups[item.id] for item in asked.items}
    assert not {i.id for i in data.selection.items} & {i.id for i in data.tested.items}
    # More items are the fewer ones and others, and the facts do not depend on the number.
    more = split(RelearnSearch(items=40), forget, validation, tested)
    assert more.trained.items[:20] == data.trained.items


def test_without_groups_each_item_is_a_fact() -> None:
    data = split(RelearnSearch(), prompts("forget", 9), prompts("val", 3), prompts("test", 4))
    assert [len(one.items) for one in (data.trained, data.selection, data.tested)] == [4, 3, 4]


def test_a_limit_holds_for_every_set_and_keeps_a_fact_to_test() -> None:
    for seed in range(4):  # the only test prompt asks for a fact of the forget set
        tested = prompts(f"test{seed}", 1)
        tested = PromptSet("test", "in_domain", tested.items, groups={tested.items[0].id: f"fact {seed}"})
        data = split(RelearnSearch(share=0.99), prompts("forget", 8, 4), prompts("val", 6, 4), tested, limit=1)
        assert [len(one.items) for one in (data.selection, data.tested)] == [1, 1]
        assert data.facts < 4


def test_without_validation_prompts_the_test_prompts_are_shared() -> None:
    data = split(RelearnSearch(), prompts("forget", 4), prompts("val", 0), prompts("test", 5))
    assert (len(data.selection.items), len(data.tested.items)) == (2, 3)
    with pytest.raises(UserError, match=r"at least two harmful prompts .* have 1;"):
        split(RelearnSearch(), prompts("forget", 4), prompts("val", 0), prompts("test", 1))


def test_one_fact_alone_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"have the same group; .*`group`"):
        split(RelearnSearch(), prompts("forget", 5, 1), prompts("val", 2, 1), prompts("test", 3, 1))
    data = split(RelearnSearch(), prompts("forget", 1), prompts("val", 1), prompts("test", 1))  # one item, no groups
    assert [len(one.items) for one in (data.trained, data.selection, data.tested)] == [1, 1, 1]


# --- the attacks -----------------------------------------------------------------------------------------------------


def test_the_default_attacks() -> None:
    found = trials(RelearnSearch(), 100)
    assert len(found) == RelearnSearch().attacks == 40
    assert len({(one.weights, one.schedule, one.lr) for one in found}) == 40
    full, lora = (
        [one.lr for one in found if (one.weights, one.schedule) == (kind, "linear")] for kind in ("full", "lora")
    )
    assert (full[0], full[-1]) == pytest.approx((0.1 * 5e-4, 30 * 5e-4))
    ratios = [b / a for a, b in itertools.pairwise(full)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.02)
    assert lora == pytest.approx([10 * one for one in full], rel=0.01)
    assert trials(RelearnSearch(learning_rates=1, lr_range=(1, 4)), 50)[0].lr == pytest.approx(2e-3)


@pytest.mark.parametrize(("steps", "at"), [(500, [6, 19, 56, 167, 500]), (50, [6, 17, 50]), (14, [14]), (1, [1])])
def test_rungs(steps: int, at: list[int]) -> None:
    assert rungs(steps) == at


def test_measured_steps() -> None:
    assert measured_steps(1) == [1]
    steps = measured_steps(500)
    assert (steps[:6], steps[-1]) == ([1, 2, 3, 4, 5, 6], 500)
    assert all(b / a <= 1.34 for a, b in itertools.pairwise(steps[2:]))


# --- the search ------------------------------------------------------------------------------------------------------


def run(settings: RelearnSearch, rate: Any, diverged: Any = lambda trial, step: False) -> tuple[Found, list[list[Ask]]]:
    """Run a search on a model whose harmless rate after each step of each attack is known."""
    going, asked = search(settings, 100), []
    try:
        asks = next(going)
        while True:
            asked.append(asks)
            answers: list[Measured] = []
            for ask in asks:
                points = {s: Point(rate(ask.trial, s), min(1.0, rate(ask.trial, s) + 0.1)) for s in ask.steps}
                answers.append("diverged" if diverged(ask.trial, ask.steps[-1]) else points)
            asks = going.send(answers)
    except StopIteration as end:
        return end.value, asked


def test_attacks_are_halved_until_one_succeeds() -> None:
    """Attack 5 needs 40 steps, all others far more."""
    settings = RelearnSearch(learning_rates=9, weights=("full",), schedules=("constant",), steps=200)
    found, asked = run(settings, lambda trial, step: max(0.0, 1 - step / (80 if trial.number == 5 else 900)))
    halved = [asks for asks in asked if not asks[0].tested]
    assert [(len(asks), asks[0].steps) for asks in halved] == [(9, (7,)), (3, (22,))]
    assert found.best is not None
    assert found.best.number == 5
    final = [ask.steps for asks in asked for ask in asks if ask.tested]
    assert final[0][0] == 1
    assert found.steps == tuple(step for part in final for step in part)
    # The upper end of the interval is below the goal from step 48 on, and the segments end at steps 18, 44 and 108.
    assert [part[-1] for part in final] == [18, 44, 108]
    assert [one.steps for one in found.tried].count(22) == 3  # only one was left, which had not yet succeeded


def test_of_several_that_succeed_the_quickest_is_chosen() -> None:
    """Attack 0 has the lowest rate at the rung, but attack 1 is below the goal before."""
    settings = RelearnSearch(learning_rates=3, weights=("full",), schedules=("constant",), steps=20)
    assert rungs(20) == [7, 20]

    def rate(trial: Any, step: int) -> float:
        return {0: 0.0 if step >= 7 else 1.0, 1: 0.2 if step >= 3 else 1.0, 2: 1.0}[trial.number]

    found, asked = run(settings, rate)
    assert found.best is not None
    assert found.best.number == 1
    assert [ask.trial.number for ask in asked[1]] == [0, 1]
    assert asked[1][0].steps == (1, 2, 3, 4, 5, 6)


def test_a_model_that_resists_is_attacked_to_the_last_step() -> None:
    settings = RelearnSearch(steps=50)
    found, asked = run(settings, lambda trial, step: 1.0)
    assert found.steps == tuple(measured_steps(50))
    assert sum(len(asks) * asks[0].steps[-1] for asks in asked if not asks[0].tested) + 50 == most_steps(settings)


def test_diverging_attacks_lose() -> None:
    settings = RelearnSearch(learning_rates=9, weights=("full",), schedules=("constant",), steps=90)
    found, _ = run(settings, lambda trial, step: 1 - trial.number / 100, lambda trial, step: trial.number > 3)
    assert found.best is not None
    assert found.best.number == 3
    assert [one.reason for one in found.tried] == [None] * 4 + ["diverged"] * 5
    # All that went on diverge at a later rung: the best of those that stayed behind takes their place.
    found, _ = run(
        settings, lambda trial, step: 1 - trial.number / 100, lambda trial, step: step > 10 and trial.number > 5
    )
    assert found.best is not None
    assert found.best.number == 5
    found, asked = run(settings, lambda trial, step: 1.0, lambda trial, step: True)
    assert (found.best, found.steps, len(asked)) == (None, (), 1)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory, triples: list[dict[str, Any]]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("needs")
    items = [
        Item(item_id(t["prompt"]), t["prompt"], "question", tuple(t["harmful"]), tuple(t["harmless"])) for t in triples
    ]
    for name, chosen in (("forget", items[:3]), ("prompts", items[3:5])):
        (folder / name).mkdir()
        write_rows(folder / name / "items.jsonl", [item_row(i) for i in chosen])
    return {"forget": folder / "forget", "prompts": folder / "prompts"}


def attacked(
    model: Path, out: Path, needs: dict[str, Path], steps: list[int], scratch: Path, **options: Any
) -> list[dict[str, Any]]:
    settings = RelearnSearch(learning_rates=1, lr_range=(1, 1), steps=6, rank=2, batch_size=2, **options)
    config = trials(settings, 32)[0].config(settings).model_dump(mode="json", exclude={"save_every"})
    params = {"config": config, "steps": steps, "seed": 0, "template": TEMPLATE.value,
              "decoding": Decoding(max_new_tokens=6).model_dump(mode="json")}  # fmt: skip
    out.mkdir()
    local = {"device": "cpu", "checkpoints": str(scratch)}
    run_relearn_trial_stage(StageContext(params, {"model": model, **needs}, out, local, lambda n, what: lambda k: None))
    return read_rows(out / "responses.jsonl")


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_answers_do_not_depend_on_pauses(small_opt: Path, tmp_path: Path, needs: dict[str, Path], weights: str) -> None:
    """Trained at once, in parts, and in parts of which the last was killed before it could hand its answers over."""
    options: dict[str, Any] = {"weights": (weights,), "schedules": ("linear",)}
    at_once = attacked(small_opt, tmp_path / "once", needs, [1, 2, 4], tmp_path / "s1", **options)
    assert [item_and_step(row["id"])[1] for row in at_once] == [1, 1, 2, 2, 4, 4]
    parts = attacked(small_opt, tmp_path / "part1", needs, [1, 2], tmp_path / "s2", **options)
    parts += attacked(small_opt, tmp_path / "part2", needs, [4], tmp_path / "s2", **options)
    assert parts == at_once
    again = attacked(small_opt, tmp_path / "again", needs, [4], tmp_path / "s2", **options)
    assert again == at_once[4:]
    for folder in (tmp_path / "s2").glob("answers-*-4"):  # the answers are lost, the checkpoint after them is not
        shutil.rmtree(folder)
    assert attacked(small_opt, tmp_path / "lost", needs, [4], tmp_path / "s2", **options) == at_once[4:]


def test_the_budget_counts_rows_and_tokens(small_opt: Path, tmp_path: Path, needs: dict[str, Path]) -> None:
    from wpn_bench import models
    from wpn_bench.prompts.items import read_items

    attacked(
        small_opt, tmp_path / "out", needs, [1, 3], tmp_path / "scratch", weights=("full",), schedules=("constant",)
    )
    batches = Batches(models.load_tokenizer(small_opt), read_items(needs["forget"]), (), template=TEMPLATE,
                      uses=frozenset({"harmful"}), steps=3, batch_size=2, retain_batch_size=2, negatives=1, max_length=64,
                      retain_max_length=64, seed=0)  # fmt: skip
    tokens = [int(batches[k]["harmful"]["attention_mask"].sum()) for k in range(3)]
    assert read_budget(tmp_path / "out") == {1: {"rows": 2, "tokens": tokens[0]}, 3: {"rows": 6, "tokens": sum(tokens)}}


def test_weights_that_are_not_finite_are_a_divergence(
    small_opt: Path, tmp_path: Path, needs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step was still finite, so the training itself has not noticed."""
    before = UnlearnTrainer.end_of_step

    def spoilt(self: UnlearnTrainer) -> None:
        before(self)
        next(self.taught.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(UnlearnTrainer, "end_of_step", spoilt)
    with pytest.raises(JobFailed, match=r"training diverged: weights .* not finite"):
        attacked(small_opt, tmp_path / "out", needs, [1], tmp_path / "s", weights=("full",), schedules=("constant",))
    assert not list((tmp_path / "out").iterdir())
