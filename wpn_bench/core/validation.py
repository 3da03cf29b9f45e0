"""What pydantic refuses, in this project's words: the first thing that is wrong, and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from wpn_bench.core.registry import unknown_name
from wpn_bench.errors import UserError

MANY = 10**9  # no count of anything here reaches it, and every library still takes it for a number


def _no_truth(value: Any) -> Any:
    # Python takes true for 1, and a slip in a YAML file for a single step.
    if isinstance(value, bool):
        raise ValueError("give a whole number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_no_truth), Field(ge=1, le=MANY)]


def first_of(error: ValidationError) -> str:
    """What is wrong first, and in which field. Not pydantic's own text: that shows the value, however long it is."""
    first = error.errors()[0]
    where = ".".join(str(part)[:60] for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said


@contextmanager
def options_of(kind: str, where: str, model: type[BaseModel], see: str) -> Iterator[None]:
    """Options that `model` refuses within, as a `UserError` that names the first of them.

    `kind` is what an unknown one is called ("option of method wpn"), `where` what a wrong one's name stands behind
    ("method wpn"), `see` where the options are explained.
    """
    try:
        yield
    except ValidationError as e:
        first = e.errors()[0]
        if first["type"] == "extra_forbidden":
            raise unknown_name(kind, ".".join(map(str, first["loc"])), model.model_fields) from e
        raise UserError(f"{where}: {first_of(e)}", f"see {see}") from e
