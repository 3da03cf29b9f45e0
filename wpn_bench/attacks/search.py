"""What the gradient attacks share: settings, description, the set-up of their stages, and their checkpoints."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.attacks.suffix_slots import SuffixSlot, SuffixSlots, evenly_spread, find_slots
from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Advance
from wpn_bench.core.validation import Count
from wpn_bench.jobs import journal
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.journal import Section
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.prompts import Item, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEARCH = "search.json"


class SearchConfig(BaseModel):
    """Settings of every search for a suffix. The result depends on all of them but `pass_tokens`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    init: str = Field("!", min_length=1, description="word that, repeated, is the suffix to begin with")
    suffix_tokens: Count = Field(20, description="as many tokens at most as whole repeats of `init` fill")
    target: str = Field(
        "Sure, here is", min_length=1, description="what to reach where an item has no harmful reference"
    )
    target_tokens: Count = Field(20, description="of the reference's beginning")
    universal: bool = Field(False, description="one suffix for all prompts instead of one each")
    prompts: Count = Field(25, description="items that a universal suffix is searched on, spread over those given")
    seed: int = Field(0, ge=0)
    pass_tokens: int | None = Field(None, ge=1, description="tokens of a pass at most; None: from the free memory")


class GradientAttack:
    """A search against one model: its description, its configuration, and the stage that makes it.

    A package of its own adds one through an entry point of the group `wpn_bench.gradient_attacks`. The stage is called like
    the attack. It gets the inputs `model`, `prompts` and, where `universal` is set, `train` (the items to search on), and the
    parameters `config`, `template` and `dtype`, and `decoding` where the attack `responds`. It writes `search.json`: `attack`,
    `config` (with `universal` and `steps`), `unfit` (item id -> reason), and `searches`, each with `items` (ids),
    `first_loss`, `best_loss` (nats a token), `reached` (a flag for each item) and `seconds`.

    Attributes:
        responds: The stage leaves responses (`responses.jsonl`); else it leaves attacked items (`items.jsonl`), which are
            answered as any others.
        stage: What `search_stage` makes of the function.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    Config: ClassVar[type[SearchConfig]]
    responds: ClassVar[bool] = False
    stage: ClassVar[Stage]


def search_stage(function: str, version: int = 1, libraries: tuple[str, ...] = LM_LIBRARIES) -> Stage:
    """The stage of a gradient attack.

    Args:
        function: Does the search, `"module:function"`.
        version: Of its output.
        libraries: Distributions whose version decides the output.
    """
    return Stage(
        function,
        version,
        libraries,
        resumable=True,
        unhashed_files=(SEARCH,),
        memory="wpn_bench.preflight.estimates:search_needs",
        part="attack",
    )


# Not part of the cache key: how a search is cut into passes does not change what it finds.
NOT_IN_DIGEST = ("pass_tokens",)


Config = TypeVar("Config", bound=SearchConfig)


@dataclass(frozen=True)
class SearchSetup(Generic[Config]):
    """What the stage of a gradient attack works with.

    The stage needs `model`, `prompts` and, for a suffix that serves all prompts, may have `train`, the items to search
    on. Its parameters are `config`, `template` and `dtype`.
    """

    ctx: StageContext
    config: Config
    template: Template
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    items: list[Item]  # that are attacked

    @classmethod
    def load(cls, ctx: StageContext, config_class: type[Config]) -> SearchSetup[Config]:
        """Load the model and the prompts of a stage.

        Args:
            ctx: The stage's parameters and inputs.
            config_class: The attack's settings.
        """
        from wpn_bench import models
        from wpn_bench.prompts.items import read_items

        config = config_class(**ctx.params["config"], **ctx.local.get("config", {}))
        template = Template.parse(ctx.params["template"])
        model, tokenizer = models.load(ctx.needs["model"], ctx.local["device"], ctx.params["dtype"])
        return cls(ctx, config, template, model, tokenizer, read_items(ctx.needs["prompts"]))

    def slots_of(self, items: Sequence[Item]) -> SuffixSlots:
        """The items with a slot for the suffix."""
        from wpn_bench import models

        return find_slots(items, self.tokenizer, self.template, self.config, models.context_length(self.model))

    def searched_slots(self) -> SuffixSlots:
        """The slots to search on: those of the attacked prompts, or for a universal suffix some of the items of `train`
        (without it, some of the prompts)."""
        if not self.config.universal:
            return self.slots_of(self.items)
        from wpn_bench.prompts.items import read_items

        items = read_items(self.ctx.needs["train"]) if "train" in self.ctx.needs else self.items
        return self.slots_of(evenly_spread(items, self.config.prompts))

    def step_progress(self, searches: int, steps: int) -> Advance:
        """Progress over the steps of all searches."""
        return self.ctx.progress(searches * steps, "steps")

    def write(self, attack: str, slots: SuffixSlots, searches: Sequence[dict[str, Any]]) -> None:
        """Write `search.json`.

        Args:
            attack: The attack's name.
            slots: What was searched on.
            searches: The result of each search.
        """
        told = {"attack": attack, "config": self.config.model_dump(mode="json"), "unfit": slots.unfit}
        write_json(self.ctx.out / SEARCH, {**told, "searches": list(searches)})


def checkpoint_section(slots: Sequence[SuffixSlot], config: SearchConfig, *more: Any) -> Section:
    """Where a search keeps its per-example checkpoints: its newest state under 0, or finished results by number.

    Args:
        slots: The prompts that are searched on.
        config: Settings of the search.
        *more: Plain values that tell this search from others over the same slots.
    """

    def fingerprint() -> str:
        around = (ids for slot in slots for ids in (slot.before, slot.after, slot.target))
        return journal.fingerprint(around, config.model_dump_json(exclude=set(NOT_IN_DIGEST)), *more)

    return journal.section("search", fingerprint)


def to_text(value: Any) -> str:
    """Tensors and plain values, bit by bit, as text that a checkpoint can hold. `from_text` reads it."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(text: str) -> Any:
    """The value that `to_text` was given, on the CPU; nothing but tensors and plain values is read."""
    import torch

    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True, map_location="cpu")
