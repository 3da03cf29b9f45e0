"""Parse comma-separated text strictly, and parse lists within its cells.

If a quote is not closed, Python's `csv` silently reads everything up to the next quote as one cell. In this module it
is an error that names the line of the quote.
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
    """The text is not valid CSV. `line` is the number of the wrong line, counted from 1."""

    def __init__(self, line: int, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.line, self.hint = line, hint


def records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Split CSV text into records. Blank lines are left out.

    Args:
        text: The text. A line ends with a line feed, a carriage return, or both.
        delimiter: The character between cells.

    Yields:
        The number of the line on which the record begins, counted from 1, and its cells.

    Raises:
        CsvError: A quote is not closed, there is text after a closing quote, or a space before an opening quote.
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
                        line, "a quote is opened but never closed", "close it, or double each quote inside a text"
                    )
                end = found.end()
                if end < size and text[end] not in (delimiter, "\r", "\n"):
                    problem = f"the closing quote of a cell that begins here is followed by {text[end : end + 20]!r}"
                    raise CsvError(
                        line,
                        problem,
                        "put the closing quote at the end of the cell, and double each quote inside a text",
                    )
                cells.append(found[1].replace('""', '"'))
                line += len(re.findall(r"\r\n|\r|\n", found[0]))
            else:
                found = plain.match(text, at)
                assert found is not None
                end = found.end()
                if re.fullmatch(r'\s+"[^"]*("?\s*)', found[0]):
                    raise CsvError(line, "there is a space before an opening quote", "remove the space")
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

    The usual delimiter is chosen if it splits the header. The exception is a header that only with another delimiter
    has a known column name. If the usual delimiter does not split the header, the one that gives the most columns is
    chosen.

    Args:
        text: The text.
        usual: The delimiter that the name of the file suggests.
        known: Known column names in lower case.

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
    """Return whether a text looks like a list that pandas or NumPy wrote."""
    return bool(_LIST.match(text)) and text.rstrip().endswith(("]", ")"))


def list_or_text(value: str) -> Any:
    """Read a cell that contains a list in the form of JSON, Python (`['a', 'b']`) or NumPy (`['a' 'b']`).

    Other text is returned unchanged. So is a list that NumPy shortened with `...` or that cannot be read; for such a
    text `looks_like_list` is true.
    """
    if not value.lstrip().startswith(("[", "(", "array(")):
        return value
    try:
        parsed = json.loads(value)
        json.dumps(parsed, ensure_ascii=False).encode()  # fails for an unpaired surrogate, which is not a character
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
    """Rewrite the output of NumPy as Python lists: commas between elements, no `array()` and no `np.str_()`."""
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
