from __future__ import annotations

import pytest

from wpn_bench.core.files import digest_of
from wpn_bench.prompts import FormatTemplate, Item, Template, joined, render

TEXT = "Q: {prompt} A:"
TEMPLATE = FormatTemplate(TEXT)


def test_only_questions_are_put_into_the_template() -> None:
    prompt = "What does {x} mean, {prompt}? }{"
    assert TEMPLATE.render(prompt) == TEMPLATE.render(Item("1", prompt)) == f"Q: {prompt} A:"
    assert TEMPLATE.render(Item("1", prompt, "continuation")) == prompt


@pytest.mark.parametrize(
    ("kind", "expected"), [("question", "Before.\nQ: Why? A: Sure,"), ("text", "Before.\nWhy? Sure,")]
)
def test_what_an_attack_puts_around_a_prompt(kind: str, expected: str) -> None:
    attacked = Item("1", "Why?", kind, context="Before.\n", answer_prefix="Sure,")
    assert TEMPLATE.render(attacked) == expected


def test_a_pair_is_the_rendered_prompt_and_the_response_after_one_space() -> None:
    assert TEMPLATE.pair("Why?", "  an answer \n") == ("Q: Why? A:", " an answer")
    assert joined(" x") == " x"


def test_demonstrations_are_answered_prompts() -> None:
    shown = TEMPLATE.demonstrations([(Item("1", "Why?"), "So."), (Item("2", "And he", "continuation"), "left.")])
    assert shown == "Q: Why? A: So.\n\nAnd he left.\n\n"


def test_a_format_template_is_its_text_in_settings_and_results() -> None:
    assert TEMPLATE.value == TEXT
    assert Template.parse(TEMPLATE.value) == TEMPLATE
    assert Template.parse(TEMPLATE) is TEMPLATE
    assert TEMPLATE.digest == digest_of(TEXT) != FormatTemplate("{prompt}").digest


@pytest.mark.parametrize(
    "value", ["", "Q:", "{prompt} {prompt}", "{prompt} {other}", "{prompt} }", "{prompt.x}", None, 3]
)
def test_what_is_no_template(value: object) -> None:
    with pytest.raises(ValueError, match="the template must"):
        Template.parse(value)  # type: ignore[arg-type]


def test_plug_ins_render_with_a_template_or_its_text() -> None:
    item = Item("1", "Why?")
    assert render(item, TEXT) == render(item, TEMPLATE) == "Q: Why? A:"
