from __future__ import annotations

import math

import pytest

from wpn_bench.errors import JobFailed
from wpn_bench.unlearn.divergence import diverged, exploded


def ramp(first: float, last: float, steps: int) -> list[float]:
    return [first + (last - first) * k / (steps - 1) for k in range(steps)]


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [3.0],
        ramp(3.0, 0.1, 50),
        ramp(3.0, 12.0, 50),  # as bad as knowing nothing: ruined, and measured as such
        ramp(0.01, 8.0, 50),  # began with next to nothing to learn
        ramp(-3.0, -400.0, 50),  # gradient ascent
        ramp(-3.0, -1500.0, 50),  # gradient ascent without mercy
        ramp(500.0, 3000.0, 50),  # large by nature
        [3.0, 900.0, 3.0, 2.5, 2.2, 2.0, 1.9],  # one odd batch
        [3.0, *[1e6] * 4],  # not yet five in a row
        [3.0, *[1e6] * 10, 2.0],  # came back
    ],
)
def test_what_training_does(losses: list[float]) -> None:
    assert not exploded(losses)


@pytest.mark.parametrize(
    "losses",
    [
        [3.0, *[34.0] * 5],
        ramp(3.0, 500.0, 50),
        ramp(500.0, 6500.0, 50),
        [0.0, *[11.0] * 5],
        [-3.0, *[-3100.0] * 5],
        [-3.0, *[30.0] * 5],  # ascent that went the wrong way
        [2.0, 1.0, *[1e30] * 5],
    ],
)
def test_what_has_run_away(losses: list[float]) -> None:
    assert exploded(losses)


def test_the_message_names_step_losses_rate_and_way_out() -> None:
    e = diverged("the loss of ga is nan", 7, 6.5e-5, [-3.0, -41.25])
    assert isinstance(e, JobFailed)
    assert str(e) == (
        "training diverged: the loss of ga is nan at step 7 (first -3, last -41.25);"
        " lower lr (now 6.5e-05) or the number of steps, or raise warmup_steps"
    )
    assert "first" not in str(diverged("the loss of ga is nan", 1, 1.0))
    assert "last" not in str(diverged("the gradient", 2, 1.0, [1.0, math.inf]))
