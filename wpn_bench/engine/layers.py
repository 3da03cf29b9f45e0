"""The layers of a model: what they put out, how likely a text is after each of them, and with another model's outputs in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import JobFailed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Pair = tuple[list[int], list[int]]  # the tokens of a prompt and of the answer after it


def layers_of(model: PreTrainedModel) -> Any:
    """Return the list of the layers of a model.

    Raises:
        JobFailed: The model has no such list.
    """
    import torch

    text = model.config.get_text_config()
    # A model that also sees pictures has another list of layers, which may be as long.
    inner = getattr(model, "get_decoder", lambda: None)() or model
    for part in (inner, model):
        lists = (module for module in part.modules() if isinstance(module, torch.nn.ModuleList))
        for found in lists:
            if len(found) == text.num_hidden_layers:
                return found
    raise JobFailed(f"the layers of the model ({text.model_type}) cannot be found, so they cannot be read")


@contextmanager
def changed_output(layer: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change the output of a layer within a `with` block.

    Args:
        layer: The layer. Its output is a tensor, or a tuple whose first element is changed.
        change: Is given the output (rows, tokens, width) and returns what the model goes on with.
    """

    def hook(module: Any, given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def outputs_at(model: PreTrainedModel, keep: Tensor) -> Iterator[list[Tensor]]:
    """Collect the outputs of all layers at some tokens, within a `with` block.

    Args:
        model: The model.
        keep: (rows, tokens), 1 for a token whose outputs are collected.

    Yields:
        A list that gets a tensor (N, width) of each layer when the model has run.
    """
    found: list[Tensor] = []
    wanted = keep.bool()

    def collect(output: Tensor) -> Tensor:
        found.append(output[wanted.to(output.device)])
        return output

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.enter_context(changed_output(layer, collect))
        yield found


def _rows(pairs: Sequence[Pair], device: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the input of a model, the tokens that predict an answer (1 in a mask), and the predicted tokens in order."""
    import torch

    sequences = [[*head, *answer][:-1] for head, answer in pairs]
    longest = max(map(len, sequences))
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    mask, keep = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (sequence, (head, _)) in enumerate(zip(sequences, pairs, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
        keep[row, len(head) - 1 : len(sequence)] = 1
    targets = torch.tensor([token for _, answer in pairs for token in answer])
    given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return given, keep.to(device), targets.to(device)


def _means(logprobs: Tensor, pairs: Sequence[Pair]) -> list[float]:
    """Return the mean over the tokens of each answer."""
    return [float(part.mean()) for part in logprobs.double().cpu().split([len(answer) for _, answer in pairs])]


def _logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities of target tokens (..., N) from logits (..., N, V)."""
    found: Tensor = logits.float().log_softmax(-1)
    return found.gather(-1, targets.expand(found.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def lens(model: PreTrainedModel, pairs: Sequence[Pair]) -> list[list[float]]:
    """Return the mean log-probability of each answer if the model ended after a layer.

    All layers' outputs go through what follows the last layer in one pass, so this needs no knowledge of the architecture.

    Args:
        model: The model.
        pairs: The tokens of each prompt and answer. They must fit into memory together.

    Returns:
        For each layer the value of each answer, in nats per token. That of the last layer is the model's own.
    """
    import torch

    from wpn_bench.engine.placement import device_of

    given, keep, targets = _rows(pairs, device_of(model))
    with torch.inference_mode():
        with outputs_at(model, keep) as reached:
            model.base_model(**given, use_cache=False)
        # (layers * N, 1, width): norm and head work on each token alone. The input has as many rows of one token, because GPT-2
        # and others give the states the shape of the input again.
        stacked = torch.cat([one.to(reached[-1].device) for one in reached]).unsqueeze(1)
        ones = torch.ones(len(stacked), 1, dtype=torch.long, device=device_of(model))
        with changed_output(layers_of(model)[-1], lambda output: stacked):
            logits = model(input_ids=torch.zeros_like(ones), attention_mask=ones, use_cache=False).logits
        found = _logprobs(logits.reshape(len(reached), len(targets), -1), targets.to(logits.device))
    return [_means(one, pairs) for one in found]


def states(model: PreTrainedModel, pairs: Sequence[Pair]) -> list[Tensor]:
    """Read the outputs of each layer at the tokens that predict the answers.

    Args:
        model: The model.
        pairs: The tokens of each prompt and answer.

    Returns:
        For each layer a tensor (N, width) with one row for each token of the answers, in order.
    """
    import torch

    from wpn_bench.engine.placement import device_of

    given, keep, _ = _rows(pairs, device_of(model))
    with torch.inference_mode(), outputs_at(model, keep) as reached:
        model.base_model(**given, use_cache=False)
    return reached


def patched(model: PreTrainedModel, pairs: Sequence[Pair], layer: int | None, source: Tensor | None) -> list[float]:
    """Return the mean log-probability of each answer with the output of one layer replaced.

    Args:
        model: The model that reads (the base).
        pairs: The tokens of each prompt and answer.
        layer: Index of the layer; None replaces nothing.
        source: The other model's outputs (N, width) of this layer, from `states`.

    Returns:
        The values in nats per token.
    """
    import torch

    from wpn_bench.engine.head import head_only_at
    from wpn_bench.engine.placement import device_of

    given, keep, targets = _rows(pairs, device_of(model))

    def replaced(output: Tensor) -> Tensor:
        assert source is not None
        out = output.clone()
        out[keep.bool().to(out.device)] = source.to(out)
        return out

    with torch.inference_mode(), head_only_at(model, keep):
        if layer is None:
            logits = model(**given, use_cache=False).logits
        else:
            with changed_output(layers_of(model)[layer], replaced):
                logits = model(**given, use_cache=False).logits
        return _means(_logprobs(logits.reshape(len(targets), -1), targets.to(logits.device)), pairs)
