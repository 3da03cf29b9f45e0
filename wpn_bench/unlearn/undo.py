"""Noise and distillation after unlearning (UNDO): the trained model teaches a corrupted copy of itself.

Lee et al. 2025, "Distillation Robustifies Unlearning" (Unlearn-Noise-Distill-on-Outputs, arXiv:2506.06278). With the trained
weights theta, the copy begins at

    theta' = (1 - alpha) theta + alpha beta N,

where N is a new Xavier-uniform initialisation of each matrix and 0 for each vector (biases and gains of norms), as in the authors' code.
It is then trained on KL(p_teacher || p_student), averaged over tokens. What the outputs of the teacher do not show should be lost.

The paper distils on the texts of the pre-training, those to forget and those to retain, and stops when the student's loss on retained text
is near the teacher's. A run here has no such texts. This is our reading: the texts are the run's retain texts, and the prompts of the
forget set and of benign prompts with their harmless responses. Harmful responses are left out, because the teacher may still go on
with one that has begun. The number of steps is fixed. The other options (schedule, batch sizes, precision) are those of the method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, kl_to_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wpn_bench.prompts import Item
    from wpn_bench.unlearn.batches import Batch
    from wpn_bench.unlearn.train import Trained

# These options concern the training before.
_OF_THE_TRAINING = {"undo", "sam", "lora", "stop_at_harmless_rate", "steps", "lr"}


class Distilling(Method):
    """L = mean over the kinds of rows of KL(p_teacher || p_student), in nats per token.

    The kinds are retain texts, and prompts with harmless responses. All of their tokens count. It is no method of its own, and
    `reference` is the teacher.
    """

    name = "undo"
    title = "Noise and distillation"
    paper = "Lee et al. 2025, Distillation Robustifies Unlearning, arXiv:2506.06278"

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "retain"})

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert reference is not None
        student, teacher = self.read(model, batch), self.read(reference, batch)
        rows = {"harmless_kl": batch.harmless, "retain_kl": batch.retain}
        terms = {name: kl_to_reference(student, teacher, one) for name, one in rows.items() if one is not None}
        total = sum(terms.values()) / len(terms)
        assert not isinstance(total, float)
        return Loss(total, {name: float(term.detach()) for name, term in terms.items()})


def corrupt(model: PreTrainedModel, alpha: float, beta: float, seed: int) -> None:
    """Replace the weights of a model by (1 - alpha) theta + alpha beta N, in place.

    N is drawn on the CPU in float32 in the order of the parameters, so it depends only on the seed and on their shapes. Tied weights are one
    parameter, and get one noise.

    Args:
        model: The model.
        alpha: Share of the noise, between 0 and 1.
        beta: Size of the noise.
        seed: Seed of the noise.
    """
    import torch

    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 - alpha)
            if p.dim() >= 2:
                noise = torch.empty(p.shape, dtype=torch.float32, device="cpu")
                torch.nn.init.xavier_uniform_(noise, generator=drawn)
                p.add_(noise.mul_(alpha * beta).to(p.device, p.dtype))


def distil(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: MethodConfig,
    items: Sequence[Item],
    texts: Sequence[str],
    *,
    seed: int,
    **options: Any,
) -> Trained:
    """Corrupt a trained model in place, and distil what it was into it.

    Args:
        model: The trained model, of which the teacher is a copy.
        tokenizer: Its tokenizer.
        config: Options of the method that trained it, with `undo`.
        items: The forget set.
        texts: The retain texts.
        seed: Determines the noise and the order of the data.
        **options: Further arguments of `train.train`.

    Returns:
        The record of the distillation.

    Raises:
        JobFailed: The distillation diverged.
    """
    from wpn_bench.unlearn.train import train, width_of

    undo = config.undo
    assert undo is not None
    shared = {name: getattr(config, name) for name in MethodConfig.model_fields if name not in _OF_THE_TRAINING}
    method = Distilling(MethodConfig(**shared, steps=undo.steps, lr=undo.peak_lr(width_of(model))))
    teacher = copy.deepcopy(model).requires_grad_(False).eval()
    corrupt(model, undo.alpha, undo.beta, seed)
    return train(model, tokenizer, method, items, texts, seed=seed, reference=teacher, **options)
