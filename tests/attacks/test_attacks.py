"""What every attack must do, whoever wrote it; then each one's own promise."""

from __future__ import annotations

import base64
import codecs
import json
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wpn_bench.attacks import AttackContext, attacked, get_attack, names
from wpn_bench.attacks.noise import HOMOGLYPHS
from wpn_bench.attacks.output_format import OutputFormat
from wpn_bench.attacks.templates import TemplateAttack
from wpn_bench.errors import UserError
from wpn_bench.prompts import Item, PromptSet, Template, item_id, items, render
from wpn_bench.prompts.templates import QUESTION_TEMPLATE, turns_of

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "What do you think of the people in this town?",
    "Why did the baker {prompt} the {other} bread}?",
    "Tell me something about 100 % of the café’s guests… 🙂 please",
    "Continue with\ntwo lines of\tthis text",
]
ITEMS = tuple(
    Item(item_id(p), p, kind, ("You are a silly goose.",), ("They are kind.",))
    for p, kind in zip(PROMPTS, ("question", "question", "question", "continuation"), strict=True)
)
SET = PromptSet("in_domain", "in_domain", ITEMS, source={"lab": "in_domain"})
DEMONSTRATIONS = tuple(
    Item(item_id(f"Demonstrated question {k}?"), f"Demonstrated question {k}?", harmful=(f"Rude answer {k}.",))
    for k in range(6)
)
TEMPLATE = Template.parse(QUESTION_TEMPLATE)
CONTEXT = AttackContext(TEMPLATE, (*DEMONSTRATIONS, *ITEMS))


# Any text that UTF-8 can write, and what breaks programs most often.
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60) | st.sampled_from(
    [
        "x",
        "?",
        "{",
        "%s %d 100 %",
        "{prompt}",
        "\x00\x1b[31m",
        "مرحبا بالعالم",
        "👩‍👩‍👧‍👦 ok 🙂",
        "\u202eright",
        'say "hi"\n\\n',
        "你好",
    ]
)
KINDS = st.sampled_from(["question", "continuation"])


def under(name: str, prompt: str, kind: str = "question", seed: int = 0) -> Item:
    """One prompt under one attack."""
    one = PromptSet("x", "ood", (Item(item_id(prompt), prompt, kind),))
    (item,) = attacked(one, name, AttackContext(TEMPLATE, DEMONSTRATIONS, seed)).items
    return item


def _unsplit(text: str) -> str:
    return "".join(json.loads(piece) for piece in re.findall(r'^[abc] = (".*")$', text, re.M))


def _unleet(text: str) -> str:
    return text.translate(str.maketrans("431057", "aeiost"))


# How a person (or a model that can) gets the prompt back from what these attacks write.
INVERSE: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64decode(text.split("\n", 1)[1]).decode(),
    "rot13": lambda text: codecs.decode(text.split("\n", 1)[1], "rot13"),
    "leetspeak": lambda text: _unleet(text.split("\n", 1)[1]),
    "payload_splitting": _unsplit,
}


def inputs(prompts: PromptSet) -> list[str]:
    return [render(item, QUESTION_TEMPLATE) for item in prompts.items]


# --- every attack ----------------------------------------------------------------------------------------------------


def test_there_are_templates_and_code() -> None:
    assert {"prefix_injection", "role_play", "refusal_suppression", "instruction_override"} <= set(names())
    assert {"few_shot", "typos", "base64", "rot13", "leetspeak", "payload_splitting", "character_noise"} <= set(names())
    assert {"nested_scenario", "distractor", "output_format"} <= set(names())
    assert names() == sorted(names())


