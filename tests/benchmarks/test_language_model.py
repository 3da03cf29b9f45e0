"""`wpn-hf` against lm-eval's `hf`: the same requests as texts, through lm-eval's own tokenising and truncation."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from wpn_bench import models
from wpn_bench.benchmarks.language_model import WpnHF

SENTENCE = (
    "The baker sells bread and cakes in the market, said the angry miller to a kind old neighbour of this town today."
)
WORDS = SENTENCE.split()
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def both(folder: Path, **options: Any) -> tuple[WpnHF, HFLM]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = models.load(folder)
    given = {"pretrained": model, "batch_size": 4, **options}
    return WpnHF(tokenizer=copy.deepcopy(tokenizer), **given), HFLM(tokenizer=copy.deepcopy(tokenizer), **given)


@pytest.fixture(
    scope="module", params=[{}, {"add_bos_token": True}, {"add_bos_token": False, "max_length": 24}], ids=str
)
def pair(request: pytest.FixtureRequest, small_lm: Path) -> tuple[WpnHF, HFLM]:
    return both(small_lm, **request.param)


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, k) for k, one in enumerate(arguments)]


@st.composite
def documents(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Contexts with several choices each; some empty, some longer than the window, some that end in spaces."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.one_of(st.just(""), TEXT, TEXT.map(lambda t: t + "  "), TEXT.map(lambda t: 20 * (t + " "))))
        for choice in draw(st.lists(TEXT, min_size=1, max_size=4)):
            rows.append((context, " " + choice))
    return rows


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=documents())
def test_log_likelihoods_are_those_of_hf(pair: tuple[WpnHF, HFLM], rows: list[tuple[str, str]]) -> None:
    ours, theirs = pair
    rows = [r for r in rows if len(ours.tok_encode(r[1])) <= ours.max_length - 4]  # hf takes none that is longer
    mine = ours.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True)
    plain = theirs.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True)
    assert [m[0] for m in mine] == pytest.approx([p[0] for p in plain], abs=1e-3)
    assert [m[1] for m in mine] == [p[1] for p in plain]


def test_rolling_log_likelihoods_are_those_of_hf(pair: tuple[WpnHF, HFLM]) -> None:
    texts = [(4 * SENTENCE,), ("The baker sells bread.",)]
    ours, theirs = (lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts), True) for lm in pair)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_the_cache_of_lm_eval_is_told(small_opt: Path) -> None:
    ours, _ = both(small_opt)
    told: list[Any] = []

    class Hook:
        def add_partial(self, *what: Any) -> None:
            told.append(what)

    ours.set_cache_hook(Hook())
    rows = [("The baker", " sells bread"), ("", "A kind")]
    answers = ours.loglikelihood(instances("loglikelihood", rows), disable_tqdm=True)
    assert told == [("loglikelihood", row, answer) for row, answer in zip(rows, answers, strict=True)]


def test_lm_eval_knows_it_by_name() -> None:
    assert get_model("wpn-hf") is WpnHF
