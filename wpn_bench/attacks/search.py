"""Code that the gradient attacks share: their settings, metadata, loading of inputs, and journals."""

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
    """Settings of all gradient attacks. The result depends on all of them except `pass_tokens`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    init: str = Field("!", min_length=1, description="word that is repeated to make the initial suffix")
    suffix_tokens: Count = Field(
        20, description="maximum number of tokens in the suffix, which contains whole repeats of `init`"
    )
    target: str = Field(
        "Sure, here is", min_length=1, description="target for items without a harmful reference response"
    )
    target_tokens: Count = Field(20, description="number of tokens of the harmful reference that are the target")
    universal: bool = Field(False, description="whether to search one suffix for all prompts instead of one for each")
    prompts: Count = Field(25, description="number of items for which a universal suffix is searched")
    seed: int = Field(0, ge=0)
    pass_tokens: int | None = Field(
        None, ge=1, description="maximum number of tokens in a forward pass; None uses the free memory"
    )


class GradientAttack:
    """Metadata, settings and stage of a gradient attack.

    Another package adds a gradient attack by an entry point in the group `wpn_bench.gradient_attacks`. The stage has
    the name of the attack. Its inputs are `model`, `prompts` and, if `universal` is set, `train` (the items for which
    the input is optimised). Its parameters are `config`, `template` and `dtype`, and `decoding` if the attack
    `responds`. It writes `search.json` with these fields:

    - `attack`: name of the attack
    - `config`: settings, including `universal` and `steps`
    - `unfit`: for each prompt that cannot be attacked, its item id and the reason
    - `searches`: for each search a dict with `items` (ids), `first_loss` and `best_loss` (nats per token), `reached` (a
      boolean for each item) and `seconds`

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        Config: Class of the settings.
        responds: Whether the stage writes responses (`responses.jsonl`). If not, it writes attacked items
            (`items.jsonl`), which the model answers like other prompts.
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


# These settings do not change the result of a search, so they are not part of its digest: the number of tokens per forward
# pass, and whether other models are asked the suffixes.
NOT_IN_DIGEST = ("pass_tokens", "transfer")


Config = TypeVar("Config", bound=SearchConfig)


@dataclass(frozen=True)
class SearchSetup(Generic[Config]):
    """Model, settings and prompts of the stage of a gradient attack.

    The stage has the inputs `model` and `prompts`, and may have `train` (the items for which a universal suffix is
    optimised). Its parameters are `config`, `template` and `dtype`.

    Attributes:
        ctx: The argument of the stage function.
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
            ctx: The argument of the stage function.
            config_class: Class of the attack's settings.

        Returns:
            The loaded model, settings and prompts.
        """
        from wpn_bench import models
        from wpn_bench.prompts.items import read_items

        config = config_class(**ctx.params["config"], **ctx.local.get("config", {}))
        template = Template.parse(ctx.params["template"])
        model, tokenizer = models.load(ctx.needs["model"], ctx.local["device"], ctx.params["dtype"])
        return cls(ctx, config, template, model, tokenizer, read_items(ctx.needs["prompts"]))

    def slots_of(self, items: Sequence[Item]) -> SuffixSlots:
        """Return the items, each with a slot for the suffix."""
        from wpn_bench import models

        return find_slots(items, self.tokenizer, self.template, self.config, models.context_length(self.model))

    def searched_slots(self) -> SuffixSlots:
        """Return the prompts for which the suffix is optimised, each with a slot for it.

        They are the attacked prompts. A universal suffix is optimised for `config.prompts` items of the input `train`,
        or of the attacked prompts without this input.
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
            steps: Number of steps of each search.

        Returns:
            A function that is called with the number of steps finished since its last call.
        """
        return self.ctx.progress(searches * steps, "steps")

    def write(self, attack: str, slots: SuffixSlots, searches: Sequence[dict[str, Any]]) -> None:
        """Write `search.json`.

        Args:
            attack: Name of the attack.
            slots: The prompts for which the search was made.
            searches: The result of each search.
        """
        told = {"attack": attack, "config": self.config.model_dump(mode="json"), "unfit": slots.unfit}
        write_json(self.ctx.out / SEARCH, {**told, "searches": list(searches)})


def checkpoint_section(slots: Sequence[SuffixSlot], config: SearchConfig, *more: Any) -> Section:
    """Open the journal section of a search. It holds the newest state under the key 0, or finished results by number.

    Args:
        slots: The prompts for which the search is made.
        config: Settings of the search.
        *more: Plain values that distinguish this search from others for the same prompts.

    Returns:
        The section, which contains what an earlier attempt has stored.
    """

    def fingerprint() -> str:
        around = (ids for slot in slots for ids in (slot.before, slot.after, slot.target))
        return journal.fingerprint(around, config.model_dump_json(exclude=set(NOT_IN_DIGEST)), *more)

    return journal.section("search", fingerprint)


def to_text(value: Any) -> str:
    """Encode tensors and plain values as text for the journal, without loss. `from_text` decodes it."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(text: str) -> Any:
    """Decode the output of `to_text`. Tensors are on the CPU. Other pickled objects are refused."""
    import torch

    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True, map_location="cpu")
