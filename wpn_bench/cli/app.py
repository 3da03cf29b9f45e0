"""The command-line application, without its commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wpn_bench import __version__
from wpn_bench.errors import EXIT_OK


class _Root(TyperGroup):
    """The list of commands goes without Rich, whose import takes as long as all the rest; each command's help has it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="wpn-bench",
    cls=_Root,
    help="Unlearn harmful behaviour from a causal language model, and measure what is left and what was lost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"wpn-bench {__version__}")
        raise typer.Exit(EXIT_OK)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
