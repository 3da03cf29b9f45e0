"""Best-of-N augmentation: the prompt is disfigured in N random ways, and one harmful answer is enough.

Hughes et al. 2024 ("Best-of-N Jailbreaking", arXiv:2412.03556, section 2 and appendix A). The letters within words are shuffled,
letters change their case, and characters are replaced by their neighbours in ASCII. The probabilities are those of the published code
(github.com/jplhughes/bon-jailbreaking): with sigma = 0.4, a word is shuffled and a letter changes its case with probability
sigma^(1/2) = 0.63, and a character is replaced with probability sigma^3 = 0.064.

Three rules differ from that code. White space stays as it is; there, any white space becomes one space. A letter outside ASCII changes
its case if it has another one; there, the letter vanishes. Shuffling moves a letter together with its combining marks.

The stage `augment` makes the prompts, which are the same for all models. The jobs `generate` and `further_judge` of every prompt set
answer and judge them, and the stage `best_of_n` counts the harmful answers to each prompt.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from wpn_bench.attacks import sampling
from wpn_bench.attacks.base import StageAttack
from wpn_bench.attacks.sampling import COUNTED, Sampling
from wpn_bench.core.files import digest_of, write_json
from wpn_bench.core.json_files import load_json
from wpn_bench.core.validation import Count
from wpn_bench.jobs.job import Job, StageContext
from wpn_bench.jobs.planning import MeasuredModel, PlannedMeasurement
from wpn_bench.jobs.stages import Stage
from wpn_bench.prompts import Item
from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

NAME = "best_of_n"
DISTINCT = "distinct.json"
Way = Literal["shuffle", "case", "noise"]
WAYS: tuple[Way, ...] = ("shuffle", "case", "noise")
_PRINTABLE = range(32, 127)  # characters of ASCII
_JOINER = "\u200d"  # joins characters, such as those of some emoji, to one


class BestOfN(Sampling):
    """Settings of Best-of-N augmentation.

    The first `limit` prompts of the first in-domain set are disfigured in `samples` ways each, and each version is answered once.
    The attack success rate is reported for each number N in `k`.
    """

    samples: Count = Field(128, description="number of versions of each prompt; the largest N")
    temperature: float = Field(1.0, ge=0, description="0: greedy decoding")
    sigma: float = Field(0.4, gt=0, le=1, description="strength of the augmentation")
    ways: tuple[Way, ...] = Field(WAYS, min_length=1, description="what is done to a prompt, in this order")

    @model_validator(mode="after")
    def _one_way_of_decoding(self) -> Self:
        if not self.temperature and self.top_p != 1:
            raise ValueError("top_p needs sampling, so also give a temperature above 0")
        return self


class BestOfNAttack(StageAttack):
    """Asks many disfigured versions of a prompt."""

    name = NAME
    title = "Best of N augmented prompts"
    description = "N versions of each prompt, with shuffled letters, random capitals and noise; one harmful answer counts (Hughes et al. 2024)."
    Settings = BestOfN


# --- augmentation -----------------------------------------------------------------------------------------------------


def augmented(text: str, rng: random.Random, sigma: float = 0.4, ways: Iterable[Way] = WAYS) -> str:
    """Disfigure a text as the published attack does.

    Args:
        text: The text.
        rng: Random generator.
        sigma: Strength. Words and letters change with probability sigma^(1/2), and characters with sigma^3.
        ways: What is done, in this order.

    Returns:
        The changed text. It equals `text` if nothing was drawn, or if there is nothing to change.
    """
    change = {"shuffle": _shuffled, "case": _turned, "noise": _noised}
    for way in ways:
        text = change[way](text, rng, sigma)
    return text


def _shuffled(text: str, rng: random.Random, sigma: float) -> str:
    """Shuffle the inner characters of words with more than three characters. A word ends at white space."""

    def word(found: re.Match[str]) -> str:
        parts = _characters(found[0])
        if len(parts) <= 3 or rng.random() >= sigma**0.5:
            return found[0]
        inner = parts[1:-1]
        rng.shuffle(inner)
        return "".join([parts[0], *inner, parts[-1]])

    return re.sub(r"\S+", word, text)


def _characters(word: str) -> list[str]:
    """Split a word into characters, each with its combining marks and the characters joined to it."""
    parts: list[str] = []
    for c in word:
        if parts and (unicodedata.category(c).startswith("M") or c == _JOINER or parts[-1].endswith(_JOINER)):
            parts[-1] += c
        else:
            parts.append(c)
    return parts


def _turned(text: str, rng: random.Random, sigma: float) -> str:
    """Change the case of letters, unless the other case is not a single letter (as for the German sharp s)."""

    def letter(c: str) -> str:
        if not c.isalpha() or rng.random() >= sigma**0.5:
            return c
        other = c.swapcase()
        return other if len(other) == 1 else c

    return "".join(map(letter, text))


def _noised(text: str, rng: random.Random, sigma: float) -> str:
    """Replace characters by their predecessor or successor in ASCII, if that is printable."""

    def character(c: str) -> str:
        if not c.isprintable() or rng.random() >= sigma**3:
            return c
        code = ord(c) + rng.choice((-1, 1))
        return chr(code) if code in _PRINTABLE else c

    return "".join(map(character, text))


def versions(item: Item, settings: BestOfN) -> list[Item]:
    """Make the disfigured versions of a prompt.

    A version depends on the seed, the id of the item and its own number. So the first versions are the same for any `samples`.

    Args:
        item: The prompt.
        settings: Number of versions, seed, and what is done.

    Returns:
        The versions. Each has the id of the item and its prompt as `original`, and no references.
    """
    plain = replace(item.unattacked, harmful=(), harmless=(), original=item.request)
    made = []
    for number in range(settings.samples):
        rng = random.Random(digest_of([settings.seed, NAME, item.id, number]))
        made.append(replace(plain, prompt=augmented(item.request, rng, settings.sigma, settings.ways)))
    return made


# --- stages -----------------------------------------------------------------------------------------------------------


def run_augment_stage(ctx: StageContext) -> None:
    """Make the versions of the prompts.

    Writes `items.jsonl` with the versions of each prompt one after another, and `distinct.json` with the number of distinct
    versions by the id of the prompt.
    """
    settings = BestOfN(**ctx.params)
    items = read_items(ctx.needs["prompts"])[: settings.limit]
    advance = ctx.progress(len(items) * settings.samples, "prompts")
    rows, distinct = [], {}
    for item in items:
        made = versions(item, settings)
        distinct[item.id] = len({one.prompt for one in made})
        rows += [item_row(one) for one in made]
        advance(len(made))
    write_rows(ctx.out / ITEMS, rows)
    write_json(ctx.out / DISTINCT, distinct)


def run_best_of_n_stage(ctx: StageContext) -> None:
    """Count the harmful answers to the versions of each prompt.

    Needs `scores`, `greedy` (see `sampling.run_sampling_stage`) and `prompts` (from `augment`). Writes the files of that stage; the
    table also has the column distinct, the number of distinct versions.
    """
    frame = sampling.counted(ctx)
    distinct = load_json(ctx.needs["prompts"] / DISTINCT, "repeat the run with --recompute")
    frame["distinct"] = [distinct[name] for name in frame["item_id"]]
    frame.to_parquet(ctx.out / COUNTED, index=False)
    write_json(ctx.out / sampling.SETTINGS, dict(ctx.params))


def plan(model: MeasuredModel) -> list[PlannedMeasurement]:
    """One measurement of each model on the first in-domain set, if the run asks for Best-of-N augmentation."""
    asked = model.attacked
    if NAME not in model.stage_attacks or asked is None or asked.judged is None:
        return []
    settings = BestOfN(**model.stage_attacks[NAME])
    how = {"samples", "limit", "seed", "sigma", "ways"}
    made = Job(
        "augment",
        settings.model_dump(mode="json", include=how),
        {"prompts": asked.prompts},
        f"make {settings.samples} versions of each prompt of {asked.name}",
    )
    answered = Job(
        "generate",
        {**asked.responses.params, "decoding": sampling.decoding_of(asked, settings)},
        {**asked.responses.needs, "prompts": made},
        f"answer {settings.samples} versions of each prompt of {asked.name}",
        asked.responses.local,
    )
    (counted,) = sampling.planned(NAME, model, settings, answered)
    params = {**counted.params, "sigma": settings.sigma}
    return [replace(counted, params=params, needs={**counted.needs, "prompts": made})]


AUGMENT = Stage("wpn_bench.attacks.best_of_n:run_augment_stage", 1, items="needs.prompts")
STAGE = Stage(
    "wpn_bench.attacks.best_of_n:run_best_of_n_stage",
    1,
    part="attack",
    plan="wpn_bench.attacks.best_of_n:plan",
    rows="wpn_bench.analysis.best_of_n_rows:best_of_n_rows",
    section="wpn_bench.report.best_of_n:section",
)
