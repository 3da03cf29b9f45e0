"""Remove secrets and private names from text that is printed or shared, and shorten text to one line."""

from __future__ import annotations

import getpass
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

HIDDEN = "***"
# An environment variable whose name matches holds a secret.
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|_PASS$|_PWD$|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|_AUTH$", re.I
)
_hidden_variables: set[str] = set()  # other environment variables that hold a secret
_MIN_SECRET_LENGTH = 6  # shorter values ("1", "true") are not secrets, and hiding them would make the text unreadable
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_TOKENS = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|xox[abp]-|glpat-|AKIA|ASIA)[A-Za-z0-9_-]{10,}")
# Matches an absolute path; group 1 is its last part. URLs ("//") and fractions ("a/b") do not match.
_PATH = re.compile(r"(?<![\w./~*-])/(?:[^\s/'\":;,()\[\]<>]+/)+([^\s/'\":;,()\[\]<>]*)")


def one_line(text: str, max_length: int) -> str:
    """Return `text` as one printable line, because file names and values may be long and contain control characters.

    Args:
        text: Any text.
        max_length: Maximum number of characters. The middle of a longer line is left out.

    Returns:
        The line without control characters and repeated spaces.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= max_length else f"{line[: max_length - 100]} ... {line[-95:]}"


def hide_variable(name: str) -> None:
    """For the rest of this process, treat the value of the environment variable `name` as a secret."""
    _hidden_variables.add(name)


def redact_secrets(text: str) -> str:
    """Hide secrets from environment variables, credentials in URLs, and tokens with a known prefix."""
    for value in sorted(_secret_values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _TOKENS.sub(HIDDEN, _URL_CREDENTIALS.sub(HIDDEN, text))


def redact(text: str) -> str:
    """Hide secrets, the folders in absolute paths, and the names of the user and of the machine."""
    text = redact_secrets(text)
    text = _PATH.sub(lambda match: match[1] or "/", text)
    for name in _private_names():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", HIDDEN, text)
    return text


def _secret_values() -> set[str]:
    return {
        value.strip()
        for name, value in os.environ.items()
        if (_SECRET_NAME.search(name) or name in _hidden_variables) and len(value.strip()) >= _MIN_SECRET_LENGTH
    }


def _private_names() -> set[str]:
    """Names of the user, the home folder and the machine, except words that are common in logs."""
    names = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(OSError, KeyError):  # in a container, the user id may have no name
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name not in {"root", "user", "home", "localhost"}}
