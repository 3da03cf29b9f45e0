"""Task-vector negation: the model learns harmful responses, and the change of its weights is then subtracted."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy
from wpn_bench.unlearn.search import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class TaskVectorConfig(MethodConfig):
    """Options of task-vector negation."""

    scale: float = Field(1.0, gt=0, description="how much of the change of the weights is subtracted from the base's")


class TaskVector(Method):
    """L = CE(y- | x) trains weights w from w_0, and the model is w_0 - scale * (w - w_0).

    The paper fine-tunes on toxic texts, and chooses the scale between 0 and 1 on validation data. Here the texts are the
    harmful responses after their prompts. Retain text is not used. With LoRA, the saved adapter is the negated one.

    The loss rises from step to step in the model that is saved, and what `stop_at_harmless_rate`, snapshots and curves see
    is that model. Checkpoints contain w.
    """

    name = "task_vector"
    title = "Task-vector negation"
    paper = "Ilharco et al. 2022, Editing Models with Task Arithmetic, arXiv:2212.04089"
    Config = TaskVectorConfig
    search: ClassVar = {**Method.search, "scale": Float(0.1, 2.0)}
    config: TaskVectorConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful"})

    @property
    def change(self) -> float:
        return -self.config.scale

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        theta = self.read(model, batch)
        ce = cross_entropy(theta, batch.harmful, batch.harmful.response_mask)
        return Loss(ce, {"harmful_loss": float(ce.detach())})
