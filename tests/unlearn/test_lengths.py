"""Training rows that are too long keep the template, the special tokens and both ends of the question."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.tokenizers import KINDS
from wpn_bench.errors import UserError
from wpn_bench.prompts import ChatTemplate, FormatTemplate, Item, Template
from wpn_bench.unlearn.lengths import count_cut, notes_on_length, row_of

PLAIN = FormatTemplate("Question: {prompt}\nAnswer:")
QUESTION = "First " + " ".join(f"fact{k}" for k in range(300)) + " last?"


def templates_of(tokenizer: Any) -> list[Template]:
    return [PLAIN, *([ChatTemplate.of(tokenizer)] if tokenizer.chat_template else [])]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"no_eos", "no_special"}))
@pytest.mark.parametrize("response", ["No", "I would rather not say. " * 20])
def test_a_long_prompt_keeps_its_form(kind: str, response: str) -> None:
    tokenizer = KINDS[kind]()
    for template in templates_of(tokenizer):
        row = row_of(tokenizer, template, Item("1", QUESTION), response, 120)
        whole = row_of(tokenizer, template, Item("1", QUESTION), response, 10**6)
        short = row_of(tokenizer, template, Item("1", ""), response, 10**6)
        assert row.prompt_cut
        assert not whole.prompt_cut
        assert len(row.prompt) + len(row.response) <= 120
        assert row.prompt[:3] == whole.prompt[:3]
        assert row.prompt[-6:] == whole.prompt[-6:]
        text = tokenizer.decode(row.prompt).replace(" ", "").lower()
        assert ("first" in text, "last?" in text) == (True, True)
        assert "fact150" not in text
        # As much as fits is kept: a word more would be too long.
        assert len(row.prompt) > min(len(whole.prompt), 120 - min(len(whole.response), 30)) - 16
        assert len(row.prompt) >= len(short.prompt)
        assert row.response_cut == (len(whole.response) > len(row.response))
        assert (row.response[-1] == whole.response[-1]) == (not row.response_cut)
        assert row.response[:-1] == whole.response[: len(row.response) - 1]


def test_a_row_that_fits_is_whole() -> None:
    tokenizer = KINDS["adds_bos"]()
    row = row_of(tokenizer, PLAIN, Item("1", "Hi"), "No", 160)
    assert (row.prompt_cut, row.response_cut) == (False, False)
    exact = row_of(tokenizer, PLAIN, Item("1", "Hi"), "No", len(row.prompt) + len(row.response))
    assert exact == row


def test_a_prompt_without_spaces_loses_characters() -> None:
    tokenizer = KINDS["byte_level"]()
    row = row_of(tokenizer, PLAIN, Item("1", "x" * 500 + "z"), "No", 60)
    assert tokenizer.decode(row.prompt).startswith("Question: x")
    assert tokenizer.decode(row.prompt).endswith("xz\nAnswer:")
    assert len(row.prompt) + len(row.response) == 60


def test_first_words_of_the_answer_stay() -> None:
    tokenizer = KINDS["byte_level"]()
    row = row_of(tokenizer, PLAIN, Item("1", QUESTION, answer_prefix="Sure, it is"), "No", 80)
    assert tokenizer.decode(row.prompt).endswith("last?\nAnswer: Sure, it is")


def test_a_template_that_leaves_no_room_is_refused() -> None:
    tokenizer = KINDS["byte_level"]()
    with pytest.raises(UserError, match="max_length leaves 12 tokens for a prompt, but the template alone has 32"):
        row_of(tokenizer, FormatTemplate("x" * 29 + " {prompt} y"), Item("1", QUESTION), "No more words", 15)


def test_what_is_cut_is_counted() -> None:
    tokenizer = KINDS["byte_level"]()
    items = [
        Item("1", QUESTION, harmful=("No", "b"), harmless=("a",)),
        Item("2", "Hi", harmful=("No " * 300,), harmless=("a",)),
        Item("3", "Hi", harmful=("No",), harmless=("a",)),
    ]
    assert count_cut(tokenizer, PLAIN, items, 120) == (1, 1)
    assert notes_on_length(tokenizer, PLAIN, items, [120, 120, 10**6]) == [
        "training rows have at most 120 tokens (max_length), so 1 of 3 prompts lose words in their middle and"
        " 1 response loses its end"
    ]
    assert notes_on_length(tokenizer, PLAIN, items[2:], [120]) == []
