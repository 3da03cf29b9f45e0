"""The command `judge`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli import completion
from wpn_bench.cli.app import app
from wpn_bench.cli.options import AllowPickle, Offline, Quiet, TrustRemoteCode, _go_offline, _positive, _settle
from wpn_bench.errors import UserError


@app.command()
def judge(
    file: Annotated[Path, typer.Argument(help="Labelled texts: .jsonl, .csv (gzipped or not) or .parquet.")],
    judge: Annotated[
        str,
        typer.Option("--judge", help="As for `full`.", autocompletion=completion.one_of(completion.judges)),
    ] = "detoxify:original",
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label: Annotated[
        str, typer.Option(help="Column of the labels: 1 or true is harmful; no label is left out.")
    ] = "label",
    label_threshold: Annotated[
        float | None, typer.Option(help="Labels are scores, and harmful from this one on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N labelled texts.")] = None,
    about: Annotated[str, typer.Option(help="What the texts are: printed wherever the card is used.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the card here (.json; .md beside it).")] = None,
    offline: Offline = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
) -> None:
    """Measure a judge on labelled texts: AUC, sensitivity, specificity, calibration - its card.

    [bold]wpn-bench judge comments.jsonl --judge detoxify:lab --label toxicity --label-threshold 0.5 --out card.json[/bold]

    `--judge-card card.json` then lets a run report rates that are corrected for the judge's errors.
    """
    from wpn_bench.analysis import judge_card
    from wpn_bench.core import consent
    from wpn_bench.report.judge_card import show, write_card

    _settle()
    if offline:
        _go_offline()
    if label_threshold is not None and not math.isfinite(label_threshold):
        raise UserError(f"--label-threshold {label_threshold} is no finite number", "write for instance 0.5")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out} is not a .json file", "write for instance --out card.json")
    with consent.granted(code=trust_remote_code, pickles=allow_pickle):
        card = judge_card.measure(
            file,
            judge,
            text=text,
            label=label,
            label_threshold=label_threshold,
            limit=_positive("--limit", limit),
            about=about,
            device=device,
            quiet=quiet,
        )
    show(card)
    for path in write_card(card, out) if out else ():
        print(path)
