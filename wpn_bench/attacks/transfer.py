"""Attacks with ready-made prompts: the user's file has one attacked prompt for each prompt (`--attack-file`).

So jailbreaks that a search found on another model, for instance with GCG, are asked of the models of a run. This is called a
transfer attack (Zou et al. 2023, arXiv:2307.15043).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.errors import UserError
from wpn_bench.prompts import Item, item_id

ATTACKED = "attacked"  # the field whose presence makes a row one of these


class TransferAttack(Attack):
    """Replaces each prompt by the attacked prompt that a file has for it. Prompts without one are not asked.

    Args:
        name: Name of the attack.
        title: Name in reports.
        file: Name in results of the file.
    """

    def __init__(self, name: str, title: str, file: str) -> None:
        self.name = name  # type: ignore[misc]  # a class attribute of coded attacks
        self.title = title  # type: ignore[misc]
        self.description = f"Attacked prompts of {file}."  # type: ignore[misc]
        self.file = file
        self.empty = 0  # number of rows without an attacked prompt
        self._texts: dict[
            str, tuple[str, str]
        ] = {}  # by id of the prompt: the attacked prompt, and its place in the file
        self._changes = False

    def add(self, where: str, place: str, row: Mapping[Any, Any]) -> None:
        """Add a row of the file.

        Args:
            where: File and place, for messages.
            place: Place in the file.
            row: Has `attacked`, and `prompt` or `id`. An empty `attacked` is only counted: published files have such rows for
                prompts for which the search found nothing.

        Raises:
            UserError: A field is missing or no text, or the prompt has another attacked prompt already.
        """
        if row.get("template") not in (None, ""):
            raise UserError(
                f"{where} has both `template` and `{ATTACKED}`",
                f"write `template` for all prompts, or `{ATTACKED}` for the one in `prompt`",
            )
        text, prompt, known = row[ATTACKED], row.get("prompt"), row.get("id")
        if text in (None, "") or (isinstance(text, str) and not text.strip()):
            self.empty += 1
            return
        for field, value in ((ATTACKED, text), ("prompt", prompt)):
            if value is not None and not isinstance(value, str):
                raise UserError(
                    f"{where}: `{field}` is no text, but {type(value).__name__}",
                    "write one text in each row; rows with another `name` are another attack",
                )
        if not prompt and known in (None, ""):
            raise UserError(
                f"{where} does not say which prompt it attacks",
                "give the original prompt in the field `prompt`, or the item_id of a run's samples in the field `id`",
            )
        key = item_id(prompt) if prompt else str(known)
        before, first = self._texts.setdefault(key, (text, place))
        if before != text:
            raise UserError(
                f"{where}: the prompt already has another attacked prompt ({first})",
                "give the rows different `name`s; each name is an attack of its own",
            )
        self._changes |= text != prompt

    def check(self, path: str) -> None:
        """Raise `UserError` if no row of the attack changes a prompt."""
        if not self._changes:
            why = "are the prompts themselves" if self._texts else "are empty"
            raise UserError(
                f"{path}: all attacked prompts of {self.name!r} {why}",
                f"`{ATTACKED}` is the whole text that the model is asked in place of `prompt`",
            )

    def covers(self, item: Item) -> bool:
        return item.id in self._texts

    def apply(self, item: Item, context: AttackContext) -> Item:
        return replace(item, prompt=self._texts[item.id][0])
