"""Suffixes that a search found on one model, asked of another model (`transfer: true` of a gradient attack such as GCG).

A suffix is ordinary text, so anybody may send it to any model. Zou et al. 2023 (arXiv:2307.15043) call this a transfer
attack: the attacker needs the weights of some model, and not those of the model that is attacked. Here, the model on
which the suffix was found is another one of the same run, such as the base.

The stage `transfer` selects what is asked. A prompt is left out if the search found no suffix for it: the suffix is empty, or
the tokenizer of the first model could not separate it from the prompt (`unfit` in `search.json`). A suffix is asked but
counted if the tokenizer of the asked model cannot write it: its tokens decode to other text, for instance because a
character is unknown to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.attacks.search import SEARCH
from wpn_bench.core.files import write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models.tokenizer import encode_prompts, load_tokenizer
from wpn_bench.prompts import Item, Template
from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRANSFERRED = "transfer.json"


def suffix_of(item: Item) -> str:
    """Return the suffix that a search appended to a prompt; empty if there is none."""
    return item.prompt.removeprefix(item.request).strip() if item.prompt.startswith(item.request) else ""


def changed_by(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], template: Template) -> list[str]:
    """Find the suffixes that a tokenizer cannot write.

    Args:
        tokenizer: The tokenizer of the asked model.
        items: Prompts with suffixes.
        template: Renders the prompts.

    Returns:
        The ids of the items whose rendered text, tokenised and decoded again, lacks the suffix.
    """
    encoded = encode_prompts(tokenizer, [template.render(item) for item in items])
    texts = [str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in encoded]
    return [item.id for item, text in zip(items, texts, strict=True) if suffix_of(item) not in text]


def run_transfer_stage(ctx: StageContext) -> None:
    """Select the suffixes in `prompts`, which a search found, to be asked of `model`.

    The parameters are `template`, by which `model` gets its prompts, and `endpoint` if it has no tokenizer. Writes
    `items.jsonl`, and `transfer.json` with the number of prompts and the ids that are `empty`, `unfit` and `changed`.

    Raises:
        JobFailed: The search found no suffix for any prompt.
    """
    items = read_items(ctx.needs["prompts"])
    told = load_json(ctx.needs["prompts"] / SEARCH, "repeat the run with --recompute")
    unfit = [item.id for item in items if item.id in told["unfit"]]
    empty = [item.id for item in items if not suffix_of(item) and item.id not in unfit]
    asked = [item for item in items if item.id not in {*unfit, *empty}]
    if not asked:
        raise JobFailed(f"the search found no suffix for any of the {len(items)} prompts, so there is nothing to ask")
    changed: list[str] = []
    if not ctx.params.get("endpoint"):
        template = Template.parse(ctx.params["template"])
        changed = changed_by(load_tokenizer(ctx.needs["model"]), asked, template)
    write_rows(ctx.out / ITEMS, [item_row(item) for item in asked])
    write_json(ctx.out / TRANSFERRED, {"prompts": len(items), "empty": empty, "unfit": unfit, "changed": changed})


STAGE = Stage(
    "wpn_bench.attacks.suffix_transfer:run_transfer_stage",
    1,
    LM_LIBRARIES,
    unhashed_files=(TRANSFERRED,),
    items="needs.prompts",
    part="attack",
    rows="wpn_bench.analysis.transfer_rows:count_rows",
    section="wpn_bench.report.transfer:section",
)
