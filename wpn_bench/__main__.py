"""`python -m wpn_bench` is `wpn-bench`."""

from wpn_bench.cli.main import main

main()
