"""The command `list`."""

from __future__ import annotations

from typing import Annotated

import typer

from wpn_bench.cli import completion


def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            help="methods, attacks, judges, benchmarks, prompts, presets, or one method's name.",
            autocompletion=completion.one_of(completion.topics),
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the available methods, attacks, judges, benchmarks, prompt sets and presets."""
    from wpn_bench.cli import catalogue

    catalogue.show(what, json_)
