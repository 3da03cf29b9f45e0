"""Types for settings, and the conversion of pydantic's errors to `UserError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError

MANY = 10**9  # larger than any plausible count, but still a valid integer for all libraries
MOST_SHOWN = 80  # characters of a wrong value in a message


def _no_bool(value: Any) -> Any:
    # Python accepts `true` as 1. In a YAML file this is a mistake.
    if isinstance(value, bool):
        raise ValueError("give a whole number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MANY)]


@contextmanager
def as_user_error(
    where: str, hint: str, *, noun: str = "", unknown_kind: str = "", known: Iterable[str] = ()
) -> Iterator[None]:
    """Convert a pydantic `ValidationError` within a `with` block into a `UserError` about the first invalid value.

    Args:
        where: What the value belongs to, such as a file or "method wpn". The message starts with it.
        hint: Hint of the error.
        noun: What a field is called in the message, such as "setting".
        unknown_kind: What an unknown field is called in the message, such as "option of method wpn". If empty, unknown
            fields get pydantic's own message.
        known: Names of all fields, from which similar names are suggested.

    Raises:
        UserError: A value is invalid.
    """
    try:
        yield
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part)[:60] for part in first["loc"])
        if unknown_kind and first["type"] == "extra_forbidden":
            raise unknown_name(unknown_kind, place, known) from e
        field = f"{noun} {place[:80]}".strip() if place else ""
        problem = ": ".join(filter(None, (where, field, first["msg"].removeprefix("Value error, "))))
        # Without a location, or if a field is missing, pydantic gives the whole input as the value. Do not print it.
        given = f" (given: {_shortened(first['input'])})" if place and first["type"] != "missing" else ""
        raise UserError(problem + given, hint) from e


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # the integer has more digits than Python converts to text
        return "a very long number"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
