"""SatImp: gradient ascent on the tokens that are neither forgotten already nor certain."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Method
from wpn_bench.unlearn.methods.wga import WeightedAscent, WeightedAscentConfig
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from torch import Tensor


class SatImpConfig(WeightedAscentConfig):
    """Options of SatImp."""

    saturation: float = Field(
        5.0, ge=0, description="beta1 of the paper: how fast the weight falls for unlikely tokens"
    )
    importance: float = Field(
        1.0, ge=0, description="beta2 of the paper: how fast the weight falls for almost certain tokens"
    )
    gamma: float = Field(0.1, ge=0, description="weight of the forget term")


class SatImp(WeightedAscent):
    """L = gamma * mean_t w_t log p(y-_t | x, y-_<t) + alpha * CE(retain), with the constant weight w_t = p^a (1 - p)^b.

    p is p(y-_t | x, y-_<t), a is `saturation`, b is `importance`. The mean is over the response tokens of the batch, and
    w_t has no gradient, as in open-unlearning. Tokens with small p are already forgotten (saturation). Tokens with p near 1
    are those that any text predicts (importance). The defaults are those of open-unlearning's configuration file. Its class
    has gamma = 1 and alpha = 0.1.
    """

    name = "satimp"
    title = "SatImp"
    paper = (
        "Yang et al. 2025, Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning, arXiv:2505.11953 "
        "(as in open-unlearning)"
    )
    Config = SatImpConfig
    search: ClassVar = {
        **Method.search,
        "saturation": Log(0.5, 10.0),
        "importance": Log(0.1, 3.0),
        "gamma": Log(0.03, 3.0),
        "alpha": Log(0.3, 3.0),
    }
    config: SatImpConfig

    def weight(self, p: Tensor) -> Tensor:
        return p**self.config.saturation * (1 - p).clamp(min=0) ** self.config.importance
