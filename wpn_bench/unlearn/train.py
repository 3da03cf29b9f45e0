"""The one training loop: `transformers.Trainer` with a method's loss in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import JobFailed
from wpn_bench.executors import StageContext
from wpn_bench.progress import Advance, Stopwatch
from wpn_bench.prompts import Item
from wpn_bench.store import write_json
from wpn_bench.unlearn.methods.base import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING = "training.json"


@dataclass(frozen=True)
class Trained:
    """What training left beside the model: the loss at every step, where it stopped and why."""

    steps: int
    seconds: float
    lr: float
    stopped: str
    history: list[dict[str, Any]]
    checks: list[dict[str, Any]]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    items: Sequence[Item],
    texts: Sequence[str],
    *,
    template: str,
    seed: int,
    reference: PreTrainedModel | None = None,
    harmless_rate: Callable[[PreTrainedModel], float] | None = None,
    advance: Advance = lambda n: None,
    after_step: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train `model` in place with `method`.

    `harmless_rate` measures the validation prompts; it is called every `check_every` steps if the method has a
    `stop_at_harmless_rate`. `after_step` is told of each step done. Raises `JobFailed` when the loss is no longer a number.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from wpn_bench.models import context_length
    from wpn_bench.unlearn.batches import Batch, Batches

    config = method.config
    lr = config.rate(_width(model))
    batches = Batches(
        tokenizer,
        items,
        texts,
        template=template,
        uses=method.uses,
        steps=config.steps,
        batch_size=config.batch_size,
        retain_batch_size=config.retain_batch_size,
        negatives=method.negatives,
        random_answers=method.random_answers,
        max_length=min(config.max_length, context_length(model)),
        retain_max_length=min(config.retain_max_length, context_length(model)),
        seed=seed,
    )
    history: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    stopped = ["all steps done"]

    class UnlearnTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss = method.loss(model, Batch.from_tensors(inputs), reference)
            if not torch.isfinite(loss.total):
                raise JobFailed(
                    f"training diverged: the loss of {method.name} is {float(loss.total.detach())} at step"
                    f" {self.state.global_step + 1}; lower lr (now {lr:.2g}) or the number of steps"
                )
            history.append(
                {"step": self.state.global_step + 1, "loss": float(loss.total.detach()), "parts": loss.parts}
            )
            return loss.total

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(batches)

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            advance(1)
            after_step(state.global_step)
            if (
                harmless_rate is not None
                and config.stop_at_harmless_rate is not None
                and state.global_step % config.check_every == 0
            ):
                model.eval()
                rate = harmless_rate(model)
                model.train()
                checks.append({"step": state.global_step, "harmless_rate": rate})
                if rate >= config.stop_at_harmless_rate:
                    stopped[0] = f"validation harmless rate {rate:.3f} reached {config.stop_at_harmless_rate}"
                    control.should_training_stop = True
            return control

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=config.steps,
            per_device_train_batch_size=1,  # one element of `batches` is a whole batch
            learning_rate=lr,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            adam_beta2=config.beta2,
            max_grad_norm=config.grad_clip,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        trainer = UnlearnTrainer(
            model=model,
            args=arguments,
            train_dataset=batches,
            data_collator=lambda rows: rows[0],
            callbacks=[Watch()],
        )
        # Its printer would put a line of metrics on standard output.
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return Trained(trainer.state.global_step, watch.seconds, lr, stopped[0], history, checks)


def _width(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "hidden_size", 0) or model.get_input_embeddings().weight.shape[1])


def run_train_stage(ctx: StageContext) -> None:
    """Unlearn. Needs `model` (base), `forget`, `retain`, and `validation` where the method stops by its rate.

    Writes the model (safetensors, its tokenizer) and `training.json`; with the parameter `snapshots`, the model after
    each of these steps in `step-<k>/`, too.
    """
    from wpn_bench import models
    from wpn_bench.generation import Decoding, generate
    from wpn_bench.harmless.judges import get_judge
    from wpn_bench.harmless.measure import read_items, read_rows
    from wpn_bench.prompts import render
    from wpn_bench.unlearn.methods import METHODS

    device, dtype = ctx.local["device"], ctx.params["dtype"]
    kind = METHODS.get(ctx.params["method"])
    method = kind(kind.Config(**ctx.params["config"]))
    model = models.load_fresh(ctx.needs["model"], device, dtype)
    tokenizer = models.load_tokenizer(ctx.needs["model"])
    reference = models.load(ctx.needs["model"], device, dtype)[0] if method.needs_reference else None
    harmless_rate = None
    if method.config.stop_at_harmless_rate is not None:
        stop = ctx.params["stop"]
        prompts = read_items(ctx.needs["validation"])
        inputs = [render(item, ctx.params["template"]) for item in prompts]
        judge = get_judge(stop["judge"], device)

        def harmless_rate(current: PreTrainedModel) -> float:
            answers = generate(current, tokenizer, inputs, Decoding(**stop["decoding"]))
            scores = judge.score([a.text for a in answers if a.text is not None])
            known = [s for s in scores if s is not None]
            return sum(s < stop["threshold"] for s in known) / max(1, len(known))

    def keep(step: int) -> None:
        if step in ctx.params.get("snapshots", ()):
            for part in (model, tokenizer):
                part.save_pretrained(ctx.out / f"step-{step}")

    trained = train(
        model,
        tokenizer,
        method,
        read_items(ctx.needs["forget"]),
        [row["text"] for row in read_rows(ctx.needs["retain"] / "texts.jsonl")],
        template=ctx.params["template"],
        seed=ctx.params["seed"],
        reference=reference,
        harmless_rate=harmless_rate,
        advance=ctx.progress(method.config.steps, "steps"),
        after_step=keep,
    )
    model.save_pretrained(ctx.out)
    tokenizer.save_pretrained(ctx.out)
    write_json(
        ctx.out / TRAINING,
        {
            "method": method.name,
            "config": method.config.model_dump(),
            "seed": ctx.params["seed"],
            "lr": trained.lr,
            "steps": trained.steps,
            "seconds": trained.seconds,
            "stopped": trained.stopped,
            "history": trained.history,
            "checks": trained.checks,
        },
    )
