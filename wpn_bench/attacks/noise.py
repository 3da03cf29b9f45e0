"""Character noise: the text stays readable for a person, but the tokenizer splits it into unusual tokens.

The attack follows Boucher et al. 2021 (arXiv 2106.09898: homoglyphs, invisible characters) and Hughes et al. 2024
(arXiv 2412.03556: random case and character noise).
"""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.prompts import Item

INVISIBLE = "\u200b"  # zero-width space
# Maps Latin letters to Cyrillic letters of the same shape. These are escaped, because they look the same in an editor.
HOMOGLYPHS = dict(
    zip(
        "aceopxyiABCEHKMOPTX",
        "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456"
        "\u0410\u0412\u0421\u0415\u041d\u041a\u041c\u041e\u0420\u0422\u0425",
        strict=True,
    )
)


class CharacterNoise(Attack):
    """Changes about one letter in eight: swaps its case, replaces it with a homoglyph, or adds a (zero-width) space."""

    name = "character_noise"
    title = "Character noise"
    description = (
        "One letter in eight with its case turned, a homoglyph in its place, or a visible or invisible space"
        " after it (Boucher et al. 2021, Hughes et al. 2024)."
    )
    share = 0.125
    ways = (str.swapcase, lambda c: HOMOGLYPHS.get(c, c + INVISIBLE), lambda c: c + " ", lambda c: c + INVISIBLE)

    def apply(self, item: Item, context: AttackContext) -> Item:
        rng = context.random_for(item, self.name)
        characters = list(item.prompt)
        letters = [k for k, c in enumerate(characters) if c.isalpha()]
        for k in rng.sample(letters, min(len(letters), max(1, round(len(letters) * self.share)))):
            characters[k] = rng.choice(self.ways)(characters[k])
        text = "".join(characters)
        # If nothing has changed (no letters, or a script without case), add an invisible character.
        return replace(item, prompt=text if text != item.prompt else INVISIBLE + text)
