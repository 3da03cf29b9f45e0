"""Text that goes into files which others read, or onto a terminal: without what is nobody else's business (tokens,
passwords, user names), and as a line."""

from __future__ import annotations

import getpass
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

HIDDEN = "***"
# Environment variables that hold a secret, by how they are usually called.
_SECRET = re.compile(r"TOKEN(?!IZ)|SECRET|PASSW|_PASS$|_PWD$|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|_AUTH$", re.I)
_SHORTEST = 6  # shorter values ("1", "true") are no secrets, and stand everywhere
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_TOKENS = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|xox[abp]-|glpat-|AKIA|ASIA)[A-Za-z0-9_-]{10,}")
# An absolute path and its last part; not what follows "//" or a word, which is an address or a fraction.
_PATH = re.compile(r"(?<![\w./~*-])/(?:[^\s/'\":;,()\[\]<>]+/)+([^\s/'\":;,()\[\]<>]*)")


def one_line(text: str, most: int) -> str:
    """The text as one line that a terminal shows as it is: a file's name or a value may hold anything, at any length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 100]} ... {line[-95:]}"


def redact_secrets(text: str) -> str:
    """`text` without secrets of the environment, credentials in addresses, and tokens of known forms."""
    for value in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _TOKENS.sub(HIDDEN, _IN_ADDRESS.sub(HIDDEN, text))


def redact(text: str) -> str:
    """`text` without secrets, folders above a file, and the names of user and machine."""
    text = redact_secrets(text)
    text = _PATH.sub(lambda found: found[1] or "/", text)
    for name in _names():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", HIDDEN, text)
    return text


def _secrets() -> set[str]:
    return {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST}


def _names() -> set[str]:
    """Of the user, the home folder and the machine; but no word that every log has."""
    names = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(OSError, KeyError):  # a user without a name
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name not in {"root", "user", "home", "localhost"}}
