"""The base class of unlearning methods, which have a loss on forget and retain data and training options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wpn_bench.core.registry import source_digest
from wpn_bench.core.validation import Count
from wpn_bench.unlearn.processes import divisor
from wpn_bench.unlearn.search import Choice, Log, Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch, Rows
    from wpn_bench.unlearn.passes import Pass


# LoRA needs a learning rate about ten times higher, because B starts at zero and W only changes by the product B A. This
# was measured with the lab model (docs/training.md).
LORA_LR = 10.0
# Distillation must repair the damage of the noise, so its default is five times that of unlearning.
UNDO_LR = 0.25


class LoRAConfig(BaseModel):
    """Options of LoRA (Hu et al. 2021, arXiv:2106.09685), which adds alpha / rank * B A to a weight matrix W.

    Attributes:
        rank: Rank of the adapters.
        alpha: Scale; None means 2 * rank, so that the scale of the update is 2 at any rank.
        dropout: Dropout on the adapters' inputs.
        target_modules: Last part of the names of the adapted modules, such as `q_proj`. "all-linear" adapts every
            linear module except the output head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    rank: Count = 16
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class UndoConfig(BaseModel):
    """Options of noise and distillation after the training (`wpn_bench/unlearn/undo.py`).

    Attributes:
        alpha: Share of the noise in the weights with which distillation begins.
        beta: Size of the noise, as a multiple of a new initialisation.
        steps: Number of steps of distillation.
        lr: Peak learning rate of the distillation; None means 0.25 / hidden size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    alpha: float = Field(0.3, gt=0, lt=1)
    beta: float = Field(0.1, gt=0, le=1)
    steps: Count = 200
    lr: float | None = Field(None, gt=0)

    def peak_lr(self, width: int) -> float:
        """Return `lr`, or the default for a hidden size of `width`."""
        return self.lr or UNDO_LR / width


class MethodConfig(BaseModel):
    """Training options of all methods. A method may add fields and change defaults.

    If `lr` is None, it is 0.05 / hidden size: 6.5e-5 for OPT-125M (hidden size 768), 2e-5 for OPT-2.7B (2560). The best
    learning rate of Adam decreases with the width (Yang et al. 2022, "Tensor Programs V"). With LoRA, it is ten times
    higher (docs/training.md).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    steps: Count = Field(100, description="number of optimiser steps")
    batch_size: Count = Field(8, description="number of forget items per micro-batch")
    retain_batch_size: Count = Field(8, description="number of retain texts per micro-batch")
    accumulation: Count = Field(1, description="number of micro-batches per optimiser step, whose losses are averaged")
    max_length: int = Field(160, ge=8, description="maximum number of tokens in a forget row (prompt and response)")
    retain_max_length: int = Field(128, ge=8, description="maximum number of tokens in a retain row")
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; None means 0.05 / hidden size, or 0.5 / hidden size with LoRA"
    )
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    stop_at_harmless_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="harmless rate on the validation prompts at which training stops; None trains for all steps",
    )
    check_every: Count = Field(1, description="number of steps between two evaluations on the validation prompts")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="data type of forward and backward passes; weights and losses stay in float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="whether activations are recomputed in the backward pass to save memory"
    )
    sam: float | None = Field(
        None,
        gt=0,
        description="sharpness-aware minimisation: norm of the move of the weights at which the gradient is computed, such as 0.05; "
        "a step takes twice the time",
    )
    lora: LoRAConfig | None = Field(
        None, description="options of low-rank adapters, or their rank; None trains all weights"
    )
    undo: UndoConfig | None = Field(
        None,
        description="options of noise and distillation after the training, or the share alpha of the noise; None leaves them out",
    )
    save_every: int = Field(
        50, ge=0, description="number of steps between checkpoints, from which a killed training resumes; 0 writes none"
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _rank_alone(cls, value: Any) -> Any:
        """Accept a rank (`lora: 16`), the defaults (`lora: true`) and no adapters (`lora: false`)."""
        if isinstance(value, bool):
            return LoRAConfig() if value else None
        return {"rank": value} if isinstance(value, int) else value

    @field_validator("undo", mode="before")
    @classmethod
    def _alpha_alone(cls, value: Any) -> Any:
        """Accept a share of noise (`undo: 0.3`), the defaults (`undo: true`) and no noise (`undo: false`)."""
        if isinstance(value, bool):
            return UndoConfig() if value else None
        return {"alpha": value} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _undo_goes_with_the_others(self) -> Self:
        if self.undo and self.lora:
            # The noise is in all weights, so that adapters alone could not repair its damage.
            raise ValueError("undo trains all weights, so it does not work with lora: leave out one of the two")
        return self

    @model_validator(mode="after")
    def _sam_goes_with_the_others(self) -> Self:
        if self.sam and self.gradient_checkpointing:
            # Activations would be computed again in the backward pass, when the weights are no longer moved.
            raise ValueError("sam does not work with gradient_checkpointing: leave out one of the two")
        if self.sam and self.mixed_precision == "fp16":
            raise ValueError("sam does not work with fp16, in which its first gradient may vanish: use bf16")
        return self

    @property
    def all_steps(self) -> int:
        """Return the number of steps, with those of a distillation after the training."""
        return self.steps + (self.undo.steps if self.undo else 0)

    def peak_lr(self, width: int) -> float:
        """Return `lr`, or the default for a hidden size of `width`."""
        return self.lr or (LORA_LR if self.lora else 1.0) * 0.05 / width


# These options do not change the trained model.
NOT_IN_DIGEST = ("save_every",)
# These options are left out of the digest while they are None, because they are newer than stored models.
_NEWER = ("sam", "undo")


def digested(config: MethodConfig) -> dict[str, Any]:
    """Return the options that determine the trained model, for the parameters of a job."""
    options = config.model_dump(mode="json", exclude=set(NOT_IN_DIGEST))
    return {name: value for name, value in options.items() if value is not None or name not in _NEWER}


@dataclass
class Loss:
    """The loss of one batch.

    Attributes:
        total: Scalar to minimise.
        parts: Value of each term, for the training curve.
    """

    total: Tensor
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A configuration of a method that has a name of its own, such as `wpn:paper`.

    Attributes:
        label: What reports write in brackets behind the title of the method.
        paper: Source of this configuration, in place of the method's `paper`.
        options: Options that differ from the method's defaults.
    """

    label: str
    paper: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Method(ABC):
    """Base class of unlearning methods.

    Write each subclass in its own file. Its docstring contains the formula of the loss, and `loss` follows the formula
    line by line.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        paper: Authors, year, title and arXiv number.
        Config: Class of the options.
        variants: Named configurations: `paper` is `METHOD:paper` on the command line. The name "" stands for the defaults, and
            says what they are.
        search: Options that `--tune` varies, and their ranges. A subclass adds its own: `search: ClassVar =
            {**Method.search, "kl": Log(0.3, 3)}`.
        version: Version of the loss.
        config: The options.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    variants: ClassVar[Mapping[str, Variant]] = {}
    search: ClassVar[Mapping[str, Range]] = {
        "lr": Log(1 / 3, 3, relative=True),
        "steps": Choice((0.5, 1, 2), relative=True),
    }
    # Increase the version when the loss changes, so that models trained with the old loss are not reused.
    version: ClassVar[int] = 1

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def uses(self) -> frozenset[str]:
        """Return the parts of a batch that the loss uses, out of `harmless`, `harmful`, `random` and `retain`."""

    @property
    def negatives(self) -> int:
        """Return the number of harmful responses per item."""
        return 1

    @property
    def random_answers(self) -> int:
        """Return the number of random responses per item."""
        return 0

    @property
    def needs_reference(self) -> bool:
        """Return whether the loss uses the frozen base model."""
        return False

    @property
    def change(self) -> float:
        """Return the factor of the change of the weights in the saved model, base + change * (trained - base)."""
        return 1.0

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:  # noqa: B027
        """Set what the loss keeps from step to step. Most methods keep nothing.

        This is called at the beginning of a training, after a restart, and after each optimiser step. What is kept must be a
        function of `history` alone. A resumed training then continues as if it had not been interrupted, and all
        processes keep the same.

        Args:
            history: The terms of the loss (`Loss.parts`) of all steps so far, each the mean over the micro-batches and
                processes of its step.
        """

    def read(self, model: PreTrainedModel, batch: Batch, **options: Any) -> Pass:
        """Describe the forward pass over all rows of a batch that the loss uses.

        The functions below take it in place of the model. A prompt that several rows begin with is then computed once
        (`wpn_bench/unlearn/passes.py`).

        Args:
            model: The model.
            batch: The rows.
            **options: Further arguments of `Pass`.

        Returns:
            The pass, which is computed when the loss first asks for a value.
        """
        from wpn_bench.unlearn.passes import Pass

        used = {name: rows for name, rows in vars(batch).items() if name in self.uses}
        retain = used.pop("retain", None)
        return Pass(model, list(used.values()), [retain], **options)

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        """Compute the loss of one batch.

        Args:
            model: The model to train.
            batch: The rows that `uses` names.
            reference: The frozen base model; None unless `needs_reference`.

        Returns:
            The loss.
        """


def code_of(method: type[Method]) -> dict[str, Any]:
    """Return what identifies the code of a method in the digest of a training: its `version`, and a plug-in's source.

    The `version` of a built-in method is increased when its loss changes. The author of a plug-in may forget this, so
    the digest of all Python files in the plug-in's package is included.
    """
    return {"version": method.version, "source": source_digest(method)}


def predicted(rows: Rows, mask: Tensor | None = None) -> Tensor:
    """Return which predictions count. Column t is the prediction of the token in column t + 1.

    Args:
        rows: R rows of T tokens.
        mask: (R, T), 1 for tokens whose prediction counts; None means all tokens.

    Returns:
        (R, T-1), 1 in column t if the token in column t + 1 is in `mask`, and neither it nor the token in column t is
        padding.
    """
    kept = rows.attention_mask if mask is None else mask * rows.attention_mask
    return kept[:, 1:] * rows.attention_mask[:, :-1]


def forward(model: Any, rows: Rows, **options: Any) -> Any:
    """Run the model on rows that may be padded on either side.

    Args:
        model: A causal language model, or its decoder.
        rows: R rows of T tokens.
        **options: Further arguments of the model's forward pass.

    Returns:
        The output of the model.
    """
    options |= positions(rows)
    return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **options)


