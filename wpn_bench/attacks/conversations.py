"""Attacks by conversations: scripts of several turns in `tasks/attacks/`. The answer to the last turn is judged.

A script is a list of turns of the user. An answer of the assistant is either written in the script, or left to the model. In
the first case, the conversation is the same for all models. In the second case, the stage `converse` asks the model turn by
turn. The conversation before the last turn is stored in `Item.context` as JSON (see `turns_of`), so every template writes it
in its own way: a chat template as messages, a plain template as a transcript.

Sources of the scripts, which are in our own words: Russinovich et al. 2024 (arXiv:2404.01833, crescendo), Weng et al. 2025
(arXiv:2502.19820, foot in the door), Anil et al. 2024 ("Many-shot jailbreaking"), Zhou et al. 2024 (arXiv:2402.17262, harmless
turns first). They differ from the published attacks, which let another model write each turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, model_validator

from wpn_bench.attacks.base import AttackContext
from wpn_bench.attacks.few_shot import shown_examples
from wpn_bench.core.files import write_json
from wpn_bench.core.progress import Advance
from wpn_bench.core.validation import Count
from wpn_bench.engine.generation import too_long
from wpn_bench.errors import UserError
from wpn_bench.harmless.stages import split_reasoning
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.models.backends import Decoding, open_backend
from wpn_bench.models.backends.client import UNANSWERED
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts import Item, Template
from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

if TYPE_CHECKING:
    from wpn_bench.models.backends import Backend

COUNTS = "conversations.json"
NO_ANSWER = "..."  # in place of an empty answer within a conversation, which some chat templates and servers refuse
TOPIC_WORDS = 6
TOPIC_CHARACTERS = 80
_SEARCHED = 1_000  # characters of a prompt in which its topic is searched
_PLACEHOLDER = re.compile(r"\{(prompt|topic)\}")
# English words that say nothing about the topic of a question.
_FUNCTION_WORDS = """
    a about advise all also am an and any are ask asks be been but by can could describe did do does explain for from get give
    had has have he her his how i if in is it its let like make may me might my name of on or our please say she should show so
    some tell than that the their them then there these they think this those to us very want wants was way ways we were what
    when where which who why will with would write you your
"""
_IGNORED = frozenset(_FUNCTION_WORDS.split())


class ScriptTurn(BaseModel):
    """One turn of a script, or turns that the forget set gives.

    Attributes:
        user: What the user says. It may contain `{prompt}` and `{topic}` (see `topic_of`).
        assistant: The answer; None leaves it to the model.
        shots: Number of turns in place of one: harmful questions of the forget set with their shortest harmful responses.
            There are fewer if the forget set or the model's context has no room for more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    user: str = ""
    assistant: str | None = None
    shots: Count | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.shots is None) != bool(self.user.strip()) or (self.shots and self.assistant is not None):
            raise ValueError("a turn has either `user`, with or without `assistant`, or `shots`")
        if self.assistant is not None and not self.assistant.strip():
            raise ValueError("the answer `assistant` is empty; leave it out, and the model answers")
        return self


def check_script(turns: Sequence[ScriptTurn]) -> None:
    """Raise `ValueError` for turns that are no attack."""
    if turns[-1].shots or turns[-1].assistant is not None:
        raise ValueError("the last turn must be one of the user without an answer, because its answer is judged")
    if len(turns) == 1:
        raise ValueError("a conversation has at least two turns; write a single one as `template`")
    if not any("{prompt}" in turn.user for turn in turns):
        raise ValueError("one of the turns must contain {prompt}")


def topic_of(prompt: str) -> str:
    """Return the words of a prompt that are not English function words, at most six, as its topic."""
    words = re.findall(r"[^\W_][\w'’-]*", prompt[:_SEARCHED])
    found = [word for word in words if word.casefold() not in _IGNORED] or words
    return " ".join(found[:TOPIC_WORDS])[:TOPIC_CHARACTERS].strip() or prompt[:TOPIC_CHARACTERS].strip()


def conversation(item: Item, turns: Sequence[ScriptTurn], name: str, context: AttackContext) -> Item:
    """Write a prompt into a script.

    Args:
        item: The prompt.
        turns: The script.
        name: Name of the attack, which determines which demonstrations are drawn.
        context: Demonstrations, seed, and what fits into the model's context.

    Returns:
        The item with the last turn as prompt, and those before it as context. Answers that are left to the model are null.
    """
    values = {"prompt": item.prompt, "topic": topic_of(item.prompt)}

    def written(text: str) -> str:
        # In one pass, because the prompt itself may contain a placeholder.
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    wanted = max((turn.shots or 0 for turn in turns), default=0)
    examples = shown_examples(item, context, name, wanted) if wanted else []
    last = written(turns[-1].user)

    def with_shots(n: int) -> Item:
        before: list[list[str | None]] = []
        for turn in turns[:-1]:
            if turn.shots:
                before += [[one.prompt, answer] for one, answer in examples[: min(n, turn.shots)]]
            else:
                before.append([written(turn.user), None if turn.assistant is None else written(turn.assistant)])
        return replace(item, prompt=last, context=_json(before))

    fits = context.fits
    if not examples or fits is None or fits(with_shots(len(examples))):
        return with_shots(len(examples))
    return with_shots(_largest(lambda n: fits(with_shots(n)), len(examples)))


