"""Relearning: does a little fine-tuning undo unlearning?

An attack on the weights. A few harmful pairs (Qi et al. 2024, "Fine-tuning Aligned Language Models Compromises Safety",
arXiv:2310.03693) or text that has nothing to do with them (Hu et al. 2024, "Unlearning or Obfuscating?",
arXiv:2406.13356) are enough where the behaviour was only hidden.
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
    """Plain AdamW at a constant rate without warm-up: the model after k steps is the same however many follow."""

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
    """`n` items of the forget set that have a harmful response, drawn by `seed` (the same for every model)."""
    ranked = sorted((i for i in forget.items if i.harmful), key=lambda i: digest_of(["relearn", seed, i.id]))
    return PromptSet("relearn", forget.role, tuple(ranked[:n]), source={**forget.source, "relearn": n, "seed": seed})


def run_relearn_stage(ctx: StageContext) -> None:
    """Fine-tune `model` on `forget` (a few items) or on `retain` texts, whichever the kind needs.

    Writes the model after each step of the parameter `snapshots` in `step-<k>/`. All in float32: half precision would
    swallow the small steps that are to be measured.
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
