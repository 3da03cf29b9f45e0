"""Train a model with the loss of a method. Unlearning, relearning and tuning use the function `train`."""

from __future__ import annotations

import copy
import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.files import try_lock, write_json
from wpn_bench.core.heap import freed_memory_kept
from wpn_bench.core.machine import environment_variables, torch_threads
from wpn_bench.core.model_files import model_signature
from wpn_bench.core.progress import Advance
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models import SHARD
from wpn_bench.prompts import Item, Template
from wpn_bench.unlearn.benign import BenignUse
from wpn_bench.unlearn.change import Change
from wpn_bench.unlearn.divergence import diverged
from wpn_bench.unlearn.lora import ADAPTER, Adapters
from wpn_bench.unlearn.methods.base import Method, code_of
from wpn_bench.unlearn.processes import here
from wpn_bench.unlearn.snapshots import Snapshots

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING = "training.json"
UNDO = "undo"  # folder of the distillation's checkpoints, within that of the training


@dataclass(frozen=True)
class Trained:
    """The record of a training.

    Attributes:
        steps: Number of optimiser steps, with those of a distillation after the training.
        seconds: Duration, including the time before it was resumed.
        lr: Peak learning rate.
        stopped: Why training ended.
        history: Step, loss and terms of the loss of each step.
        checks: Step and harmless rate of each evaluation on the validation prompts.
        paused: Whether training only pauses, and would go on without `until`.
        distilled: The record of the distillation after the training; None without the option `undo`.
    """

    steps: int
    seconds: float
    lr: float
    stopped: str
    history: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    paused: bool = False
    distilled: Trained | None = None


