"""Code that the gradient attacks share: settings, metadata, set-up of their stages, and checkpoints."""

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
    """Settings of every gradient attack. The result depends on all of them except `pass_tokens`."""

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
    """Metadata, settings and stage of a gradient attack.

    Another package adds one with an entry point of the group `wpn_bench.gradient_attacks`. The stage has the name of the
    attack. Its inputs are `model`, `prompts` and, if `universal` is set, `train` (the items to optimise on). Its parameters
    are `config`, `template` and `dtype`, and `decoding` if the attack `responds`. It writes `search.json` with

    - `attack`: the name,
    - `config`: the settings, with `universal` and `steps`,
    - `unfit`: item id -> reason,
    - `searches`: a list with `items` (ids), `first_loss` and `best_loss` (nats per token), `reached` (a flag for each item)
      and `seconds` of each search.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        Config: Class of the settings.
        responds: True if the stage writes responses (`responses.jsonl`). Otherwise it writes attacked items (`items.jsonl`),
            and the model answers them like other prompts.
        stage: The stage, from `search_stage`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    Config: ClassVar[type[SearchConfig]]
    responds: ClassVar[bool] = False
    stage: ClassVar[Stage]


def search_stage(function: str, version: int = 1, libraries: tuple[str, ...] = LM_LIBRARIES) -> Stage:
    """Create the stage of a gradient attack.

    Args:
        function: `"module:function"` that runs the attack.
        version: Version of its output.
        libraries: Distributions whose version affects the output.

    Returns:
        The stage.
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


# Not part of the cache key: the number of tokens per forward pass does not change the result.
NOT_IN_DIGEST = ("pass_tokens",)


Config = TypeVar("Config", bound=SearchConfig)


@dataclass(frozen=True)
class SearchSetup(Generic[Config]):
    """Model, settings and prompts of the stage of a gradient attack.

    The stage has the inputs `model` and `prompts`, and may have `train` (the items to optimise a universal suffix on). Its
    parameters are `config`, `template` and `dtype`.

    Attributes:
        ctx: The stage's parameters and inputs.
        config: The settings.
        template: Renders the prompts.
        model: The attacked model.
        tokenizer: Its tokenizer.
        items: The prompts to attack.
    """

    ctx: StageContext
    config: Config
    template: Template
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    items: list[Item]

    @classmethod
    def load(cls, ctx: StageContext, config_class: type[Config]) -> SearchSetup[Config]:
        """Load the model and the prompts of a stage.

        Args:
            ctx: The stage's parameters and inputs.
            config_class: Class of the attack's settings.

        Returns:
            The loaded set-up.
        """
        from wpn_bench import models
        from wpn_bench.prompts.items import read_items

        config = config_class(**ctx.params["config"], **ctx.local.get("config", {}))
        template = Template.parse(ctx.params["template"])
        model, tokenizer = models.load(ctx.needs["model"], ctx.local["device"], ctx.params["dtype"])
        return cls(ctx, config, template, model, tokenizer, read_items(ctx.needs["prompts"]))

    def slots_of(self, items: Sequence[Item]) -> SuffixSlots:
        """Return the items with a slot for the suffix."""
        from wpn_bench import models

        return find_slots(items, self.tokenizer, self.template, self.config, models.context_length(self.model))

    def searched_slots(self) -> SuffixSlots:
        """Return the slots to optimise on.

        They are those of the attacked prompts. A universal suffix uses `config.prompts` items of the input `train`, or of the
        attacked prompts if there is no such input.
        """
        if not self.config.universal:
            return self.slots_of(self.items)
        from wpn_bench.prompts.items import read_items

        items = read_items(self.ctx.needs["train"]) if "train" in self.ctx.needs else self.items
        return self.slots_of(evenly_spread(items, self.config.prompts))

    def step_progress(self, searches: int, steps: int) -> Advance:
        """Report progress over the steps of all searches.

        Args:
            searches: Number of searches.
            steps: Steps of each.

        Returns:
            A function that takes the number of steps done since its last call.
        """
        return self.ctx.progress(searches * steps, "steps")

    def write(self, attack: str, slots: SuffixSlots, searches: Sequence[dict[str, Any]]) -> None:
        """Write `search.json`.

        Args:
            attack: Name of the attack.
            slots: The slots that were optimised on.
            searches: The result of each search.
        """
        told = {"attack": attack, "config": self.config.model_dump(mode="json"), "unfit": slots.unfit}
        write_json(self.ctx.out / SEARCH, {**told, "searches": list(searches)})


def checkpoint_section(slots: Sequence[SuffixSlot], config: SearchConfig, *more: Any) -> Section:
    """Open the checkpoints of a search. They hold its newest state under the key 0, or finished results by number.

    Args:
        slots: The prompts to optimise on.
        config: Settings of the search.
        *more: Plain values that distinguish this search from others on the same slots.

    Returns:
        The checkpoints, with those that an earlier run left.
    """

    def fingerprint() -> str:
        around = (ids for slot in slots for ids in (slot.before, slot.after, slot.target))
        return journal.fingerprint(around, config.model_dump_json(exclude=set(NOT_IN_DIGEST)), *more)

    return journal.section("search", fingerprint)


def to_text(value: Any) -> str:
    """Encode tensors and plain values as text for a checkpoint, without loss. `from_text` decodes it."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(text: str) -> Any:
    """Decode the output of `to_text`, with tensors on the CPU. Other pickled objects are refused."""
    import torch

    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True, map_location="cpu")
