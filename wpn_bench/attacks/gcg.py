"""Greedy coordinate gradient (GCG) searches a suffix of ordinary tokens that makes the model begin its harmful answer.

    loss(s) = mean over prompts x of - mean_t log p(y_t | x s, y_<t)

s is the suffix, and y is the beginning of a harmful reference response. Each step does the following:

1. It computes the gradient of the loss with respect to the one-hot vectors of the suffix tokens.
2. It samples candidates. A candidate replaces `n_replace` tokens of the suffix, each by one of the `topk` tokens for
   which the gradient predicts the largest decrease of the loss.
3. It continues with the candidate that has the lowest loss, even if this loss is higher than before.

Source: Zou et al. 2023, "Universal and Transferable Adversarial Attacks on Aligned Language Models", arXiv 2307.15043,
Algorithms 1 and 2. There are four differences from the paper:

- Losses are means; the paper sums them.
- Candidates are distinct and differ from the current suffix.
- A candidate is dropped before it is scored if its text, within any prompt, is tokenised to other tokens. So the loss
  is that of the text. Another candidate is sampled instead.
- With `compare_on`, candidates for many prompts are compared on a few prompts, which each step samples again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

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
from wpn_bench.attacks.suffix_slots import SuffixSlot, SuffixSlots, with_suffix
from wpn_bench.attacks.target_loss import LossAndGradient, TargetLoss, check_finite
from wpn_bench.core.files import digest_of
from wpn_bench.core.progress import Advance, Stopwatch
from wpn_bench.jobs.job import StageContext
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts import Item

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["GCG", "GCGConfig", "GCGResult", "run_gcg_stage", "search_suffix"]


class GCGConfig(SearchConfig):
    """Settings of GCG. The defaults are those of the paper's attack on individual prompts, with half of its steps."""

    steps: int = Field(250, ge=1)
    candidates: int = Field(512, ge=1, description="number of distinct candidates that are scored in a step")
    topk: int = Field(256, ge=1, description="number of tokens to sample from, at each position of the suffix")
    n_replace: int = Field(1, ge=1, description="number of tokens that a candidate replaces")
    retokenise: bool = Field(
        True, description="whether to keep only candidates whose text is tokenised to the same tokens"
    )
    ascii_only: bool = Field(True, description="whether to sample only tokens of printable ASCII characters")
    compare_on: int | None = Field(
        None, ge=1, description="number of prompts per step on which candidates are compared; None means all"
    )
    progressive: bool = Field(
        False, description="whether to begin with one prompt, and add another when all targets are reached"
    )
    early_stop: bool = Field(False, description="whether to stop when greedy decoding generates every target")
    transfer: bool = Field(False, description="whether every other model of the run is asked the suffixes, too")


# Maximum rounds of sampling in a step. A few per cent of the candidates are duplicates or change when tokenised again.
_ROUNDS = 4


class GCG(GradientAttack):
    """The attack with a suffix from greedy coordinate gradient (see the docstring of the module)."""

    name = "gcg"
    title = "GCG suffix"
    description = (
        "A suffix of tokens, searched with gradients until the model begins its harmful answer (Zou et al. 2023)."
    )
    Config = GCGConfig
    stage = search_stage("wpn_bench.attacks.gcg:run_gcg_stage")


