"""Make batches of tensors from forget items and retain texts.

In shapes, R is the number of rows and T the number of tokens. The order of items, the chosen responses and the
negatives depend only on the seed and the step, and not on the machine or the number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.models.tokenizer import encode_prompts
from wpn_bench.prompts import Item, Template
from wpn_bench.unlearn.benign import BenignUse, use_of
from wpn_bench.unlearn.lengths import row_of
from wpn_bench.unlearn.processes import ALONE, Processes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

RANDOM_WORDS = 20  # number of words in a random answer, which is the beginning of a retain text


@dataclass
class Rows:
    """Token sequences, padded on the right.

    Attributes:
        input_ids: (R, T) token ids.
        attention_mask: (R, T), 1 on tokens and 0 on padding.
        response_mask: (R, T), 1 on response tokens. In plain text, 1 on all tokens.
        owner: (R,) index in the batch of the item to which the row belongs.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    owner: Tensor

    @property
    def prompt_mask(self) -> Tensor:
        """Return a mask (R, T) that is 1 on the tokens before the response."""
        return self.attention_mask - self.response_mask


@dataclass
class Batch:
    """The data of one step. Parts that the method does not use are None.

    A row is a prompt x with a harmless response y+, one of several harmful responses y-, or a random answer.

    Attributes:
        harmless: One row per item, x with y+.
        harmful: `negatives` consecutive rows per item, x with y-.
        retain: Rows of plain text.
        random: `random_answers` rows per item, x with the beginning of a retain text.
    """

    harmless: Rows | None = None
    harmful: Rows | None = None
    retain: Rows | None = None
    random: Rows | None = None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Mapping[str, Tensor]]) -> Batch:
        return cls(**{name: Rows(**rows) for name, rows in tensors.items()})


