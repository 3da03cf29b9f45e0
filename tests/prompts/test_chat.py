"""Chat templates: the tokens that transformers would feed to the model, and the turns that a model is trained on."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wpn_bench.attacks import AttackContext
from wpn_bench.attacks.few_shot import FewShot
from wpn_bench.errors import UserError
from wpn_bench.harmless.stages import split_reasoning
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts import ChatTemplate, FormatTemplate, Item, Template
from wpn_bench.prompts.templates import QUESTION_TEMPLATE, choose_template, joined, same_kind
from wpn_bench.unlearn.batches import Batches
from wpn_bench.unlearn.lengths import row_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GLM = (  # ends no turn: the next one begins
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "gemma": GEMMA, "glm": GLM, "words": WORDS}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "[gMASK]", "<sop>"]
ENDS = {"chatml": "<|im_end|>", "llama": "</s>", "gemma": "<end_of_turn>", "glm": None, "words": None}


def tokenizer(template: str | None, adds: str = "<s> $A") -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that adds special tokens to plain texts as `adds` says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: k for k, token in enumerate([*SPECIAL, *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single=adds, special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    made.chat_template = template
    return made


@pytest.mark.parametrize("adds", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_has_the_tokens_of_apply_chat_template(name: str, adds: str) -> None:
    tok = tokenizer(TEMPLATES[name], adds)
    template = ChatTemplate.of(tok)
    assert Template.parse(template.value) == template
    messages = [{"role": "user", "content": "How are you? <s>"}]
    wanted = tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert encode_prompts(tok, [template.render(messages[0]["content"])]) == [wanted]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_training_row_ends_with_the_token_that_ends_a_turn(name: str) -> None:
    tok = tokenizer(TEMPLATES[name])
    template = ChatTemplate.of(tok)
    assert template.end == ENDS[name]
    batches = object.__new__(Batches)
    batches.tokenizer, batches.template, batches.max_length = tok, template, 500
    item = Item("1", "Hi?", harmful=("no",), harmless=("yes",))
    ids, start = batches._pair(item, " yes ")
    assert ids[:start] == encode_prompts(tok, [template.render(item)])[0]
    assert tok.decode(ids[start:]) == "yes" + (ENDS[name] or "</s>")


def test_a_continuation_is_plain_text_with_the_tokenizer_s_own_tokens() -> None:
    tok = tokenizer(CHATML)
    template = ChatTemplate.of(tok)
    item = Item("1", "You are", kind="continuation")
    before, after = template.pair(item, "kind")
    assert (before, after) == ("You are", " kind")
    assert tok.decode(encode_prompts(tok, [before])[0]) == "<s>You are"
    mixed = encode_prompts(tok, [before, template.render("Hi"), "", before])
    assert mixed[0] == mixed[3] != mixed[1]
    assert mixed[2] == [0]


def test_demonstrations_become_turns_and_a_prefix_begins_the_answer() -> None:
    tok = tokenizer(CHATML)
    template = ChatTemplate.of(tok, "Be kind.")
    shown = [Item(str(k), f"Q{k}", harmful=(f"A{k}",)) for k in range(3)]
    attacked = FewShot().apply(Item("9", "Why?"), AttackContext(template, shown))
    text = template.render(replace(attacked, answer_prefix="Sure"))
    turns = [{"role": "system", "content": "Be kind."}]
    for asked, answered in __import__("json").loads(attacked.context):
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    turns.append({"role": "user", "content": "Why?"})
    assert text == tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "Sure"
    plain = FormatTemplate("Q: {prompt} A:")
    assert plain.render(attacked).count("Q: Q") == 3
    assert plain.render(attacked).endswith("\n\nQ: Why? A:")
    assert plain.render(replace(attacked, kind="continuation")).endswith("\n\nWhy?")


def test_a_context_in_words_stands_in_the_message() -> None:
    template = ChatTemplate.of(tokenizer(CHATML))
    assert "<|im_start|>user\nOnce. Why?<|im_end|>" in template.render(Item("1", "Why?", context="Once. "))


@pytest.mark.parametrize(
    ("choice", "has", "kind"),
    [
        ("auto", CHATML, ChatTemplate),
        ("auto", None, FormatTemplate),
        ("plain", CHATML, FormatTemplate),
        ("chat", CHATML, ChatTemplate),
        ("Q {prompt}", CHATML, FormatTemplate),
    ],
)
def test_the_choice(choice: str, has: str | None, kind: type[Template]) -> None:
    assert type(choose_template(choice, tokenizer(has))) is kind


def test_a_file_holds_a_format_a_chat_template_or_a_system_message(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("Q {prompt} A:\n")
    (tmp_path / "c.jinja").write_text(CHATML)
    (tmp_path / "s.txt").write_text("Be kind.\n")
    assert choose_template(str(tmp_path / "f.txt"), tokenizer(None)).value == "Q {prompt} A:"
    chat = choose_template(str(tmp_path / "c.jinja"), tokenizer(None), str(tmp_path / "s.txt"))
    assert chat.render("Hi").startswith("<|im_start|>system\nBe kind.<|im_end|>")


def test_a_beginning_of_text_token_is_not_written_twice() -> None:
    assert choose_template("<s>Q {prompt}", tokenizer(None)).value == "Q {prompt}"
    assert choose_template("<s>Q {prompt}", tokenizer(None, "$A")).value == "<s>Q {prompt}"


@pytest.mark.parametrize(
    ("template", "choice", "system", "problem"),
    [
        (None, "chat", None, "no chat template"),
        (None, "auto", "Be kind.", "system message needs a chat template"),
        (GEMMA, "auto", "Be kind.", "System role not supported"),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", "auto", None, "does not contain the user's message"),
        ("{{ messages[7].content }}", "auto", None, "cannot be rendered"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "auto",
            "Be kind.",
            "does not support a system",
        ),
        ("{% for %}", "auto", None, "cannot be rendered"),
        (None, "no place", None, "must contain {prompt} once"),
    ],
)
def test_what_does_not_fit_is_said(template: str | None, choice: str, system: str | None, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        choose_template(choice, tokenizer(template), system)


@pytest.mark.parametrize(
    ("source", "begin"),
    [
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
            "<|im_start|>assistant\n",
        ),
        (CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", ""), ""),  # always written
        (CHATML, ""),
        (LLAMA, ""),  # only a blank stands before the answer, and the model writes it
        (GEMMA, ""),
    ],
)
def test_a_template_that_ignores_add_generation_prompt(source: str, begin: str) -> None:
    """Without the beginning of its turn the model would write it into its answer, and training would not."""
    tok = tokenizer(source)
    template = ChatTemplate.of(tok)
    assert template.begin == begin
    assert Template.parse(template.value) == template
    assert ("begin" in template.value) is bool(begin)
    item = Item("1", "Hi?", harmful=("no",), harmless=("yes",))
    told = tok.apply_chat_template(
        [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "yes"}], tokenize=False
    )
    before, after = template.pair(item, "yes")
    if begin:
        assert before.endswith(begin)
        assert told.startswith(before + after)
    assert template.render(Item("1", "Hi?", answer_prefix="Sure")) == before + "Sure"


def test_no_blank_stands_between_a_special_token_and_the_response() -> None:
    """A chat template written by hand: the model's own template has no blank there."""
    tok = tokenizer(None)
    template = choose_template("<|im_start|>user {prompt}<|im_end|>", tok)
    assert Template.parse(template.value) == template
    assert template.label == "<|im_start|>user {prompt}<|im_end|>"
    item = Item("1", "Hi?", harmful=("no",), harmless=("yes",))
    row = row_of(tok, template, item, "yes", 100)
    assert tok.decode([*row.prompt, *row.response]) == "<s><|im_start|>user Hi?<|im_end|>yes</s>"
    started = template.render(replace(item, answer_prefix="Sure"))
    assert started == "<|im_start|>user Hi?<|im_end|>Sure"
    assert joined("thing", started) == " thing"
    shown = FewShot().apply(Item("9", "Why?"), AttackContext(template, [item])).context
    assert shown == "<|im_start|>user Hi?<|im_end|>no\n\n"
    assert same_kind("x", template.render(item)).blank is False
    assert choose_template("Q {prompt}\nA", tok).value == "Q {prompt}\nA"  # digests of other templates stay
    assert pickle.loads(pickle.dumps(template.render(item))).blank is False