def positions(rows: Rows) -> dict[str, Tensor]:
    """Return `position_ids` for rows that are padded on the left, and an empty dict for rows padded on the right.

    Positions count from the first token that is not padding. Some models do not compute this correctly themselves.
    """
    if bool(rows.attention_mask[:, 0].all()):
        return {}
    return {"position_ids": (rows.attention_mask.cumsum(1) - 1).clamp(min=0)}


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Write values to the positions of a mask.

    Args:
        values: (N,) values.
        mask: (R, T-1) with N ones.

    Returns:
        (R, T-1), zero where `mask` is zero.
    """
    out = values.new_zeros(mask.shape)
    out[mask.bool()] = values
    return out


def token_logprobs(model: PreTrainedModel | Pass, rows: Rows, mask: Tensor) -> Tensor:
    """Compute log p(token | tokens before it) for selected tokens.

    Args:
        model: A causal language model, or a pass over all rows of the loss (`Method.read`).
        rows: R rows of T tokens.
        mask: (R, T-1), 1 for the selected tokens. Column t stands for the token in column t + 1.

    Returns:
        (R, T-1) in nats, zero where `mask` is zero.
    """
    from wpn_bench.unlearn.passes import pass_over

    return pass_over(model, rows).logprobs(rows, mask)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Average values over the tokens of the whole batch, across all processes of a distributed training.

    Args:
        values: Values of any shape.
        mask: The same shape, 1 for the values to average.

    Returns:
        A scalar.
    """
    return (values * mask).sum() / divisor(mask.sum())


