"""The training loop: `transformers.Trainer` with the loss of an unlearning method.

This module imports torch and transformers, which is slow. Import it only where training begins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Advance, Stopwatch
from wpn_bench.unlearn import checkpoints
from wpn_bench.unlearn.batches import Batch, Batches
from wpn_bench.unlearn.divergence import OVERFLOWS, diverged, exploded
from wpn_bench.unlearn.methods.base import Loss, Method
from wpn_bench.unlearn.processes import here
from wpn_bench.unlearn.shards import like, load_optimizer_state, optimizer_state, whole
from wpn_bench.unlearn.sharpness import loss_nearby

PROGRESS = "progress.json"
WEIGHTS = "trained.safetensors"


@dataclass
class Record:
    """The record of a training. Checkpoints contain it, too.

    Attributes:
        history: Step, loss and terms of the loss of each step.
        checks: Step and harmless rate of each evaluation on the validation prompts.
        stopped: Why training ended.
        seconds: Duration of the training until the last checkpoint.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "all steps done"
    seconds: float = 0.0

    @property
    def losses(self) -> list[float]:
        return [h["loss"] for h in self.history]

    @property
    def parts(self) -> list[dict[str, float]]:
        return [h["parts"] for h in self.history]


class Objective(torch.nn.Module):
    """The loss of a method as a module, which DDP or FSDP can wrap.

    Within one forward pass of this module, the method may call the model, or parts of it, any number of times.
    """

    def __init__(self, model: Any, method: Method, reference: Any, sharded: bool) -> None:
        """Wrap a model, a method and its reference.

        Args:
            model: The trained model.
            method: The unlearning method.
            reference: The frozen reference, or None.
            sharded: Whether the reference is sharded over the processes like the model. If not, each process has all of
                it.
        """
        super().__init__()
        self.model = model
        self.method = method
        self._no_split_modules = getattr(model, "_no_split_modules", None)
        if sharded and reference is not None:
            self.frozen = reference.requires_grad_(False)
        # In a tuple, the reference is not registered as a submodule, which would be trained, moved and sharded.
        self._reference = (reference,)

    def train(self, mode: bool = True) -> Objective:
        """Set the mode of the model only. The reference stays in evaluation mode, without dropout."""
        self.training = mode
        self.model.train(mode)
        return self

    def forward(self, inputs: Any) -> tuple[Any, dict[str, float]]:
        batch, rho = Batch.from_tensors(inputs), self.method.config.sam

        def compute() -> Loss:
            return self.method.loss(self.model, batch, self._reference[0])

        loss = loss_nearby(self.model, compute, rho) if rho else compute()
        return loss.total, loss.parts


