"""Parse comma-separated text strictly, and lists in its cells.

Python's `csv` reads an unbalanced quote silently: everything up to the next quote becomes one cell. Here it is an error
that names the line of the quote.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

DELIMITERS = ",\t;|"
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_TOKEN = re.compile(rf"({_STRING})|([^'\"]+)", re.DOTALL)
_LIST = re.compile(r"""\s*(?:array\()?[\[(]\s*(?:['"{\[]|np\.str_\(|array\()""")


class CsvError(ValueError):
    """The text is not valid CSV. `line` is the line of the mistake, counted from 1."""

    def __init__(self, line: int, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.line, self.hint = line, hint


def records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Split CSV text into records. Blank lines are left out.

    Args:
        text: The text; lines end with a line feed, a carriage return, or both.
        delimiter: The character between cells.

    Yields:
        The line on which the record begins, counted from 1, and its cells.

    Raises:
        CsvError: A quote is not closed, text stands after a closing quote, or a space before an opening one.
    """
    plain = re.compile(rf"[^{re.escape(delimiter)}\r\n]*")
    at, line, size = 0, 1, len(text)
    while at < size:
        first, cells = line, []
        while True:
            if text.startswith('"', at):
                found = _QUOTED.match(text, at)
                if found is None:
                    raise CsvError(
                        line, "a quote is opened and never closed", "close it, or write a quote inside a text twice"
                    )
                end = found.end()
                if end < size and text[end] not in (delimiter, "\r", "\n"):
                    problem = (
                        f"the quote that is opened here is followed by {text[end : end + 20]!r} where it is closed"
                    )
                    raise CsvError(line, problem, "close it where the text ends, and write a quote inside a text twice")
                cells.append(found[1].replace('""', '"'))
                line += len(re.findall(r"\r\n|\r|\n", found[0]))
            else:
                found = plain.match(text, at)
                assert found is not None
                end = found.end()
                if re.fullmatch(r'\s+"[^"]*("?\s*)', found[0]):
                    raise CsvError(line, "a space stands before an opening quote", "remove the space")
                cells.append(found[0])
            at = end
            if at < size and text[at] == delimiter:
                at += 1
                continue
            break
        if at < size:
            at += 2 if text.startswith("\r\n", at) else 1
            line += 1
        if cells != [""]:
            yield first, cells


def find_delimiter(text: str, usual: str, known: frozenset[str]) -> str:
    """Find the delimiter of CSV text from its header.

    The usual delimiter is taken if it splits the header, unless only another one gives a known column. Otherwise the one
    that gives the most columns is taken.

    Args:
        text: The text.
        usual: The delimiter that the name of the file suggests.
        known: Names of columns in lower case.

    Returns:
        One of `DELIMITERS`.
    """
    headers: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        try:
            headers[delimiter] = next(records(text, delimiter), (1, [""]))[1]
        except CsvError:
            headers[delimiter] = [""]
    named = {d: sum(cell.strip().casefold() in known for cell in cells) for d, cells in headers.items()}
    if len(headers[usual]) > 1 and (named[usual] or not any(named.values())):
        return usual
    best = max(DELIMITERS, key=lambda d: (named[d], len(headers[d]), d == usual))
    return best if len(headers[best]) > 1 else usual


def looks_like_list(text: str) -> bool:
    """Return whether a text has the outer form of a list that pandas or NumPy wrote."""
    return bool(_LIST.match(text)) and text.rstrip().endswith(("]", ")"))


def list_or_text(value: str) -> Any:
    """Read a cell that contains a list: JSON, Python (`['a', 'b']`) or NumPy (`['a' 'b']`). Other text is returned as it is.

    A list that NumPy shortened with `...`, or that cannot be read, is returned as text, for which `looks_like_list` is true.
    """
    if not value.lstrip().startswith(("[", "(", "array(")):
        return value
    try:
        parsed = json.loads(value)
        json.dumps(parsed, ensure_ascii=False).encode()  # an unpaired surrogate is not a character
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, list):
        return parsed
    if not looks_like_list(value):
        return value
    try:
        found = ast.literal_eval(_as_python(value.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    found = list(found) if isinstance(found, tuple) else found
    return found if isinstance(found, list) and _is_plain(found) else value


def _as_python(value: str) -> str:
    """Rewrite what NumPy prints as Python lists: commas between elements, no `array()` and no `np.str_()`."""
    out: list[str] = []
    outer = value.startswith("(")
    value = value[1:-1] if outer else value
    for string, between in _TOKEN.findall(value):
        if string:
            out.append(string)
            continue
        between = re.sub(r"array\(|np\.str_\(|,\s*dtype=[\w<>.]+\)|\)", "", between)
        between = re.sub(r"\bnan\b", "None", between)
        between = re.sub(r"([}\]])\s+([{\[])", r"\1, \2", between)
        out.append(", " if between and not between.strip() and out else between)
    text = "".join(out)
    return f"[{text}]" if outer else text


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, str):
        return not any(0xD800 <= ord(c) <= 0xDFFF for c in value)
    return value is None or isinstance(value, (bool, int, float))
