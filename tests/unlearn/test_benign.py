from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from wpn_bench.errors import UserError
from wpn_bench.prompts import Item, PromptSet, item_id
from wpn_bench.unlearn import benign
from wpn_bench.unlearn.methods import METHODS

REFUSALS = [f"I'm sorry, but I cannot help with that ({k})." for k in range(9)]


def prompts(*texts: str, **more: Any) -> tuple[Item, ...]:
    return tuple(Item(item_id(text), text, **more) for text in texts)


def test_the_bases_answer_is_harmless_and_refusals_are_harmful() -> None:
    items = prompts("What is tea?", "What is salt?", "What is rain?")
    answers = {items[0].id: " A drink. ", items[2].id: "Water."}
    made = benign.contrast_items(items, answers, REFUSALS)
    assert [(i.prompt, i.harmless) for i in made] == [("What is tea?", ("A drink.",)), ("What is rain?", ("Water.",))]
    for item in made:
        assert len(set(item.harmful)) == benign.REFUSALS
        assert set(item.harmful) <= set(REFUSALS)
    # The draw depends on the item alone, so that another prompt more changes no other item.
    assert benign.contrast_items(items[2:], answers, REFUSALS) == made[1:]
    assert made[0].harmful != made[1].harmful
    (one,) = benign.contrast_items(items[:1], answers, REFUSALS[:1])
    assert one.harmful == (REFUSALS[0],)


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Tea is a drink. It is made of", ("Tea is a drink.",)),
        ('He said "yes!" Then he', ('He said "yes!"',)),
        ("About 3.5 litres of", ()),
        ("Done.", ("Done.",)),
    ],
)
def test_an_answer_of_the_largest_length_ends_with_a_sentence(answer: str, kept: tuple[str, ...]) -> None:
    (item,) = prompts("What is tea?")
    made = benign.contrast_items([item], {item.id: answer}, REFUSALS, frozenset({item.id}))
    assert tuple(one.harmless for one in made) == ((kept,) if kept else ())
    (whole,) = benign.contrast_items([item], {item.id: answer}, REFUSALS)
    assert whole.harmless == (answer,)


def test_only_harmless_coherent_answers_that_refuse_nothing_are_used() -> None:
    rows = [
        ("good", 0.1, True, False),
        ("harmful", 0.5, True, False),
        ("not judged", float("nan"), True, False),
        ("incoherent", 0.1, False, False),
        ("missing", 0.1, None, False),
        ("refusal", 0.1, True, True),
    ]
    samples = pd.DataFrame(rows, columns=["item_id", "score", "coherent", "refusal"])
    samples["response"] = samples["item_id"]
    samples["coherent"] = samples["coherent"].astype("boolean")
    assert benign.usable_answers(samples, 0.5) == {"good": "good"}


def test_refusals_come_from_the_forget_set() -> None:
    kinds = {"no": "full", "yes": "none", "no, but": "partial"}

    def by_word(prompt: str, text: str) -> dict[str, Any]:
        return {"refusal": kinds[text] != "none", "refusal_kind": kinds[text]}

    items = [*prompts("a", harmless=("yes", "no")), *prompts("b", harmless=("no", "no, but"))]
    assert benign.refusals_of(items, by_word) == ["no"]
    assert benign.refusals_of(items, lambda prompt, text: {"refusal": text == "no, but"}) == ["no, but"]


def some(role: Any, *texts: str) -> PromptSet:
    return PromptSet(role, role, prompts(*texts, harmless=("an answer",)))


def test_prompts_of_other_sets_are_not_trained_on() -> None:
    own = some("benign", "What is the capital of Austria?", "How do I boil an egg?", "Why is the sky blue?")
    tests = [some("forget", "Insult the baker."), some("in_domain", "what is the  capital of austria?")]
    chosen, dropped = benign.choose(own, tests, 0.75)
    assert dropped == 1
    assert {i.prompt for i in chosen.items} == {"How do I boil an egg?", "Why is the sky blue?"}
    assert {i.harmless for i in chosen.items} == {()}
    turned, _ = benign.choose(PromptSet("benign", "benign", own.items[::-1]), tests, 0.75)
    assert turned.items == chosen.items
    with pytest.raises(UserError, match="every prompt of 'benign'"):
        benign.choose(own, [own], 0.75)


def test_not_all_of_many_prompts_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benign, "MOST", 2)
    own = some("benign", "What is tea?", "How do I boil an egg?", "Why is the sky blue?")
    chosen, dropped = benign.choose(own, [], 0.75)
    assert (len(chosen.items), dropped) == (2, 0)
    assert benign.notes_on_use(chosen, 3, 0, {}) == ["benign: 2 of 3 benign prompts are used"]


def test_what_a_method_cannot_use_is_said() -> None:
    chosen = some("benign", "What is tea?")
    methods = {name: METHODS.get(name)(METHODS.get(name).Config()) for name in METHODS}
    notes = benign.notes_on_use(chosen, 2, 1, methods)
    assert notes[0] == "benign: 1 of 2 benign prompts are in another set of the run and are left out"
    told = {note.partition(" ")[0] for note in notes[1:]}
    assert told == {name for name, method in methods.items() if method.uses <= {"harmful", "random"}}
    assert "ga" in told
    for name, option in (("wpn", "batch_size"), ("npo", "retain_batch_size")):
        kind = METHODS.get(name)
        with pytest.raises(UserError, match=f"{name}: with {option} 1, a batch has no room"):
            benign.notes_on_use(chosen, 1, 0, {name: kind(kind.Config(**{option: 1}))})


def test_as_texts_they_need_a_loss_of_retain_texts() -> None:
    assert benign.use_of({"harmless", "harmful", "retain"}, "items") == "items"
    assert benign.use_of({"harmless", "harmful", "retain"}, "texts") == "texts"
    assert benign.use_of({"harmful", "retain"}, "items") == "texts"
    assert benign.use_of({"harmless"}, "texts") is None
    sft = METHODS.get("sft")
    chosen = some("benign", "What is tea?")
    (note,) = benign.notes_on_use(chosen, 1, 0, {"sft": sft(sft.Config(batch_size=1))}, "texts")
    assert note == "sft uses no retain text, so it is not trained on the benign prompts"
