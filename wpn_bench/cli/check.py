"""The command `check`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.core.option import OUTPUT
from wpn_bench.errors import UserError

GATES = "Gates"


def check(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="File with saved answers to compare with (default: the base model of the run).", rich_help_panel=GATES
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model of the run to check (default: wpn, or else the best).", rich_help_panel=GATES),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Model of the baseline to compare with (default: the model of the same name).", rich_help_panel=GATES
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Largest accepted loss of the benchmark average in points (2.0). All other metrics fail if a larger loss is "
            "shown.",
            rich_help_panel=GATES,
        ),
    ] = None,
    min_: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            help="Lowest accepted values: coherent_harmless_rate=0.958, nine=0.45 (the benchmark average). Add @ood, @attack or "
            "@SET for other prompt sets.",
            rich_help_panel=GATES,
        ),
    ] = None,
    max_: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            help="Highest accepted values: refusal_rate=0.1, attack_success_rate@gcg=0.2, perplexity=30.",
            rich_help_panel=GATES,
        ),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(
            help="Largest accepted decreases in points: nine=2.0, piqa=5, coherent_harmless_rate@ood=3 (in per cent for a "
            "benchmark with its own unit).",
            rich_help_panel=GATES,
        ),
    ] = None,
    max_rise: Annotated[
        list[str] | None,
        typer.Option(
            help="Largest accepted increases in points: refusal_rate=3 (in per cent for a benchmark with its own unit: "
            "wikitext=3).",
            rich_help_panel=GATES,
        ),
    ] = None,
    gates: Annotated[Path | None, typer.Option(help="YAML file with these options.", rich_help_panel=GATES)] = None,
    inconclusive: Annotated[
        str | None,
        typer.Option(help="What an inconclusive check does: pass or fail (exit code 4).", rich_help_panel=GATES),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(help="Save this run's answers as a baseline instead of checking it.", rich_help_panel=OUTPUT),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Write the verdict as JSON.", rich_help_panel=OUTPUT)
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdict as JUnit XML.", rich_help_panel=OUTPUT)] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help='Append the verdict as Markdown to a file: "$GITHUB_STEP_SUMMARY".', rich_help_panel=OUTPUT),
    ] = None,
    annotations: Annotated[
        str,
        typer.Option(
            help="Annotations for GitHub: auto (only in GitHub Actions), github or none.", rich_help_panel=OUTPUT
        ),
    ] = "auto",
) -> None:
    """Check whether a model is worse than its baseline. Exit code 0 means no, 3 a regression, and 4 inconclusive.

    [bold]wpn-bench check RUN --save-baseline FILE[/bold]                      save a run's answers to each item

    [bold]wpn-bench check RUN --baseline FILE[/bold]                           compare another run with them

    [bold]wpn-bench check RUN --min coherent_harmless_rate=0.958[/bold]        require a value

    A change counts if it is significant on the same items (see docs/ci.md).
    """
    from wpn_bench.analysis import baselines
    from wpn_bench.analysis import gates as gate
    from wpn_bench.analysis.check import check as check_run
    from wpn_bench.core.files import write_json, write_text
    from wpn_bench.report import check as said

    if annotations not in ("auto", "github", "none"):
        raise UserError(f"--annotations {annotations!r} is unknown", "choose from auto, github, none")
    bounds = {
        "min": read_bounds("--min", min_),
        "max": read_bounds("--max", max_),
        "max_drop": read_bounds("--max-drop", max_drop),
        "max_rise": read_bounds("--max-rise", max_rise),
    }
    if save_baseline is not None:
        if baseline or gates or any(bounds.values()):
            raise UserError(
                "--save-baseline only saves a baseline and checks nothing",
                "first save the baseline, then check with a second command",
            )
        kept = baselines.of_run(run, [model] if model else None)
        baselines.write(kept, save_baseline)
        print(
            f"{save_baseline}: {', '.join(kept.models)} on {sum(a.n for a in kept.asked)} items of {len(kept.asked)} sets"
        )
        return
    given = (gate.read_gates(gates) if gates else gate.Gates()).model_dump(exclude_defaults=True)
    for name, named in bounds.items():
        if named:
            given[name] = given.get(name, {}) | named
    options = {"model": model, "against": against, "margin": margin, "inconclusive": inconclusive}
    given |= {name: value for name, value in options.items() if value is not None}
    checked = check_run(run, gate.gates_of(given), baseline)
    try:
        if json_:
            write_json(json_, checked.json())
        if junit:
            write_text(junit, said.junit(checked))
        if summary:
            with summary.open("a", encoding="utf-8") as file:
                file.write(said.markdown(checked))
    except OSError as e:
        raise UserError(f"{e.filename} cannot be written ({e.strerror})", "give another file") from e
    said.show(checked)
    if annotations == "github" or (annotations == "auto" and os.environ.get("GITHUB_ACTIONS") == "true"):
        print("\n".join(said.workflow_commands(checked)))
    if checked.exit_code:
        raise typer.Exit(checked.exit_code)


def read_bounds(option: str, given: Sequence[str] | None) -> dict[str, float]:
    """Read bounds of the form NAME=NUMBER. Each text may contain several, separated by commas."""
    bounds = {}
    for part in (p.strip() for entry in given or () for p in entry.split(",")):
        name, equals, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            example = "nine=2.0" if "drop" in option else "coherent_harmless_rate=0.958"
            raise UserError(f"{option} {part!r} is not NAME=NUMBER", f"write for instance {option} {example}")
        bounds[name.strip()] = value
    return bounds
