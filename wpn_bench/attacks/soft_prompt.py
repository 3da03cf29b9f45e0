"""Soft prompt: instead of a suffix, the attack trains vectors that make the model begin its harmful answer.

    loss(P) = mean over prompts x of - mean_t log p(y_t | x P, y_<t)

P (k, d) are k vectors of the embedding size d, which Adam optimises. y is the beginning of a harmful reference
response. The vectors are not embeddings of any text, so a user cannot type this attack. It is an upper bound on what
suffixes can do. It shows what unlearning has hidden rather than removed.

Schwinn et al. 2024, "Soft Prompt Threats: Attacking Safety Alignment and Unlearning in Open-Source LLMs through the
Embedding Space", arXiv 2402.09063, use signed gradient steps. Adam on a soft prompt is from Lester et al. 2021, arXiv
2104.08691.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from wpn_bench.attacks.search import (
    GradientAttack,
    SearchConfig,
    SearchSetup,
    checkpoint_section,
    from_text,
    search_stage,
    to_text,
)
from wpn_bench.attacks.suffix_slots import SuffixSlot, SuffixSlots
from wpn_bench.attacks.target_loss import TargetLoss, check_finite
from wpn_bench.core.progress import Advance, Stopwatch
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.models.backends import Decoding, Response

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "SoftPrompt",
    "SoftPromptConfig",
    "SoftPromptResult",
    "respond_after",
    "run_soft_prompt_stage",
    "search_soft_prompts",
]

# Number of prompts that are optimised in parallel, each with its own vectors. Memory holds the keys and values of all.
_TOGETHER = 32


class SoftPromptConfig(SearchConfig):
    """Settings of the soft prompt.

    The number of vectors is the number of tokens in the initial suffix, and the embeddings of these tokens are their
    initial values.
    """

    steps: int = Field(200, ge=1)
    lr: float = Field(
        0.3, gt=0, description="learning rate of Adam, as a multiple of the root mean square of the embeddings"
    )


class SoftPrompt(GradientAttack):
    """The attack with trained vectors after the prompt (see the docstring of the module)."""

    name = "soft_prompt"
    title = "Soft prompt"
    description = (
        "Free vectors after the prompt, trained until the model begins its harmful answer (Schwinn et al. 2024)."
    )
    Config = SoftPromptConfig
    responds = True
    stage = search_stage("wpn_bench.attacks.soft_prompt:run_soft_prompt_stage")


@dataclass(frozen=True)
class SoftPromptResult:
    """The result of one search. Losses are in nats per token.

    Attributes:
        items: Ids of the prompts for which the vectors were optimised.
        vectors: (k, d) vectors with the lowest loss.
        losses: Loss before each step and after the last step.
        first_loss: Loss of the initial vectors.
        best_loss: Loss of `vectors`.
        reached: For each prompt, whether greedy decoding after `vectors` generates the target.
        seconds: Duration, divided evenly among searches that ran in parallel.
    """

    items: tuple[str, ...]
    vectors: Tensor
    losses: tuple[float, ...]
    first_loss: float
    best_loss: float
    reached: tuple[bool, ...]
    seconds: float

    def json(self) -> dict[str, Any]:
        """Return the fields without the vectors."""
        return {name: value for name, value in vars(self).items() if name != "vectors"}


def search_soft_prompts(
    model: PreTrainedModel, slots: SuffixSlots, config: SoftPromptConfig, advance: Advance = lambda n: None
) -> list[SoftPromptResult]:
    """Optimise soft prompts: one for all prompts if `config.universal`, and otherwise one for each prompt.

    Prompts with their own vectors are optimised in parallel. This changes the results only by rounding.

    Args:
        model: The attacked model.
        slots: The prompts, each with a slot for the vectors.
        config: Settings of the search.
        advance: Called with the number of steps finished since its last call, summed over all results.

    Returns:
        One result for all prompts, or one for each.

    Raises:
        JobFailed: The model's loss is not finite.
    """
    together = len(slots.slots) if config.universal else _TOGETHER
    finished = checkpoint_section(slots.slots, config, slots.initial_ids, "results")
    found: list[SoftPromptResult] = []
    for at in range(0, len(slots.slots), together):
        part = slots.slots[at : at + together]
        if at in finished.known:
            some = [SoftPromptResult(**fields) for fields in from_text(finished.known[at])]
            advance(len(some) * config.steps)
        else:
            some = _search(model, part, slots.initial_ids, config, advance)
            # The vectors are stored without loss, because stored responses are only valid for exactly these vectors.
            finished.add({at: to_text([vars(one) | {"vectors": one.vectors.cpu()} for one in some])})
        found += [replace(one, vectors=one.vectors.to(model.device)) for one in some]
    return found


def _search(
    model: PreTrainedModel, slots: Sequence[SuffixSlot], ids: Sequence[int], config: SoftPromptConfig, advance: Advance
) -> list[SoftPromptResult]:
    import torch

    watch = Stopwatch()
    loss = TargetLoss(model, slots, config.pass_tokens)
    results = 1 if config.universal else len(slots)
    first = loss.embedded(torch.tensor(ids)).float()
    vectors = first.repeat(results, 1, 1)
    scale = float(model.get_input_embeddings().weight.detach().float().square().mean().sqrt())
    optimiser = torch.optim.Adam([vectors], lr=config.lr * scale)
    best = vectors.clone()
    best_loss = torch.full((results,), torch.inf, device=vectors.device)
    reached = torch.zeros(len(slots), dtype=torch.bool, device=vectors.device)
    curve: list[Tensor] = []
    checkpoint = checkpoint_section(slots, config, ids, "states")
    if checkpoint.known:
        *state, curve, moments = from_text(checkpoint.known[0])
        vectors, best, best_loss, reached = (one.to(vectors.device) for one in state)
        curve = [one.to(vectors.device) for one in curve]
        optimiser = torch.optim.Adam([vectors], lr=config.lr * scale)
        optimiser.load_state_dict(moments)
        advance(results * len(curve))
    for step in range(len(curve), config.steps + 1):
        found = loss.loss_and_gradient(vectors.to(model.dtype), range(len(slots)))
        losses = found.losses.mean().unsqueeze(0) if config.universal else found.losses
        if step == 0:
            check_finite(losses)
        curve.append(losses)
        better = losses < best_loss
        best_loss = torch.where(better, losses, best_loss)
        best[better] = vectors[better]
        reached = torch.where(better.expand(len(slots)) if config.universal else better, found.reached, reached)
        if step < config.steps:
            vectors.grad = found.gradient.float() / (len(slots) if config.universal else 1)
            optimiser.step()
            if checkpoint.save_due():
                checkpoint.add({0: to_text([vectors, best, best_loss, reached, curve, optimiser.state_dict()])})
            advance(results)
    curves = torch.stack(curve).T.tolist()
    return [
        SoftPromptResult(
            items=tuple(slot.item.id for slot in (slots if config.universal else slots[k : k + 1])),
            vectors=best[k],
            losses=tuple(curves[k]),
            first_loss=curves[k][0],
            best_loss=float(best_loss[k]),
            reached=tuple((reached if config.universal else reached[k : k + 1]).tolist()),
            seconds=watch.seconds / results,
        )
        for k in range(results)
    ]


# --- responses -------------------------------------------------------------------------------------------------------


@contextmanager
def virtual_tokens(model: PreTrainedModel, vectors: Tensor) -> Iterator[int]:
    """Give vectors their own token ids within a `with` block, so that code that takes token ids can use them.

    Args:
        model: The model, whose input embedding is extended.
        vectors: (M, d) vectors.

    Yields:
        The token id of the first vector. The other vectors have the ids that follow.
    """
    embedding = model.get_input_embeddings()
    first = int(embedding.weight.shape[0])
    asked: list[Tensor] = []

    def hide_virtual(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        asked.append(given[0])
        return (given[0].masked_fill(given[0] >= first, 0), *given[1:])

    def insert_vectors(module: Any, given: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = asked.pop()
        virtual = ids >= first
        output = output.clone()
        output[virtual] = vectors[ids[virtual] - first].to(output)
        return output

    hooks = [embedding.register_forward_pre_hook(hide_virtual), embedding.register_forward_hook(insert_vectors)]
    try:
        yield first
    finally:
        for hook in hooks:
            hook.remove()


def respond_after(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    slots: Sequence[SuffixSlot],
    vectors: Sequence[Tensor],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """Generate responses to prompts in which each slot is filled with a soft prompt.

    Args:
        model: The attacked model.
        tokenizer: Its tokenizer.
        slots: The prompts, each with a slot for the soft prompt.
        vectors: For each prompt k vectors of the embedding size d (k, d), or a list of one for all prompts.
        decoding: How responses are generated.
        advance: Called with the number of responses finished since its last call.

    Returns:
        One response for each prompt.

    Raises:
        UserError: The model's generation configuration changes the logits by the token ids of the input, as a
            repetition penalty does. Soft prompts have no token ids.
    """
    import torch

    from wpn_bench.engine.generation import end_tokens, respond
    from wpn_bench.engine.support import is_plain

    if not is_plain(model):
        raise UserError(
            "the model's generation configuration changes its answers (by a repetition penalty, for instance)",
            "remove this setting from generation_config.json, or leave out the soft prompt for this model",
        )
    size = len(vectors[0])
    with virtual_tokens(model, torch.cat(list(vectors))) as first:
        begins = [first + size * (k if len(vectors) > 1 else 0) for k in range(len(slots))]
        encoded = [slot.ids(range(at, at + size)) for slot, at in zip(slots, begins, strict=True)]
        ends = end_tokens(tokenizer, [slot.head for slot in slots])
        return respond(model, tokenizer, encoded, decoding, advance, ends=ends)


# --- the stage -------------------------------------------------------------------------------------------------------


def run_soft_prompt_stage(ctx: StageContext) -> None:
    """Optimise soft prompts against `model`, and generate its responses to `prompts` with them.

    See `SearchSetup` for inputs and parameters. The parameter `decoding` contains the decoding settings. The stage
    writes `search.json`, and `responses.jsonl` in the order of the prompts and in the format of the generation stage.
    For a prompt that cannot be attacked, the row has a reason instead of a response.
    """
    from wpn_bench.harmless.stages import RESPONSES, response_row
    from wpn_bench.prompts.items import write_rows

    setup = SearchSetup.load(ctx, SoftPromptConfig)
    config, model = setup.config, setup.model
    asked = setup.slots_of(setup.items)
    slots = setup.searched_slots() if config.universal else asked
    advance = setup.step_progress(1 if config.universal else len(slots.slots), config.steps)
    found = search_soft_prompts(model, slots, config, advance)
    advance = ctx.progress(len(asked.slots), "responses")
    vectors = [result.vectors for result in found]
    decoding = Decoding(**ctx.params["decoding"])
    responses = respond_after(model, setup.tokenizer, asked.slots, vectors, decoding, advance)
    shown = f"[soft prompt of {len(asked.initial_ids)} vectors]"
    plain = setup.template.parse(ctx.params.get("plain_template", ctx.params["template"]))
    by_item = {slot.item.id: (slot.text(shown), r) for slot, r in zip(asked.slots, responses, strict=True)}
    rows = []
    for item in setup.items:
        text, response = by_item.get(item.id) or ("", Response(None, 0, asked.unfit[item.id]))
        rows.append(response_row(item, plain, text, response))
    write_rows(ctx.out / RESPONSES, rows)
    setup.write("soft_prompt", slots, [result.json() for result in found])
