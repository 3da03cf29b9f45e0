"""Types for settings, and the one place where pydantic's errors become `UserError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError

MANY = 10**9  # no count of anything here reaches it, and every library still takes it for a number
MOST_SHOWN = 80  # characters of a wrong value in a message


def _no_bool(value: Any) -> Any:
    # Python takes true for 1; in a YAML file it is a mistake.
    if isinstance(value, bool):
        raise ValueError("give a whole number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MANY)]


@contextmanager
def as_user_error(
    where: str, hint: str, *, noun: str = "", unknown_kind: str = "", known: Iterable[str] = ()
) -> Iterator[None]:
    """Turn what pydantic refuses into a `UserError` that names the first wrong value, what is wrong and what was given.

    Args:
        where: What the value belongs to, a file or a part such as "method wpn": the message begins with it.
        hint: What to do about it.
        noun: What a field is called in the message: "setting".
        unknown_kind: What a name that no field has is called: "option of method wpn". Empty: nothing special.
        known: The names of the fields, of which the nearest is suggested for an unknown name.

    Raises:
        UserError: In the place of pydantic's `ValidationError`.
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
        # Without a place the value is all of the input, and so it is where a field is missing.
        given = f" (given: {_shortened(first['input'])})" if place and first["type"] != "missing" else ""
        raise UserError(problem + given, hint) from e


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number with more digits than Python writes
        return "a very long number"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
