"""Find the columns of a data file by the names that published data sets use, and read conversations in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wpn_bench.errors import UserError

# Usual column names of each field, in lower case. A column with the name of the field itself takes precedence.
NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "goal",
        "behavior",
        "behaviour",
        "forbidden_prompt",
        "instruction",
        "question",
        "query",
        "request",
        "user_prompt",
        "user_input",
        "input",
        "text",
        "messages",
        "conversations",
        "conversation",
    ),
    "harmful": (
        "rejected",
        "target",
        "harmful_response",
        "unsafe_response",
        "rejected_response",
        "non_preferred_output",
    ),
    "harmless": ("chosen", "harmless_response", "safe_response", "chosen_response", "preferred_output"),
    "text": ("content", "document", "passage", "sentence"),
    "group": (),
}
# Column of a prompt -> (column of a text that belongs to it, the form of both together). Other columns called `context` or
# `input` may be anything, and are not read.
COMPANIONS: dict[str, tuple[str, str]] = {
    "behavior": (
        "contextstring",
        "{other}\n\n---\n\n{prompt}",
    ),  # HarmBench, which puts the context before the behaviour
    "instruction": ("input", "{prompt}\n\n{other}"),  # the Alpaca format
}
FIELDS = tuple(NAMES)
COLUMNS = frozenset({*NAMES, *(name for names in NAMES.values() for name in names)})
_USER = ("user", "human", "prompter")
_ASSISTANT = ("assistant", "gpt", "model", "bot", "chatgpt")
_TURN = re.compile(r"\n\n(Human|Assistant):")


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())


def companion_of(column: str, columns: Sequence[str]) -> tuple[str, str] | None:
    """Find the column of a text that belongs to the prompt.

    Args:
        column: The column of the prompt.
        columns: The columns of the file.

    Returns:
        The column, and the form of the whole prompt with the places `{prompt}` and `{other}`; None if there is none.
    """
    name, form = COMPANIONS.get(_plain(column), ("", ""))
    return next(((other, form) for other in columns if name and _plain(other) == name), None)


def find_column(field: str, columns: Sequence[str], filled: Mapping[str, bool], where: str) -> str | None:
    """Find the column of a field by its name.

    Args:
        field: One of `FIELDS`.
        columns: Names of the columns in the file.
        filled: For each column, whether any row has a value in it. Empty columns are not considered.
        where: Name of the file, for messages.

    Returns:
        The column; None if no name matches.

    Raises:
        UserError: Several columns match, and none has the name of the field.
    """
    if field in columns:
        return field
    if exact := [column for column in columns if _plain(column) == field]:
        return exact[0]
    found = [column for column in columns if _plain(column) in NAMES[field] and filled[column]]
    companions = {found_with[0] for column in found if (found_with := companion_of(column, columns))}
    found = [column for column in found if column not in companions]
    plain = {_plain(column): column for column in found}
    # In JailbreakBench, `Behavior` is a label of the row, such as "Defamation", and `Goal` is the question.
    if set(plain) == {"goal", "behavior"} and any(_plain(column) == "category" for column in columns):
        return plain["goal"]
    if len(found) > 1:
        names = " and ".join(repr(name[:60]) for name in found)
        raise UserError(
            f"{where} has the columns {names}, and each could be the {field}",
            f"choose one, for instance: --columns {field}={found[0]}",
        )
    return found[0] if found else None


def choose_columns(
    rows: Sequence[Mapping[str, Any]], given: Mapping[str, str], fields: Sequence[str], where: str
) -> dict[str, str]:
    """Choose the column of each field.

    Args:
        rows: Rows of the file.
        given: The column that the user named for a field. If the file does not have it, the column is found by its
            name.
        fields: The fields to find.
        where: Name of the file, for messages.

    Returns:
        The column of each field that has one.

    Raises:
        UserError: Several columns match a field.
    """
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    filled = {column: any(row.get(column) not in (None, "", []) for row in rows) for column in columns}
    chosen: dict[str, str] = {}
    for field in fields:
        told = given.get(field)
        if told is not None and told.partition(".")[0] in columns:
            chosen[field] = told
        elif (found := find_column(field, columns, filled, where)) is not None:
            chosen[field] = found
    if "prompt" in fields and "prompt" not in chosen:
        # Some preference data has no column for the prompt. Both conversations then begin with the prompt.
        for side in ("harmless", "harmful"):
            column = chosen.get(side)
            if column and any(_is_conversation(row.get(column)) for row in rows):
                chosen["prompt"] = column
                break
    return chosen


def _is_conversation(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith("\n\nHuman:")
    turns = [value] if isinstance(value, Mapping) else value
    return (
        isinstance(turns, list | tuple)
        and bool(turns)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns)
    )


def _turns(value: Any, where: str) -> list[tuple[str, str]]:
    if isinstance(value, str):
        parts = _TURN.split(value)[1:]
        names = {"Human": "user", "Assistant": "assistant"}
        return [(names[role], text.strip()) for role, text in zip(parts[::2], parts[1::2], strict=True)]
    found = []
    for turn in [value] if isinstance(value, Mapping) else value:
        role = str(turn.get("role", turn.get("from"))).casefold()
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list | tuple):  # a list of parts, as in OpenAI's API
            if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
                raise UserError(f"{where}: a turn of the conversation is not text", "remove the row")
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise UserError(f"{where}: a turn of the conversation has no text", "correct or remove the row")
        if role in ("system", "developer"):
            if content.strip():
                raise UserError(
                    f"{where}: the conversation has a system message, which prompts must not have",
                    "remove it from all rows, and set one system message for all prompts with --system",
                )
            continue
        if role not in (*_USER, *_ASSISTANT):
            raise UserError(
                f"{where}: the conversation has a turn of the role {role[:40]!r}", "keep only user and assistant turns"
            )
        found.append(("user" if role in _USER else "assistant", content))
    return found


def value_of(field: str, value: Any, where: str) -> Any:
    """Return the value of a field. From a conversation, take the user's turn (prompt) or the assistant's last turn.

    Args:
        field: The field.
        value: Value of the column.
        where: Name of the file and number of the row, for messages.

    Returns:
        The text or list of texts; None if there is none. A value of another type is returned unchanged.

    Raises:
        UserError: The conversation has several user turns, a system message, or other roles.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not _is_conversation(value):
        return value
    turns = _turns(value, where)
    asked = [text for role, text in turns if role == "user"]
    if len(asked) > 1 or (asked and turns[0][0] != "user"):
        raise UserError(
            f"{where}: the conversation has {len(turns)} turns, but a prompt must be a single user turn",
            "keep only conversations with one question and its answer",
        )
    if field == "prompt":
        return asked[0] if asked else None
    return turns[-1][1] if turns and turns[-1][0] == "assistant" else None