@pytest.mark.parametrize("choice", ["auto", "chat"])
def test_several_chat_templates(choice: str) -> None:
    tok = tokenizer(CHATML)
    tok.chat_template = {"tool_use": "TOOLS" + CHATML, "default": CHATML}
    assert choose_template(choice, tok) == ChatTemplate.of(tokenizer(CHATML))
    tok.chat_template = {"chat": CHATML}
    assert choose_template(choice, tok) == ChatTemplate.of(tokenizer(CHATML))
    tok.chat_template = {"tool_use": "TOOLS" + CHATML, "rag": CHATML}
    with pytest.raises(UserError, match="several chat templates and no default: rag, tool_use") as caught:
        choose_template(choice, tok)
    assert "--template FILE" in caught.value.hint


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate.of(tokenizer(dated)).render("Hi") == "26 Jul 2024 Hi"


def test_templates_that_render_alike_have_one_digest() -> None:
    assert ChatTemplate.of(tokenizer(CHATML)).digest == ChatTemplate.of(tokenizer(CHATML, "$A")).digest
    assert ChatTemplate.of(tokenizer(CHATML)).digest != ChatTemplate.of(tokenizer(CHATML), "x").digest


@pytest.mark.parametrize(
    ("text", "response", "reasoning", "answer"),
    [
        ("Hi", "<think>\nhm\n</think>\n\nNo.", "hm", "No."),
        ("Hi<think>\n", "hm</think>No.", "hm", "No."),
        ("Hi", "<think>hm", "hm", ""),
        ("Hi", "No. </think> is a tag", "", "No. </think> is a tag"),
        ("Hi", "<think></think>", "", ""),
    ],
)
def test_reasoning_is_cut(text: str, response: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text, response) == (reasoning, answer)