@dataclass(frozen=True)
class GCGResult:
    """The result of one search. Losses are in nats per token.

    Attributes:
        items: Ids of the prompts for which the suffix was optimised.
        suffix: The best suffix.
        ids: Its token ids.
        losses: Loss of the initial suffix, then of the suffix chosen in each step.
        active: For each of `losses`, the number of prompts over which it is the mean.
        first_loss: Loss of the initial suffix over all prompts.
        best_loss: Loss of the best suffix over all prompts.
        reached: For each prompt, whether greedy decoding after the best suffix generates the target.
        seconds: Duration of the search.
    """

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
    slots: SuffixSlots,
    config: GCGConfig,
    *,
    seed: int | None = None,
    allowed: Tensor | None = None,
    advance: Advance = lambda n: None,
) -> GCGResult:
    """Search one suffix for all prompts.

    Args:
        model: The attacked model.
        tokenizer: Its tokenizer.
        slots: The prompts, each with a slot for the suffix, and the initial suffix.
        config: Settings of the search.
        seed: Seed that replaces `config.seed`; None keeps it.
        allowed: (V,) True for the tokens that may be sampled; None uses those of `allowed_tokens`.
        advance: Called with the number of steps finished since its last call.

    Returns:
        The suffix with the lowest loss, and the loss of every step.

    Raises:
        JobFailed: The model's loss is not finite.
    """
    import torch

    watch = Stopwatch()
    allowed = allowed_tokens(model, tokenizer, ascii_only=config.ascii_only) if allowed is None else allowed
    rng = torch.Generator().manual_seed(config.seed if seed is None else seed)
    loss = TargetLoss(model, slots.slots, config.pass_tokens)
    n_slots = len(slots.slots)
    suffix = best = torch.tensor(slots.initial_ids)
    active = 1 if config.progressive else n_slots
    best_loss = float("inf")
    losses: list[float] = []
    counts: list[int] = []
    checkpoint = checkpoint_section(slots.slots, config, slots.initial_ids, config.seed if seed is None else seed)
    if checkpoint.known:
        # Resume a killed search with the same random state.
        first, suffix, best, best_loss, active, losses, counts, state = from_text(checkpoint.known[0])
        rng.set_state(state)
        advance(len(losses))
    else:
        first, _ = _loss_of_all(loss, suffix)
    for step in range(len(losses), config.steps + 1):
        found = loss.loss_and_gradient(loss.embedded(suffix).unsqueeze(0), range(active), keep_cache=True)
        while active < n_slots and bool(found.reached.all()):
            # With another prompt, the mean loss cannot be compared with earlier losses.
            active, best_loss = active + 1, float("inf")
            found = loss.loss_and_gradient(loss.embedded(suffix).unsqueeze(0), range(active), keep_cache=True)
        losses.append(float(found.losses.mean()))
        counts.append(active)
        done = config.early_stop and bool(found.reached.all())
        if losses[-1] < best_loss or done:
            best, best_loss = suffix, losses[-1]
        if done or step == config.steps:
            advance(config.steps - step)
            break
        gradient = _one_hot_gradient(model, found.gradient[0])
        drawn = _candidates(tokenizer, slots.slots[:active], suffix, gradient, allowed, config, rng)
        if len(drawn):
            suffix = _best_candidate(loss, drawn, suffix, found, _compared(active, config, rng), config)
        if checkpoint.save_due():
            checkpoint.add({0: to_text([first, suffix, best, best_loss, active, losses, counts, rng.get_state()])})
        advance(1)
    last, hits = _loss_of_all(loss, best)
    return GCGResult(
        tuple(slot.item.id for slot in slots.slots),
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
    """Return the indices of the prompts on which the candidates of a step are compared."""
    import torch

    if config.compare_on is None or config.compare_on >= active:
        return list(range(active))
    return sorted(torch.randperm(active, generator=rng)[: config.compare_on].tolist())


def _best_candidate(
    loss: TargetLoss,
    drawn: Tensor,
    suffix: Tensor,
    found: LossAndGradient,
    numbers: Sequence[int],
    config: GCGConfig,
) -> Tensor:
    """Return the candidate (k,) out of `drawn` (C, k) with the lowest mean loss over some prompts.

    `numbers` are the indices of these prompts. With `early_stop`, a candidate after which greedy decoding generates all
    targets is preferred.
    """
    import torch

    total = torch.zeros(len(drawn), device=loss.model.device)
    reached = torch.ones(len(drawn), dtype=torch.bool, device=loss.model.device)
    for number in numbers:
        one, hit = loss.score(number, drawn, suffix, found.cached[number])
        total += one
        reached &= hit
    if config.early_stop and bool(reached.any()):
        total = total.masked_fill(~reached, torch.inf)
    return drawn[int(total.nan_to_num(nan=torch.inf).argmin())]


def _loss_of_all(loss: TargetLoss, ids: Tensor) -> tuple[float, tuple[bool, ...]]:
    """Return the mean loss over all prompts with this suffix, and for each prompt whether its target is reached."""
    found = loss.loss_and_gradient(loss.embedded(ids).unsqueeze(0), range(len(loss.slots)))
    return float(check_finite(found.losses).mean()), tuple(found.reached.tolist())


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of the suffix without its leading space."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).removeprefix(" ")


# --- candidates ------------------------------------------------------------------------------------------------------


def allowed_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, ascii_only: bool = True) -> Tensor:
    """Find the tokens that a suffix may contain: printable text without special tokens.

    Args:
        model: The attacked model.
        tokenizer: Its tokenizer.
        ascii_only: Whether to exclude tokens with characters outside ASCII.

    Returns:
        (V,) True for each allowed token.
    """
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
    """Convert the gradient with respect to embeddings (k, d) to that with respect to one-hot vectors (k, V)."""
    weight = model.get_input_embeddings().weight.detach()
    found: Tensor = (gradient.to(weight.dtype) @ weight.T).float().cpu()
    return found


