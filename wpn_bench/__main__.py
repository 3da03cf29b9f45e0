"""Lets `python -m wpn_bench` run the command `wpn-bench`."""

from wpn_bench.cli.main import main

main()
