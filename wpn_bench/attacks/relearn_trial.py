"""The stage that trains one attack of the relearning search, and answers prompts after some of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.attacks.relearn import RelearnConfig, Relearning
from wpn_bench.core.files import digest_of, write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.harmless.stages import RESPONSES, response_row
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models.backends import Decoding
from wpn_bench.prompts import Item, Template
from wpn_bench.prompts.items import read_items, read_rows, write_rows
from wpn_bench.unlearn import checkpoints
from wpn_bench.unlearn.divergence import diverged
from wpn_bench.unlearn.methods.base import Loss
from wpn_bench.unlearn.snapshots import Snapshots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch

BUDGET = "budget.json"
_AT = "@"  # separates the item and the step in the id of a response


class CountedRelearning(Relearning):
    """L = CE(y- | x), as `Relearning`. The record of each step also has the number of rows and of their tokens."""

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        found = super().loss(model, batch, reference)
        rows = batch.harmful
        assert rows is not None
        parts = {"rows": float(len(rows.owner)), "tokens": float(rows.attention_mask.sum())}
        return Loss(found.total, {**found.parts, **parts})


def response_id(item: str, step: int) -> str:
    """Return the id of a response.

    Args:
        item: Id of the item.
        step: The step after which it was answered.

    Returns:
        The id.
    """
    return f"{item}{_AT}{step}"


def item_and_step(response: str) -> tuple[str, int]:
    """Return the item and the step of a response (see `response_id`)."""
    item, _, step = response.rpartition(_AT)
    return item, int(step)


@dataclass(frozen=True)
class Answers(Snapshots):
    """Stores answers to prompts after some steps, as `Snapshots` stores the model. The model itself is not stored.

    Attributes:
        items: The prompts.
        template: Renders them.
        plain: Template of the base model, which judges the coherence of the answers.
        decoding: How they are answered.
        until: The step at which the training pauses.
        lr: Learning rate, for the message of a training that diverged.
    """

    items: Sequence[Item]
    template: Template
    plain: Template
    decoding: Decoding
    until: int
    lr: float

    def folder(self, root: Path, step: int) -> Path:
        asked = [self.template.value, self.plain.value, self.decoding.model_dump(mode="json")]
        key = digest_of([*asked, [[item.id, item.prompt, item.context, item.answer_prefix] for item in self.items]])
        return root / f"answers-{key[:16]}-{step}"

    def keep(self, root: Path, step: int, model: PreTrainedModel) -> None:
        import torch

        from wpn_bench.engine.generation import generate

        if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
            raise diverged("weights of the relearnt model are not finite", step, self.lr)
        texts = [self.template.render(item) for item in self.items]
        training, devices = model.training, [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            model.eval()
            found = generate(model, self.tokenizer, texts, self.decoding)
            model.train(training)
        rows = [
            {**response_row(item, self.plain, text, answer), "id": response_id(item.id, step)}
            for item, text, answer in zip(self.items, texts, found, strict=True)
        ]
        folder = self.folder(root, step)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / RESPONSES, rows)
        checkpoints.seal(folder)

    def hand_over(self, root: Path) -> None:
        rows = [row for step in self.steps for row in read_rows(self.folder(root, step) / RESPONSES)]
        write_rows(self.out / RESPONSES, rows)

    def _is_of_use(self, root: Path, step: int) -> bool:
        return step <= self.until and super()._is_of_use(root, step)


def run_relearn_trial_stage(ctx: StageContext) -> None:
    """Fine-tune the input `model` on `forget`, and answer `prompts` after each step of the parameter `steps`.

    The training pauses after the last of these steps. If `ctx.local` has a folder `checkpoints`, another job of the same training goes on
    from there. Training and weights are in float32, as in the relearning attack. The stage writes `responses.jsonl`
    for the judges, in which the id of a response is that of its item and the step, and `budget.json` with the rows and tokens that
    were trained on until each step.
    """
    from wpn_bench import models
    from wpn_bench.unlearn.train import train

    config, steps = RelearnConfig(**ctx.params["config"], save_every=0), ctx.params["steps"]
    copies = 2 if config.lora else 4
    models.make_room(copies * models.weights_bytes(ctx.needs["model"], "float32"), ctx.local["device"])
    model = models.load_fresh(ctx.needs["model"], ctx.local["device"])
    tokenizer = models.load_tokenizer(ctx.needs["model"])
    template = Template.parse(ctx.params["template"])
    plain = Template.parse(ctx.params.get("plain_template", ctx.params["template"]))
    until = max(steps)
    answers = Answers(
        steps,
        tokenizer,
        ctx.out,
        read_items(ctx.needs["prompts"]),
        template,
        plain,
        Decoding(**ctx.params["decoding"]),
        until,
        config.lr or 0.0,
    )
    trained = train(
        model,
        tokenizer,
        CountedRelearning(config),
        read_items(ctx.needs["forget"]),
        (),
        template=template,
        seed=ctx.params["seed"],
        advance=ctx.progress(until, "steps"),
        snapshots=answers,
        checkpoints=Path(ctx.local["checkpoints"]) if "checkpoints" in ctx.local else ctx.scratch,
        until=until,
    )
    parts = [row["parts"] for row in trained.history]
    spent = {what: [int(sum(one[what] for one in parts[:step])) for step in steps] for what in ("rows", "tokens")}
    write_json(ctx.out / BUDGET, {"steps": list(steps), **spent})


def read_budget(folder: Path) -> dict[int, dict[str, int]]:
    """Return the rows and tokens that an attack trained on until each of its steps.

    Args:
        folder: Artifact of the stage.

    Returns:
        `rows` and `tokens`, by step.
    """
    found: dict[str, Any] = load_json(folder / BUDGET, "repeat the run with --recompute")
    each = zip(found["steps"], found["rows"], found["tokens"], strict=True)
    return {step: {"rows": rows, "tokens": tokens} for step, rows, tokens in each}


STAGE = Stage(
    "wpn_bench.attacks.relearn_trial:run_relearn_trial_stage",
    1,
    (*LM_LIBRARIES, "accelerate", "peft"),
    memory="wpn_bench.preflight.estimates:relearn_search_needs",
    part="attack",
    section="wpn_bench.report.relearn_search:section",
)
