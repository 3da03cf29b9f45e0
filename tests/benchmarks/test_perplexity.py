from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from wpn_bench.benchmarks.perplexity import WindowLoss, run_perplexity_stage, summarise, token_losses
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import StageContext

TEXTS = ["A short text.", "", "x" * 150, "Another one, a little longer than the first."]


@pytest.fixture
def loaded(tiny_model: Path):
    return LocalBackend.open(tiny_model)


def test_windows_cover_every_token_once(loaded) -> None:
    losses = token_losses(loaded, TEXTS)
    # The model's context is 64: the beginning-of-text token and 63 others. Tokens are bytes here.
    assert [(w.text, w.window, w.n_tokens) for w in losses] == [
        (0, 0, 13),
        (2, 0, 63),
        (2, 1, 63),
        (2, 2, 24),
        (3, 0, len(TEXTS[3])),
    ]
    assert all(len(TEXTS[t]) == sum(w.n_tokens for w in losses if w.text == t) for t in range(4))


def test_a_window_by_hand(loaded) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXTS[0], add_special_tokens=False)]])
    with torch.inference_mode():
        logp = model(ids).logits[0, :-1].log_softmax(-1)
    by_hand = -logp.gather(1, ids[0, 1:, None]).sum().item()
    first, *_ = token_losses(loaded, TEXTS)
    assert first.sum_nll == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_batching_changes_nothing(loaded, batch_tokens: int) -> None:
    told: list[int] = []
    usual = token_losses(loaded, TEXTS)
    other = token_losses(loaded, TEXTS, batch_tokens=batch_tokens, progress=lambda total, unit: told.append)
    assert sum(told) == len(usual)
    for a, b in zip(usual, other, strict=True):
        assert (a.text, a.window, a.n_tokens) == (b.text, b.window, b.n_tokens)
        assert a.sum_nll == pytest.approx(b.sum_nll, rel=1e-5)


def test_a_window_of_ones_own(loaded) -> None:
    assert {w.n_tokens for w in token_losses(loaded, ["x" * 30], window=11)} == {10}
    with pytest.raises(UserError, match="no token is predicted"):
        token_losses(loaded, ["x"], window=1)


def test_the_mean_is_over_tokens() -> None:
    whole = summarise([WindowLoss(0, 0, 3, 6.0), WindowLoss(1, 0, 1, 6.0)])
    assert whole.token_loss == 3.0
    assert whole.perplexity == pytest.approx(math.exp(3))
    assert whole.n_tokens == 4


def test_a_broken_model_has_no_loss() -> None:
    assert summarise([WindowLoss(0, 0, 3, math.nan)]).token_loss is None
    overflown = summarise([WindowLoss(0, 0, 1, 1000.0)])
    assert (overflown.token_loss, overflown.perplexity) == (1000.0, None)


def test_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="no tokens to predict"):
        summarise([])


def test_the_stage_writes_result_and_windows(tiny_model: Path, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    out.mkdir()
    (texts / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    ctx = StageContext(
        params={"dtype": "float32"},
        needs={"model": tiny_model, "texts": texts},
        out=out,
        local={"device": "cpu"},
        progress=lambda total, unit: lambda n: None,
    )
    run_perplexity_stage(ctx)
    result = json.loads((out / "result.json").read_text())
    windows = pd.read_parquet(out / "windows.parquet")
    assert result["token_loss"] == pytest.approx(windows["sum_nll"].sum() / windows["n_tokens"].sum())
    assert (result["n_texts"], result["n_windows"]) == (4, 5)