@dataclass(frozen=True)
class Curves:
    """The services to which training curves are sent.

    Attributes:
        report_to: Names of the services, as in transformers' `report_to`.
        name: Name of the run at the service.
        folder: Folder for services that write files.
    """

    report_to: tuple[str, ...] = ()
    name: str = ""
    folder: Path | None = None


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    items: Sequence[Item],
    texts: Sequence[str],
    *,
    template: Template,
    seed: int,
    benign: Sequence[Item] = (),
    benign_share: float = 0.5,
    benign_use: BenignUse = "items",
    reference: PreTrainedModel | None = None,
    harmless_rate: Callable[[PreTrainedModel], float] | None = None,
    advance: Advance = lambda n: None,
    after_step: Callable[[int, Callable[[], PreTrainedModel]], None] = lambda step, current: None,
    snapshots: Snapshots | None = None,
    checkpoints: Path | None = None,
    adapter: Path | None = None,
    curves: Curves | None = None,
    reference_identity: str | None = None,
    until: int | None = None,
) -> Trained:
    """Train a model in place.

    If several processes train together (`processes.py`), each calls this function with the same arguments and processes
    its part of every batch. Only the first process evaluates and writes. With FSDP, only the first process has the
    trained model at the end, and a method that needs a reference must get it as an argument.

    With the option `undo`, the trained model is then replaced by a distilled one (`undo.py`). This needs a single process.

    Args:
        model: The model. With LoRA, the adapters are merged into it at the end.
        tokenizer: Its tokenizer.
        method: The unlearning method with its settings.
        items: The forget set.
        texts: The retain texts.
        template: Renders the prompts.
        seed: Determines the order of items and the choice of responses.
        benign: Items of benign prompts (`benign.py`).
        benign_share: Their share of each batch.
        benign_use: What they are in a batch (see `benign.use_of`).
        reference: The frozen model that some losses need. If None, LoRA uses the model without adapters.
        harmless_rate: Evaluates the validation prompts. It is called every `check_every` steps if the method has a
            `stop_at_harmless_rate`.
        advance: Called with the number of steps finished since its last call.
        after_step: Called after each step with its number and a function that returns the current model (with LoRA, a
            copy with merged adapters; if the method changes the trained weights at the end, a changed copy).
        snapshots: Stores the model after some steps.
        checkpoints: Folder for checkpoints. Training resumes from the newest complete one. With the same settings, it
            ends with the same weights and history as without interruption (bitwise on a CPU).
        adapter: Folder in which LoRA adapters are saved.
        curves: Services to which the training curves are sent.
        reference_identity: Identifies the weights of `reference`, whose results later trainings in this process then
            reuse. None reuses nothing.
        until: Step after which training pauses. It writes a checkpoint there, from which the same training without this
            argument, or with a larger one, goes on. The schedule of the learning rate is that of the whole training.

    Returns:
        The record of the training.

    Raises:
        JobFailed: Training diverged (see `divergence.py`).
    """
    import torch
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from wpn_bench.models import context_length
    from wpn_bench.models.sizes import SMALL
    from wpn_bench.unlearn import checkpoints as kept
    from wpn_bench.unlearn.batches import Batches
    from wpn_bench.unlearn.loop import Record, UnlearnTrainer, Watch, half_precision, read_record
    from wpn_bench.unlearn.passes import prepare
    from wpn_bench.unlearn.remembered import remember
    from wpn_bench.unlearn.shards import gather

    config = method.config
    curves = curves or Curves()
    together = here()
    computed_on = torch.device(together.device or model.device).type
    lr = config.peak_lr(width_of(model))
    batches = Batches(
        tokenizer,
        items,
        texts,
        template=template,
        uses=method.uses,
        steps=config.steps * config.accumulation,
        batch_size=config.batch_size,
        retain_batch_size=config.retain_batch_size,
        negatives=method.negatives,
        random_answers=method.random_answers,
        max_length=min(config.max_length, context_length(model)),
        retain_max_length=min(config.retain_max_length, context_length(model)),
        seed=seed,
        benign=benign,
        benign_share=benign_share,
        benign_use=benign_use,
        processes=together,
    )
    resumable = None  # where checkpoints remain if this process is killed
    with ExitStack() as stack:
        if computed_on == "cpu" and model.num_parameters() < SMALL:
            # A second thread would gain little, and the result would depend on the number of cores.
            stack.enter_context(torch_threads(1))
        if together.main and (checkpoints is None or not stack.enter_context(try_lock(checkpoints))):
            # No checkpoints are kept, or another process with the same training has locked the folder.
            checkpoints = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            resumable = checkpoints
        checkpoints = together.agree(checkpoints)
        assert checkpoints is not None
        going_on = (
            snapshots.go_on_from if snapshots else partial(kept.latest, is_of_use=lambda step: step <= (until or step))
        )
        before = together.agree(going_on(checkpoints) if together.main else None)
        record = read_record(before) if before else Record()
        adapters = Adapters(model, config.lora, seed) if config.lora else None
        changes = method.change != 1
        change = Change(model, method.change) if changes and adapters is None and together.main else None
        # One process alone cannot use a model that FSDP has sharded. So the first process also keeps a whole model.
        taught = copy.deepcopy(model) if together.sharded and together.main else model
        stack.enter_context(_prepared(taught, config.gradient_checkpointing))
        both = [m for m in (taught, reference) if m is not None]
        if adapters is not None and reference is None and method.needs_reference:
            reference = adapters.reference()
        prepare(taught, reference)
        if reference is not None:
            # The parts of a sharded reference must be computed by all processes or by none.
            known = reference_identity is not None and not together.sharded
            remember(reference, (reference_identity, config.mixed_precision, computed_on) if known else None)
        stack.enter_context(half_precision(both, config.mixed_precision, computed_on))
        stack.enter_context(_environment(curves))
        stack.enter_context(freed_memory_kept())
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            max_steps=config.steps,
            per_device_train_batch_size=1,  # an element of `batches` is a whole micro-batch
            gradient_accumulation_steps=config.accumulation,
            learning_rate=lr,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            adam_beta2=config.beta2,
            max_grad_norm=config.grad_clip,
            fp16=config.mixed_precision == "fp16",  # enables the loss scaler; `half_precision` sets the data type
            seed=seed,
            save_strategy="no",  # `Watch` decides when to save
            logging_strategy="steps" if curves.report_to else "no",
            logging_steps=1,
            report_to=list(curves.report_to),
            run_name=curves.name or None,
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=computed_on == "cpu",
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=True,  # some losses do not use all weights (RMU)
        )
        trainer = UnlearnTrainer(
            model=taught,
            args=arguments,
            method=method,
            reference=reference,
            batches=batches,
            record=record,
            peak_lr=lr,
        )

        def current() -> PreTrainedModel:
            if together.sharded:
                gather(taught, model if together.main else None)
            return model

        def as_saved() -> PreTrainedModel:
            now = current()
            if adapters is not None and together.main:
                return adapters.merged_copy(method.change)
            return now if change is None else change.changed_copy(now)

        def told(step: int) -> None:
            if snapshots and step in snapshots.steps:
                now = as_saved()  # collective, so all processes call it
                if together.main:
                    snapshots.keep(checkpoints, step, now)
            after_step(step, as_saved)

        watch = Watch(
            trainer, as_saved if changes else current, harmless_rate, config.save_every, advance, told, pause_at=until
        )
        trainer.add_callback(watch)
        # This callback would print metrics to the standard output.
        trainer.remove_callback(PrinterCallback)
        advance(len(record.history))
        if before and len(record.history) == until:  # it was interrupted after its last checkpoint
            trainer.restore(before)
            watch.paused = True
        else:
            trainer.train(resume_from_checkpoint=str(before) if before else None)
        current()
        if snapshots and together.main:
            snapshots.hand_over(checkpoints)
    steps = len(record.history)
    stopped = f"paused after step {steps}" if watch.paused else record.stopped
    if not together.main:
        return Trained(steps, watch.seconds, lr, stopped, record.history, record.checks, watch.paused)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise diverged(f"weights of {method.name} are not finite", steps, lr, record.losses)
    if change is not None:
        change.apply(model)
    if adapters is not None:
        adapters.multiply(method.change)
        if adapter is not None:
            adapters.save(adapter)
        adapters.merge()
    model.requires_grad_(True).eval()
    trained = Trained(steps, watch.seconds, lr, stopped, record.history, record.checks, watch.paused)
    if config.undo is None or watch.paused:
        return trained
    from wpn_bench.unlearn.undo import distil

    # Free the optimiser's moments and the copy of the base's weights, before another model is in memory.
    del trainer, watch
    change = None
    gc.collect()
    distilled = distil(
        model,
        tokenizer,
        config,
        items,
        texts,
        template=template,
        seed=seed,
        benign=benign,
        benign_share=benign_share,
        benign_use=benign_use,
        advance=advance,
        checkpoints=resumable and resumable / UNDO,
    )
    return replace(
        trained,
        steps=trained.steps + distilled.steps,
        seconds=trained.seconds + distilled.seconds,
        distilled=distilled,
    )


