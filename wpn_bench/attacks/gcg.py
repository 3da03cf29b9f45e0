"""Greedy coordinate gradient: a suffix of ordinary tokens that makes the model begin its harmful answer.

    loss(s) = mean over prompts x of - mean_t log p(y_t | x s, y_<t)

y is the beginning of a harmful reference. A step takes the gradient of the loss with respect to the one-hot vectors
of the suffix's tokens, draws candidates that replace `n_replace` of them by one of the `topk` tokens with the
steepest descent each, and goes on with the candidate of the least loss, even if it is greater than before.

Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models", arXiv 2307.15043,
Algorithms 1 and 2. Departures: losses are means where the paper sums; candidates are distinct and differ from the
suffix at hand; a candidate that the tokenizer would write otherwise (in any prompt, the text around it included) is
dropped before it is scored, so the loss is that of the text, and another is drawn in its place. With `compare_on`,
which the paper has not, candidates for many prompts are compared on a few of them, drawn in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from wpn_bench.attacks.search import (
    SEARCH,
    GradientAttack,
    Ground,
    Place,
    SearchConfig,
    Slope,
    TargetLoss,
    checked,
    kept_states,
    packed,
    prepare,
    search_stage,
    spread,
    unpacked,
    with_suffix,
)
from wpn_bench.core.files import digest_of, write_json
from wpn_bench.core.progress import Advance, Stopwatch
from wpn_bench.jobs.job import StageContext
from wpn_bench.prompts import Item, Template

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["GCG", "GCGConfig", "GCGResult", "run_gcg_stage", "search_suffix"]


class GCGConfig(SearchConfig):
    """The defaults are those of the paper's individual attack, with half of its steps."""

    steps: int = Field(250, ge=1)
    candidates: int = Field(512, ge=1, description="distinct ones that are scored in a step")
    topk: int = Field(256, ge=1, description="tokens to draw from, at each place of the suffix")
    n_replace: int = Field(1, ge=1, description="tokens that a candidate replaces")
    retokenise: bool = Field(True, description="keep only candidates that the tokenizer writes as they are")
    ascii_only: bool = Field(True, description="draw only tokens of printable ASCII characters")
    compare_on: int | None = Field(None, ge=1, description="prompts, drawn in each step, to compare on; None: all")
    progressive: bool = Field(False, description="begin with one prompt, add the next once all so far are reached")
    early_stop: bool = Field(False, description="end once greedy decoding writes every target")


_ROUNDS = 4  # of drawing in a step; a few candidates of a hundred are equal or would be written otherwise


class GCG(GradientAttack):
    name = "gcg"
    title = "GCG suffix"
    description = (
        "A suffix of tokens, searched with gradients until the model begins its harmful answer (Zou et al. 2023)."
    )
    Config = GCGConfig
    stage = search_stage("wpn_bench.attacks.gcg:run_gcg_stage")


@dataclass(frozen=True)
class GCGResult:
    """`losses` in nats a token: of the first suffix, then of the one chosen in each step, over the `active` prompts
    after it. `first_loss`, `best_loss` and `reached` (greedy decoding writes the target) are over all prompts, the
    last two after the best suffix."""

    items: tuple[str, ...]
    suffix: str
    ids: tuple[int, ...]
    losses: tuple[float, ...]
    active: tuple[int, ...]
    first_loss: float
    best_loss: float
    reached: tuple[bool, ...]
    seconds: float