def mean_of(values: Tensor) -> Tensor:
    """Average values (R,) over the rows of the whole batch, across all processes of a distributed training."""
    return values.mean() * (len(values) / divisor(values.new_tensor(len(values))))


def cross_entropy(model: PreTrainedModel | Pass, rows: Rows, mask: Tensor | None = None) -> Tensor:
    """Compute the mean cross-entropy of tokens.

    Args:
        model: A causal language model.
        rows: R rows of T tokens.
        mask: (R, T), 1 for tokens to count; None counts every token that is not padding.

    Returns:
        A scalar in nats per token.
    """
    kept = predicted(rows, mask)
    return -mean_over(token_logprobs(model, rows, kept), kept)


def response_logprobs(model: PreTrainedModel | Pass, rows: Rows) -> Responses:
    """Compute log p(y | x) of the response in each row.

    Args:
        model: A causal language model.
        rows: R rows of T tokens, with a response mask.

    Returns:
        Sums and means over the response tokens.
    """
    kept = predicted(rows, rows.response_mask)
    total = token_logprobs(model, rows, kept).sum(1)
    return Responses(total, total / kept.sum(1).clamp(min=1), kept.sum(1))


@dataclass
class Responses:
    """Log-likelihoods of R responses, in nats.

    Attributes:
        total: (R,), sum_t log p(y_t | x, y_<t).
        mean: (R,), the mean over the response tokens.
        n: (R,), number of response tokens.
    """

    total: Tensor
    mean: Tensor
    n: Tensor

    @property
    def ce(self) -> Tensor:
        """Return the mean cross-entropy over the tokens of all responses, a scalar."""
        return -self.total.sum() / divisor(self.n.sum())