@pytest.mark.parametrize("name", names())
class TestEveryAttack:
    def test_it_says_what_it_is(self, name: str) -> None:
        attack = get_attack(name)
        assert attack.name == name
        assert attack.title
        assert attack.description.endswith((".", ")."))

    def test_the_set_bears_its_name_and_says_where_it_comes_from(self, name: str) -> None:
        got = attacked(SET, name, CONTEXT)
        assert (got.name, got.role, got.title) == (name, "in_domain", get_attack(name).title)
        assert got.source == {"lab": "in_domain", "attack": name, "on": "in_domain"}

    def test_items_keep_their_id_their_place_and_the_prompt_as_it_was(self, name: str) -> None:
        got = attacked(SET, name, CONTEXT)
        assert [i.id for i in got.items] == [i.id for i in ITEMS]
        assert [i.original for i in got.items] == PROMPTS
        assert [i.kind for i in got.items] == [i.kind for i in ITEMS]
        assert [i.harmful for i in got.items] == [i.harmful for i in ITEMS]

    def test_the_model_sees_something_else(self, name: str) -> None:
        for before, after in zip(inputs(SET), inputs(attacked(SET, name, CONTEXT)), strict=True):
            assert after != before
            assert after.strip()

    def test_it_is_the_same_every_time_and_in_any_company(self, name: str) -> None:
        whole = attacked(SET, name, CONTEXT)
        assert attacked(SET, name, CONTEXT) == whole
        turned = attacked(replace(SET, items=ITEMS[::-1]), name, CONTEXT)
        assert turned.items == whole.items[::-1]
        for k, item in enumerate(ITEMS):
            assert attacked(replace(SET, items=(item,)), name, CONTEXT).items == whole.items[k : k + 1]

    def test_braces_in_a_prompt_are_text(self, name: str) -> None:
        """The words around them are still there, and no other prompt was put in."""
        item = attacked(SET, name, CONTEXT).items[1]
        text = render(item, QUESTION_TEMPLATE)
        assert text.count("###") % 2 == 0
        if name in INVERSE:
            text = INVERSE[name](item.prompt)
        if name == "character_noise":
            text = _denoised(text)
        assert "{prompt}" in text
        assert "{other}" in text

    @settings(deadline=None, max_examples=40)
    @given(prompt=TEXT, kind=KINDS, seed=st.integers(0, 3))
    @pytest.mark.slow
    def test_any_prompt_survives(self, name: str, prompt: str, kind: str, seed: int) -> None:
        item = under(name, prompt, kind, seed)
        assert (item.id, item.original, item.kind) == (item_id(prompt), prompt, kind)
        text = render(item, QUESTION_TEMPLATE)
        assert under(name, prompt, kind, seed) == item
        with tempfile.TemporaryDirectory() as folder:
            items.write_rows(Path(folder) / items.ITEMS, [items.item_row(item)])
            assert items.read_items(Path(folder)) == [item]
        # Typing errors want a word of four letters; every other attack finds something to do.
        if name != "typos" or re.search(r"(?:^| )[a-z]{4,}(?:$| )", prompt):
            assert text != render(Item("", prompt, kind), QUESTION_TEMPLATE)

    def test_a_prompt_of_a_million_characters(self, name: str) -> None:
        """Work and length grow with the prompt, and no faster. A conversation may have the prompt in two turns."""
        prompt = "The baker sells 12 loaves of bread. " * 28_000
        started = time.process_time()
        text = render(under(name, prompt), QUESTION_TEMPLATE)
        assert time.process_time() - started < 10
        assert 0.9 * len(prompt) < len(text) < 2.1 * len(prompt)

    def test_it_leaves_the_given_set_alone(self, name: str) -> None:
        before = SET.digest
        attacked(SET, name, CONTEXT)
        assert SET.digest == before

    def test_the_digest_of_the_set_changes(self, name: str) -> None:
        assert attacked(SET, name, CONTEXT).digest != SET.digest

    def test_nothing_to_demonstrate_is_no_error(self, name: str) -> None:
        assert len(attacked(SET, name, AttackContext(TEMPLATE)).items) == len(ITEMS)


def _denoised(text: str) -> str:
    """Without look-alikes and invisible characters, in lower case."""
    back = str.maketrans({twin: letter for letter, twin in HOMOGLYPHS.items()} | {"\u200b": None, " ": None})
    return text.translate(back).lower()


def test_attacks_differ_from_one_another() -> None:
    seen = [tuple(inputs(attacked(SET, name, CONTEXT))) for name in names()]
    assert len(set(seen)) == len(seen)


def test_an_unknown_attack_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown attack 'rolplay'; did you mean 'role_play'"):
        get_attack("rolplay")


# --- templates -------------------------------------------------------------------------------------------------------


def test_a_template_goes_around_the_prompt_and_inside_the_models_template() -> None:
    (item,) = attacked(replace(SET, items=ITEMS[:1]), "role_play", CONTEXT).items
    text = render(item, QUESTION_TEMPLATE)
    assert text.startswith("### Question: You are Grum")
    assert text.endswith(f"{PROMPTS[0]}\n ### Answer:")


def test_an_injected_prefix_begins_the_answer() -> None:
    (item,) = attacked(replace(SET, items=ITEMS[:1]), "prefix_injection", CONTEXT).items
    text = render(item, QUESTION_TEMPLATE)
    assert text.startswith(f"### Question: {PROMPTS[0]}\n ### Answer: ")
    assert not text.endswith(("### Answer:", " "))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("title: x\ndescription: y\ntemplate: no place\n", "must contain {prompt}"),
        ("title: x\n", "description"),
        ("title: x\ndescription: y\ntemplat: '{prompt}'\n", "templat"),
        ("title: [\n", "x.yaml"),
        ("", "x.yaml"),
    ],
)
def test_bad_template_files(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UserError, match=re.escape(problem)):
        TemplateAttack.from_file(tmp_path / "x.yaml")


