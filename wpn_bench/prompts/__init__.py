"""Prompt sets and plain texts: their types, the templates that render them, and the functions that read them."""

from __future__ import annotations

from wpn_bench.prompts.read import SetSpec, Source, declared, load_prompts, load_texts, read_spec, spec_for, split_off
from wpn_bench.prompts.tables import read_file
from wpn_bench.prompts.templates import ChatTemplate, FormatTemplate, Rendered, Template, joined, render
from wpn_bench.prompts.types import WORST_CASE, Item, Kind, PromptSet, Refusal, TextSet, item_id, normalise

__all__ = [
    "WORST_CASE",
    "ChatTemplate",
    "FormatTemplate",
    "Item",
    "Kind",
    "PromptSet",
    "Refusal",
    "Rendered",
    "SetSpec",
    "Source",
    "Template",
    "TextSet",
    "declared",
    "item_id",
    "joined",
    "load_prompts",
    "load_texts",
    "normalise",
    "read_file",
    "read_spec",
    "render",
    "spec_for",
    "split_off",
]
