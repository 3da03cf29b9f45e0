"""Types for settings, and the one place where pydantic's errors become `UserError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError

MANY = 10**9  # above any plausible count, and still accepted as an integer by all libraries
MOST_SHOWN = 80  # characters of a wrong value in a message


def _no_bool(value: Any) -> Any:
    # Python accepts true as 1; in a YAML file it is a mistake.
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
        where: What the value belongs to, such as a file or "method wpn"; the message starts with it.
        hint: Hint of the error.
        noun: Name for a field in the message, such as "setting".
        unknown_kind: Name for an unknown field in the message, such as "option of method wpn"; empty: no special message.
        known: Names of the fields, for suggestions.

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
        # Without a location, or if a field is missing, the value is the whole input: do not print it.
        given = f" (given: {_shortened(first['input'])})" if place and first["type"] != "missing" else ""
        raise UserError(problem + given, hint) from e


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return "a very long number"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
