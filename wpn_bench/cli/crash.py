"""Handle unexpected errors: what is printed, and the file for a bug report."""

from __future__ import annotations

import os
import re
import sys
from datetime import datetime
from pathlib import Path

from wpn_bench.core.crash import crash_text
from wpn_bench.errors import text_of
from wpn_bench.redact import one_line, redact, redact_secrets


def typed_command() -> str:
    """Return the command as typed, with paths shortened so that the bug report can be shared."""
    import shlex

    from wpn_bench.core.paths import display_path

    def clean(word: str) -> str:
        # Paths also occur in NAME=FILE and detoxify:FILE,threshold=0.4. Two slashes indicate a URL.
        return re.sub(r"(^|[=:,])([/~](?!/)[^,]*)", lambda found: found[1] + display_path(found[2]), word)

    return redact_secrets(shlex.join(["wpn-bench", *(clean(w) for w in sys.argv[1:])]))


def report_bug(error: Exception) -> None:
    """Write the traceback of an unexpected error to a file for a bug report, and print the file's path in one line.

    The file contains no values of variables, and its text is redacted. `WPN_BENCH_DEBUG=1` raises the error unchanged.
    """
    import tempfile

    import platformdirs

    if os.environ.get("WPN_BENCH_DEBUG", "") not in ("", "0"):
        raise error
    said = redact(one_line(f"{type(error).__name__}: {text_of(error)}", 240))
    text = crash_text(error, typed_command())
    for folder in (Path(platformdirs.user_cache_dir("wpn-bench")) / "bugs", Path(tempfile.gettempdir())):
        file = folder / f"wpn-bench-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        print(f"wpn-bench: a bug: {said}; please report it with {file} (secrets are taken out)", file=sys.stderr)
        return
    print(f"wpn-bench: a bug: {said}; please report it: WPN_BENCH_DEBUG=1 shows where it is", file=sys.stderr)