def _largest(fits: Callable[[int], bool], above: int) -> int:
    """Return the largest number below `above` that fits, by bisection; 0 if none does."""
    low = 0
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if fits(middle) else (low, middle)
    return low


def _json(turns: Sequence[Sequence[str | None]]) -> str:
    return json.dumps(turns, ensure_ascii=False) if turns else ""


def _turns(item: Item) -> list[list[str | None]]:
    """Return the turns before the last one; none for another context."""
    if not item.context.startswith("[["):
        return []
    try:
        found = json.loads(item.context)
    except ValueError:
        return []
    return found if all(isinstance(turn, list) and len(turn) == 2 for turn in found) else []


def is_open(item: Item) -> bool:
    """Return whether a conversation has answers that are left to the model."""
    return any(answer is None for _, answer in _turns(item))


# --- the stage -------------------------------------------------------------------------------------------------------


def converse(
    model: Backend, items: Sequence[Item], template: Template, decoding: Decoding, advance: Advance = lambda n: None
) -> tuple[list[Item], dict[str, int]]:
    """Let a model answer all turns but the last, one turn of all conversations at a time.

    If a conversation and the answer exceed the model's context, its oldest turns are left out, as chat programs do.

    Args:
        model: The model.
        items: The conversations (see `conversation`).
        template: Writes them for the model.
        decoding: How answers are generated.
        advance: Called with the number of answers finished since its last call.

    Returns:
        The items with all answers in their context, and what was counted: `answers` that the model gave, those of them that were
        `empty` or missing, and conversations that were `shortened`. An empty answer is replaced by `NO_ANSWER`. The reasoning
        of a model is left out.

    Raises:
        UserError: An endpoint did not answer after all attempts.
    """
    held = [_turns(item) for item in items]
    counts = {"answers": 0, "empty": 0, "shortened": 0}
    while waiting := {k: n for k, turns in enumerate(held) if (n := _first_open(turns)) is not None}:
        asked = []
        for k, n in waiting.items():
            one = replace(items[k], prompt=str(held[k][n][0]), answer_prefix="")
            asked.append(_within_context(model, one, held[k][:n], template, decoding))
        inputs, responses = model.answer(asked, template, decoding, advance)
        for (k, n), text, response in zip(waiting.items(), inputs, responses, strict=True):
            if (response.reason or "").startswith(UNANSWERED):
                # An invented answer would be measured as if the model had given it.
                raise UserError(
                    f"a conversation ended early, because an endpoint did not answer ({response.reason})",
                    "repeat the command when the endpoint answers; it continues where it stopped",
                )
            answer = split_reasoning(text, response.text or "")[1].strip()
            counts["answers"] += 1
            counts["empty"] += not answer
            held[k][n][1] = answer or NO_ANSWER
    found = [_within_context(model, item, turns, template, decoding) for item, turns in zip(items, held, strict=True)]
    counts["shortened"] = sum(len(_turns(one)) < len(turns) for one, turns in zip(found, held, strict=True))
    return found, counts


def _first_open(turns: Sequence[Sequence[str | None]]) -> int | None:
    return next((n for n, (_, answer) in enumerate(turns) if answer is None), None)


def _within_context(
    model: Backend, item: Item, before: Sequence[Sequence[str | None]], template: Template, decoding: Decoding
) -> Item:
    """Return an item with the newest of the turns `before` that leave room for an answer. An endpoint decides itself."""
    tokenizer = model.tokenizer
    for first in range(len(before) + 1):
        found = replace(item, context=_json(before[first:]))
        if tokenizer is None or first == len(before):
            break
        (ids,) = encode_prompts(tokenizer, [template.render(found)])
        if not too_long(len(ids), decoding, model.context_length):
            break
    return found


def run_converse_stage(ctx: StageContext) -> None:
    """Let `model` answer the earlier turns of the conversations in `prompts`.

    Writes `items.jsonl` and, with what was counted, `conversations.json` (see `converse`).
    """
    local, params = ctx.local, ctx.params
    model = open_backend(
        ctx.needs["model"], local["device"], params["dtype"], local.get("offload", "none"), params.get("backend")
    )
    items = read_items(ctx.needs["prompts"])
    advance = ctx.progress(sum(answer is None for item in items for _, answer in _turns(item)), "answers")
    found, counts = converse(model, items, Template.parse(params["template"]), Decoding(**params["decoding"]), advance)
    write_rows(ctx.out / ITEMS, [item_row(item) for item in found])
    write_json(ctx.out / COUNTS, counts)


CONVERSE = Stage(
    "wpn_bench.attacks.conversations:run_converse_stage",
    1,
    LM_LIBRARIES,
    resumable=True,
    unhashed_files=(COUNTS,),
    items="needs.prompts",
    speed_params=("decoding.max_new_tokens",),
    part="attack",
)