class Batches:
    """A sequence with one batch for each step. `batches[k]` depends only on the seed and on k.

    Items of benign prompts (`benign.py`) take a fixed share of each batch. For a method that uses harmless responses, they
    are items like all others, and come last in the batch. For other methods, and with the use `texts`, the prompt with its
    harmless response takes the place of a share of the retain texts.

    With several processes, each gets a part of the same batch: some of its items with all their rows, and some of its
    retain texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        items: Sequence[Item],
        texts: Sequence[str],
        *,
        template: Template,
        uses: frozenset[str],
        steps: int,
        batch_size: int,
        retain_batch_size: int,
        negatives: int,
        random_answers: int = 0,
        max_length: int,
        retain_max_length: int,
        seed: int,
        benign: Sequence[Item] = (),
        benign_share: float = 0.5,
        benign_use: BenignUse = "items",
        processes: Processes = ALONE,
    ) -> None:
        self.tokenizer = tokenizer
        self.items = list(items)
        self.texts = list(texts)
        self.template = template
        self.uses = uses
        self.steps = steps
        self.benign = list(benign)
        self.benign_as_items = use_of(uses, benign_use) == "items"
        whole = batch_size if self.benign_as_items else retain_batch_size
        self.n_benign = min(max(1, round(whole * benign_share)), whole - 1, len(self.benign))
        of_items, of_retain = (self.n_benign, 0) if self.benign_as_items else (0, self.n_benign)
        self.n_items = min(batch_size - of_items, len(self.items))
        self.n_texts = min(retain_batch_size - of_retain, len(self.texts)) if self.texts else 0
        self.batch_size = self.n_items + of_items
        self.retain_batch_size = self.n_texts + of_retain if self.texts else 0
        self.negatives = negatives
        self.random_answers = random_answers
        self.max_length = max_length
        self.retain_max_length = retain_max_length
        self.seed = seed
        self.processes = processes
        for size, what in ((self.batch_size, "items to forget"), (self.retain_batch_size, "retain texts")):
            if 0 < size < processes.count:
                raise UserError(
                    f"with {size} {what} per step, some of the {processes.count} processes have no work",
                    f"use --processes {size} or fewer",
                )

    def __len__(self) -> int:
        return self.steps

    def _chosen(self, step: int, n_all: int, size: int, what: str) -> list[int]:
        """Return `size` of `n_all` indices.

        Each epoch is shuffled differently, so that all items are used equally often.
        """
        first = step * size
        out = []
        for position in range(first, first + size):
            epoch, offset = divmod(position, n_all)
            order = list(range(n_all))
            random.Random(f"{self.seed}/{what}/{epoch}").shuffle(order)
            out.append(order[offset])
        return out

    def __getitem__(self, step: int) -> dict[str, dict[str, Tensor]]:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        rng = random.Random(f"{self.seed}/responses/{step}")
        chosen = [self.items[k] for k in self._chosen(step, len(self.items), self.n_items, "forget")]
        benign = [self.benign[k] for k in self._chosen(step, len(self.benign), self.n_benign, "benign")]
        if self.benign_as_items:
            chosen += benign
        tensors: dict[str, dict[str, Tensor]] = {}
        if "harmless" in self.uses:
            pairs = [(k, item, rng.choice(item.harmless)) for k, item in enumerate(chosen)]
            tensors["harmless"] = self._pad([(*self._pair(item, y), k) for k, item, y in pairs])
        if "harmful" in self.uses:
            rows = []
            for k, item in enumerate(chosen):
                rows += [(*self._pair(item, y), k) for y in self._negatives(k, chosen, rng)]
            tensors["harmful"] = self._pad(rows)
        if "random" in self.uses:
            rows = []
            for k, item in enumerate(chosen):
                for text in rng.choices(self.texts, k=self.random_answers):
                    rows.append((*self._pair(item, " ".join(text.split()[:RANDOM_WORDS])), k))
            tensors["random"] = self._pad(rows)
        if "retain" in self.uses and self.retain_batch_size:
            texts = [self._text(self.texts[k]) for k in self._chosen(step, len(self.texts), self.n_texts, "retain")]
            if not self.benign_as_items:
                texts += [self._as_text(item) for item in benign]
            tensors["retain"] = self._pad([(*text, n) for n, text in enumerate(texts)])
        return {name: self._part(rows) for name, rows in tensors.items()}

    def _part(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of this process: consecutive items, split evenly, and padded like the whole batch."""
        if self.processes.count == 1:
            return rows
        owner = rows["owner"]
        mine = owner * self.processes.count // (owner.max() + 1) == self.processes.rank
        return {name: tensor[mine] for name, tensor in rows.items()}

    def _negatives(self, k: int, chosen: Sequence[Item], rng: random.Random) -> list[str]:
        """Return the item's own harmful responses, then those of other items in the batch, then its own again.

        The others are of the same kind, because the refusals of a benign item are right for an item to forget.
        """
        own = list(chosen[k].harmful)
        rng.shuffle(own)
        same_kind = range(self.n_items) if k < self.n_items else range(self.n_items, len(chosen))
        others = [rng.choice(chosen[j].harmful) for j in same_kind if j != k]
        rng.shuffle(others)
        # If there are enough, half of them are the item's own (hard negatives) and half belong to other items.
        n_own = max(1, (self.negatives + 1) // 2)
        pool = own[:n_own] + others + own[n_own:]
        while len(pool) < self.negatives:
            pool += own
        return pool[: self.negatives]

    def _pair(self, item: Item, response: str) -> tuple[list[int], int]:
        """Return the token ids of prompt and response, and the index of the first response token (see `lengths.py`)."""
        row = row_of(self.tokenizer, self.template, item, response, self.max_length)
        return [*row.prompt, *row.response], len(row.prompt)

    def _as_text(self, item: Item) -> tuple[list[int], int]:
        """Return the token ids of a benign prompt with its harmless response, as a retain text."""
        row = row_of(self.tokenizer, self.template, item, item.harmless[0], self.retain_max_length)
        return [*row.prompt, *row.response], 0

    def _text(self, text: str) -> tuple[list[int], int]:
        return encode_prompts(self.tokenizer, [text])[0][: self.retain_max_length], 0

    def _pad(self, rows: Sequence[tuple[list[int], int, int]]) -> dict[str, Any]:
        import torch

        width = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id))
        attention = torch.zeros_like(ids)
        response = torch.zeros_like(ids)
        for r, (tokens, start, _) in enumerate(rows):
            ids[r, : len(tokens)] = torch.tensor(tokens)
            attention[r, : len(tokens)] = 1
            response[r, start : len(tokens)] = 1
        owner = torch.tensor([k for _, _, k in rows])
        return {"input_ids": ids, "attention_mask": attention, "response_mask": response, "owner": owner}
