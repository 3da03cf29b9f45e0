"""The table of command-line options, and the conversion of typed values to settings.

An option is declared once: as an `Option` in the annotation of the field of `RunConfig` or `Fleet` that it sets, or in
`OTHERS` if it sets no field. The parameters of the commands, the settings and the help are all made from this table.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wpn_bench.cli import completion
from wpn_bench.core.option import MODEL_AND_DATA, OUTPUT, PANELS, PERMISSIONS, Option, options_of_fields
from wpn_bench.core.paths import split_named
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from wpn_bench.config import RunConfig
    from wpn_bench.jobs.executor import Fleet

Given = Mapping[str, Any]  # typed values by parameter name; None, False and [] mean that the option was not given
Settings = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of the table: an option, and the field that it sets (None if it sets no field)."""

    option: Option
    field: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Return the flags of the option, the main flag first."""
        return self.option.flags or ("--" + (self.option.key or self.field or "").replace("_", "-"),)

    @property
    def name(self) -> str:
        """Return the name of the parameter."""
        return self.flags[0].removeprefix("--").replace("-", "_")

    @property
    def parameter(self) -> inspect.Parameter:
        """Return the parameter of a command, as typer needs it."""
        o, complete = self.option, None
        if o.complete:
            names = getattr(completion, o.complete)
            complete = (completion.several_of if o.comma_separated else completion.one_of)(names)
        given = typer.Option(
            *self.flags, help=o.help, rich_help_panel=o.panel, metavar=o.metavar, autocompletion=complete
        )
        kind, default = (bool, False) if o.type is bool else (o.type | None, None)
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, given]
        )

    def read(self, typed: Any) -> Any:
        """Convert the typed value to a setting. Raises `UserError` for a whole number below 1."""
        if self.option.type is int:
            return positive(self.flags[0], typed)
        if self.option.type is Path:
            return str(typed)
        if self.option.type is str and self.option.comma_separated:
            return split_names(typed)
        return typed


OTHERS = tuple(
    map(
        Row,
        (
            Option(
                flags=("--config", "-c"),
                type=Path,
                help="YAML file with settings that override the preset.",
                panel=MODEL_AND_DATA,
            ),
            Option(
                flags=("--offline",),
                type=bool,
                help="Do not use the network (like HF_HUB_OFFLINE=1). First run `wpn-bench prefetch` to download everything.",
                panel=PERMISSIONS,
            ),
            Option(flags=("--out", "-o"), type=Path, help="Run folder (default: runs/<time>-<model>).", panel=OUTPUT),
            Option(
                flags=("--store",),
                type=Path,
                help="Artifact store that runs share (default: WPN_BENCH_STORE, or a folder in the user's cache).",
                panel=OUTPUT,
            ),
            Option(
                flags=("--force",),
                type=bool,
                help="Start although memory or disk space seem too small.",
                panel=OUTPUT,
            ),
            Option(flags=("--verbose", "-v"), type=bool, help="Print a line for each finished job.", panel=OUTPUT),
            Option(flags=("--quiet", "-q"), type=bool, help="Show no progress.", panel=OUTPUT),
        ),
    )
)


@functools.cache
def setting_options() -> tuple[Row, ...]:
    """Return the options that set a field of `RunConfig`."""
    from wpn_bench.config import RunConfig

    return tuple(Row(option, field) for field, option in options_of_fields(RunConfig))


@functools.cache
def fleet_options() -> tuple[Row, ...]:
    """Return the options that set a field of `Fleet`."""
    from wpn_bench.jobs.executor import Fleet

    return tuple(Row(option, field) for field, option in options_of_fields(Fleet))


def all_options() -> list[Row]:
    """Return the whole table, in the order of `--help`. The run commands take all options."""
    rows = (*setting_options(), *OTHERS, *fleet_options())
    return sorted(rows, key=lambda row: PANELS.index(row.option.panel))


def doctor_options() -> list[Row]:
    """Return every setting of a run, and the other options that affect whether it would work on this machine."""
    settings, others = setting_options(), ("config", "offline", "out", "store")
    return [row for row in all_options() if row in settings or row.name in others]


def named_options(*names: str) -> Callable[[], list[Row]]:
    """Return a function that returns the options with these names, in the order of the table."""
    return lambda: [row for row in all_options() if row.name in names]


def takes(options: Callable[[], Sequence[Row]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command that takes options of the table.

    The command gets their values as one mapping, which is its first argument. Its other parameters stay unchanged.
    `options` is called when the command is used, because it imports the settings, which `wpn-bench --help` does not
    need.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            given = {row.name: values.pop(row.name) for row in options()}
            command(given, **values)

        called.__dict__["options"] = options
        return called

    return decorate


def with_signature(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that `takes` options of the table the signature that typer reads.

    Other commands stay unchanged.
    """
    if options := command.__dict__.get("options"):
        _, *own = inspect.signature(inspect.unwrap(command), eval_str=True).parameters.values()
        keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        parameters = [*(row.parameter for row in options()), *keyword_only]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def config_from(given: Given, **fixed: Any) -> RunConfig:
    """Build the configuration of a command. The user's file overrides the preset, and the options override both.

    Args:
        given: Typed values of the options.
        **fixed: Settings that the command itself sets.

    Returns:
        The validated configuration.

    Raises:
        UserError: A value is invalid.
    """
    from wpn_bench.config import build, from_settings
    from wpn_bench.core.yaml_files import read_yaml

    preset = given["preset"] or ("lab" if given["model"] in (None, "lab") else "paper")
    settings = build(preset, given["config"]).model_dump()
    in_file = read_yaml(given["config"]) if given["config"] else {}
    for row in setting_options():
        typed = given[row.name]
        if typed is not None and typed is not False and typed != []:
            changes = _changes_of(row, row.read(typed), settings)
            if row.name == "forget":  # test and validation sets in the user's file belong to this forget set
                changes = {
                    field: value for field, value in changes.items() if field == "forget" or field not in in_file
                }
            settings |= changes
    return from_settings(settings | fixed)


