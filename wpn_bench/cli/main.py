"""The command line: parses, prints, exits. Imports nothing heavy until a command runs.

Exit codes: 0 good, 1 a bug or a failed job, 2 invalid input (one line with the problem and a hint); of `check` 3 a regression, 4
inconclusive.
"""

from __future__ import annotations

import sys

from wpn_bench.cli.app import app
from wpn_bench.cli.crash import report_bug
from wpn_bench.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, UserError, WpnBenchError
from wpn_bench.redact import one_line, redact_secrets


def main() -> None:
    """Entry point of the console script: named errors become one line and their exit code."""
    try:
        # Outside its standalone mode typer returns the code of an `Exit`, and turns Ctrl-C into one of 130.
        code = app(prog_name="wpn-bench", standalone_mode=False)
    except WpnBenchError as e:
        parts = (e.problem, e.hint) if isinstance(e, UserError) else (str(e),)
        said = "; ".join(one_line(part, limit) for part, limit in zip(parts, (440, 240), strict=False))
        print(f"wpn-bench: {redact_secrets(said)}", file=sys.stderr)
        sys.exit(e.exit_code)
    except Exception as e:
        if not hasattr(e, "format_message"):  # a usage error of the command-line parser has one
            report_bug(e)
            sys.exit(EXIT_FAILED)
        said = one_line(e.format_message(), 440).rstrip(".")
        command = getattr(getattr(e, "ctx", None), "command_path", "wpn-bench")
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message(), file=sys.stderr)  # the list of commands; that of Rich has been printed already
        else:
            print(f"wpn-bench: {redact_secrets(said)}; see `{command} --help`", file=sys.stderr)
        sys.exit(EXIT_USER)
    if code == EXIT_STOPPED:
        print("stopped; what is finished is kept: type the same command again to go on", file=sys.stderr)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
