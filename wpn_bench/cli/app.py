"""The command-line application with its commands, in the order of `--help`."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wpn_bench import __version__
from wpn_bench.cli import check, doctor, export, judge, label, listing, prefetch, report, run, show
from wpn_bench.cli.options import with_signature
from wpn_bench.errors import EXIT_OK

COMMANDS: dict[str, Callable[..., None]] = {
    "full": run.full,
    "evaluate": run.evaluate,
    "train": run.train,
    "harmless": run.harmless,
    "attack": run.attack,
    "benchmarks": run.benchmarks,
    "prefetch": prefetch.prefetch,
    "report": report.report,
    "show": show.show,
    "export": export.export,
    "judge": judge.judge,
    "label": label.label,
    "check": check.check,
    "list": listing.list_,
    "doctor": doctor.doctor,
}


@functools.cache
def build_command(name: str) -> Any:
    """Return a command with all its options, as the command-line parser needs it."""
    single = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    single.command(name)(with_signature(COMMANDS[name]))
    return typer.main.get_command(single)


class LazyCommands(Mapping[str, Any]):
    """The commands by name.

    Each command is built when it is used. Its options need the settings, which take long to import.
    """

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return build_command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Root(TyperGroup):
    """The command `wpn-bench` itself.

    Its help builds no command and does not use Rich, whose import takes as long as everything else.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands: Any = LazyCommands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = formatter.width - 6 - max(map(len, COMMANDS))
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(command, width)) for name, command in COMMANDS.items()])


def summary(command: Callable[..., None], width: int) -> str:
    """Shorten the help of a command to its first paragraph.

    Args:
        command: The command.
        width: Maximum number of characters.

    Returns:
        The text in one line.
    """
    return textwrap.shorten((inspect.getdoc(command) or "").partition("\n\n")[0], width, placeholder="...")


app = typer.Typer(
    name="wpn-bench",
    cls=Root,
    help="Unlearn harmful behaviour from a causal language model. Measure how much of it remains and which abilities were lost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if the user asked for it."""
    if wanted:
        print(f"wpn-bench {__version__}")
        raise typer.Exit(EXIT_OK)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Define the options of `wpn-bench` itself."""
