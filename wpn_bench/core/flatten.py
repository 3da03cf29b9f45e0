"""Flatten nested records into a list of names and values."""

from __future__ import annotations

from typing import Any


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a nested record into pairs of a dotted name and a text. A list of plain values becomes one text.

    Args:
        value: A value made of dicts, lists and plain values.
        prefix: Dotted name of `value` within a larger record; empty at the top.

    Returns:
        The (dotted name, text) pairs, in the order of the record.
    """
    if isinstance(value, dict) and value:
        pairs = []
        for key, inner in value.items():
            pairs += flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [pair for i, inner in enumerate(value) for pair in flatten(inner, f"{prefix}[{i}]")]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None else str(value))]