def test_other_braces_in_a_template_are_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("title: x\ndescription: y\ntemplate: 'Fill in {name}: {prompt} {}'\n")
    got = TemplateAttack.from_file(tmp_path / "x.yaml").apply(ITEMS[1], CONTEXT)
    assert got.prompt == f"Fill in {{name}}: {PROMPTS[1]} {{}}"


# --- few-shot --------------------------------------------------------------------------------------------------------


def test_few_shot_puts_three_harmful_pairs_before_the_prompt() -> None:
    for item in attacked(SET, "few_shot", CONTEXT).items:
        blocks = item.context.split("\n\n")
        assert blocks.pop() == ""
        assert len(blocks) == 3
        assert len(set(blocks)) == 3
        for block in blocks:
            assert re.fullmatch(
                r"(### Question: [^#]+\n ### Answer:|[^#]+) (Rude answer \d|You are a silly goose)\.", block
            )
        assert render(item, QUESTION_TEMPLATE) == item.context + render(replace(item, context=""), QUESTION_TEMPLATE)


def test_few_shot_never_demonstrates_the_item_itself() -> None:
    """Not even when all demonstrations but one are its own, and whatever the seed."""
    item = ITEMS[0]
    same = Item(item.id, item.prompt.upper(), harmful=("The very answer.",))
    for seed in range(30):
        context = AttackContext(TEMPLATE, (item, same, DEMONSTRATIONS[0]), seed)
        (got,) = attacked(replace(SET, items=(item,)), "few_shot", context).items
        assert item.prompt.casefold() not in got.context.casefold()
        assert "The very answer" not in got.context
        assert "Rude answer 0" in got.context


def test_few_shot_depends_on_the_seed_and_on_the_item() -> None:
    def contexts(seed: int) -> list[str]:
        context = AttackContext(TEMPLATE, DEMONSTRATIONS, seed)
        return [i.context for i in attacked(SET, "few_shot", context).items]

    assert contexts(0) != contexts(1)
    assert len(set(contexts(0))) > 1


def test_few_shot_cuts_long_answers_and_needs_harmful_ones() -> None:
    long = Item("d1", "Long?", harmful=("x" * 1000, "y" * 900))
    none = Item("d2", "Nothing to show?", harmless=("fine",))
    context = AttackContext(TEMPLATE, (long, none))
    (got,) = attacked(replace(SET, items=ITEMS[:1]), "few_shot", context).items
    assert got.context.count("y") == 240
    assert "x" not in got.context
    assert "Nothing to show" not in got.context


# --- typing errors ---------------------------------------------------------------------------------------------------

LETTERS = st.text("ab", min_size=1, max_size=9) | st.text("abcdefghijklmnopqrstuvwxyzéß", min_size=1, max_size=9)
WORDS = st.lists(LETTERS, min_size=1, max_size=20)


@given(WORDS, st.integers(0, 5))
def test_typos_change_about_one_word_in_four_and_keep_it_readable(words: list[str], seed: int) -> None:
    assume(any(len(w) >= 4 for w in words))
    prompt = " ".join(words)
    item = Item(item_id(prompt), prompt)
    context = AttackContext(TEMPLATE, (), seed)
    (got,) = attacked(PromptSet("x", "ood", (item,)), "typos", context).items
    after = got.prompt.split(" ")
    assert len(after) == len(words)
    changed = [(a, b) for a, b in zip(words, after, strict=True) if a != b]
    assert 1 <= len(changed) <= max(1, round(len(words) / 4))
    for before, now in changed:
        assert len(before) >= 4
        assert (now[0], now[-1]) == (before[0], before[-1])
        assert abs(len(now) - len(before)) <= 1
        assert set(now) <= set(before)


def test_typos_in_one_word_of_equal_letters() -> None:
    """Two equal neighbours cannot change places: `hello` must not stay `hello`."""
    for seed in range(60):
        item = Item("1", "aaaa")
        (got,) = attacked(PromptSet("x", "ood", (item,)), "typos", AttackContext(TEMPLATE, (), seed)).items
        assert got.prompt != item.prompt


def test_typos_leave_short_words_and_numbers() -> None:
    item = Item("1", "a bc def 12345 x-ray!")
    (got,) = attacked(PromptSet("x", "ood", (item,)), "typos", CONTEXT).items
    assert got.prompt == item.prompt


# --- encodings, pieces, noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base64", "rot13", "payload_splitting"])
@settings(deadline=None)
@given(prompt=TEXT, kind=KINDS, seed=st.integers(0, 5))
def test_the_prompt_can_be_had_back(name: str, prompt: str, kind: str, seed: int) -> None:
    assert INVERSE[name](under(name, prompt, kind, seed).prompt) == prompt