def width_of(model: PreTrainedModel) -> int:
    """Return the hidden size of a model."""
    return int(
        getattr(model.config.get_text_config(), "hidden_size", 0) or model.get_input_embeddings().weight.shape[1]
    )


@contextmanager
def _prepared(model: PreTrainedModel, recompute: bool) -> Iterator[None]:
    """Prepare a model for training within a `with` block.

    The key-value cache is disabled, and gradient checkpointing is enabled if `recompute` is true. Both are undone
    afterwards, so that the saved configuration does not contain them.
    """
    config = model.config.get_text_config()
    cache = getattr(config, "use_cache", True)
    if recompute:
        # transformers has renamed these methods, and will remove the old names in version 6 of the library.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    try:
        yield
    finally:
        config.use_cache = cache
        if recompute:
            disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
            disable()


def _environment(curves: Curves) -> AbstractContextManager[None]:
    """Set TensorBoard's folder, which transformers' callback reads only from the environment."""
    if curves.folder is None or "TENSORBOARD_LOGGING_DIR" in os.environ:
        return nullcontext()
    return environment_variables(TENSORBOARD_LOGGING_DIR=str(curves.folder / curves.name))


def run_train_stage(ctx: StageContext) -> None:
    """Unlearn with one method.

    The inputs are `model` (the base model), `forget`, `retain`, `benign` if there are items of benign prompts, and
    `validation` if the method stops at a harmless rate. The stage writes the model (safetensors), its tokenizer, `training.json`, and with LoRA the adapter in
    `adapter/`. With the parameter `snapshots`, it also writes the model after each of these steps to `step-<k>/`.

    With the parameter `until`, the model is that after this step of the training (see `train`). The checkpoints are then in
    the folder `checkpoints` of `ctx.local`, in which the job of the whole training finds them.

    If `ctx.local` has a `launch`, new processes do all of this. They call this function again without `launch`.
    """
    from wpn_bench.unlearn import launch

    if "launch" in ctx.local:
        launch.run(ctx)
        return
    import torch

    from wpn_bench import models
    from wpn_bench.engine.generation import generate
    from wpn_bench.harmless.judges import Exchange, Judge, judge_of, scores_of
    from wpn_bench.harmless.stages import split_reasoning, write_usage
    from wpn_bench.models.backends import Decoding
    from wpn_bench.prompts.items import read_items, read_rows
    from wpn_bench.unlearn.methods import METHODS

    device, dtype = ctx.local["device"], ctx.params["dtype"]
    together = here()
    kind = METHODS.get(ctx.params["method"])
    if ctx.params.get("code", code := code_of(kind)) != code:
        raise UserError(
            f"the method {kind.name} is not the one that this run began with",
            "repeat the command, and install the same packages on every machine",
        )
    method = kind(kind.Config(**ctx.params["config"], **ctx.local.get("config", {})))
    # Mixed precision trains float32 weights. The saved model has the requested data type.
    trained_in = dtype if method.config.mixed_precision == "no" else "float32"
    # Without LoRA, these are the weights, their gradients, Adam's two moments and the reference. Distillation adds the teacher.
    copies = 1 if method.config.lora else 6 if method.config.undo else 5
    models.make_room(copies * models.weights_bytes(ctx.needs["model"], trained_in), device)
    model = models.load_fresh(ctx.needs["model"], device, trained_in)
    tokenizer = models.load_tokenizer(ctx.needs["model"])
    # With FSDP, one process cannot run the sharded model without its adapters, so the reference is a separate model.
    held_apart = method.needs_reference and (not method.config.lora or together.sharded)
    reference = models.load(ctx.needs["model"], device, trained_in)[0] if held_apart else None
    template = Template.parse(ctx.params["template"])
    harmless_rate = None
    judge: Judge | None = None
    if method.config.stop_at_harmless_rate is not None:
        stop = ctx.params["stop"]
        strip = stop.get("strip_reasoning", False)
        prompts = read_items(ctx.needs["validation"])
        inputs = [template.render(item) for item in prompts]
        measured_on = together.device or device
        judge = judge_of(ctx, stop, measured_on) if together.main else None

        def harmless_rate(current: PreTrainedModel) -> float:
            assert judge is not None
            answers = generate(current.to(measured_on), tokenizer, inputs, Decoding(**stop["decoding"]))
            current.to(device)
            exchanges = [
                Exchange(item.request, split_reasoning(text, answer.text)[1] if strip else answer.text)
                for item, text, answer in zip(prompts, inputs, answers, strict=True)
                if answer.text is not None
            ]
            known = [s for s in scores_of(judge, exchanges) if s is not None]
            return sum(s < stop["threshold"] for s in known) / max(1, len(known))

    snapshots, until = ctx.params.get("snapshots", ()), ctx.params.get("until")
    trained = train(
        model,
        tokenizer,
        method,
        read_items(ctx.needs["forget"]),
        [row["text"] for row in read_rows(ctx.needs["retain"] / "texts.jsonl")],
        template=template,
        seed=ctx.params["seed"],
        benign=read_items(ctx.needs["benign"]) if "benign" in ctx.needs else (),
        benign_share=ctx.params.get("benign_share", 0.5),
        benign_use=ctx.params.get("benign_use", "items"),
        reference=reference,
        harmless_rate=harmless_rate,
        advance=ctx.progress(until or method.config.all_steps, "steps"),
        snapshots=Snapshots(snapshots, tokenizer, ctx.out) if snapshots else None,
        checkpoints=Path(ctx.local["checkpoints"]) if "checkpoints" in ctx.local else ctx.scratch,
        adapter=ctx.out / ADAPTER,
        curves=Curves(**ctx.local.get("curves", {})),
        reference_identity=f"{ctx.needs['model']} {model_signature(ctx.needs['model'])} {trained_in}",
        until=until,
    )
    if not together.main:
        return
    model.to(getattr(torch, dtype)).save_pretrained(ctx.out, max_shard_size=SHARD)
    tokenizer.save_pretrained(ctx.out)
    if judge is not None:
        write_usage(judge, ctx.params["stop"]["judge"], ctx.out)
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
            **({"paused": trained.paused} if until else {}),
            **({"undo": _record(trained.distilled)} if trained.distilled else {}),
            "processes": together.count,
            "parallel": together.kind,
        },
    )


def _record(distilled: Trained) -> dict[str, Any]:
    return {name: getattr(distilled, name) for name in ("steps", "seconds", "lr", "history")}


STAGE = Stage(
    "wpn_bench.unlearn.train:run_train_stage",
    2,
    (*LM_LIBRARIES, "accelerate", "peft"),
    unhashed_files=("training.json",),
    items="params.config.steps+config.undo.steps",
    speed_params=(
        "method",
        "dtype",
        "config.batch_size",
        "config.retain_batch_size",
        "config.accumulation",
        "config.mixed_precision",
        "config.gradient_checkpointing",
        "config.undo.steps",
    ),
    memory="wpn_bench.preflight.estimates:training_needs",
)