def kl_to_reference(model: PreTrainedModel | Pass, reference: PreTrainedModel | Pass, rows: Rows) -> Tensor:
    """Compute KL(p_ref || p_theta), averaged over all predicted tokens.

    Args:
        model: The trained model, p_theta.
        reference: The frozen base model, p_ref.
        rows: R rows of T tokens.

    Returns:
        A scalar in nats per token.
    """
    from wpn_bench.unlearn.passes import pass_over

    kept = predicted(rows)
    return pass_over(model, rows).kl_from(pass_over(reference, rows), rows, kept).sum() / divisor(kept.sum())


def plus_kl(
    loss: Loss, weight: float, model: PreTrainedModel | Pass, reference: PreTrainedModel | None, retain: Rows | None
) -> Loss:
    """Return `loss` + weight * KL(p_ref || p_theta)(retain). With weight 0, the KL term is not computed.

    Args:
        loss: The loss to which the term is added.
        weight: Weight of the KL term.
        model: The trained model.
        reference: The frozen base model; may be None if the weight is 0.
        retain: Retain rows; may be None if the weight is 0.

    Returns:
        The sum.
    """
    if not weight:
        return loss
    assert reference is not None
    assert retain is not None
    return _plus(loss, weight, "retain_kl", kl_to_reference(model, reference, retain))


def plus_cross_entropy(loss: Loss, weight: float, model: PreTrainedModel | Pass, retain: Rows | None) -> Loss:
    """Return `loss` + weight * CE(retain). With weight 0, the cross-entropy is not computed.

    Args:
        loss: The loss to which the term is added.
        weight: Weight of the cross-entropy.
        model: The trained model.
        retain: Retain rows; may be None if the weight is 0.

    Returns:
        The sum.
    """
    if not weight:
        return loss
    assert retain is not None
    return _plus(loss, weight, "retain_loss", cross_entropy(model, retain))


def _plus(loss: Loss, weight: float, name: str, term: Tensor) -> Loss:
    return Loss(loss.total + weight * term, {**loss.parts, name: float(term.detach())})
