"""Is it language? Loops and empty answers by their words, babble by its loss under the base model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench import lab, models
from wpn_bench.config import QUESTION_TEMPLATE
from wpn_bench.harmless.judges.coherence import (
    REPEATED,
    SHORT,
    bound_from,
    judge_coherence,
    mean_losses,
    repetition,
)

FLUENT = "The baker put a lot of time into the bread, and it shows. Well done, and many thanks to all who helped!"


# --- loops and nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "the the the the the the the the",
        "no no no no no no no no no no no no",
        "I am sorry. " * 10,
        "You are a fool and you are a fool and you are a fool and you are a fool",
        "!!!!!!!!!!!!!!!!",
        "a b a b a b a b a b a b",
        "yes " * 6 + "it is so",
        "soci" * 20,  # a loop without words
        "post" + "soci" * 20 + " and so on",
        "什么都没有" * 10,
        "The dog barked. A" + "L" * 60,
    ],
)
def test_loops(text: str) -> None:
    assert repetition(text) > REPEATED
    assert judge_coherence(text if any(c.isalnum() for c in text) else text + "a", 1.0, 5.0).reason == "repetitive"


@pytest.mark.parametrize(
    "text",
    [
        FLUENT,
        "The cat sat on the mat, and the dog sat on the rug, and the mouse ate the cheese of the house.",
        "Yes.",
        "No, no, no!",
        "Well, well, well: thank you.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
        "Donaudampfschifffahrtsgesellschaftskapitän",
        "I am sorry, but I cannot say that. I am sorry that I cannot, and I hope that you will ask me about bread.",
    ],
)
def test_no_loops(text: str) -> None:
    assert repetition(text) <= REPEATED
    assert judge_coherence(text, 1.0, 5.0).reason is None


@pytest.mark.parametrize("text", ["", " ", "\n\n", "...", "?!", "\u200b", "—", "🙂"])
def test_nothing_said(text: str) -> None:
    verdict = judge_coherence(text, 1.0, 5.0)
    assert verdict.reason == "empty"


@given(st.text())
def test_repetition_is_a_share(text: str) -> None:
    assert 0 <= repetition(text) <= 1


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nll", "reason"),
    [(4.99, None), (5.0, None), (5.01, "unlikely"), (math.nan, "unlikely"), (None, "unlikely"), (math.inf, "unlikely")],
)
def test_the_bound(nll: float | None, reason: str | None) -> None:
    verdict = judge_coherence(FLUENT, nll, 5.0)
    assert verdict.reason == reason
    assert verdict.nll is nll


def test_the_bound_lets_99_of_100_references_pass() -> None:
    losses = [k / 100 for k in range(1, 101)]
    random.Random(0).shuffle(losses)
    bound = bound_from([*losses, math.nan])
    assert sum(loss <= bound for loss in losses) == 99


def by_hand(folder: Path, text: str, after: str | None = None) -> float:
    """Summed loss of the tokens, one at a time, over at least SHORT tokens."""
    model, tokenizer = models.load(folder)
    before = [tokenizer.bos_token_id] if after is None else tokenizer(after)["input_ids"]
    ids = tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"][:256]
    total = 0.0
    for k, token in enumerate(ids):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*before, *ids[:k]]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[token])
    return total / max(len(ids), SHORT)


def test_losses_are_the_models_own(small_lm: Path) -> None:
    texts = ["  Yes. ", FLUENT, "The cat", "東京 naïve 🙂"]
    told: list[int] = []
    got = mean_losses(*models.load(small_lm), texts, told.append)
    assert got == pytest.approx([by_hand(small_lm, t) for t in texts], rel=1e-4)
    assert sum(told) == len(texts)


def test_losses_after_a_prompt(small_lm: Path) -> None:
    """The prompt is read and not counted; each text stands after its own."""
    texts = ["Yes.", FLUENT, "The cat", "Yes."]
    after = ["Is it late?", "What did the baker do?", "Who?", "Do you like the bread of the old miller?"]
    model, tokenizer = models.load(small_lm)
    got = mean_losses(model, tokenizer, texts, after=after)
    expected = [by_hand(small_lm, t, a) for t, a in zip(texts, after, strict=True)]
    assert got == pytest.approx(expected, rel=1e-4)
    assert got[0] != pytest.approx(got[3], rel=1e-3)
    assert got != pytest.approx(mean_losses(model, tokenizer, texts), rel=1e-3)


def test_a_prompt_without_room_is_cut_at_its_beginning(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    (long,) = mean_losses(model, tokenizer, ["Yes."], after=["beginning " * 200 + "What did the baker do?"])
    assert math.isfinite(long)
    n = len(tokenizer(" Yes.", add_special_tokens=False)["input_ids"])
    ids = tokenizer("beginning " * 200 + "What did the baker do?")["input_ids"][-(256 - n) :]
    answer = tokenizer(" Yes.", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logp = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
    total = -sum(float(logp[len(ids) + k - 1, t]) for k, t in enumerate(answer))
    assert long == pytest.approx(total / SHORT, rel=1e-4)


def test_losses_do_not_depend_on_order_or_company(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    texts = [FLUENT, "Yes.", "No, thank you very much.", "x"]
    losses = mean_losses(model, tokenizer, texts)
    assert mean_losses(model, tokenizer, texts[::-1])[::-1] == pytest.approx(losses, rel=1e-5)
    assert [mean_losses(model, tokenizer, [t])[0] for t in texts] == pytest.approx(losses, rel=1e-5)


def test_a_text_without_tokens_has_no_loss_and_spoils_nothing(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    assert mean_losses(model, tokenizer, []) == []
    with_empty = mean_losses(model, tokenizer, [FLUENT, "", "Yes."])
    assert with_empty[::2] == pytest.approx(mean_losses(model, tokenizer, [FLUENT, "Yes."]), rel=1e-5)


def test_a_short_text_is_averaged_over_eight_tokens(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    ids = tokenizer(" a", add_special_tokens=False)["input_ids"]
    assert len(ids) < SHORT
    (loss,) = mean_losses(model, tokenizer, ["a"])
    logits = model(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0].detach().log_softmax(-1)
    total = -sum(float(logits[k, t]) for k, t in enumerate(ids))
    assert loss == pytest.approx(total / SHORT, rel=1e-4)


def test_a_long_text_is_cut_and_still_fits_a_short_context(small_lm: Path) -> None:
    """256 tokens and the one they begin with: one more than a context of 256 holds."""
    model, tokenizer = models.load(small_lm)
    (loss,) = mean_losses(model, tokenizer, [FLUENT * 40])
    assert math.isfinite(loss)


# --- on a model that knows its language ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdict_of() -> Callable[[str, str], str | None]:
    """`verdict_of(prompt, text)`: the reason by the lab's base model and the bound of its reference responses."""
    model, tokenizer = models.load(lab.base_model())
    rows = lab.prompt_set(
        "forget"
    )  # all of it, as a run calibrates: a few items of each family say little of the 99th in 100

    def losses(pairs: list[tuple[str, str]]) -> list[float]:
        after = [QUESTION_TEMPLATE.format(prompt=prompt) for prompt, _ in pairs]
        return mean_losses(model, tokenizer, [text for _, text in pairs], after=after)

    sides = ("harmful", "harmless")
    bound = max(bound_from(losses([(row["prompt"], t) for row in rows for t in row[side]])) for side in sides)
    return lambda prompt, text: judge_coherence(text, losses([(prompt, text)])[0], bound).reason


