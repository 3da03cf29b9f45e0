"""`python -m wpn_bench` is `wpn-bench`."""

from wpn_bench.cli import main

main()