def _candidates(
    tokenizer: PreTrainedTokenizerBase,
    slots: Sequence[SuffixSlot],
    suffix: Tensor,
    gradient: Tensor,
    allowed: Tensor,
    config: GCGConfig,
    rng: Generator,
) -> Tensor:
    """Sample the candidates (C, k) of a step. C is at most `config.candidates`, and less if too few are found."""
    tried: dict[tuple[int, ...], None] = {}
    found: list[list[int]] = []
    for _ in range(_ROUNDS):
        drawn = [row for row in map(tuple, _draw(suffix, gradient, allowed, config, rng).tolist()) if row not in tried]
        tried |= dict.fromkeys(drawn)
        fresh = suffix.new_tensor(drawn).reshape(len(drawn), len(suffix))
        found += (_surviving(tokenizer, slots, fresh) if config.retokenise else fresh).tolist()
        if len(found) >= config.candidates:
            break
    found = found[: config.candidates]
    return suffix.new_tensor(found).reshape(len(found), len(suffix))


def _draw(suffix: Tensor, gradient: Tensor, allowed: Tensor, config: GCGConfig, rng: Generator) -> Tensor:
    """Sample distinct candidates (C, k).

    Each candidate replaces `n_replace` tokens of `suffix` (k,). A new token is sampled from the `topk` allowed tokens
    with the most negative entries of `gradient` (k, V) at its position.
    """
    import torch

    topk = min(config.topk, int(allowed.sum()))
    best = (-gradient).masked_fill(~allowed, -torch.inf).topk(topk, dim=1).indices
    n, size = config.candidates, len(suffix)
    positions = torch.rand(n, size, generator=rng).argsort(1)[:, : config.n_replace]
    ranks = torch.randint(topk, (n, positions.shape[1]), generator=rng)
    drawn = suffix.repeat(n, 1).scatter(1, positions, best[positions, ranks])
    drawn = drawn[(drawn != suffix).any(1)]
    # torch.unique would sort the candidates. Their order matters, because the first of equally good ones is chosen.
    distinct = dict.fromkeys(map(tuple, drawn.tolist()))
    return torch.tensor(list(distinct), dtype=torch.long).reshape(len(distinct), size)


def _surviving(tokenizer: PreTrainedTokenizerBase, slots: Sequence[SuffixSlot], candidates: Tensor) -> Tensor:
    """Return the candidates (C, k) whose text is tokenised to the same tokens again, in every prompt."""
    alive = candidates.tolist()
    texts = tokenizer.batch_decode(alive, clean_up_tokenization_spaces=False)
    suffixes = [text.removeprefix(" ") for text in texts]
    for slot in slots:
        if not alive:
            break
        written = encode_prompts(tokenizer, [slot.text(suffix) for suffix in suffixes])
        same = [ids == slot.ids(row) for ids, row in zip(written, alive, strict=True)]
        alive = [row for row, ok in zip(alive, same, strict=True) if ok]
        suffixes = [suffix for suffix, ok in zip(suffixes, same, strict=True) if ok]
    return candidates.new_tensor(alive).reshape(len(alive), candidates.shape[1])


# --- the stage -------------------------------------------------------------------------------------------------------


def run_gcg_stage(ctx: StageContext) -> None:
    """Search suffixes against `model`, and append them to `prompts` (see `SearchSetup` for the inputs).

    The stage writes `items.jsonl`, in the order of the prompts, and `search.json`. If no suffix can be optimised for a
    prompt, the prompt gets the initial suffix, and `unfit` in `search.json` tells the reason.
    """
    from wpn_bench.prompts.items import ITEMS, item_row, write_rows

    setup = SearchSetup.load(ctx, GCGConfig)
    config, model, tokenizer = setup.config, setup.model, setup.tokenizer
    slots = setup.searched_slots()
    searches = [slots] if config.universal else slots.one_by_one()
    advance = setup.step_progress(len(searches), config.steps)
    allowed = allowed_tokens(model, tokenizer, ascii_only=config.ascii_only)
    results = []
    finished = checkpoint_section(slots.slots, config, slots.initial_ids, "results")
    for number, part in enumerate(searches):
        if number in finished.known:
            results.append(GCGResult(**from_text(finished.known[number])))
            advance(config.steps)
            continue
        seed = None if config.universal else seed_for(config, part.slots[0].item)
        results.append(search_suffix(model, tokenizer, part, config, seed=seed, allowed=allowed, advance=advance))
        finished.add({number: to_text(asdict(results[-1]))})
    found = {item: result.suffix for result in results for item in result.items}
    for_all = results[0].suffix if config.universal else slots.initial_suffix
    suffixed = [with_suffix(item, for_all if config.universal else found.get(item.id, for_all)) for item in setup.items]
    write_rows(ctx.out / ITEMS, [item_row(item) for item in suffixed])
    setup.write("gcg", slots, [asdict(result) for result in results])


def seed_for(config: SearchConfig, item: Item) -> int:
    """Return the seed of the search for one prompt. It does not depend on the position of the item in its set.

    Args:
        config: Settings of the search, which contain a seed.
        item: The prompt.

    Returns:
        An integer of 63 bits, computed from `config.seed` and the item's id.
    """
    return int(digest_of([config.seed, item.id])[:16], 16) >> 1