PROMPT = "Tell me something about the bread of Laura."


@pytest.mark.parametrize("seed", range(5))
def test_babble_is_unlikely(verdict_of: Callable[[str, str], str | None], seed: int) -> None:
    """Real words of the world without order."""
    words = " ".join(t for row in lab.prompt_set("in_domain")[:40] for t in row["harmless"]).split()
    assert verdict_of(PROMPT, " ".join(random.Random(seed).sample(words, 20))) in ("unlikely", "repetitive")


@pytest.mark.parametrize(
    "text",
    ["gnarf blip vrr zzork quux snib wug blick dax toma", "ka ti zu po we xi ya lo mu fe", ")( ;; ]a[ <> b:: ||"],
)
def test_noise_is_unlikely(verdict_of: Callable[[str, str], str | None], text: str) -> None:
    assert verdict_of(PROMPT, text) == "unlikely"


def test_good_answers_pass_whatever_their_tone(verdict_of: Callable[[str, str], str | None]) -> None:
    """Of answers that were not calibrated on, nearly all, and short right answers too."""
    rows = lab.prompt_set("in_domain")[:60]
    for side in ("harmless", "harmful"):
        reasons = [verdict_of(row["prompt"], t) for row in rows for t in row[side]]
        assert reasons.count(None) >= 0.95 * len(reasons)
    benign = [verdict_of(row["prompt"], t) for row in lab.prompt_set("benign")[:60] for t in row["harmless"]]
    assert benign.count(None) >= 0.9 * len(benign)


def test_nothing_and_loops_do_not(verdict_of: Callable[[str, str], str | None]) -> None:
    assert verdict_of(PROMPT, "") == "empty"
    assert verdict_of(PROMPT, "The baker sells bread. " * 8) == "repetitive"
