"""The class that declares a command-line option."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

MODEL_AND_DATA, MEASUREMENT, TRAINING = "Model and data", "Measurement", "Training"
PERMISSIONS, EXECUTION, OUTPUT = "Permissions", "Execution", "Output"
PANELS = (MODEL_AND_DATA, MEASUREMENT, TRAINING, PERMISSIONS, EXECUTION, OUTPUT)  # in the order of `--help`


@dataclass(frozen=True)
class Option:
    """A command-line option. It is declared once, in the annotation of the field that it sets.

    Attributes:
        help: Description in `--help`.
        panel: Heading in `--help` under which the option is listed, one of `PANELS`.
        flags: The flags, the main one first. If empty, the flag is `--` and the name of the field (or of `key`).
        type: Type of the value: str, int (at least 1), float, bool (a flag without a value), Path, or list[str]
            (repeatable).
        key: The entry to set, if the field is a mapping or a model with several settings.
        comma_separated: Whether the value is a comma-separated list of names.
        complete: Name of the function in `wpn_bench.cli.completion` that lists the names for shell completion.
        metavar: Placeholder for the value in `--help`; None shows its type.
    """

    help: str
    panel: str
    flags: tuple[str, ...] = ()
    type: type[str] | type[int] | type[float] | type[bool] | type[Path] | type[list[str]] = str
    key: str | None = None
    comma_separated: bool = False
    complete: str | None = None
    metavar: str | None = None


def options_of_fields(owner: type[Any]) -> Iterator[tuple[str, Option]]:
    """Yield the name of each field of a class with each option in its annotation, in the order of the fields."""
    for name, annotation in get_type_hints(owner, include_extras=True).items():
        for option in get_args(annotation)[1:]:
            if isinstance(option, Option):
                yield name, option
