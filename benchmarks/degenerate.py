"""Generate eight kinds of degenerate text from a seed, as negative examples for a coherence judge.

Each function takes a random generator, the prompt (without template), a real response to it and the `Material`, and returns one
text. Only `broken` needs a model; it is generated in `coherence.py`.
"""

from __future__ import annotations

import base64
import random
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

__all__ = ["MAKERS", "Material"]

BLANKS = " \n\t\u00a0\u200b"
MARKS = ".,;:!?-*#_=~…—·•\"'()[]|/"
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
LEADS = ("", "", "Question: ", "Sure. ", '"')
AS_SOURCE = 8  # Markov text with so many consecutive words of its source is a quotation and is generated again


@dataclass(frozen=True)
class Material:
    """The input of the generators: real texts (of the half that is judged) and a vocabulary of strings."""

    texts: tuple[str, ...]
    vocabulary: tuple[str, ...]

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(word for text in self.texts for word in (*text.split(), ""))  # "" marks the end of a text

    @cached_property
    def runs(self) -> frozenset[tuple[str, ...]]:
        return frozenset(zip(*(self.words[k:] for k in range(AS_SOURCE)), strict=False))

    @cached_property
    def followers(self) -> dict[int, dict[tuple[str, ...], list[str]]]:
        """The words that follow each n-gram, by n and n-gram."""
        found: dict[int, dict[tuple[str, ...], list[str]]] = {1: defaultdict(list), 2: defaultdict(list)}
        for order, of in found.items():
            for k in range(len(self.words) - order):
                of[self.words[k : k + order]].append(self.words[k + order])
        return found


Maker = Callable[[random.Random, str, str, Material], str]


def empty(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Return an empty text, white space, or punctuation."""
    pick = rng.choice(("", BLANKS, MARKS, MARKS + BLANKS))
    return "".join(rng.choice(pick) for _ in range(rng.randint(0, 40))) if pick else ""


def loop(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Repeat a word, a phrase, a sentence (sometimes with one word changed each time) or characters without spaces.

    Half of the texts start with a part of the real response.
    """
    words = text.split()
    at = rng.randrange(len(words))
    how = rng.choice(("word", "phrase", "sentence", "varied", "characters"))
    if how == "characters":
        part = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 6)))
        body = part * rng.randint(12, 40)
    else:
        size = {"word": 1, "phrase": rng.randint(2, 5)}.get(how, rng.randint(6, 12))
        unit = (words * 2)[at : at + size]
        body = ""
        for _ in range(max(4, rng.randint(24, 60) // len(unit))):
            if how == "varied":
                unit[rng.randrange(len(unit))] = rng.choice(material.words) or "and"
            body += " ".join(unit) + " "
    return (" ".join(words[: rng.randint(2, 6)]) + " " if rng.random() < 0.5 else "") + body.strip()


def salad(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Return the words of a real response in random order."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def tokens(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Return random entries of the model's vocabulary."""
    return "".join(rng.choice(material.vocabulary) for _ in range(rng.randint(10, 60)))


def characters(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Return random letters, or the response in base64, in hexadecimal digits or in a wrong encoding."""
    how = rng.choice(("letters", "base64", "hex", "mojibake"))
    raw = text[: rng.randint(30, 120)].encode()
    if how == "base64":
        return base64.b64encode(raw).decode()
    if how == "hex":
        return raw.hex()
    if how == "mojibake":
        cyrillic = "".join(chr(0x430 + b % 32) if chr(b).isalpha() else chr(b) for b in raw)
        return cyrillic.encode().decode("latin-1")
    sizes = [rng.randint(1, 9) for _ in range(rng.randint(5, 20))]
    return " ".join("".join(rng.choice(LETTERS) for _ in range(size)) for size in sizes)


def copied(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Copy the prompt: completely (sometimes after a word), most of it, repeatedly, or with one word in eight changed."""
    words = prompt.split()
    how = rng.choice(("whole", "most", "again", "changed"))
    if how == "most":
        drop = len(words) // 4
        first = rng.randint(0, drop)
        words = words[first : len(words) - (drop - first)]
    elif how == "again":
        words = words * rng.randint(2, 4)
    elif how == "changed":
        for k in rng.sample(range(len(words)), max(1, len(words) // 8)):
            words[k] = rng.choice(material.words) or "and"
    return (rng.choice(LEADS) if how == "whole" else "") + " ".join(words)


def markov(rng: random.Random, prompt: str, text: str, material: Material) -> str:
    """Generate Markov text of order one or two: locally fluent, but meaningless."""
    followers = material.followers[rng.choice((1, 1, 2))]
    order = len(next(iter(followers)))
    length = rng.randint(15, 50)
    while True:
        said = list(rng.choice(list(followers)))
        while len(said) < length:
            said.append(rng.choice(followers.get(tuple(said[-order:]), material.words)))
        said = [word for word in said if word]
        if not any(run in material.runs for run in zip(*(said[k:] for k in range(AS_SOURCE)), strict=False)):
            return " ".join(said)


MAKERS: dict[str, Maker] = {
    "empty": empty,
    "loop": loop,
    "salad": salad,
    "tokens": tokens,
    "characters": characters,
    "copied": copied,
    "markov": markov,
}


def enough_for(kind: str, prompt: str, text: str) -> bool:
    """Return whether a pair suits a kind: shuffling needs enough words, copying needs a prompt."""
    return {"salad": len(text.split()) >= 10, "copied": len(re.findall(r"\w+", prompt)) >= 5}.get(
        kind, bool(text.split())
    )