def test_a_response_after_white_space_has_no_second_space() -> None:
    assert (joined(" x", "A: "), joined("x", "A:"), joined("x")) == ("x", " x", " x")
    assert QUESTION_TEMPLATE.endswith(":")


@pytest.mark.parametrize("content", ["m.content[0].text", "m.content | map(attribute='text') | join"])
def test_a_template_that_needs_messages_in_parts_gets_them(content: str) -> None:
    chat = tokenizer(
        "{% for m in messages %}[{{ m.role }}]{{ " + content + " }}{% endfor %}{{ add_generation_prompt }}"
    )
    template = ChatTemplate.of(chat, "Be kind.")
    parts = [{"type": "text", "text": text} for text in ("Be kind.", "Hi")]
    messages = [{"role": role, "content": [part]} for role, part in zip(("system", "user"), parts, strict=True)]
    wanted = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template.render("Hi") == wanted == "[system]Be kind.[user]HiTrue"
    assert Template.parse(template.value) == template
    assert "parts" not in ChatTemplate.of(tokenizer(CHATML)).value  # the digests of other templates stay


def test_a_context_that_only_looks_like_turns_is_text() -> None:
    assert "[[1]]x" in ChatTemplate.of(tokenizer(CHATML)).question("x", "[[1]]")


FIRST = "{{ messages[0].content }}{% if add_generation_prompt %}\nAnswer: {% endif %}"
LAST = FIRST.replace("[0]", "[-1]")
REFUSES = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + FIRST
ONLY_USER = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}\n{% endif %}{% endfor %}"


@pytest.mark.parametrize("source", TEMPLATES.values())
def test_templates_that_keep_the_turns_of_a_conversation(source: str) -> None:
    assert ChatTemplate.of(tokenizer(source)).keeps_turns


@pytest.mark.parametrize("source", [FIRST, LAST, REFUSES, ONLY_USER])
def test_templates_that_lose_turns_are_known(source: str) -> None:
    """Templates of translation and guard models write the first or the last message only, or raise an error."""
    assert not ChatTemplate.of(tokenizer(source)).keeps_turns
    assert FormatTemplate(QUESTION_TEMPLATE).keeps_turns
