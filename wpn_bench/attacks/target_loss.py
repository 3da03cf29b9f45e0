"""The loss of a gradient attack on its targets, and its gradient with respect to the suffix.

Keys and values of the text before the suffix are computed once. Logits are computed only at the target tokens. The
number of tokens in a forward pass depends on the free memory and is halved when memory runs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wpn_bench.core import device_memory
from wpn_bench.engine.budget import Budget, for_batches
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.models.sizes import TokenMemory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.attacks.suffix_slots import SuffixSlot

# Keys and values of each layer, each of the shape (rows, heads, tokens, head size).
Layers = list[tuple["Tensor", "Tensor"]]

_GRADIENT_SHARE = 0.5  # share of the free memory that a forward and backward pass may use


@dataclass(frozen=True)
class LossAndGradient:
    """The losses of N prompts, and their gradient.

    Attributes:
        losses: (N,) mean loss of each prompt's target in nats per token.
        reached: (N,) whether greedy decoding generates the target.
        gradient: Gradient of the sum of the losses, in the shape of the suffix vectors.
        cached: For each prompt the keys and values of the text before the suffix and of the suffix. Empty unless
            requested.
    """

    losses: Tensor
    reached: Tensor
    gradient: Tensor
    cached: list[Layers]


class TargetLoss:
    """Computes the mean loss of each prompt's target after a suffix, which is given as vectors or as token ids."""

    def __init__(self, model: PreTrainedModel, slots: Sequence[SuffixSlot], pass_tokens: int | None = None) -> None:
        """Compute the keys and values of the texts before the suffix.

        Args:
            model: The attacked model.
            slots: The prompts with a slot for the suffix.
            pass_tokens: Maximum number of tokens in a forward pass; None uses as many as fit into the free memory.

        Raises:
            UserError: The model's cache contains something other than keys and values.
        """
        from wpn_bench.engine.likelihood import head_comes_last, head_of
        from wpn_bench.engine.support import accepted_by, caches_plainly
        from wpn_bench.models import context_length

        if not caches_plainly(model):
            raise UserError(
                f"gradient attacks do not support {type(model).__name__}, whose cache is not only keys and values",
                "leave out the gradient attacks for this model",
            )
        self.model, self.slots = model, list(slots)
        self.context = context_length(model)
        self.takes_positions = "position_ids" in accepted_by(model)
        self.head_is_last = head_comes_last(model)
        self.head = head_of(model, self.head_is_last)
        self.budget = Budget(pass_tokens) if pass_tokens else Budget.measured(model, logits=not self.head_is_last)
        self.gradient_budget = Budget(min(self.budget.tokens, _tokens_with_gradient(model)))
        self.beginnings = [self._beginning(slot) for slot in self.slots]

    def embedded(self, ids: Tensor) -> Tensor:
        """Return the embeddings (..., d) of token ids (...)."""
        import torch

        with torch.no_grad():
            vectors: Tensor = self.model.get_input_embeddings()(ids.to(self.model.device))
        return vectors

    def loss_and_gradient(
        self, vectors: Tensor, numbers: Sequence[int], *, keep_cache: bool = False
    ) -> LossAndGradient:
        """Compute the losses of some prompts with suffix vectors, and the gradient of the sum of the losses.

        Args:
            vectors: (1, k, d) for one suffix for all prompts, or (N, k, d) for one suffix each.
            numbers: N indices into `slots`.
            keep_cache: Whether to return the keys and values of prompt and suffix.

        Returns:
            The losses, the gradient, and the cache if requested.
        """
        import torch

        shared = len(vectors) == 1
        losses = torch.zeros(len(numbers), device=vectors.device)
        reached = torch.zeros(len(numbers), dtype=torch.bool, device=vectors.device)
        gradient = torch.zeros_like(vectors)
        kept: dict[int, Layers] = {}

        def work(part: list[int]) -> None:
            leaf = vectors.expand(len(part), -1, -1) if shared else vectors[part]
            leaf = leaf.detach().clone().requires_grad_()
            slots = [self.slots[numbers[n]] for n in part]
            cached, padding = self._side_by_side([self.beginnings[numbers[n]] for n in part])
            loss, hit, layers = self._losses(slots, leaf, cached, padding)
            (found,) = torch.autograd.grad(loss.sum(), leaf)
            losses[part], reached[part] = loss.detach(), hit
            if shared:
                gradient[0] += found.sum(0)
            else:
                gradient[part] = found
            if keep_cache:
                width = cached[0][0].shape[2] + vectors.shape[1]
                for r, n in enumerate(part):
                    at = slice(int(padding[r]), width)
                    kept[n] = [(k[r : r + 1, :, at].detach(), v[r : r + 1, :, at].detach()) for k, v in layers]

        def tokens(part: Sequence[int]) -> int:
            together = [self.slots[numbers[n]] for n in part]
            rest = max(len(slot.after) + len(slot.target) for slot in together) - 1
            columns = max(len(slot.before) for slot in together) + vectors.shape[1] + rest
            # In some models (GPT-Neo), the attention mask with its padding must not exceed the context length.
            return len(part) * columns if columns <= self.context else self.gradient_budget.tokens + 1

        for_batches(range(len(numbers)), tokens, self.gradient_budget, work)
        return LossAndGradient(losses, reached, gradient, [kept[n] for n in range(len(numbers))] if keep_cache else [])

    def score(self, number: int, candidates: Tensor, suffix: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
        """Compute the losses of one prompt with each of several suffixes.

        The tokens of a candidate before its first changed token are not computed again.

        Args:
            number: Index of the prompt in `slots`.
            candidates: (C, k) token ids of the suffixes.
            suffix: (k,) token ids of the suffix with which `layers` were computed.
            layers: Keys and values of the text before the suffix and of `suffix`.

        Returns:
            The losses (C,), and whether greedy decoding generates the target (C,).
        """
        import torch

        slot = self.slots[number]
        changed = (candidates != suffix).long().argmax(1)
        order = torch.argsort(changed, descending=True, stable=True).tolist()
        first = changed.tolist()
        losses = torch.zeros(len(candidates), device=self.model.device)
        reached = torch.zeros(len(candidates), dtype=torch.bool, device=self.model.device)
        n_before, size = len(slot.before), candidates.shape[1]
        rest = len(slot.after) + len(slot.target) - 1

        def work(part: list[int]) -> None:
            start = first[part[-1]]
            columns = n_before + start
            cached = [
                (k[:, :, :columns].expand(len(part), -1, -1, -1), v[:, :, :columns].expand(len(part), -1, -1, -1))
                for k, v in layers
            ]
            vectors = self.embedded(candidates[part, start:])
            padding = torch.zeros(len(part), dtype=torch.long, device=self.model.device)
            with torch.inference_mode():
                loss, hit, _ = self._losses([slot] * len(part), vectors, cached, padding)
            losses[part], reached[part] = loss, hit

        def tokens(part: Sequence[int]) -> int:
            # The cached keys and values of a token need about half the memory of a computed token.
            start = first[part[-1]]
            return len(part) * (size - start + rest + (n_before + start) // 2)

        for_batches(order, tokens, self.budget, work)
        return losses, reached

    def _beginning(self, slot: SuffixSlot) -> Layers:
        """Return the keys and values of the text before the suffix."""
        import torch

        cache = _cache_of([])
        ids = torch.tensor([slot.before], device=self.model.device)
        with torch.no_grad():
            self._outputs(self.embedded(ids), cache, torch.zeros(1, dtype=torch.long, device=self.model.device))
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _side_by_side(self, beginnings: Sequence[Layers]) -> tuple[Layers, Tensor]:
        """Combine the keys and values of N texts before the suffix, padded on the left.

        Returns them with the number of padding columns of each text (N,).
        """
        import torch
        from torch.nn.functional import pad

        lengths = [layers[0][0].shape[2] for layers in beginnings]
        missing = [max(lengths) - n for n in lengths]
        together: Layers = []
        for k in range(len(beginnings[0])):
            # The padding is zeros, because masked columns must contain finite numbers.
            keys, values = (
                torch.cat([pad(layers[k][side], (0, 0, n, 0)) for layers, n in zip(beginnings, missing, strict=True)])
                for side in (0, 1)
            )
            together.append((keys, values))
        return together, torch.tensor(missing, device=self.model.device)

    def _losses(
        self, slots: Sequence[SuffixSlot], vectors: Tensor, cached: Layers, padding: Tensor
    ) -> tuple[Tensor, Tensor, Layers]:
        """Return the losses (R,) of rows, which targets are reached (R,), and the keys and values of all columns.

        A row consists of the `cached` columns, of which the first `padding` (R,) are padding, `vectors` (R, m, d), and
        the prompt's tokens after the suffix.
        """
        import torch
        from torch.nn.functional import cross_entropy

        from wpn_bench.engine.likelihood import log_softmax_at

        device = self.model.device
        rest = [(*slot.after, *slot.target[:-1]) for slot in slots]
        ids = torch.zeros(len(rest), max(map(len, rest)), dtype=torch.long)
        for r, row in enumerate(rest):
            ids[r, : len(row)] = torch.tensor(row)
        cache = _cache_of(cached)
        inputs = torch.cat([vectors, self.embedded(ids)], dim=1)
        outputs = self._outputs(inputs, cache, padding)
        size, width = vectors.shape[1], inputs.shape[1]
        where: list[int] = []
        target: list[int] = []
        owner: list[int] = []
        for r, slot in enumerate(slots):
            at = r * width + size + len(slot.after) - 1  # the token before the target, which predicts its first token
            where += range(at, at + len(slot.target))
            target += slot.target
            owner += [r] * len(slot.target)
        read = outputs.flatten(0, 1)[torch.tensor(where, device=device)]
        wanted, of = torch.tensor(target, device=device), torch.tensor(owner, device=device)
        if torch.is_grad_enabled() and vectors.requires_grad:
            logits = (self.model.get_output_embeddings()(read) if self.head_is_last else read).float()
            nll, best = cross_entropy(logits, wanted, reduction="none"), logits.detach().argmax(-1) == wanted
        else:
            logprob, best = log_softmax_at(self.head, read, torch.arange(len(read), device=device), wanted)
            nll = -logprob
        n = torch.tensor([len(slot.target) for slot in slots], device=device)
        loss = torch.zeros(len(slots), device=device).index_add(0, of, nll) / n
        hits = torch.zeros(len(slots), device=device).index_add(0, of, best.float())
        return loss, hits == n, [(layer.keys, layer.values) for layer in cache.layers]

    def _outputs(self, inputs: Tensor, cache: Any, padding: Tensor) -> Tensor:
        """Return the input of the output head for `inputs` (R, m, d), which follow the cached columns.

        If the model changes the output of its head, the logits are returned instead.
        """
        import torch

        from wpn_bench.engine.head import head_input

        seen = cache.get_seq_length()
        width = seen + inputs.shape[1]
        given: dict[str, Any] = {}
        if self.takes_positions:
            given["position_ids"] = torch.arange(seen, width, device=inputs.device) - padding.unsqueeze(1)
        if bool(padding.any()):
            given["attention_mask"] = (torch.arange(width, device=inputs.device) >= padding.unsqueeze(1)).long()
        given |= {"inputs_embeds": inputs, "past_key_values": cache, "use_cache": True}
        if not self.head_is_last:
            logits: Tensor = self.model(**given).logits
            return logits
        with head_input(self.model) as kept:
            self.model(**given)
        return kept[0]


def check_finite(losses: Tensor) -> Tensor:
    """Return the losses. Raises `JobFailed` if one is NaN or infinite, as for a model whose training diverged."""
    if not bool(losses.isfinite().all()):
        raise JobFailed("the loss of a harmful reference is not finite under this model, so the search is not possible")
    return losses


def _cache_of(layers: Layers) -> Any:
    """Return a cache of these keys and values, without copying them.

    All layers are full layers, even if the model has sliding attention windows, because its masks apply the windows.
    """
    from transformers.cache_utils import Cache, DynamicLayer

    cache = Cache(layer_class_to_replicate=DynamicLayer)
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _tokens_with_gradient(model: PreTrainedModel) -> int:
    """Return the number of tokens in a forward and backward pass that fits into memory."""
    token = TokenMemory.of(model.config, model.dtype)
    free = device_memory.free_memory(model.device.type)
    return int(_GRADIENT_SHARE * free / (token.kept_activations + token.logits_with_gradient))
