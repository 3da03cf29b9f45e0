"""What was killed goes on where it was: to the same answers, and without a pass for what was found before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wpn_bench.engine.budget import Budget
from wpn_bench.engine.classify import Classifier, scores
from wpn_bench.engine.decode import Rules, Sampling, decode
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.jobs.journal import Journal, Shard, use_journal
from wpn_bench.lab_training.judge import load_judge

from .conftest import CONTEXT, WORDS, random_model


class Killed(BaseException):
    """Nobody catches it."""


RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(3, WORDS, n).tolist() for n in (5, 9, 3, 12, 7, 9, 4, 11, 6, 8)] + [[4, 5], [4, 5]]
PAIRS = [
    (RNG.integers(3, WORDS, n).tolist(), RNG.integers(3, WORDS, m).tolist()) for n in (4, 20) for m in range(1, 12)
]
TEXTS = [
    f"{word} {'bread ' * n}".strip()
    for n, word in enumerate(["you", "are", "a", "kind", "and", "clever", "fellow", "to", "us", "all"])
]


def decoded(model: Any, advance: Callable[[int], None]) -> Any:
    return decode(model, PROMPTS, Rules(6, frozenset({1})), most_rows=3, advance=advance)


def drawn(model: Any, advance: Callable[[int], None]) -> Any:
    return decode(model, PROMPTS, Rules(6, frozenset({1}), sampling=Sampling(1.0, 0.9)), most_rows=3, advance=advance)


def scored(model: Any, advance: Callable[[int], None]) -> Any:
    return loglikelihoods(model, PAIRS, max_length=CONTEXT, budget=Budget(60), advance=advance)


def judged(model: Any, advance: Callable[[int], None]) -> Any:
    judge = load_judge()
    return scores(
        Classifier.of(model, judge.tokenizer, lambda logits: logits[:, 0].sigmoid()), TEXTS, advance, most_rows=2
    )


def lm(shape: str) -> Any:
    return random_model(shape).eval()


def judge_model(shape: str) -> Any:
    return load_judge().model


CALLS = [
    pytest.param(call, make, shape, id=f"{call.__name__}-{shape}")
    for call, make, shapes in (
        (decoded, lm, ("opt", "neo", "llama")),
        (drawn, lm, ("opt",)),
        (scored, lm, ("opt", "neo", "capped")),
        (judged, judge_model, ("bert",)),
    )
    for shape in shapes
]


def counted(model: Any) -> list[int]:
    """Rows of each pass through the model, as they are made."""
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs.get("input_ids", args[0] if args else ()))),
        with_kwargs=True,
    )
    return rows


@pytest.mark.parametrize(("call", "make", "shape"), CALLS)
@pytest.mark.slow
def test_it_goes_on_where_it_was(call: Any, make: Any, shape: str, tmp_path: Path) -> None:
    model = make(shape)
    whole = call(model, lambda n: None)
    total = len({"decoded": PROMPTS, "drawn": PROMPTS, "scored": PAIRS, "judged": TEXTS}[call.__name__])
    kills = 0
    for limit in range(2, 2 * total):
        # Each attempt is told of what is known, then dies some answers later.
        known: list[int] = []

        def advance(n: int, known: list[int] = known, limit: int = limit) -> None:
            known.append(n)
            if sum(known) > limit:
                raise Killed

        try:
            with use_journal(Journal(tmp_path)):
                found = call(model, advance)
        except Killed:
            kills += 1
            continue
        break
    assert kills >= 3
    assert found == whole
    assert sum(known) == total
    rows = counted(model)
    with use_journal(Journal(tmp_path)):
        assert call(model, lambda n: None) == whole
    assert rows == []  # all of it was known


@pytest.mark.parametrize(("call", "make", "shape"), CALLS)
def test_shares_make_the_whole(call: Any, make: Any, shape: str, tmp_path: Path) -> None:
    model = make(shape)
    whole = call(model, lambda n: None)
    rows = counted(model)
    spent = []
    for number in range(3):
        with use_journal(Journal(tmp_path / "shared", Shard(number, 3))):
            call(model, lambda n: None)
        spent.append(sum(rows))
        rows.clear()
    assert all(spent)
    with use_journal(Journal(tmp_path / "shared")):
        assert call(model, lambda n: None) == whole
    assert rows == []


def test_a_share_that_was_lost_is_made_up_for(tmp_path: Path) -> None:
    model = lm("opt")
    with use_journal(Journal(tmp_path, Shard(0, 2))):
        scored(model, lambda n: None)
    with use_journal(Journal(tmp_path)):
        assert scored(model, lambda n: None) == scored(model, lambda n: None)


def test_other_inputs_find_nothing(tmp_path: Path) -> None:
    model = lm("opt")
    with use_journal(Journal(tmp_path)):
        decode(model, PROMPTS, Rules(6), most_rows=3)
    for prompts, rules in ((PROMPTS[:-3], Rules(6)), (PROMPTS, Rules(5)), (PROMPTS, Rules(6, frozenset({1})))):
        rows = counted(model)
        with use_journal(Journal(tmp_path)):
            assert decode(model, prompts, rules, most_rows=3) == decode(model, prompts, rules, most_rows=3)
        assert rows


def test_what_is_no_number_stays_so(tmp_path: Path) -> None:
    class Odd:
        config = SimpleNamespace(max_position_embeddings=148, hidden_size=8)
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, input_ids: Any, attention_mask: Any) -> Any:
            return (torch.full((len(input_ids), 1), torch.nan),)

    odd = Classifier.of(Odd(), load_judge().tokenizer, lambda logits: logits[:, 0])
    for _ in range(2):
        with use_journal(Journal(tmp_path)):
            assert np.isnan(scores(odd, TEXTS)).all()