def _changes_of(row: Row, value: Any, settings: Settings) -> Settings:
    """Return the settings that an option changes: its own field, unless `CHANGES` has a function for it."""
    assert row.field is not None
    if row.name in CHANGES:
        return CHANGES[row.name](value, settings)
    if row.option.key:
        return {row.field: settings[row.field] | {row.option.key: value}}
    return {row.field: value}


def fleet_from(given: Given) -> Fleet:
    """Return the settings of the executor. Raises `UserError` if this executor is not available."""
    from wpn_bench.jobs.executor import Fleet

    typed = ((row, given[row.name]) for row in fleet_options())
    return Fleet(**{row.name: row.read(value) for row, value in typed if value is not None})


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_all_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names in an option that is given several times, with commas, or both."""
    return tuple(name for one in given or () for name in split_names(one))


def positive(option: str, value: int | None) -> int | None:
    """Check that a whole number is at least 1.

    Args:
        option: The flag, for the message.
        value: The number; None if the option was not given.

    Returns:
        The value.

    Raises:
        UserError: The number is below 1.
    """
    if value is not None and value < 1:
        raise UserError(f"{option} {value} is not a positive number", f"give 1 or more, or leave {option} out")
    return value


# --- options that change more than their own field, or whose value must be converted ------------------------------------


def _choose_methods(names: tuple[str, ...], settings: Settings) -> Settings:
    """Keep only the named methods, each with its options from the preset.

    A variant must be defined by its method, in the preset or in the user's file. From the training curve, the methods that were not
    named are removed. A curve without any method is removed.
    """
    from wpn_bench.unlearn.methods import named_variants

    known = settings["methods"]
    variants_known = list(dict.fromkeys([*(n for n in known if ":" in n), *named_variants()]))
    for name in names:
        if ":" in name and name not in variants_known:
            variants = ", ".join(variants_known) or "none"
            raise UserError(
                f"the variant {name!r} is not defined (known: {variants})",
                f"write its options in a --config file: methods: {{'{name}': {{...}}}}",
            )
    changes: Settings = {"methods": {name: known.get(name, {}) for name in names}}
    if settings["curve"] and (of_curve := settings["curve"]["methods"]):
        left = [name for name in of_curve if name in names]
        changes["curve"] = {**settings["curve"], "methods": left} if left else None
    return changes


def _choose_forget(source: str, settings: Settings) -> Settings:
    """Set another forget set. Its validation and test prompts are held back from it, unless the user gives them."""
    if source == settings["forget"]:
        return {}
    return {"forget": source, "in_domain": (), "validation": None}


def _add_prompts(given: Sequence[str], settings: Settings) -> Settings:
    """Set prompt sets: `in_domain=FILE` and `validation=FILE` replace a set, and NAME=FILE is added to `ood`."""
    changes: Settings = {}
    added = []
    for entry in given:
        name, file = split_named(entry)
        if not name or not file:
            example = entry if name is None else "test.jsonl"
            raise UserError(
                f"--prompts {entry!r} is not NAME=FILE", f"write for instance --prompts in_domain={example}"
            )
        if name == "in_domain":
            changes["in_domain"] = (*changes.get("in_domain", ()), entry)
        elif name == "validation":
            changes["validation"] = file
        else:
            added.append(entry)
    if added:
        changes["ood"] = (*settings["ood"], *added)
    return changes


def _choose_columns(pairs: tuple[str, ...], settings: Settings) -> Settings:
    """Set the columns given on the command line. They override those in the user's configuration."""
    columns = dict(settings["columns"])
    for pair in pairs:
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not column:
            raise UserError(f"--columns {pair!r} is not FIELD=COLUMN", "write for instance --columns prompt=goal")
        columns[field] = column
    return {"columns": columns}


