"""Add low-rank adapters to a model, save them, and merge them into its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.unlearn.methods.base import LoRAConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter"
_NAME = "default"


class Adapters:
    """Low-rank adapters in a model.

    The model keeps its class and its module names, so the loss of a method works with and without adapters.
    """

    def __init__(self, model: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
        """Add adapters to a model in place. Afterwards only the adapters require gradients.

        Args:
            model: The model.
            config: Rank, scale, dropout and target modules.
            seed: Seed of the adapters' initial weights.

        Raises:
            UserError: The model lacks the target modules, or they share their weights with the embeddings.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        targets = config.target_modules
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha or 2 * config.rank,
            lora_dropout=config.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        # Adapters use only the random generator of the CPU.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._wrapped: Any = get_peft_model(model, settings, adapter_name=_NAME)
            except ValueError as e:
                raise UserError(
                    f"LoRA finds no modules to adapt in {type(model).__name__} ({' '.join(str(e).split())[:200]})",
                    "set lora: target_modules to linear modules of the model, or to all-linear",
                ) from e
        _refuse_embeddings(model, targets)
        self._off = False

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Disable the adapters and set the model to evaluation mode, within a `with` block."""
        if self._off:  # this is a nested call
            yield
            return
        training = self._wrapped.training
        self._off = True
        # Use the inner model, because `disable_adapter` of the outer one first inspects the state of every module.
        self._wrapped.base_model.disable_adapter_layers()
        self._wrapped.eval()
        try:
            yield
        finally:
            self._wrapped.train(training)
            self._wrapped.base_model.enable_adapter_layers()
            self._off = False

    def reference(self) -> PreTrainedModel:
        """Return the model without adapters as the frozen reference for a loss. It shares the model's weights."""
        seen: Any = _WithoutAdapters(self, self._wrapped.get_base_model())
        return seen

    def save(self, folder: Path) -> None:
        """Write the adapter in the format of `peft.PeftModel.from_pretrained(base, folder)`.

        The files do not name the base model, because its path may be private, and differs between machines.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        weights = get_peft_model_state_dict(self._wrapped, adapter_name=_NAME, save_embedding_layers=False)
        weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = self._wrapped.peft_config[_NAME]
        settings.base_model_name_or_path, settings.inference_mode = None, True
        settings.save_pretrained(str(folder))

    def merged_copy(self, scale: float = 1.0) -> PreTrainedModel:
        """Return a copy of the model with the adapters merged. The model itself keeps its adapters.

        Args:
            scale: Factor of the adapters in the copy.

        Returns:
            The copy.
        """
        import copy

        wrapped = copy.deepcopy(self._wrapped)
        _multiply(wrapped, scale)
        merged: PreTrainedModel = wrapped.merge_and_unload()
        return merged

    def multiply(self, scale: float) -> None:
        """Multiply the product B A of every adapter by a factor."""
        _multiply(self._wrapped, scale)

    def merge(self) -> PreTrainedModel:
        """Merge the adapters into the weights: W becomes W + alpha / rank * B A.

        All modules are then plain modules again.
        """
        merged: PreTrainedModel = self._wrapped.merge_and_unload()
        return merged


def _multiply(wrapped: Any, scale: float) -> None:
    if scale == 1:
        return
    import torch

    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if ".lora_B." in name:
                p.mul_(scale)


class _WithoutAdapters:
    """A module that runs without adapters. The same holds for its methods and submodules."""

    def __init__(self, adapters: Adapters, module: Any) -> None:
        self._adapters, self._module = adapters, module

    @property
    def training(self) -> bool:
        """Return whether the module is in training mode, which it never is without its adapters."""
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._adapters.switched_off():
            return self._module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._seen(getattr(self._module, name))

    def __getitem__(self, key: Any) -> Any:
        return self._seen(self._module[key])

    def _seen(self, value: Any) -> Any:
        import torch

        if type(value) is torch.nn.Linear:
            return value  # it has no adapter and no mode, and the loss may read its weight
        if isinstance(value, torch.nn.Module):
            return _WithoutAdapters(self._adapters, value)
        if not callable(value):
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            with self._adapters.switched_off():
                return self._seen(value(*args, **kwargs))

        return method


def check(model_class: Any, model_config: Any, config: LoRAConfig) -> None:
    """Check that a model can have adapters, without its weights.

    Args:
        model_class: Class of the model.
        model_config: Configuration of the model.
        config: Settings of the adapters.

    Raises:
        UserError: The model lacks the target modules, or they share their weights with the embeddings.
    """
    import torch

    with torch.device("meta"):
        Adapters(model_class(model_config), config, 0)


def _refuse_embeddings(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    """Refuse adapters on tied embeddings. Merging one into the output head would change the input embeddings."""
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if tied and hasattr(part, "lora_A"):
            raise UserError(
                f"lora: target_modules {list(targets)} contains the embeddings or the output head of"
                f" {type(model).__name__}, which share one tensor",
                "remove these modules from target_modules",
            )
