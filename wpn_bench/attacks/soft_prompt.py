"""Soft prompt: free vectors in the suffix's place, which make the model begin its harmful answer.

    loss(P) = mean over prompts x of - mean_t log p(y_t | x P, y_<t),        P (k, d) by Adam

y is the beginning of a harmful reference. No text gives these vectors, so this is no attack that a user could type:
it is a bound from the attacker's side, and shows what unlearning has hidden rather than removed.

Schwinn et al. 2024, "Soft Prompt Threats: Attacking Safety Alignment and Unlearning in Open-Source LLMs through the
Embedding Space", arXiv 2402.09063, who take signed gradient steps; Adam on a prompt of vectors is Lester et al. 2021,
arXiv 2104.08691.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from wpn_bench.attacks.search import (
    SEARCH,
    GradientAttack,
    Ground,
    Place,
    SearchConfig,
    TargetLoss,
    checked,
    kept_states,
    packed,
    prepare,
    search_stage,
    spread,
    unpacked,
)
from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Advance, Stopwatch
from wpn_bench.engine.generation import Decoding, Response
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import StageContext
from wpn_bench.prompts import Template

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

_TOGETHER = 32  # prompts with vectors of their own that are searched at a time: their beginnings are all in memory


class SoftPromptConfig(SearchConfig):
    """As many vectors as the first suffix has tokens; they begin as its embeddings."""

    steps: int = Field(200, ge=1)
    lr: float = Field(0.3, gt=0, description="of Adam, in root mean squares of the model's embeddings")


class SoftPrompt(GradientAttack):
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
    """`vectors` (k, d) of the least loss over the prompts `items`. `losses` in nats a token: before each step and
    after the last. `reached`: greedy decoding writes the target of that prompt, after these vectors."""

    items: tuple[str, ...]
    vectors: Tensor
    losses: tuple[float, ...]
    first_loss: float
    best_loss: float
    reached: tuple[bool, ...]
    seconds: float

    def json(self) -> dict[str, Any]:
        """All but the vectors, which nobody reads."""
        return {name: value for name, value in vars(self).items() if name != "vectors"}


def search_soft_prompts(
    model: PreTrainedModel, ground: Ground, config: SoftPromptConfig, advance: Advance = lambda n: None
) -> list[SoftPromptResult]:
    """One result for all places where `config.universal`, else one each. Prompts with vectors of their own are
    searched side by side, which changes no result but for rounding. `advance` is told of every step of every result.

    Raises `JobFailed` for a model whose loss is no number.
    """
    together = len(ground.places) if config.universal else _TOGETHER
    kept = kept_states(ground.places, config, ground.ids, "results")
    found: list[SoftPromptResult] = []
    for at in range(0, len(ground.places), together):
        part = ground.places[at : at + together]
        if at in kept.known:
            some = [SoftPromptResult(**told) for told in unpacked(kept.known[at])]
            advance(len(some) * config.steps)
        else:
            some = _search(model, part, ground.ids, config, advance)
            # Responses after these vectors are kept, too: they must be found again bit by bit.
            kept.add({at: packed([vars(one) | {"vectors": one.vectors.cpu()} for one in some])})
        found += [replace(one, vectors=one.vectors.to(model.device)) for one in some]
    return found


def _search(
    model: PreTrainedModel, places: Sequence[Place], ids: Sequence[int], config: SoftPromptConfig, advance: Advance
) -> list[SoftPromptResult]:
    import torch

    watch = Stopwatch()
    loss = TargetLoss(model, places, config.pass_tokens)
    results = 1 if config.universal else len(places)
    first = loss.embedded(torch.tensor(ids)).float()
    vectors = first.repeat(results, 1, 1)
    scale = float(model.get_input_embeddings().weight.detach().float().square().mean().sqrt())
    optimiser = torch.optim.Adam([vectors], lr=config.lr * scale)
    best = vectors.clone()
    best_loss = torch.full((results,), torch.inf, device=vectors.device)
    reached = torch.zeros(len(places), dtype=torch.bool, device=vectors.device)
    curve: list[Tensor] = []
    kept = kept_states(places, config, ids, "states")
    if kept.known:
        *state, curve, moments = unpacked(kept.known[0])
        vectors, best, best_loss, reached = (one.to(vectors.device) for one in state)
        curve = [one.to(vectors.device) for one in curve]
        optimiser = torch.optim.Adam([vectors], lr=config.lr * scale)
        optimiser.load_state_dict(moments)
        advance(results * len(curve))
    for step in range(len(curve), config.steps + 1):
        found = loss.slope(vectors.to(model.dtype), range(len(places)))
        now = found.losses.mean().unsqueeze(0) if config.universal else found.losses
        if step == 0:
            checked(now)
        curve.append(now)
        better = now < best_loss
        best_loss = torch.where(better, now, best_loss)
        best[better] = vectors[better]
        reached = torch.where(better.expand(len(places)) if config.universal else better, found.reached, reached)
        if step < config.steps:
            vectors.grad = found.gradient.float() / (len(places) if config.universal else 1)
            optimiser.step()
            if kept.save_due():
                kept.add({0: packed([vectors, best, best_loss, reached, curve, optimiser.state_dict()])})
            advance(results)
    losses = torch.stack(curve).T.tolist()
    return [
        SoftPromptResult(
            items=tuple(place.item.id for place in (places if config.universal else places[k : k + 1])),
            vectors=best[k],
            losses=tuple(losses[k]),
            first_loss=losses[k][0],
            best_loss=float(best_loss[k]),
            reached=tuple((reached if config.universal else reached[k : k + 1]).tolist()),
            seconds=watch.seconds / results,
        )
        for k in range(results)
    ]


# --- responses -------------------------------------------------------------------------------------------------------


@contextmanager
def virtual_tokens(model: PreTrainedModel, vectors: Tensor) -> Iterator[int]:
    """Within it, the token ids from the yielded one on stand for the rows of `vectors` (M, d), so that all that works
    with token ids works with them."""
    embedding = model.get_input_embeddings()
    first = int(embedding.weight.shape[0])
    asked: list[Tensor] = []

    def known(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        asked.append(given[0])
        return (given[0].masked_fill(given[0] >= first, 0), *given[1:])

    def put(module: Any, given: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = asked.pop()
        virtual = ids >= first
        output = output.clone()
        output[virtual] = vectors[ids[virtual] - first].to(output)
        return output

    hooks = [embedding.register_forward_pre_hook(known), embedding.register_forward_hook(put)]
    try:
        yield first
    finally:
        for hook in hooks:
            hook.remove()


def respond_after(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    places: Sequence[Place],
    vectors: Sequence[Tensor],
    decoding: Decoding,
    advance: Advance = lambda n: None,
) -> list[Response]:
    """Responses to the places' prompts with `vectors` (k, d) each, or the same for all where only one is given.

    Raises `UserError` for a model whose generation configuration changes the logits: it would look up the vectors' ids.
    """
    import torch

    from wpn_bench.engine.decode import is_plain
    from wpn_bench.engine.generation import respond

    if not is_plain(model):
        raise UserError(
            "the model's generation configuration changes what it says (a repetition penalty, for instance)",
            "take that out of generation_config.json, or leave the soft prompt out for this model",
        )
    size = len(vectors[0])
    with virtual_tokens(model, torch.cat(list(vectors))) as first:
        begins = [first + size * (k if len(vectors) > 1 else 0) for k in range(len(places))]
        encoded = [place.ids(range(at, at + size)) for place, at in zip(places, begins, strict=True)]
        return respond(model, tokenizer, encoded, decoding, advance)


# --- the stage -------------------------------------------------------------------------------------------------------


def run_soft_prompt_stage(ctx: StageContext) -> None:
    """Responses of `model` to `prompts` under soft prompts: one for all, searched on the items of `train` (else on the
    prompts themselves), or one each. Parameters: `config` (see `SoftPromptConfig`), `template`, `dtype`, `decoding`.

    Writes `responses.jsonl`, in the order of the prompts and as a plain generation does, and `search.json`. A prompt
    that cannot be attacked has no response, and the reason.
    """
    from wpn_bench import models
    from wpn_bench.harmless.stages import RESPONSES, response_row
    from wpn_bench.prompts.items import read_items, write_rows

    config = SoftPromptConfig(**ctx.params["config"], **ctx.local.get("config", {}))
    template = Template.parse(ctx.params["template"])
    model, tokenizer = models.load(ctx.needs["model"], ctx.local["device"], ctx.params["dtype"])
    context = models.context_length(model)
    items = read_items(ctx.needs["prompts"])
    asked = prepare(items, tokenizer, template, config, context)
    ground = asked
    if config.universal:
        on = spread(read_items(ctx.needs["train"]) if "train" in ctx.needs else items, config.prompts)
        ground = prepare(on, tokenizer, template, config, context)
    advance = ctx.progress((1 if config.universal else len(ground.places)) * config.steps, "steps")
    found = search_soft_prompts(model, ground, config, advance)
    advance = ctx.progress(len(asked.places), "responses")
    vectors = [result.vectors for result in found]
    responses = respond_after(model, tokenizer, asked.places, vectors, Decoding(**ctx.params["decoding"]), advance)
    shown = f"[soft prompt of {len(asked.ids)} vectors]"
    by_item = {place.item.id: (place.text(shown), r) for place, r in zip(asked.places, responses, strict=True)}
    rows = []
    for item in items:
        text, response = by_item.get(item.id) or ("", Response(None, 0, asked.unfit[item.id]))
        rows.append(response_row(item, template, text, response))
    write_rows(ctx.out / RESPONSES, rows)
    told: dict[str, Any] = {"attack": "soft_prompt", "config": config.model_dump(mode="json"), "unfit": ground.unfit}
    write_json(ctx.out / SEARCH, {**told, "searches": [result.json() for result in found]})