def _choose_attacks(names: tuple[str, ...], settings: Settings) -> Settings:
    """Set the named attacks of any kind, and remove all others."""
    from wpn_bench.config import attack_settings

    return attack_settings(names, settings)


def _add_attack_files(files: Sequence[str], settings: Settings) -> Settings:
    """Append files of attacks to those in the user's configuration, without duplicates."""
    return {"attack_files": tuple(dict.fromkeys((*settings["attack_files"], *files)))}


def _add_candidates(given: Sequence[str], settings: Settings) -> Settings:
    """Append candidates to those in the user's configuration, without duplicates."""
    return {"candidates": tuple(dict.fromkeys((*settings["candidates"], *given)))}


def _choose_judges(given: Sequence[str], settings: Settings) -> Settings:
    """Set the judges. The first judge that reads the prompts decides, or the first of all if none reads them."""
    from wpn_bench.harmless.judges.spec import deciding_first, parse_list

    names = parse_list(given)
    if not names:
        raise UserError("--judge is empty", "write for instance --judge detoxify:original")
    first, *further = deciding_first(names)
    return {"judge": first, "judges": tuple(further)}


def _set_batch_size(value: int, settings: Settings) -> Settings:
    return {"decoding": settings["decoding"] | {"batch_size": value}, "benchmark_batch_size": value}


def _choose_seeds(text: str, settings: Settings) -> Settings:
    """Set the seeds: `3` means the seeds 0, 1 and 2. A list with commas (`5,7` or `7,`) means exactly these seeds."""
    from wpn_bench.config import MAX_SEEDS

    try:
        if "," in text:
            return {"seeds": tuple(int(part) for part in text.removesuffix(",").split(","))}
        number = int(text)
    except ValueError as e:
        hint = "write --seeds 0,1,2, or --seeds 3 for the same"
        raise UserError(f"--seeds {text!r} is not a list of whole numbers", hint) from e
    if not 1 <= number <= MAX_SEEDS:
        # A user who types a large number most likely means this one seed.
        raise UserError(
            f"--seeds {number} is not a number of seeds (1 to {MAX_SEEDS})",
            f"write --seeds 3 for seeds 0, 1 and 2, or add a comma (--seeds {max(number, 0)},) for this single seed",
        )
    return {"seeds": tuple(range(number))}


def _add_curve(value: bool, settings: Settings) -> Settings:
    """Enable the training curve, with the options in the preset or the user's file."""
    return {"curve": settings["curve"] or {}}


CHANGES: dict[str, Callable[[Any, Settings], Settings]] = {
    "methods": _choose_methods,
    "forget": _choose_forget,
    "prompts": _add_prompts,
    "candidate": _add_candidates,
    "columns": _choose_columns,
    "attacks": _choose_attacks,
    "attack_file": _add_attack_files,
    "judge": _choose_judges,
    "batch_size": _set_batch_size,
    "seeds": _choose_seeds,
    "curve": _add_curve,
}
