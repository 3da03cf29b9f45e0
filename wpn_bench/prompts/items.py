"""Store prompt items and texts as files and as inputs of jobs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wpn_bench.jobs.job import External
from wpn_bench.jobs.store import Store
from wpn_bench.prompts.types import Item, PromptSet, TextSet

ITEMS = "items.jsonl"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON Lines in UTF-8.

    Args:
        path: The file. An existing file is replaced.
        rows: One JSON object per line.
    """
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON Lines file that `write_rows` wrote."""
    # str.splitlines() would also split at line separators within responses, which JSON does not escape.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_items(folder: Path) -> list[Item]:
    """Read the prompt items from the folder of an artifact."""
    rows = read_rows(folder / ITEMS)
    return [Item(**{**r, "harmful": tuple(r["harmful"]), "harmless": tuple(r["harmless"])}) for r in rows]


def item_row(item: Item) -> dict[str, Any]:
    """Convert an item to a row that `read_items` can read."""
    return asdict(item)


def put_prompts(store: Store, prompt_set: PromptSet) -> External:
    """Store the items of a prompt set as an artifact, unless they are already in the store.

    Args:
        store: The artifact store.
        prompt_set: The prompt set.

    Returns:
        The artifact as an input of jobs.
    """
    found = store.find("prompts", prompt_set.digest)
    if found is None:
        with store.build("prompts", prompt_set.digest, {"name": prompt_set.name, **prompt_set.source}) as out:
            write_rows(out / ITEMS, [item_row(i) for i in prompt_set.items])
        found = store.path("prompts", prompt_set.digest)
    return External(found, prompt_set.digest)


def put_texts(store: Store, texts: TextSet) -> External:
    """Store texts as an artifact, unless they are already in the store.

    Args:
        store: The artifact store.
        texts: The texts.

    Returns:
        The artifact as an input of jobs.
    """
    found = store.find("texts", texts.digest)
    if found is None:
        with store.build("texts", texts.digest, {"name": texts.name, **texts.source}) as out:
            write_rows(out / "texts.jsonl", [{"text": t} for t in texts.texts])
        found = store.path("texts", texts.digest)
    return External(found, texts.digest)
