"""The entry point of the command line. No large library is imported until a command runs.

Exit codes: 0 means success, 1 a bug or a failed job, and 2 invalid input (one line with the problem and a hint). The
command `check` also uses 3 for a regression and 4 for an inconclusive result.
"""

from __future__ import annotations

import sys

from wpn_bench.cli.app import app
from wpn_bench.cli.crash import report_bug
from wpn_bench.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, UserError, WpnBenchError
from wpn_bench.redact import one_line, redact_secrets


def main() -> None:
    """Run the command line. Errors of this package are printed as one line, and determine the exit code."""
    try:
        # With standalone_mode=False, typer returns the code of an `Exit`. For Ctrl-C, this code is 130.
        code = app(prog_name="wpn-bench", standalone_mode=False)
    except WpnBenchError as e:
        parts = (e.problem, e.hint) if isinstance(e, UserError) else (str(e),)
        said = "; ".join(one_line(part, limit) for part, limit in zip(parts, (440, 240), strict=False))
        print(f"wpn-bench: {redact_secrets(said)}", file=sys.stderr)
        sys.exit(e.exit_code)
    except Exception as e:
        if not hasattr(e, "format_message"):  # usage errors of the command-line parser have this method
            report_bug(e)
            sys.exit(EXIT_FAILED)
        said = one_line(e.format_message(), 440).rstrip(".")
        command = getattr(getattr(e, "ctx", None), "command_path", "wpn-bench")
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message(), file=sys.stderr)  # the list of commands
        else:
            print(f"wpn-bench: {redact_secrets(said)}; see `{command} --help`", file=sys.stderr)
        sys.exit(EXIT_USER)
    if code == EXIT_STOPPED:
        print("stopped; finished work is kept, repeat the command to continue", file=sys.stderr)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
