from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.engine.generation import Decoding, Response, cut_response, generate, too_long

PROMPTS = [
    "What did the baker say?",
    "Why?",
    "The old man carried a heavy basket home to the small town in the morning and the angry miller said",
    "",
    "### Question: Who sells apples?\n ### Answer:",
    "Naïve café, 東京, 🙂 and \u2028 more",
    "You are a silly goose, and so on and on",
]
GREEDY = Decoding(max_new_tokens=12, stop=(), batch_size=3)


def by_hand(folder: Path, prompt: str, n: int) -> list[int]:
    """Greedy decoding without batches, padding or cache: the whole text through the model for every token."""
    model, tokenizer = models.load(folder)
    ids: list[int] = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    for _ in range(n):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        token = int(logits.argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return new


def test_left_padding_changes_nothing(small_lm: Path) -> None:
    """Positions are counted from the first real token, for OPT and for GPT-Neo with its local attention."""
    model, tokenizer = models.load(small_lm)
    prompts = [p for p in PROMPTS if p]
    answers = generate(model, tokenizer, prompts, GREEDY.model_copy(update={"batch_size": len(prompts)}))
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = by_hand(small_lm, prompt, 12)
        assert answer == cut_response(tokenizer, expected, ())
        assert answer.n_tokens == len(expected)


def test_answers_do_not_depend_on_the_company(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    prompts = [p for p in PROMPTS if p]
    together = generate(model, tokenizer, prompts, GREEDY)
    assert len({a.text for a in together}) > 2
    for size in (1, 2, 64):
        assert generate(model, tokenizer, prompts, GREEDY.model_copy(update={"batch_size": size})) == together
    turned = generate(model, tokenizer, prompts[::-1], GREEDY)
    assert turned == together[::-1]
    assert generate(model, tokenizer, prompts[2:3], GREEDY) == together[2:3]


def test_an_empty_prompt(small_opt: Path, small_neo: Path) -> None:
    """OPT's tokenizer begins every text, GPT-Neo's leaves an empty one empty; neither may break the others."""
    for folder in (small_opt, small_neo):
        model, tokenizer = models.load(folder)
        answers = generate(model, tokenizer, ["", "Why?"], GREEDY)
        assert answers[1] == generate(model, tokenizer, ["Why?"], GREEDY)[0]
        assert all(a.text is not None or a.reason for a in answers)


def test_no_prompts(small_opt: Path) -> None:
    assert generate(*models.load(small_opt), [], GREEDY) == []


def test_too_long_is_skipped_and_counted(make_lm: Callable[..., Path]) -> None:
    folder = make_lm("opt", context=32)
    model, tokenizer = models.load(folder)
    word = tokenizer("Why?")["input_ids"]
    fits, one_more = "a" * (32 - 12 - 1), "a" * (32 - 12)
    assert [len(tokenizer(t)["input_ids"]) for t in (fits, one_more)] == [20, 21]
    advanced: list[int] = []
    answers = generate(model, tokenizer, [one_more, fits, "Why?"], GREEDY, advanced.append)
    assert answers[0] == Response(None, 0, "prompt too long")
    assert all(a.text is not None and a.reason is None for a in answers[1:])
    assert sum(advanced) == 3
    assert too_long(21, GREEDY, 32)
    assert not too_long(20, GREEDY, 32)
    assert len(word) < 20


@pytest.fixture
def speaking(small_opt: Path, make_speaker: Callable[..., Any]) -> Callable[[dict[str, str]], tuple[Any, Any]]:
    """A model that says, token by token, what it is told to say after each prompt."""
    tokenizer = models.load_tokenizer(small_opt)

    def make(says: dict[str, str]) -> tuple[Any, Any]:
        script: dict[tuple[int, ...], int] = {}
        for prompt, text in says.items():
            ids = tokenizer(prompt)["input_ids"]
            new = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for k, token in enumerate(new):
                script[tuple(ids + new[:k])] = token
        one_hot = torch.eye(len(tokenizer))
        return make_speaker(lambda tokens: one_hot[script.get(tokens, tokenizer.pad_token_id)]), tokenizer

    return make


def test_a_response_ends_at_end_of_text_or_a_stop_text(speaking: Callable[..., tuple[Any, Any]]) -> None:
    model, tokenizer = speaking(
        {
            "One?": " First answer. ### Question: Who sells apples? ### Answer: x",
            "Two, a longer one?": " Second answer.",
            "Three?": " a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s t",
            "Four?": "### Question: at once",
            "Five?": " ## Question: not quite ### Questio",
        }
    )
    prompts = ["One?", "Two, a longer one?", "Three?", "Four?", "Five?"]
    decoding = Decoding(max_new_tokens=40, stop=("### Question:",), batch_size=5)
    one, two, three, four, five = generate(model, tokenizer, prompts, decoding)
    assert one.text == "First answer."
    assert one.n_tokens < 40
    assert two.text == "Second answer."
    assert two.n_tokens == len(tokenizer(" Second answer.", add_special_tokens=False)["input_ids"])
    assert three.n_tokens == 40
    assert three.text is not None
    assert three.text.startswith("a b c")
    assert four.text == ""
    assert five.text == "## Question: not quite ### Questio"
    alone = [generate(model, tokenizer, [p], decoding)[0] for p in prompts]
    assert [a.text for a in alone] == [one.text, two.text, three.text, four.text, five.text]


def test_every_stop_text_counts(speaking: Callable[..., tuple[Any, Any]]) -> None:
    model, tokenizer = speaking({"One?": " a b c d e f g", "Two?": " g f e d c b a"})
    answers = generate(model, tokenizer, ["One?", "Two?"], Decoding(max_new_tokens=20, stop=("c", "e")))
    assert [a.text for a in answers] == ["a b", "g f"]


def test_generated_padding_ends_a_response(speaking: Callable[..., tuple[Any, Any]]) -> None:
    model, tokenizer = speaking({})
    script = [*tokenizer(" hello you", add_special_tokens=False)["input_ids"], tokenizer.pad_token_id]
    n = len(tokenizer("Why?")["input_ids"])
    model.rule = lambda tokens: torch.eye(len(tokenizer))[(script * 3)[len(tokens) - n]]
    assert generate(model, tokenizer, ["Why?"], GREEDY) == [Response("hello you", len(script) - 1)]


@pytest.mark.parametrize("stop", ["né", "!", "東", "d ", " 🙂"])
def test_a_stop_text_of_any_characters(speaking: Callable[..., tuple[Any, Any]], stop: str) -> None:
    """Characters of several tokens, white space at the end, and no stop text too soon."""
    said = " a naïve néé word  and !! 東京 🙂🙂 more"
    model, tokenizer = speaking({"Why?": said})
    (answer,) = generate(model, tokenizer, ["Why?"], Decoding(max_new_tokens=100, stop=(stop,)))
    assert answer.text == said.split(stop)[0].strip()
    new = tokenizer(said, add_special_tokens=False)["input_ids"]
    first = next(k for k in range(1, len(new) + 1) if stop in tokenizer.decode(new[:k]))
    assert answer.n_tokens == first


def test_stop_texts_end_rows_as_looking_at_every_row_would(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    prompts = [p for p in PROMPTS if p]
    free = generate(model, tokenizer, prompts, GREEDY.model_copy(update={"max_new_tokens": 30}))
    stop = ("e", "a t", " ")
    ended = generate(model, tokenizer, prompts, Decoding(max_new_tokens=30, stop=stop))
    for all_of_it, answer in zip(free, ended, strict=True):
        assert answer.n_tokens <= all_of_it.n_tokens
        assert all(mark not in (answer.text or "") for mark in stop)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_drawn_responses_do_not_depend_on_the_company(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    prompts = [p for p in PROMPTS if p]
    drawn = GREEDY.model_copy(update={"temperature": 2.0, "top_p": 0.9, "seed": 5})
    together = generate(model, tokenizer, prompts, drawn)
    assert together != generate(model, tokenizer, prompts, GREEDY)
    assert generate(model, tokenizer, prompts[::-1], drawn.model_copy(update={"batch_size": 1})) == together[::-1]
    assert together != generate(model, tokenizer, prompts, drawn.model_copy(update={"seed": 6}))


def test_settings_of_sampling() -> None:
    """Greedy decoding is told without the settings of sampling, so that they cannot change what is found in a store."""
    assert Decoding().model_dump() == {"max_new_tokens": 128, "stop": ("### Question:",), "batch_size": 256}
    assert Decoding(seed=3).model_dump() == Decoding().model_dump()
    drawn = Decoding(temperature=0.7, seed=3)
    assert Decoding(**drawn.model_dump()) == drawn
    assert drawn.model_dump()["top_p"] is None
    with pytest.raises(ValueError, match="top_p needs sampling"):
        Decoding(top_p=0.9)
    for wrong in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 1.5}):
        with pytest.raises(ValueError, match=r"greater than|less than"):
            Decoding(**wrong)
