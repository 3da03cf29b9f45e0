"""Models that are read from disk while they compute say what they say in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.engine.decode import Rules, Sampling, decode
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.engine.placement import device_of
from wpn_bench.errors import UserError
from wpn_bench.models import loading

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 11, 12], [20, 21], [33]]
PAIRS = [([1, 5, 6, 7], [8, 9]), ([1, 5, 6, 7], [10]), ([1, 30], [31, 32, 33]), ([1, 5, 6, 8], [9] * 20)]


class Placed:
    """One model twice: in memory, and with little memory to be had, by accelerate's hooks."""

    def __init__(self, folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole = models.load_fresh(folder).eval()
        with monkeypatch.context() as short:
            short.setattr("wpn_bench.core.device_memory.free_memory", lambda device: room)
            short.setattr(loading, "working_memory", lambda config, dtype: 0)
            self.spread = models.load_fresh(folder, offload="disk").eval()
        self.map: dict[str, Any] = self.spread.hf_device_map


@pytest.fixture(params=["all", "part"])
def placed(request: pytest.FixtureRequest, small_lm: Path, monkeypatch: pytest.MonkeyPatch) -> Placed:
    """With all of its weights on disk, and with about half of them in memory."""
    whole = models.weights_bytes(small_lm, "float32")
    made = Placed(small_lm, 0 if request.param == "all" else int(1.1 * whole), monkeypatch)
    assert set(made.map.values()) == ({"disk"} if request.param == "all" else {"cpu", "disk"})
    return made


def test_inputs_go_where_the_weights_are_brought(placed: Placed) -> None:
    assert any(p.device.type == "meta" for p in placed.spread.parameters())
    assert device_of(placed.spread) == device_of(placed.whole) == torch.device("cpu")


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 0.9)])
@pytest.mark.slow
def test_decoding(placed: Placed, sampling: Sampling | None) -> None:
    rules = Rules(12, sampling=sampling)
    assert decode(placed.spread, PROMPTS, rules) == decode(placed.whole, PROMPTS, rules)


def test_decoding_by_transformers(placed: Placed) -> None:
    for model in (placed.whole, placed.spread):
        model.generation_config.repetition_penalty = 1.3
    assert decode(placed.spread, PROMPTS, Rules(6)) == decode(placed.whole, PROMPTS, Rules(6))


def test_likelihoods(placed: Placed) -> None:
    """To the last bit: the head's weights are brought once for all tiles."""
    found = loglikelihoods(placed.spread, PAIRS, max_length=64)
    assert found == loglikelihoods(placed.whole, PAIRS, max_length=64)
    assert len({score for score, _ in found}) == len(PAIRS)


def test_nothing_stays_that_was_brought(placed: Placed) -> None:
    def away() -> set[str]:
        every = placed.spread.named_parameters(remove_duplicate=False)
        return {name for name, p in every if p.device.type == "meta"}

    before = away()
    decode(placed.spread, PROMPTS, Rules(2))
    loglikelihoods(placed.spread, PAIRS, max_length=64)
    assert away() == before


def test_what_fits_is_loaded_plainly(small_opt: Path) -> None:
    assert not hasattr(models.load_fresh(small_opt, offload="disk"), "hf_device_map")


def test_main_memory_alone_may_not_do(small_opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wpn_bench.core.device_memory.free_memory", lambda device: 0)
    with pytest.raises(UserError, match=r"does not fit into the memory of cpu and the main memory; use --offload disk"):
        models.load_fresh(small_opt, offload="cpu")
