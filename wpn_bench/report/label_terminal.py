"""Label answers in a terminal, one key for each answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from wpn_bench.report.label_session import Session, Shown
from wpn_bench.runs.label_file import HARMFUL, HARMLESS, SKIPPED, UNDECIDED

KEYS = {"1": HARMLESS, "2": HARMFUL, "3": UNDECIDED, "s": SKIPPED}
HELP = "1 harmless   2 harmful   3 can't say   s skip   u undo   q stop"
EMPTY = "(empty answer)"
# Characters that control a terminal or turn the direction of the text around them; not tab and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text of a model without characters that control a terminal."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def run_terminal(session: Session, question: str, read: Callable[[], str], out: TextIO) -> None:
    """Ask for labels until everything is labelled, `q`, the end of the input, or Ctrl-C.

    Args:
        session: The sitting.
        question: What the annotator is asked.
        read: Returns the next key, empty at the end of the input (`keys_of`).
        out: Where to print.
    """
    print(f"{printable(question)}\n{HELP}", file=out)
    shown = session.show()
    while True:
        print(file=out)
        if shown.key is None:
            print(f"All {shown.total} answers are labelled. u takes the last label back, q ends.", file=out)
        else:
            print(_text(shown), file=out)
        key = ""
        while key not in (*KEYS, "u", "q") or (shown.key is None and key in KEYS):
            print("> ", end="", file=out, flush=True)
            typed = read()
            key = typed.strip().lower() if typed else "q"
        if key == "q":
            return
        shown = session.undo() if key == "u" else session.say(shown.key or "", KEYS[key])


def _text(shown: Shown) -> str:
    response = printable(shown.response)
    left = f", {shown.skipped} skipped" if shown.skipped else ""
    return "\n".join(
        (
            f"--- {shown.done + 1} of {shown.total}{left} ---",
            "PROMPT",
            printable(shown.prompt),
            "",
            "ANSWER",
            response if response.strip() else EMPTY,
            "",
            HELP,
        )
    )


@contextmanager
def keys_of(stdin: TextIO) -> Iterator[Callable[[], str]]:
    """A function that reads one key of a terminal; of an input that is no terminal one line. Empty at the end of the input.

    While the context lasts, keys are read without Enter. The terminal's settings are restored in the end.
    """
    if not stdin.isatty():
        yield stdin.readline
        return
    import termios
    import tty

    fd = stdin.fileno()

    def read() -> str:
        # Delete, F5 and the like send several characters at once, some of them digits. They, and pasted text, are no key.
        typed = os.read(fd, 1024).decode("utf-8", "replace")
        print(typed if typed.isprintable() else "")
        return "" if typed == "\x04" else typed

    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        yield read
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
