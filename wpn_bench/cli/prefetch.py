"""The command `prefetch`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from wpn_bench.cli import libraries
from wpn_bench.cli.options import Given, all_options, config_from, fleet_from, takes

if TYPE_CHECKING:
    from wpn_bench.config import RunConfig
    from wpn_bench.core.progress import Reporter


@takes(all_options)
def prefetch(given: Given) -> None:
    """Download everything that a run needs: model, prompts, benchmarks, judges. It takes the options of `full`.

    [bold]wpn-bench prefetch -m facebook/opt-125m[/bold]                   where there is a network

    [bold]wpn-bench full -m facebook/opt-125m --offline[/bold]             where there is none

    Repeat the command to continue an interrupted download. Files that are on this machine are not downloaded again.
    """
    from wpn_bench.core.progress import reporter

    if given["offline"]:
        libraries.go_offline()
    fleet_from(given)
    fetch(config_from(given), reporter(verbose=given["verbose"], quiet=given["quiet"]))


def fetch(config: RunConfig, reporter: Reporter) -> None:
    """Download what a run reads, and print the command that can then run without a network.

    Args:
        config: Settings of the run.
        reporter: Shows the progress.
    """
    libraries.configure_libraries()
    from wpn_bench.preflight import prefetch

    prefetch.show(prefetch.prefetch(config, reporter))
    words = [word for word in sys.argv[1:] if word not in ("prefetch", "--offline")]
    command = shlex.join(["wpn-bench", "full", *words, "--offline"])
    print(f"everything is on this machine; now run, with or without a network: {command}")
