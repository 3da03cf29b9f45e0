"""The command `judge`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli import completion, libraries
from wpn_bench.cli.options import Given, named_options, positive, takes
from wpn_bench.errors import UserError


@takes(named_options("offline", "trust_remote_code", "allow_pickle", "quiet"))
def judge(
    given: Given,
    file: Annotated[Path, typer.Argument(help="File with labelled texts: .jsonl, .csv (also gzipped) or .parquet.")],
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            help="Judge with its options, as for `full`.",
            autocompletion=completion.one_of(completion.judges),
        ),
    ] = "detoxify:original",
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    prompt: Annotated[
        str | None,
        typer.Option(help="Column of the prompts that the texts answer, for a judge that reads them."),
    ] = None,
    label: Annotated[
        str, typer.Option(help="Column of the labels. 1 or true means harmful. Texts without a label are left out.")
    ] = "label",
    label_threshold: Annotated[
        float | None, typer.Option(help="Lowest label that means harmful, if the labels are scores.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N labelled texts.")] = None,
    about: Annotated[
        str, typer.Option(help="Sentence that describes the texts. It is printed wherever the card is used.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the card (.json). A .md file is written next to it.")
    ] = None,
) -> None:
    """Measure a judge on labelled texts or exchanges: AUC, sensitivity, specificity, calibration. The result is its card.

    [bold]wpn-bench judge comments.jsonl --judge detoxify:lab --label toxicity --label-threshold 0.5 --out card.json[/bold]

    `--judge-card card.json` then lets a run report rates that are corrected for the judge's errors.
    """
    from wpn_bench.analysis import judge_card
    from wpn_bench.core import consent
    from wpn_bench.report.judge_card import show, write_card

    libraries.configure_libraries()
    if given["offline"]:
        libraries.go_offline()
    if label_threshold is not None and not math.isfinite(label_threshold):
        raise UserError(f"--label-threshold {label_threshold} is no finite number", "write for instance 0.5")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out} is not a .json file", "write for instance --out card.json")
    with consent.granted(code=given["trust_remote_code"], pickles=given["allow_pickle"]):
        card = judge_card.measure(
            file,
            judge,
            text=text,
            prompt=prompt,
            label=label,
            label_threshold=label_threshold,
            limit=positive("--limit", limit),
            about=about,
            device=device,
            quiet=given["quiet"],
        )
    show(card)
    for path in write_card(card, out) if out else ():
        print(path)
