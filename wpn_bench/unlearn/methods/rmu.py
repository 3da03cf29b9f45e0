"""RMU moves the hidden states of harmful text towards a random direction, and keeps those of retain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_over
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch

DIRECTION_SEED = 7  # all runs use the same direction u, so that seeds only change the order of the data


class RMUConfig(MethodConfig):
    """Options of RMU.

    If `layer` is None, it has the relative depth of layer 7 of 32, which the paper chose for models with 7 billion
    parameters.
    """

    layer: int | None = Field(None, ge=1, description="block whose output is steered, counted from 1")
    coefficient: float = Field(2.0, gt=0, description="c, the length of the target vector of harmful states")
    gamma: float = Field(1.0, ge=0, description="weight of the forget term")
    alpha: float = Field(1.0, ge=0, description="weight of the retain term")


class RMU(Method):
    """L = gamma * MSE(h_l(y- | x), c u) + alpha * MSE(h_l(retain), h_l^ref(retain)), u a random unit vector.

    h_l is the output of block l. The MSE is the mean over tokens and dimensions. u has entries from U(0, 1) before it is
    scaled to length 1. As in open-unlearning, all weights are trained, and the forget term uses the response tokens. (The
    WMDP code trains three down-projections on whole documents, with c = 6.5 and alpha = 1200 for its 7 B model.) The method
    teaches no replacement for the removed responses.
    """

    name = "rmu"
    title = "RMU"
    paper = "Li et al. 2024, The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning, arXiv:2403.03218"
    Config = RMUConfig
    search: ClassVar = {**Method.search, "coefficient": Log(1.0, 20.0), "alpha": Log(1.0, 100.0)}
    config: RMUConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", "retain"})

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch

        from wpn_bench.unlearn.passes import Pass

        assert batch.harmful is not None
        assert batch.retain is not None
        assert reference is not None
        layer = self._layer(model)
        theta = self.read(model, batch, layer=layer, head=False)
        ref = Pass(reference, [batch.retain], layer=layer, head=False)
        forget_states = theta.states(batch.harmful)
        target = self.config.coefficient * direction(forget_states.shape[-1]).to(forget_states)
        forget = _mse(forget_states, target, batch.harmful.response_mask)
        with torch.no_grad():
            before = ref.states(batch.retain)
        retain = _mse(theta.states(batch.retain), before, batch.retain.attention_mask)
        total = self.config.gamma * forget + self.config.alpha * retain
        return Loss(total, {"forget": float(forget.detach()), "retain": float(retain.detach())})

    def _layer(self, model: PreTrainedModel) -> int:
        """Return the number of the steered block."""
        depth = int(model.config.get_text_config().num_hidden_layers)
        return min(self.config.layer or max(1, round(depth * 7 / 32)), depth)


def direction(width: int) -> Tensor:
    """Return the direction u of shape (width,) and length 1, which is the same in every call."""
    import torch

    u = torch.rand(width, generator=torch.Generator().manual_seed(DIRECTION_SEED), dtype=torch.float64)
    return u / u.norm()


def _mse(states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return mean_over(((states - target) ** 2).mean(-1), mask)
