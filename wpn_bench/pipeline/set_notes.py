"""Notes for the user on the sets that a run reads."""

from __future__ import annotations

from wpn_bench.prompts import PromptSet, TextSet


def column_notes(one: PromptSet | TextSet) -> list[str]:
    """Return a note on the columns that were read from a data file, if they do not have the names of their fields."""
    found = one.source.get("columns")
    if not found:
        return []
    return [f"{one.source['file']}: {', '.join(f'{field} is the column {name!r}' for field, name in found.items())}"]


def response_notes(forget: PromptSet) -> list[str]:
    """Say how many prompts of a forget set lack a response, and how many have the same one on both sides."""
    notes = []
    if forget.left_out:
        notes.append(
            f"the forget set {forget.name!r}: {forget.left_out} prompts have no harmful or no harmless response and are left"
            " out"
        )
    if n := sum(bool(set(item.harmful) & set(item.harmless)) for item in forget.items):
        notes.append(
            f"the forget set {forget.name!r}: {n} of {len(forget.items)} prompts have a response that is called harmful and"
            " harmless; methods are trained on both"
        )
    return notes