class UnlearnTrainer(Trainer):
    """A trainer that computes `method.loss` for each micro-batch, and raises `JobFailed` if training diverges.

    The loss of a step is the mean over its micro-batches and over all processes. Checkpoints contain the trained
    weights (with LoRA only the adapters), the trainer's own state and the record. Their files do not depend on the
    number of processes.
    """

    def __init__(
        self,
        *,
        model: Any,
        method: Method,
        reference: Any,
        batches: Batches,
        record: Record,
        peak_lr: float,
        **rest: Any,
    ) -> None:
        self.taught = model
        self.method = method
        self.batches = batches
        self.record = record
        self.peak_lr = peak_lr
        self.overflows = 0
        self._micro: list[tuple[float, dict[str, float]]] = []
        method.follow(record.parts)
        objective = Objective(model, method, reference, here().sharded)
        super().__init__(model=objective, train_dataset=batches, data_collator=lambda rows: rows[0], **rest)
        clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = lambda *args, **kwargs: self._watch_gradients(clip(*args, **kwargs))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if here().sharded:
            from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

            # accelerate allows FSDP on GPUs only, but version 2 of torch's FSDP also runs on CPUs.
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = getattr(state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
            self.is_fsdp_enabled = True

    def get_train_dataloader(self) -> Any:
        # There is no sampler, because `batches` is already in the order of the seed and has only this process's part.
        batches: Any = self.batches  # a data set may be any sequence
        return torch.utils.data.DataLoader(batches, batch_size=1, collate_fn=self.data_collator)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, parts = model(inputs)
        # All processes get the same means, so that they make the same decisions.
        every = torch.tensor([float(loss.detach()), *parts.values()], dtype=torch.float64, device=loss.device)
        value, *means = (here().total(every) / here().count).tolist()
        if not math.isfinite(value):
            raise self._diverged(f"the loss of {self.method.name} is {value}")
        self._micro.append((value, dict(zip(parts, means, strict=True))))
        return (loss, None) if return_outputs else loss

    def _watch_gradients(self, norm: Any) -> Any:
        """Return the norm of all gradients before clipping.

        Raises `JobFailed` if it is not finite (fp16: too often).
        """
        if math.isfinite(float(norm)):
            self.overflows = 0
            return norm
        # With fp16, the initial loss scale overflows. These steps are skipped.
        self.overflows += 1
        if self.accelerator.scaler is None or self.overflows > OVERFLOWS:
            raise self._diverged(f"the gradient of {self.method.name} has norm {float(norm)}")
        return norm

    def end_of_step(self) -> None:
        """Record the mean loss over the step's micro-batches. Raises `JobFailed` if the loss has exploded."""
        values = [value for value, _ in self._micro]
        names = self._micro[0][1]
        parts = {name: sum(p[name] for _, p in self._micro) / len(values) for name in names}
        self._micro.clear()
        self.record.history.append({"step": self.state.global_step, "loss": sum(values) / len(values), "parts": parts})
        self.method.follow(self.record.parts)
        if exploded(self.record.losses):
            raise self._diverged(f"the loss of {self.method.name} exploded", self.state.global_step)

    def _diverged(self, what: str, step: int | None = None) -> Exception:
        return diverged(what, step or self.state.global_step + 1, self.peak_lr, self.record.losses)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.record.history:
            logs |= {f"loss/{name}": value for name, value in self.record.history[-1]["parts"].items()}
        super().log(logs, *args, **kwargs)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or self.args.output_dir)
        weights = {name: whole(p.detach()).contiguous() for name, p in _trained(self.taught)}
        if here().main:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, p in _trained(self.taught):
                p.copy_(like(weights[name], p))

    def restore(self, checkpoint: Path) -> None:
        """Load the trained weights of a checkpoint, without training further."""
        self._load_from_checkpoint(str(checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not here().sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state(self.optimizer)
        if here().main:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not here().sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            state, schedule = (
                torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
                for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
            )
            load_optimizer_state(self.optimizer, state)
            self.lr_scheduler.load_state_dict(schedule)


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


class Watch(TrainerCallback):
    """Acts after each optimiser step of a training.

    It appends a row to the training log. Every `check_every` steps it evaluates the validation prompts, if the training stops at a
    harmless rate, and every `save_every` steps it asks the trainer for a checkpoint. After step
    `pause_at` it asks for a checkpoint and ends the training (`paused`), unless the training has stopped by itself.
    """

    def __init__(
        self,
        trainer: UnlearnTrainer,
        current: Callable[[], Any],
        harmless_rate: Callable[[Any], float] | None,
        save_every: int,
        advance: Advance,
        after_step: Callable[[int], None],
        pause_at: int | None = None,
    ) -> None:
        self.pause_at = pause_at
        self.paused = False
        self.trainer = trainer
        self.current = current
        self.harmless_rate = harmless_rate
        self.save_every = save_every
        self.advance = advance
        self.after_step = after_step
        self.clock = Stopwatch()
        self.seconds_before = trainer.record.seconds

    @property
    def seconds(self) -> float:
        """Return the duration of the training in seconds, including the time before it was resumed."""
        return self.seconds_before + self.clock.seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if here().count > 1:
            # Each process has different items, so its dropout must also be different.
            torch.manual_seed(args.seed + 2**32 * here().rank)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.end_of_step()
        self.advance(1)
        self.after_step(state.global_step)
        config = self.trainer.method.config
        goal = config.stop_at_harmless_rate
        if self.harmless_rate is not None and goal is not None and state.global_step % config.check_every == 0:
            rate = self._look()
            self.trainer.record.checks.append({"step": state.global_step, "harmless_rate": rate})
            if rate >= goal:
                self.trainer.record.stopped = f"validation harmless rate {rate:.3f} reached {goal}"
                control.should_training_stop = True
        # No checkpoint is written after training stopped, because resuming from it would take one more step.
        due = self.save_every > 0 and state.global_step % self.save_every == 0
        if state.global_step == self.pause_at and not control.should_training_stop:
            self.paused = due = True
        control.should_save = due and not control.should_training_stop
        control.should_training_stop = control.should_training_stop or self.paused
        return control

    def _look(self) -> float:
        """Return the harmless rate of the model as it would be saved. This does not change the following steps."""
        assert self.harmless_rate is not None
        model, rate = self.current(), 0.0
        if not here().main:
            return here().agree(rate)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _unpatched(model):
            model.eval()
            rate = self.harmless_rate(model)
            model.train()
        return here().agree(rate)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        here().wait()  # every process writes the state of its random generators
        if not here().main:
            return control
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.trainer.record.seconds = self.seconds
        write_json(folder / PROGRESS, asdict(self.trainer.record))
        checkpoints.seal(folder)
        checkpoints.prune(folder.parent)
        return control


def read_record(checkpoint: Path) -> Record:
    """Read the record of a checkpoint."""
    return Record(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))


@contextmanager
def half_precision(models: Sequence[Any], kind: str, device: str) -> Iterator[None]:
    """Run the forward passes of models in half precision within a `with` block. A whole model's outputs are float32.

    The trainer does this only for whole forward passes of the trained model. But a loss may call the decoder and the
    output head separately. And the reference must round like the model, or the two would differ before the first step.

    Args:
        models: The models.
        kind: "bf16", "fp16", or "no" for no change.
        device: Type of the device, "cpu" or "cuda".
    """
    if kind == "no":
        yield
        return
    from accelerate.utils import convert_outputs_to_fp32

    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    patched = []
    try:
        for model in models:
            for part in _parts(model):
                # Each part has its own autocast object. An object that is entered within itself stays active forever.
                forward = torch.autocast(device, dtype=dtype)(part.forward)
                forward.autocast_dtype = dtype  # see `engine.readout.rounded_to`
                part.forward = convert_outputs_to_fp32(forward) if part is model else forward
                patched.append(part)
        yield
    finally:
        for part in patched:
            vars(part).pop("forward", None)


def _parts(model: Any) -> list[Any]:
    """Return the parts that a loss may call: the model, its decoder and its output head."""
    parts = [model, model.base_model, model.get_output_embeddings()]
    return [part for k, part in enumerate(parts) if part is not None and part not in parts[:k]]


@contextmanager
def _unpatched(model: Any) -> Iterator[None]:
    """Restore the model's own forward methods within a `with` block.

    The saved model uses them, and generation inspects their signatures.
    """
    patches = [(part, vars(part).pop("forward")) for part in _parts(model) if "forward" in vars(part)]
    try:
        yield
    finally:
        for part, forward in patches:
            part.forward = forward
