"""The relearning attack tests whether a little fine-tuning undoes unlearning.

It is a weight attack. If unlearning only hid the behaviour, fine-tuning brings it back: on a few harmful pairs (Qi et
al. 2024, "Fine-tuning Aligned Language Models Compromises Safety", arXiv:2310.03693) or on unrelated text (Hu et al.
2024, "Unlearning or Obfuscating?", arXiv:2406.13356).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.attacks.base import RelearnKind
from wpn_bench.core.files import digest_of
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.prompts import PromptSet, Template
from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class RelearnConfig(MethodConfig):
    """Settings of relearning, which uses AdamW with a constant learning rate and no warm-up.

    So the model after k steps does not depend on the number of steps that follow.
    """

    kind: RelearnKind = "harmful"
    schedule: str = "constant"  # type: ignore[assignment]
    warmup_steps: int = 0


class Relearning(Method):
    """L = CE(y- | x) on harmful pairs (kind `harmful`), or CE on plain text (kind `benign`)."""

    name = "relearning"
    title = "Relearning"
    description = "The model after a few steps of fine-tuning on harmful pairs, and on benign text."
    paper = "Hu et al. 2024, Unlearning or Obfuscating?, arXiv:2406.13356"
    Config = RelearnConfig
    config: RelearnConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful" if self.config.kind == "harmful" else "retain"})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        rows = batch.harmful if self.config.kind == "harmful" else batch.retain
        assert rows is not None
        ce = cross_entropy(model, rows, rows.response_mask)
        return Loss(ce, {"relearning_loss": float(ce.detach())})


def few(forget: PromptSet, n: int, seed: int) -> PromptSet:
    """Sample items with a harmful response from the forget set. The sample is the same for every model.

    Args:
        forget: The forget set.
        n: Number of items.
        seed: Seed of the sample.

    Returns:
        A set of `n` items, or of fewer if the forget set does not have enough.
    """
    ranked = sorted((i for i in forget.items if i.harmful), key=lambda i: digest_of(["relearn", seed, i.id]))
    return PromptSet("relearn", forget.role, tuple(ranked[:n]), source={**forget.source, "relearn": n, "seed": seed})


def run_relearn_stage(ctx: StageContext) -> None:
    """Fine-tune the input `model` on `forget` (a few items) or `retain` (texts), depending on the kind.

    The stage writes the model after each step in the parameter `snapshots` to `step-<k>/`. Training and weights are in
    float32, because in half precision the small updates would be rounded away.
    """
    from wpn_bench import models
    from wpn_bench.prompts.items import read_items, read_rows
    from wpn_bench.unlearn.snapshots import Snapshots
    from wpn_bench.unlearn.train import train

    method = Relearning(RelearnConfig(**ctx.params["config"]))
    models.make_room(4 * models.weights_bytes(ctx.needs["model"], "float32"), ctx.local["device"])
    model = models.load_fresh(ctx.needs["model"], ctx.local["device"])
    tokenizer = models.load_tokenizer(ctx.needs["model"])
    texts: Sequence[str] = ()
    if "retain" in ctx.needs:
        texts = [row["text"] for row in read_rows(ctx.needs["retain"] / "texts.jsonl")]
    train(
        model,
        tokenizer,
        method,
        read_items(ctx.needs["forget"]) if "forget" in ctx.needs else (),
        texts,
        template=Template.parse(ctx.params["template"]),
        seed=ctx.params["seed"],
        advance=ctx.progress(method.config.steps, "steps"),
        snapshots=Snapshots(ctx.params["snapshots"], tokenizer, ctx.out),
        checkpoints=ctx.scratch,
    )


STAGE = Stage(
    "wpn_bench.attacks.relearn:run_relearn_stage",
    1,
    (*LM_LIBRARIES, "accelerate"),
    items="params.config.steps",
    memory="wpn_bench.preflight.estimates:relearning_needs",
    part="attack",
)
