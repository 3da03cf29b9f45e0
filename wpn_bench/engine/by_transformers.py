"""Decode with the model's own `generate`, for models that the decoding loop does not support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from wpn_bench.engine.budget import for_batches
from wpn_bench.engine.cache import cache_budget
from wpn_bench.engine.placement import device_of
from wpn_bench.engine.sampling import Ended, Rules, seed_of
from wpn_bench.engine.support import steering

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Reduce the model's generation configuration to the settings that wpn-bench uses, within a `with` block."""
    from transformers import GenerationConfig

    brought = model.generation_config
    model.generation_config = GenerationConfig(**steering(brought))
    try:
        yield
    finally:
        model.generation_config = brought


def by_transformers(model: PreTrainedModel, rules: Rules, most_rows: int) -> Callable[..., None]:
    """Return a function that decodes with the model's own `generate`, for models that `_Decoder` does not support.

    It is slower, because ended rows stay in the batch. All prompts of a batch have the same length, so that there is no
    padding. A repetition penalty or a minimum length would count padding as tokens of the prompt, and some state-space
    models would process it.

    Args:
        model: A causal language model.
        rules: How tokens are chosen, and when a row ends.
        most_rows: Maximum number of rows in a batch.

    Returns:
        A function of the prompts, the numbers of their samples, and of what is called when one has ended.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    sampling = rules.sampling

    device = device_of(model)

    def run(prompts: list[list[int]], streams: list[int], ended: Ended) -> None:
        def work(part: list[int]) -> None:
            width = max(len(prompts[k]) for k in part)
            ids = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for r, k in enumerate(part):
                ids[r, width - len(prompts[k]) :] = torch.tensor(prompts[k])
                mask[r, width - len(prompts[k]) :] = 1

            class Stopped(StoppingCriteria):
                def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
                    said = [rules.stopped(row) for row in input_ids[:, width:].tolist()]
                    return torch.tensor(said, device=input_ids.device)

            options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
            if sampling is not None:
                torch.manual_seed(seed_of(sampling.seed, prompts[part[0]], streams[part[0]]))
                options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p or 1.0}
                options |= {"top_k": 0}
            end = sorted(rules.ends)
            with torch.inference_mode(), _own_settings(model):
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=rules.max_new_tokens,
                    eos_token_id=end or None,
                    pad_token_id=end[0] if end else 0,
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                    **options,
                )
            for r, k in enumerate(part):
                ended(k, _until_the_end(out[r, width:].tolist(), rules))

        order = sorted(range(len(prompts)), key=lambda k: -len(prompts[k]))
        budget = cache_budget(model)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=sampling is not None):
            for _, equal in groupby(order, key=lambda k: len(prompts[k])):
                for_batches(
                    list(equal),
                    lambda part: len(part) * (len(prompts[part[0]]) + rules.max_new_tokens),
                    budget,
                    work,
                    # `generate` has one random generator for the whole batch, so with sampling a batch is one prompt.
                    1 if sampling is not None else most_rows,
                )

    return run


def _until_the_end(tokens: list[int], rules: Rules) -> list[int]:
    """Return the tokens of a row up to its end, without padding."""
    for k, token in enumerate(tokens):
        if token in rules.ends:
            return tokens[:k]
        if rules.stopped(tokens[: k + 1]):
            return tokens[: k + 1]
    return tokens
