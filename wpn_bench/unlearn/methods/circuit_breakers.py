"""Circuit breakers (representation rerouting): hidden states of harmful text turn away from those of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_over
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class CircuitBreakersConfig(MethodConfig):
    """Options of circuit breakers.

    If `layers` is None, they have the relative depth of layers 10 and 20 of 32, which the paper chose for its language
    models.
    """

    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="blocks whose output is rerouted, counted from 1"
    )
    alpha: float = Field(10.0, gt=0, description="weight of both terms")


class CircuitBreakers(Method):
    """L = c_s * mean relu(cos(h_ref, h)(y- | x)) + c_r * mean ||h_ref - h||_2 (retain), c_s = alpha (1 - t / 2T), c_r = alpha t / 2T.

    h and h_ref are the outputs of a block in the model and in the reference. Means are over tokens and over the chosen
    blocks: response tokens in the first term, all tokens of retain text in the second. t counts the finished steps, and T is
    the number of steps.

    This follows Algorithm 1 of the paper, with its alpha for Llama-3-8B (for Mistral-7B it is 5). The published code was not
    at hand, so the loss is not compared with it. Copies of it that others changed have the prompt in the first term, too, and
    all layers in the second. The paper trains LoRA adapters for 150 steps, as `lora: 16` does here; by
    default all weights are trained. The paper's retain set also has refusals and harmless chats; here it is the
    retain text of all methods. The method teaches no replacement for the harmful responses.

    At the beginning h = h_ref, where the gradient of both terms is 0 up to rounding. Rounding thus decides in which
    direction the first step goes, and another machine or number of processes gives another model.
    """

    name = "circuit_breakers"
    title = "Circuit breakers"
    paper = "Zou et al. 2024, Improving Alignment and Robustness with Circuit Breakers, arXiv:2406.04313"
    Config = CircuitBreakersConfig
    search: ClassVar = {**Method.search, "alpha": Log(1.0, 30.0)}
    config: CircuitBreakersConfig

    def __init__(self, config: CircuitBreakersConfig) -> None:
        super().__init__(config)
        self.follow([])

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", "retain"})

    @property
    def needs_reference(self) -> bool:
        return True

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        """Set the weights of the two terms from the number of finished steps."""
        done = len(history) / (2 * self.config.steps)
        self.reroute, self.keep = self.config.alpha * (1 - done), self.config.alpha * done

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch
        import torch.nn.functional as F

        from wpn_bench.unlearn.passes import Pass

        assert batch.harmful is not None
        assert batch.retain is not None
        assert reference is not None
        layers = self._layers(model)
        theta = self.read(model, batch, layer=layers, head=False)
        ref = Pass(reference, [batch.harmful], [batch.retain], layer=layers, head=False)
        with torch.no_grad():
            harmful_before, retain_before = ref.states(batch.harmful), ref.states(batch.retain)
        cosines = F.cosine_similarity(theta.states(batch.harmful), harmful_before, dim=-1)
        distances = torch.linalg.vector_norm(theta.states(batch.retain) - retain_before, dim=-1)
        forget = mean_over(cosines.relu().mean(-1), batch.harmful.response_mask)
        retain = mean_over(distances.mean(-1), batch.retain.attention_mask)
        total = self.reroute * forget + self.keep * retain
        return Loss(total, {"forget": float(forget.detach()), "retain": float(retain.detach())})

    def _layers(self, model: PreTrainedModel) -> tuple[int, ...]:
        """Return the numbers of the rerouted blocks, each once."""
        depth = int(model.config.get_text_config().num_hidden_layers)
        chosen = self.config.layers or [max(1, round(depth * one / 32)) for one in (10, 20)]
        return tuple(sorted({min(one, depth) for one in chosen}))