def search_suffix(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ground: Ground,
    config: GCGConfig,
    *,
    seed: int | None = None,
    allowed: Tensor | None = None,
    advance: Advance = lambda n: None,
) -> GCGResult:
    """The best suffix for all places of `ground` together; `seed` instead of the configuration's.

    `allowed` (V,) says which tokens may be drawn (None: see `allowed_tokens`). Raises `JobFailed` for a model whose
    loss is no number.
    """
    import torch

    watch = Stopwatch()
    allowed = allowed_tokens(model, tokenizer, ascii_only=config.ascii_only) if allowed is None else allowed
    rng = torch.Generator().manual_seed(config.seed if seed is None else seed)
    loss = TargetLoss(model, ground.places, config.pass_tokens)
    every = len(ground.places)
    now = best = torch.tensor(ground.ids)
    active = 1 if config.progressive else every
    best_loss = float("inf")
    losses: list[float] = []
    counts: list[int] = []
    kept = kept_states(ground.places, config, ground.ids, config.seed if seed is None else seed)
    if kept.known:
        # Where a search that was killed stood, draws of random numbers included.
        first, now, best, best_loss, active, losses, counts, state = unpacked(kept.known[0])
        rng.set_state(state)
        advance(len(losses))
    else:
        first, _ = _all_losses(loss, now)
    for step in range(len(losses), config.steps + 1):
        slope = loss.slope(loss.embedded(now).unsqueeze(0), range(active), keep=True)
        while active < every and bool(slope.reached.all()):
            # The next prompt makes another loss, with which those before cannot be compared.
            active, best_loss = active + 1, float("inf")
            slope = loss.slope(loss.embedded(now).unsqueeze(0), range(active), keep=True)
        losses.append(float(slope.losses.mean()))
        counts.append(active)
        done = config.early_stop and bool(slope.reached.all())
        if losses[-1] < best_loss or done:
            best, best_loss = now, losses[-1]
        if done or step == config.steps:
            advance(config.steps - step)
            break
        gradient = _one_hot_gradient(model, slope.gradient[0])
        drawn = _candidates(tokenizer, ground.places[:active], now, gradient, allowed, config, rng)
        if len(drawn):
            now = _chosen(loss, drawn, now, slope, _compared(active, config, rng), config)
        if kept.save_due():
            kept.add({0: packed([first, now, best, best_loss, active, losses, counts, rng.get_state()])})
        advance(1)
    last, hits = _all_losses(loss, best)
    return GCGResult(
        tuple(place.item.id for place in ground.places),
        _text(tokenizer, best.tolist()),
        tuple(best.tolist()),
        tuple(losses),
        tuple(counts),
        first,
        last,
        hits,
        watch.seconds,
    )


def _compared(active: int, config: GCGConfig, rng: Generator) -> list[int]:
    """The prompts on which the candidates of a step are compared."""
    import torch

    if config.compare_on is None or config.compare_on >= active:
        return list(range(active))
    return sorted(torch.randperm(active, generator=rng)[: config.compare_on].tolist())


def _chosen(
    loss: TargetLoss, drawn: Tensor, now: Tensor, slope: Slope, numbers: Sequence[int], config: GCGConfig
) -> Tensor:
    """The candidate (k,) of `drawn` (C, k) with the least loss over the places `numbers`; where the search ends at the
    targets, one that reaches them all goes first."""
    import torch

    total = torch.zeros(len(drawn), device=loss.model.device)
    reached = torch.ones(len(drawn), dtype=torch.bool, device=loss.model.device)
    for number in numbers:
        one, hit = loss.score(number, drawn, now, slope.kept[number])
        total += one
        reached &= hit
    if config.early_stop and bool(reached.any()):
        total = total.masked_fill(~reached, torch.inf)
    return drawn[int(total.nan_to_num(nan=torch.inf).argmin())]


def _all_losses(loss: TargetLoss, ids: Tensor) -> tuple[float, tuple[bool, ...]]:
    """The mean loss of all places after this suffix, and which targets are reached."""
    found = loss.slope(loss.embedded(ids).unsqueeze(0), range(len(loss.places)))
    return float(checked(found.losses).mean()), tuple(found.reached.tolist())


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The suffix without the space that joins it to the prompt."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).removeprefix(" ")


# --- candidates ------------------------------------------------------------------------------------------------------