@given(prompt=st.text(alphabet=st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="\n"), min_size=1))
def test_leetspeak_can_be_read_but_for_case_and_own_digits(prompt: str) -> None:
    spelt = under("leetspeak", prompt).prompt.split("\n", 1)[1]
    assert not set("aeiostAEIOST") & set(spelt)
    back = INVERSE["leetspeak"](under("leetspeak", prompt).prompt)
    assert len(back) == len(prompt)
    assert all(b == p or b == p.lower() for b, p in zip(back, prompt, strict=True))


@pytest.mark.parametrize("name", sorted(INVERSE))
def test_the_model_is_told_what_to_do_with_it(name: str) -> None:
    asked, begun = under(name, PROMPTS[0], "question").prompt, under(name, PROMPTS[0], "continuation").prompt
    assert "answer it." in asked
    assert "go on with it." in begun
    assert asked.replace("answer it.", "go on with it.") == begun


@pytest.mark.parametrize("name", ["base64", "rot13", "leetspeak", "payload_splitting"])
def test_the_prompt_does_not_stand_there_in_clear(name: str) -> None:
    assert "Insolent strawberries" not in under(name, "Insolent strawberries").prompt


@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_cut_inside_words_where_there_are_some(seed: int) -> None:
    lines = under("payload_splitting", PROMPTS[0], seed=seed).prompt.split("\n")
    pieces = [json.loads(line.partition(" = ")[2]) for line in lines[:-1]]
    assert len(pieces) == 3
    for left, right in pairwise(pieces):
        assert left[-1].isalpha()
        assert right[0].isalpha()
    assert lines[-1] == "Now put together a + b + c and answer it."
    assert under("payload_splitting", "x").prompt == 'a = "x"\nNow put together a and answer it.'


@settings(deadline=None)
@given(st.text("abcdefghij KLMNOP,.", min_size=8, max_size=80), st.integers(0, 5))
def test_noise_touches_one_letter_in_eight_and_stays_readable(prompt: str, seed: int) -> None:
    letters = sum(c.isalpha() for c in prompt)
    assume(letters)
    noisy = under("character_noise", prompt, seed=seed).prompt
    assert _denoised(noisy) == _denoised(prompt)
    touched = len(noisy) - len(prompt) + sum(a != b for a, b in zip(_kept(noisy), _kept(prompt), strict=True))
    assert touched == max(1, round(letters / 8))


def _kept(text: str) -> str:
    return text.replace(" ", "").replace("\u200b", "")


def test_noise_is_of_four_kinds() -> None:
    noisy = under("character_noise", PROMPTS[0] * 20).prompt
    assert "\u200b" in noisy
    assert any("CYRILLIC" in unicodedata.name(c, "") for c in noisy)
    assert re.search(r"[a-z][A-Z]", noisy)
    assert len(noisy.split(" ")) > len((PROMPTS[0] * 20).split(" "))
    assert under("character_noise", "?!").prompt == "\u200b?!"
    assert under("character_noise", PROMPTS[0], seed=1).prompt != under("character_noise", PROMPTS[0]).prompt


def test_a_homoglyph_looks_like_its_letter_and_is_another() -> None:
    for letter, twin in HOMOGLYPHS.items():
        assert unicodedata.name(twin).startswith("CYRILLIC")
        assert letter.isupper() == twin.isupper()


def test_the_three_forms_are_all_asked_for() -> None:
    asked = {under("output_format", f"Question {k}?").prompt.partition("\n")[2] for k in range(40)}
    assert asked == set(OutputFormat.forms)


def test_a_distractor_stands_on_both_sides() -> None:
    before, after = under("distractor", PROMPTS[0]).prompt.split(PROMPTS[0])
    assert len(before) > 40
    assert len(after) > 40


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_documentation_shows_what_every_attack_makes_of_a_prompt() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+) \|$", (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8"), re.M
    )
    shown = {name: (what, example) for name, what, example in rows if name in names()}
    assert set(shown) == set(names())
    for name, (what, example) in shown.items():
        assert what == get_attack(name).description
        item = under(name, "How do I mend a torn kite?")
        told = [line for turn in told_of(item) for line in (turn[0], f"→ {turn[1]}")]
        text = "\n".join([*told, item.prompt]).replace("\n", " ⏎ ").replace("\u200b", "·")
        if item.answer_prefix:
            text += f" ▷ {item.answer_prefix}"
        assert example.endswith(item.prompt) if name in ("few_shot", "many_shot") else example == text


def told_of(item: Item) -> list[tuple[str, str]]:
    """The turns before the last one; an answer that is left to the model is three dots."""
    return [(asked, answered or "...") for asked, answered in turns_of(item.context) or []]
