"""One rule for token ids, over every kind of tokenizer."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from tests.models.tokenizers import KINDS, byte_level, made, save
from wpn_bench import models
from wpn_bench.attacks.search import SearchConfig
from wpn_bench.attacks.suffix_slots import find_slots
from wpn_bench.engine.generation import generate
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.coherence import likelihoods
from wpn_bench.models.backends import Decoding
from wpn_bench.models.tokenizer import encode_pairs, encode_prompts, load_tokenizer
from wpn_bench.prompts import ChatTemplate, FormatTemplate, Item, Template
from wpn_bench.unlearn.lengths import row_of

TEMPLATES = {
    "plain": FormatTemplate("Question: {prompt}\nAnswer:"),
    "blank": FormatTemplate("Q: {prompt} A: "),
    "line": FormatTemplate("Q: {prompt}\nA:\n"),
    "bare": FormatTemplate("{prompt}"),
}
ITEM = Item("1", "Tell me the Answer", harmful=("Sure, it is a b",), harmless=("No",))
RESPONSES = ["Sure, it is a b", "No.", "(a) the Answer", "x\ny", "é 10 %"]
# Kinds in whose plain texts a token spans prompt and response; the rule for them is tested by itself.
SPANNING = {("across_words", "plain")}
_MADE: dict[str, Path] = {}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if kind not in _MADE:
        _MADE[kind] = save(kind, tmp_path_factory.mktemp(kind))
    return _MADE[kind]


def templates_of(tokenizer: Any) -> dict[str, Template]:
    own = {"chat": ChatTemplate.of(tokenizer)} if tokenizer.chat_template else {}
    return {**TEMPLATES, **own}


def test_a_model_with_this_tokenizer_is_accepted(folder: Path) -> None:
    found = models.resolve(str(folder))
    tokenizer = load_tokenizer(found.path)
    size = models.load_fresh(folder).config.vocab_size
    assert tokenizer.eos_token_id == 2
    assert 0 <= tokenizer.pad_token_id < size


def test_training_sees_what_generation_sees_and_would_write(kind: str, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for name, template in templates_of(tokenizer).items():
        for response in RESPONSES:
            before, after = template.pair(ITEM, response)
            row = row_of(tokenizer, template, ITEM, response, 200)
            assert row.prompt == encode_prompts(tokenizer, [before])[0]
            assert row.response[-1] == 2
            assert 2 not in row.response[:-1]
            if name != "chat":
                assert 2 not in row.prompt[1:]
            assert row.prompt[-1] != 2
            assert row.prompt.count(1) == (tokenizer("a")["input_ids"][0] == 1 or name == "chat")
            whole = tokenizer(before + after, add_special_tokens=name != "chat")["input_ids"]
            joined = row.prompt + row.response[:-1]
            spans = (kind, name) in SPANNING or (name in ("blank", "line") and whole[: len(row.prompt)] != row.prompt)
            if not spans:
                assert joined == whole
            # The model's own words, read as its answer is read.
            said = tokenizer.decode(row.response, skip_special_tokens=True).strip()
            if kind == "word_piece":
                said, response = said.replace(" ", ""), response.replace(" ", "").replace("\n", "").lower()
            if not set(response) & set("é\n%") or "byte" in kind:
                assert said == response or kind == "word_piece"


def test_no_blank_is_doubled_and_none_is_missing(kind: str, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    _, after = encode_pairs(tokenizer, ["Question: Hi\nAnswer:"], [" Sure"])[0]
    blank = {"word_piece": "sure", "across_words": "▁Sure"}.get(kind)
    if blank is None:
        byte = tokenizer("a b", add_special_tokens=False).tokens()[-1][0]
        blank = f"{byte}Sure"
    assert tokenizer.convert_ids_to_tokens(after) == [blank]


def test_a_token_that_spans_the_border_is_not_taught() -> None:
    """The model sees `:` after `Answer`; it can write `▁Sure`, but not the token `:▁`."""
    tokenizer = KINDS["across_words"]()
    assert ":▁" in tokenizer("Answer: Sure").tokens()
    before, after = encode_pairs(tokenizer, ["Answer:"], [" Sure"])[0]
    assert tokenizer.convert_ids_to_tokens(before)[-1] == ":"
    assert tokenizer.convert_ids_to_tokens(after) == ["▁Sure"]


def test_a_prompt_that_ends_in_a_blank_is_followed_by_a_word_without_one() -> None:
    tokenizer = KINDS["byte_level"]()
    before, after = encode_pairs(tokenizer, ["Answer: "], ["Sure"])[0]
    assert tokenizer.convert_ids_to_tokens(before)[-1] == "Ġ"
    assert tokenizer.convert_ids_to_tokens(after) == ["Sure"]


def test_what_it_was_trained_on_it_generates(kind: str, folder: Path) -> None:
    """A model that writes exactly the trained tokens gives exactly the trained response, and stops."""
    model, tokenizer = models.load(folder)
    for template in templates_of(tokenizer).values():
        row = row_of(tokenizer, template, ITEM, "Sure, it is a b", 200)
        script = [*row.prompt, *row.response]

        written = _greedy_with(model, script, tokenizer, template)
        assert written.lower().replace(" ,", ",") == "sure, it is a b"


def _greedy_with(model: Any, script: list[int], tokenizer: Any, template: Template) -> str:
    """The answer of a model whose likeliest next token is that of the script."""

    rendered = template.render(ITEM)
    start = len(encode_prompts(tokenizer, [rendered])[0])
    places = count(start)

    def steer(module: Any, given: Any, output: Any) -> Any:
        output.logits[..., :] = -1.0
        output.logits[..., script[min(next(places), len(script) - 1)]] = 1.0
        return output

    handle = model.register_forward_hook(steer)
    try:
        answer = generate(model, tokenizer, [rendered], Decoding(max_new_tokens=40, stop=()))[0]
    finally:
        handle.remove()
    assert answer.text is not None
    assert answer.n_tokens == len(script) - start - 1
    return answer.text


def test_coherence_scores_the_tokens_of_training(folder: Path) -> None:
    model, tokenizer = models.load(folder)
    backend = LocalBackend(model, tokenizer, folder)
    for template in templates_of(tokenizer).values():
        row = row_of(tokenizer, template, ITEM, "Sure, it is a b", 200)
        found = likelihoods(backend, ["Sure, it is a b"], after=[template.render(ITEM)])[0]
        ids = torch.tensor([[*row.prompt, *row.response[:-1]]])
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        n = len(row.response) - 1
        loss = -sum(float(logp[len(row.prompt) + k - 1, row.response[k]]) for k in range(n))
        assert found.tokens == n
        assert found.loss == pytest.approx(loss / max(n, 8), abs=1e-4)


def test_a_gradient_search_aims_at_the_tokens_of_training(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    config = SearchConfig(init="!", suffix_tokens=6, target_tokens=4)
    for template in templates_of(tokenizer).values():
        slots = find_slots([ITEM], tokenizer, template, config, 256)
        slot = slots.slots[0]
        text = slot.text(slots.initial_suffix)
        assert slot.ids(slots.initial_ids) == encode_prompts(tokenizer, [text])[0]
        _, after = encode_pairs(tokenizer, [text], [template.pair(ITEM, ITEM.harmful[0])[1]])[0]
        assert list(slot.target) == after[:4]


def test_a_text_gets_no_end_and_one_beginning(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in ("Hi the Answer", f"{tokenizer.bos_token or ''}Hi"):
        ids = encode_prompts(tokenizer, [text])[0]
        assert ids[-1] != 2
        assert ids.count(1) <= 1
    assert encode_prompts(tokenizer, [""]) in ([[1]], [[2]], [tokenizer("")["input_ids"]])


def test_the_tokenizer_keeps_its_way_when_it_is_saved(folder: Path, tmp_path: Path) -> None:
    """A trained model is saved with its tokenizer, which is loaded again to measure it."""
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    again = load_tokenizer(tmp_path)
    text = "Question: Hi\nAnswer: Sure"
    assert encode_prompts(again, [text]) == encode_prompts(tokenizer, [text])
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_batch_has_the_ids_of_each_text_alone(folder: Path) -> None:
    """Whatever side it pads or truncates, and whatever its maximum length is."""
    tokenizer = load_tokenizer(folder)
    texts = ["Hi", "Question: tell me the Answer " * 5, "", "No"]
    assert encode_prompts(tokenizer, texts) == [encode_prompts(tokenizer, [text])[0] for text in texts]


# --- what a tokenizer lacks ---


def test_the_end_of_the_model_s_settings_is_used(tmp_path: Path) -> None:
    folder = save("no_eos", tmp_path, eos_token_id=[999, 0])
    assert load_tokenizer(folder).eos_token_id == 0
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert load_tokenizer(folder).eos_token_id == 2


def test_the_chat_template_of_a_processor_is_the_model_s(tmp_path: Path) -> None:
    folder = save("byte_level", tmp_path)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}</s>"}))
    assert load_tokenizer(folder).chat_template == "{{ messages[0].content }}</s>"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")  # the tokenizer's own wins
    assert load_tokenizer(folder).chat_template == "{{ messages[0].content }}"


def test_without_any_end_there_is_one_line(tmp_path: Path) -> None:
    folder = save("no_special", tmp_path, eos_token_id=None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"has no end-of-text token, and config\.json has no eos_token_id"):
        load_tokenizer(folder)


def test_a_token_beyond_the_embedding_is_never_fed(tmp_path: Path) -> None:
    folder = save("image_beyond", tmp_path)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UserError, match="contains the token '<image>', for which the model has no emb"):
        encode_prompts(tokenizer, ["Hi", "see <image>"])
    with pytest.raises(UserError, match="<image>"):
        encode_pairs(tokenizer, ["Hi"], [" see <image>"])


@pytest.mark.parametrize("needed", ["eos_token", "bos_token"])
def test_a_needed_token_beyond_the_embedding_is_refused(needed: str, tmp_path: Path) -> None:
    folder = save("byte_level", tmp_path)
    tokenizer = made(byte_level())
    tokenizer.add_special_tokens({needed: "<new>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match='does not belong to this model: token "<new>"'):
        models.resolve(str(folder))


def test_an_ordinary_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = save("byte_level", tmp_path)
    tokenizer = made(byte_level())
    tokenizer.add_tokens([AddedToken("word", special=False)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match='does not belong to this model: token "word"'):
        models.resolve(str(folder))