def allowed_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, ascii_only: bool = True) -> Tensor:
    """(V,) True for tokens that print something and have no meaning of their own to the model."""
    import torch

    allowed = torch.zeros(model.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    known = min(len(tokenizer), len(allowed))
    texts = tokenizer.batch_decode([[k] for k in range(known)], clean_up_tokenization_spaces=False)
    for k, text in enumerate(texts):
        allowed[k] = bool(text) and text.isprintable() and "\ufffd" not in text and (text.isascii() or not ascii_only)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    allowed[[k for k in special if k < len(allowed)]] = False
    return allowed


def _one_hot_gradient(model: PreTrainedModel, gradient: Tensor) -> Tensor:
    """(k, V): of the loss with respect to one-hot vectors, from that with respect to their embeddings (k, d)."""
    weight = model.get_input_embeddings().weight.detach()
    found: Tensor = (gradient.to(weight.dtype) @ weight.T).float().cpu()
    return found


def _candidates(
    tokenizer: PreTrainedTokenizerBase,
    places: Sequence[Place],
    now: Tensor,
    gradient: Tensor,
    allowed: Tensor,
    config: GCGConfig,
    rng: Generator,
) -> Tensor:
    """What is scored in a step (C, k): as many as are asked for, where some rounds of drawing give so many."""
    tried: dict[tuple[int, ...], None] = {}
    found: list[list[int]] = []
    for _ in range(_ROUNDS):
        drawn = [row for row in map(tuple, _draw(now, gradient, allowed, config, rng).tolist()) if row not in tried]
        tried |= dict.fromkeys(drawn)
        fresh = now.new_tensor(drawn).reshape(len(drawn), len(now))
        found += (_surviving(tokenizer, places, fresh) if config.retokenise else fresh).tolist()
        if len(found) >= config.candidates:
            break
    found = found[: config.candidates]
    return now.new_tensor(found).reshape(len(found), len(now))


def _draw(now: Tensor, gradient: Tensor, allowed: Tensor, config: GCGConfig, rng: Generator) -> Tensor:
    """Distinct candidates (C, k), each with `n_replace` places of `now` (k,) taken by one of the `topk` allowed
    tokens with the most negative entries of `gradient` (k, V)."""
    import torch

    topk = min(config.topk, int(allowed.sum()))
    best = (-gradient).masked_fill(~allowed, -torch.inf).topk(topk, dim=1).indices
    n, size = config.candidates, len(now)
    places = torch.rand(n, size, generator=rng).argsort(1)[:, : config.n_replace]
    ranks = torch.randint(topk, (n, places.shape[1]), generator=rng)
    drawn = now.repeat(n, 1).scatter(1, places, best[places, ranks])
    drawn = drawn[(drawn != now).any(1)]
    # Not torch.unique: it sorts, and the first of equally good candidates is taken.
    distinct = dict.fromkeys(map(tuple, drawn.tolist()))
    return torch.tensor(list(distinct), dtype=torch.long).reshape(len(distinct), size)


def _surviving(tokenizer: PreTrainedTokenizerBase, places: Sequence[Place], candidates: Tensor) -> Tensor:
    """Those candidates (C, k) that the tokenizer writes with the same tokens after and before what stands around
    them."""
    alive = candidates.tolist()
    texts = tokenizer.batch_decode(alive, clean_up_tokenization_spaces=False)
    suffixes = [text.removeprefix(" ") for text in texts]
    for place in places:
        if not alive:
            break
        written = tokenizer([place.text(suffix) for suffix in suffixes])["input_ids"]
        same = [ids == place.ids(row) for ids, row in zip(written, alive, strict=True)]
        alive = [row for row, ok in zip(alive, same, strict=True) if ok]
        suffixes = [suffix for suffix, ok in zip(suffixes, same, strict=True) if ok]
    return candidates.new_tensor(alive).reshape(len(alive), candidates.shape[1])


# --- the stage -------------------------------------------------------------------------------------------------------


def run_gcg_stage(ctx: StageContext) -> None:
    """`prompts` with a suffix searched against `model`: one for all, searched on the items of `train` (else on the
    prompts themselves), or one each. Parameters: `config` (see `GCGConfig`), `template`, `dtype`.

    Writes `items.jsonl`, in the order of the prompts, and `search.json`. A prompt that cannot be searched on gets the
    suffix to begin with, and `unfit` there says why.
    """
    from wpn_bench import models
    from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

    config = GCGConfig(**ctx.params["config"], **ctx.local.get("config", {}))
    template = Template.parse(ctx.params["template"])
    model, tokenizer = models.load(ctx.needs["model"], ctx.local["device"], ctx.params["dtype"])
    items = read_items(ctx.needs["prompts"])
    on = items
    if config.universal:
        on = spread(read_items(ctx.needs["train"]) if "train" in ctx.needs else items, config.prompts)
    ground = prepare(on, tokenizer, template, config, models.context_length(model))
    searches = [ground] if config.universal else ground.alone()
    advance = ctx.progress(len(searches) * config.steps, "steps")
    allowed = allowed_tokens(model, tokenizer, ascii_only=config.ascii_only)
    results = []
    kept = kept_states(ground.places, config, ground.ids, "results")
    for number, part in enumerate(searches):
        if number in kept.known:
            results.append(GCGResult(**unpacked(kept.known[number])))
            advance(config.steps)
            continue
        seed = None if config.universal else seed_for(config, part.places[0].item)
        results.append(search_suffix(model, tokenizer, part, config, seed=seed, allowed=allowed, advance=advance))
        kept.add({number: packed(asdict(results[-1]))})
    found = {item: result.suffix for result in results for item in result.items}
    for_all = results[0].suffix if config.universal else ground.suffix
    suffixed = [with_suffix(item, for_all if config.universal else found.get(item.id, for_all)) for item in items]
    write_rows(ctx.out / ITEMS, [item_row(item) for item in suffixed])
    told: dict[str, Any] = {"attack": "gcg", "config": config.model_dump(mode="json"), "unfit": ground.unfit}
    write_json(ctx.out / SEARCH, {**told, "searches": [asdict(result) for result in results]})


def seed_for(config: SearchConfig, item: Item) -> int:
    """A seed (63 bits) that depends on the configuration's and the item, but not on the item's place in the set."""
    return int(digest_of([config.seed, item.id])[:16], 16) >> 1
