"""The gradient search: its loss and gradient against the plain way, its candidates, and what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.conftest import SHAPES, WORDS, random_model
from transformers import PreTrainedTokenizerFast

from wpn_bench import models
from wpn_bench.attacks import gcg
from wpn_bench.attacks.gcg import GCGConfig, allowed_tokens, run_gcg_stage, search_suffix
from wpn_bench.attacks.search import SEARCH
from wpn_bench.attacks.suffix_slots import SuffixSlots, evenly_spread, find_slots
from wpn_bench.attacks.target_loss import TargetLoss
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.harmless import stages
from wpn_bench.prompts import Item, joined, render
from wpn_bench.prompts import items as prompts_items

from .searching import ITEMS, TEMPLATE, made_slots, plain_loss, short_of_memory, stage_context

SMALL = GCGConfig(steps=4, candidates=24, topk=16, suffix_tokens=6, target_tokens=5)
K = 4


@pytest.fixture(scope="module", params=[*SHAPES, "capped"])
def shaped(request: pytest.FixtureRequest) -> Any:
    return random_model(request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


# --- loss and gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_tokens", [40, 4096])
def test_losses_and_gradients_are_those_of_each_slot_alone(shaped: Any, pass_tokens: int) -> None:
    slots = made_slots(WORDS)
    loss = TargetLoss(shaped, slots, pass_tokens)
    vectors = loss.embedded(torch.tensor([7, 8, 9, 10])).unsqueeze(0)
    numbers = [3, 0, 4, 1]
    shared = loss.loss_and_gradient(vectors, numbers)
    apart = loss.loss_and_gradient(vectors.repeat(4, 1, 1), numbers)
    expected, gradients = [], []
    for n in numbers:
        leaf = vectors[0].clone().requires_grad_()
        one, _ = plain_loss(shaped, slots[n], leaf)
        expected.append(one.detach())
        gradients.append(torch.autograd.grad(one, leaf)[0])
    close(shared.losses, torch.stack(expected))
    close(apart.losses, torch.stack(expected))
    close(shared.gradient[0], torch.stack(gradients).sum(0))
    close(apart.gradient, torch.stack(gradients))


@pytest.mark.parametrize("pass_tokens", [40, 4096])
@pytest.mark.slow
def test_candidates_are_scored_as_if_alone(shaped: Any, pass_tokens: int) -> None:
    slots = made_slots(WORDS)
    loss = TargetLoss(shaped, slots, pass_tokens)
    rng = torch.Generator().manual_seed(3)
    now = torch.tensor([7, 8, 9, 10])
    candidates = torch.where(
        torch.rand(20, K, generator=rng) < 0.4, torch.randint(5, WORDS, (20, K), generator=rng), now
    )
    kept = loss.loss_and_gradient(loss.embedded(now).unsqueeze(0), range(5), keep_cache=True).cached
    for number, slot in enumerate(slots):
        # Targets that are written as well as such that are not.
        said = generated(shaped, slot.ids(candidates[5].tolist()), len(slot.target))
        loss.slots[number] = slot = replace(slot, target=tuple(said))
        losses, reached = loss.score(number, candidates, now, kept[number])
        plain = [plain_loss(shaped, slot, shaped.get_input_embeddings()(row)) for row in candidates]
        close(losses, torch.stack([one.detach() for one, _ in plain]))
        assert reached.tolist() == [hit for _, hit in plain]
        assert reached[5]


def generated(model: Any, ids: list[int], n: int) -> list[int]:
    for _ in range(n):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-n:]


def test_memory_that_runs_out_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("opt")
    now = torch.tensor([7, 8, 9, 10])
    candidates = torch.tensor([[7, 8, 9, 20 + k] for k in range(9)] + [[30 + k, 8, 9, 10] for k in range(9)])

    def work() -> tuple[torch.Tensor, ...]:
        loss = TargetLoss(model, made_slots(WORDS), 4096)
        found = loss.loss_and_gradient(loss.embedded(now).unsqueeze(0), range(5), keep_cache=True)
        return found.losses, found.gradient, *loss.score(2, candidates, now, found.cached[2])

    whole = work()
    monkeypatch.setattr(model, "forward", short_of_memory(model, 4))
    for ours, theirs in zip(work(), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_that_keeps_other_things_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(UserError, match="do not support MambaForCausalLM"):
        TargetLoss(mamba, made_slots(40))


# --- prompts with room -----------------------------------------------------------------------------------------------


def test_the_parts_are_those_of_the_rendered_text(small_lm: Path) -> None:
    _, tokenizer = models.load(small_lm)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    assert slots.unfit == {}
    assert len(slots.initial_ids) <= SMALL.suffix_tokens
    for item, slot in zip(ITEMS, slots.slots, strict=True):
        attacked = gcg.with_suffix(item, slots.initial_suffix)
        assert slot.text(slots.initial_suffix) == render(attacked, TEMPLATE)
        assert attacked.prompt == f"{item.prompt} {slots.initial_suffix}"
        assert (attacked.original, attacked.id) == (item.prompt, item.id)
        assert slot.ids(slots.initial_ids) == tokenizer(render(attacked, TEMPLATE))["input_ids"]
        wanted = item.harmful[0] if item.harmful else "Sure, here is"
        target = tokenizer(joined(wanted), add_special_tokens=False)["input_ids"]
        assert list(slot.target) == target[:5]


def test_what_cannot_be_attacked_is_told(small_opt: Path) -> None:
    _, tokenizer = models.load(small_opt)
    long = Item("4", "word " * 80)
    slots = find_slots([*ITEMS, long], tokenizer, TEMPLATE, SMALL, 100)
    assert slots.unfit == {"4": "prompt too long"}
    assert len(slots.slots) == 3
    with pytest.raises(JobFailed, match="none of the 1 prompts"):
        find_slots([long], tokenizer, TEMPLATE, SMALL, 100)
    with pytest.raises(UserError, match="exceeds 2 tokens"):
        find_slots(ITEMS, tokenizer, TEMPLATE, SMALL.model_copy(update={"init": "xyzzyx", "suffix_tokens": 2}), 256)


def test_a_tokenizer_that_puts_spaces_first(small_opt: Path) -> None:
    """As Llama 2's: every text begins with a space of its own, and decoding drops it."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE

    raw = Tokenizer(BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    raw.train_from_iterator(
        [render(item, TEMPLATE) + " ! !" for item in ITEMS],
        trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>"], show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", unk_token="<unk>")
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    assert slots.unfit == {}
    for slot in slots.slots:
        assert slot.ids(slots.initial_ids) == tokenizer(slot.text(slots.initial_suffix))["input_ids"]
    kept = gcg._surviving(tokenizer, slots.slots, torch.tensor([slots.initial_ids, [1] * len(slots.initial_ids)]))
    assert kept.tolist() == [list(slots.initial_ids)]


def test_spread_is_even() -> None:
    assert [item.id for item in evenly_spread([Item(str(k), "p") for k in range(10)], 4)] == ["0", "2", "5", "7"]
    assert evenly_spread(ITEMS, 25) == list(ITEMS)


# --- candidates ------------------------------------------------------------------------------------------------------


def test_only_tokens_that_print_are_allowed(small_opt: Path) -> None:
    model, tokenizer = models.load(small_opt)
    allowed = allowed_tokens(model, tokenizer)
    every = allowed_tokens(model, tokenizer, ascii_only=False)
    for k, (ascii_only, printing) in enumerate(zip(allowed.tolist(), every.tolist(), strict=True)):
        text = tokenizer.decode([k])
        special = k in tokenizer.all_special_ids
        assert ascii_only == (not special and text.isascii() and text.isprintable() and text != "")
        assert printing >= ascii_only
        assert not (printing and (special or "\ufffd" in text or not text.isprintable()))


@pytest.mark.parametrize("n_replace", [1, 2])
def test_candidates_are_distinct_and_descend(n_replace: int) -> None:
    rng = torch.Generator().manual_seed(0)
    gradient = torch.randn(K, 60, generator=rng)
    allowed = torch.arange(60) % 3 != 0
    now = torch.tensor([1, 2, 4, 5])
    config = GCGConfig(candidates=200, topk=7, n_replace=n_replace)
    drawn = gcg._draw(now, gradient, allowed, config, torch.Generator().manual_seed(1))
    again = gcg._draw(now, gradient, allowed, config, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn) > 20
    for row in drawn:
        changed = (row != now).nonzero().flatten().tolist()
        assert 1 <= len(changed) <= n_replace
        for at in changed:
            better = allowed & (gradient[at] < gradient[at, row[at]])
            assert allowed[row[at]]
            assert int(better.sum()) < 7


def test_candidates_that_would_be_written_otherwise_are_dropped(small_opt: Path) -> None:
    _, tokenizer = models.load(small_opt)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    word = tokenizer(" baker", add_special_tokens=False)["input_ids"]
    letters = [tokenizer.convert_tokens_to_ids(c) for c in "Ġbaker"]
    assert len(word) < 6  # the tokenizer has a shorter way to write it
    space_and_mark = tokenizer(" !", add_special_tokens=False)["input_ids"]
    good = [*word, *space_and_mark * 6][:6]
    no_space = [tokenizer.convert_tokens_to_ids("!")] * 6
    given = torch.tensor([letters, good, no_space])
    kept = gcg._surviving(tokenizer, slots.slots, given)
    assert kept.tolist() == [good]
    assert gcg._surviving(tokenizer, slots.slots, given[:1]).shape == (0, 6)


def test_what_is_dropped_is_drawn_again(small_opt: Path) -> None:
    model, tokenizer = models.load(small_opt)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    allowed = allowed_tokens(model, tokenizer)
    now = torch.tensor(slots.initial_ids)
    gradient = torch.randn(len(now), len(allowed), generator=torch.Generator().manual_seed(0))

    def candidates(config: GCGConfig) -> list[list[int]]:
        rng = torch.Generator().manual_seed(0)
        found: list[list[int]] = gcg._candidates(tokenizer, slots.slots, now, gradient, allowed, config, rng).tolist()
        return found

    config = SMALL.model_copy(update={"candidates": 40, "topk": 40})
    once = gcg._draw(now, gradient, allowed, config, torch.Generator().manual_seed(0))
    alive = gcg._surviving(tokenizer, slots.slots, once).tolist()
    scored = candidates(config)
    assert len(alive) < len(scored) == 40
    assert scored[: len(alive)] == alive
    assert len({tuple(row) for row in scored}) == 40
    assert gcg._surviving(tokenizer, slots.slots, torch.tensor(scored)).tolist() == scored
    # There are no more than one token of each place to draw.
    assert len(candidates(config.model_copy(update={"topk": 1}))) <= len(now)
    assert len(candidates(config.model_copy(update={"retokenise": False}))) == 40


# --- the search ------------------------------------------------------------------------------------------------------


def test_it_finds_a_text_of_the_loss_it_tells(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    result = search_suffix(model, tokenizer, slots, SMALL)
    assert result.best_loss < result.first_loss
    assert len(result.losses) == len(result.active) == SMALL.steps + 1
    assert result.losses[0] == pytest.approx(result.first_loss, rel=1e-4)
    assert min(result.losses) == pytest.approx(result.best_loss, rel=1e-4)
    pairs = [
        (tokenizer(render(gcg.with_suffix(p.item, result.suffix), TEMPLATE))["input_ids"], p.target)
        for p in slots.slots
    ]
    told = loglikelihoods(model, pairs, max_length=256)
    means = [-value / len(target) for (value, _), (_, target) in zip(told, pairs, strict=True)]
    assert result.best_loss == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert result.reached == tuple(greedy for _, greedy in told)
    again = search_suffix(model, tokenizer, slots, SMALL)
    assert replace(again, seconds=0) == replace(result, seconds=0)
    other = search_suffix(model, tokenizer, slots, SMALL, seed=1)
    assert other.ids != result.ids


def reachable(folder: Path, config: GCGConfig) -> tuple[Any, Any, SuffixSlots]:
    """The model, its tokenizer, and slots whose one target token it writes after some suffix one token away."""
    model, tokenizer = models.load(folder)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, config, 256)
    (word,) = tokenizer.convert_tokens_to_ids(["y"])
    near = [*slots.initial_ids[:-1], word]
    said = [tuple(generated(model, slot.ids(near), 1)) for slot in slots.slots]
    with_targets = tuple(replace(slot, target=one) for slot, one in zip(slots.slots, said, strict=True))
    return model, tokenizer, replace(slots, slots=with_targets)


WIDE = SMALL.model_copy(update={"steps": 30, "topk": 400, "candidates": 400, "early_stop": True})


def test_it_stops_where_the_target_is_written(small_opt: Path) -> None:
    model, tokenizer, slots = reachable(small_opt, WIDE)
    steps: list[int] = []
    (slot,) = (alone := slots.one_by_one()[0]).slots
    stopped = search_suffix(model, tokenizer, alone, WIDE, advance=steps.append)
    assert stopped.reached == (True,)
    assert len(stopped.losses) - 1 < WIDE.steps
    assert sum(steps) == WIDE.steps
    assert tuple(generated(model, tokenizer(slot.text(stopped.suffix))["input_ids"], 1)) == slot.target
    on = search_suffix(model, tokenizer, alone, WIDE.model_copy(update={"early_stop": False, "steps": 8}))
    assert len(on.losses) - 1 == 8


def test_prompts_come_one_after_the_other(small_opt: Path) -> None:
    config = WIDE.model_copy(update={"progressive": True, "steps": 12})
    model, tokenizer, slots = reachable(small_opt, config)
    embed = model.get_input_embeddings()
    written = [plain_loss(model, slot, embed(torch.tensor(slots.initial_ids)))[1] for slot in slots.slots]
    result = search_suffix(model, tokenizer, slots, config)
    assert result.active[0] == (written.index(False) + 1)
    assert max(result.active) > result.active[0]
    assert list(result.active) == sorted(result.active)
    assert len(result.reached) == 3


def test_candidates_can_be_compared_on_some_prompts(small_opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = models.load(small_opt)
    config = SMALL.model_copy(update={"compare_on": 2, "steps": 8})
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, config, 256)
    asked: list[int] = []
    score = TargetLoss.score

    def noted(self: TargetLoss, number: int, *given: Any) -> Any:
        asked.append(number)
        return score(self, number, *given)

    monkeypatch.setattr(TargetLoss, "score", noted)
    result = search_suffix(model, tokenizer, slots, config)
    assert len(asked) == 2 * 8
    assert set(asked) == {0, 1, 2}
    assert result.active == (3,) * 9
    assert result.best_loss == pytest.approx(min(result.losses), rel=1e-4)
    assert result.best_loss < result.first_loss


# --- the stage -------------------------------------------------------------------------------------------------------


def params(**changes: Any) -> dict[str, Any]:
    config = SMALL.model_copy(update=changes)
    return {"config": config.model_dump(mode="json"), "template": TEMPLATE.value, "dtype": "float32"}


def test_one_suffix_each(small_opt: Path, tmp_path: Path) -> None:
    items = [*ITEMS, Item("4", "word " * 90)]
    ctx = stage_context(tmp_path, params(steps=2), small_opt, prompts=items)
    run_gcg_stage(ctx)
    attacked = prompts_items.read_items(ctx.out)
    told = json.loads((ctx.out / SEARCH).read_text())
    assert [i.id for i in attacked] == [i.id for i in items]
    assert [i.original for i in attacked] == [i.prompt for i in items]
    assert (told["attack"], told["config"]["steps"], told["unfit"]) == ("gcg", 2, {"4": "prompt too long"})
    assert [s["items"] for s in told["searches"]] == [["1"], ["2"], ["3"]]
    for item, search, new in zip(items, told["searches"], attacked, strict=False):
        assert new.prompt == f"{item.prompt} {search['suffix']}"
        assert search["best_loss"] <= search["first_loss"]
    # What is found for a prompt does not depend on its company.
    alone = stage_context(tmp_path, params(steps=2), small_opt, prompts=items[2:])
    run_gcg_stage(alone)
    assert prompts_items.read_items(alone.out)[0] == attacked[2]
    # The artifact serves as the prompts of a generation.
    answers = {"template": TEMPLATE.value, "dtype": "float32", "decoding": {"max_new_tokens": 4}}
    generation = stage_context(tmp_path, answers, small_opt, prompts=attacked)
    stages.run_generate_stage(generation)
    rows = prompts_items.read_rows(generation.out / stages.RESPONSES)
    assert [row["prompt"] for row in rows] == [i.prompt for i in items]
    assert rows[0]["input"] == render(attacked[0], TEMPLATE)
    assert rows[0]["plain"] == render(items[0], TEMPLATE)


def test_one_suffix_for_all_is_searched_on_other_prompts(small_opt: Path, tmp_path: Path) -> None:
    given = params(universal=True, prompts=2)
    ctx = stage_context(tmp_path, given, small_opt, prompts=ITEMS[2:], train=ITEMS[:2])
    run_gcg_stage(ctx)
    (search,) = json.loads((ctx.out / SEARCH).read_text())["searches"]
    (item,) = prompts_items.read_items(ctx.out)
    assert search["items"] == ["1", "2"]
    assert item.prompt == f"{ITEMS[2].prompt} {search['suffix']}"
    without = stage_context(tmp_path, given, small_opt, prompts=ITEMS)
    run_gcg_stage(without)
    assert json.loads((without.out / SEARCH).read_text())["searches"][0]["items"] == ["1", "2"]


def test_a_broken_model_is_a_failed_job(make_lm: Any, tmp_path: Path) -> None:
    folder = make_lm("opt", seed=5)
    model = models.load_fresh(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(broken)
    with pytest.raises(JobFailed, match="not finite"):
        run_gcg_stage(stage_context(tmp_path, params(), broken, prompts=ITEMS))
