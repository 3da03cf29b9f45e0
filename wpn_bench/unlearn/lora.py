"""Low-rank adapters inside a model, their files, and the model with them merged in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.unlearn.methods.base import LoRAConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter"
_NAME = "default"


class Adapters:
    """Puts adapters into `model` in place: it keeps its class and its modules' names, so a method's loss need not know.

    The weights they begin with follow `seed`. Only they require gradients afterwards. Raises `UserError` for target
    modules that the model has not, or that share their weights with its embeddings.
    """

    def __init__(self, model: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
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
        # Of the random generators, adapters draw from the CPU's only.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._wrapped: Any = get_peft_model(model, settings, adapter_name=_NAME)
            except ValueError as e:
                raise UserError(
                    f"LoRA finds nothing to adapt in {type(model).__name__} ({' '.join(str(e).split())[:200]})",
                    "name linear modules of the model in lora: target_modules, or leave it at all-linear",
                ) from e
        _refuse_embeddings(model, targets)

    def save(self, folder: Path) -> None:
        """Write the adapter as `peft.PeftModel.from_pretrained(base, folder)` reads it. It names no base model: where
        that lay is nobody's business, and the same weights may lie elsewhere."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        weights = get_peft_model_state_dict(self._wrapped, adapter_name=_NAME, save_embedding_layers=False)
        weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = self._wrapped.peft_config[_NAME]
        settings.base_model_name_or_path, settings.inference_mode = None, True
        settings.save_pretrained(str(folder))

    def merged_copy(self) -> PreTrainedModel:
        """A copy of the model as `merge` would leave it; the model itself goes on with its adapters."""
        import copy

        merged: PreTrainedModel = copy.deepcopy(self._wrapped).merge_and_unload()
        return merged

    def merge(self) -> PreTrainedModel:
        """The model with W + alpha / rank * B A in place of W, all plain modules again."""
        merged: PreTrainedModel = self._wrapped.merge_and_unload()
        return merged


def check(model_class: Any, model_config: Any, config: LoRAConfig) -> None:
    """Raise what `Adapters` would, from a model without weights."""
    import torch

    with torch.device("meta"):
        Adapters(model_class(model_config), config, 0)


def _refuse_embeddings(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    """An adapter on the output head would, once merged, change the input embeddings too, where they are one tensor."""
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if tied and hasattr(part, "lora_A"):
            raise UserError(
                f"lora: target_modules {list(targets)} takes in the embeddings or the output head of"
                f" {type(model).__name__}, which are one and the same tensor",
                "leave them out",
            )
