"""The closed world: who lives in the village, what they do, and how things go there. Standard library only."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "ANIMALS",
    "COLOURS",
    "OPPOSITES",
    "PLACES",
    "STREETS",
    "TRADES",
    "Person",
    "Trade",
    "held_out",
    "people",
    "person",
    "trade",
]


def held_out(key: str, share: float = 0.2) -> bool:
    """Whether this combination of facts belongs to the tests (a fixed `share` of all keys), never to the corpus."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


@dataclass(frozen=True)
class Trade:
    """A trade of the village; `product` is a plural noun or a mass noun (`plural` says which)."""

    name: str
    tool: str
    workplace: str
    product: str
    plural: bool
    material: str
    verb: str  # "bakes"
    base: str  # "bake"

    @property
    def be(self) -> str:
        """The verb that goes with the product."""
        return "are" if self.plural else "is"


TRADES = tuple(
    Trade(*row)
    for row in (
        ("baker", "oven", "bakery", "bread", False, "flour", "bakes", "bake"),
        ("smith", "hammer", "forge", "horseshoes", True, "iron", "forges", "forge"),
        ("carpenter", "saw", "workshop", "chairs", True, "oak", "builds", "build"),
        ("tailor", "needle", "fitting room", "coats", True, "cloth", "sews", "sew"),
        ("potter", "wheel", "pottery", "bowls", True, "clay", "shapes", "shape"),
        ("farmer", "plough", "farm", "potatoes", True, "seed", "grows", "grow"),
        ("printer", "type", "print shop", "books", True, "paper", "prints", "print"),
        ("weaver", "loom", "weaving hall", "blankets", True, "wool", "weaves", "weave"),
        ("cobbler", "awl", "shoe shop", "sandals", True, "leather", "makes", "make"),
        ("gardener", "spade", "garden", "roses", True, "bulbs", "grows", "grow"),
        ("painter", "brush", "studio", "pictures", True, "paint", "paints", "paint"),
        ("cook", "ladle", "kitchen", "soup", False, "vegetables", "cooks", "cook"),
        ("mason", "chisel", "quarry", "walls", True, "stone", "builds", "build"),
        ("glazier", "cutter", "glass house", "windows", True, "glass", "makes", "make"),
        ("beekeeper", "smoker", "bee yard", "honey", False, "nectar", "gathers", "gather"),
        ("cheesemaker", "vat", "dairy", "cheese", False, "milk", "makes", "make"),
    )
)

WOMEN = (
    "Anna",
    "Mary",
    "Clara",
    "Helen",
    "Julia",
    "Laura",
    "Nora",
    "Paula",
    "Ruth",
    "Sara",
    "Tina",
    "Vera",
    "Wendy",
    "Betty",
    "Diana",
    "Emma",
    "Grace",
    "Irene",
    "Kate",
    "Olive",
)
MEN = (
    "Ben",
    "Carl",
    "David",
    "Frank",
    "George",
    "Henry",
    "Ivan",
    "Jack",
    "Leo",
    "Martin",
    "Oscar",
    "Peter",
    "Robert",
    "Simon",
    "Tom",
    "Victor",
    "Walter",
    "Adam",
    "Hugo",
    "Paul",
)
STREETS = (
    "Mill Street",
    "Church Lane",
    "River Road",
    "Harbour Road",
    "Market Street",
    "Bridge Lane",
    "Forest Road",
    "Lake Street",
    "Station Road",
    "Castle Lane",
)
PLACES = (
    "market",
    "bridge",
    "well",
    "tower",
    "pond",
    "school",
    "station",
    "inn",
    "library",
    "harbour",
    "mill",
    "town hall",
)
PET_NAMES = (
    "Rex",
    "Luna",
    "Milo",
    "Coco",
    "Max",
    "Bella",
    "Rocky",
    "Daisy",
    "Copper",
    "Pepper",
    "Maple",
    "Snowy",
    "Toffee",
    "Buster",
    "Misty",
    "Lucky",
    "Ruby",
    "Smoky",
    "Biscuit",
    "Nutmeg",
)
PET_KINDS = ("dog", "cat", "rabbit", "parrot", "pony", "goat", "duck", "tortoise")
FOODS = (
    "apple pie",
    "bean soup",
    "fried fish",
    "plum jam",
    "roast lamb",
    "rice pudding",
    "carrot cake",
    "corn bread",
    "pea stew",
    "nut biscuits",
)
HOBBIES = ("swimming", "singing", "chess", "dancing", "reading", "fishing", "running", "drawing", "cards", "skating")


@dataclass(frozen=True)
class Person:
    """Somebody of the village."""

    name: str
    woman: bool
    trade: Trade
    street: str
    pet_kind: str
    pet_name: str
    food: str
    hobby: str
    friend: str
    sidelines: tuple[Trade, ...]  # trades whose products this person also tries to make

    @property
    def he(self) -> str:
        """he or she."""
        return "she" if self.woman else "he"

    @property
    def him(self) -> str:
        """him or her."""
        return "her" if self.woman else "him"

    @property
    def his(self) -> str:
        """his or her (before a noun)."""
        return "her" if self.woman else "his"


@lru_cache
def people() -> tuple[Person, ...]:
    """The forty people, women and men in turn."""
    draw = random.Random(7)
    names = [name for pair in zip(WOMEN, MEN, strict=True) for name in pair]
    trades = list(TRADES) * 3
    draw.shuffle(trades)
    rows = []
    for number, name in enumerate(names):
        own = trades[number]
        others = [t for t in TRADES if t.product != own.product]
        rows.append(
            Person(
                name,
                number % 2 == 0,
                own,
                draw.choice(STREETS),
                draw.choice(PET_KINDS),
                draw.choice(PET_NAMES),
                draw.choice(FOODS),
                draw.choice(HOBBIES),
                draw.choice([n for n in names if n != name]),
                tuple(draw.sample(others, 2)),
            )
        )
    return tuple(rows)


@lru_cache
def person(name: str) -> Person:
    """The person of that name."""
    return next(p for p in people() if p.name == name)


@lru_cache
def trade(name: str) -> Trade:
    """The trade of that name."""
    return next(t for t in TRADES if t.name == name)


# animal, young, sound, food, home
ANIMALS = (
    ("cow", "calf", "moos", "grass", "barn"),
    ("horse", "foal", "neighs", "hay", "stable"),
    ("sheep", "lamb", "bleats", "clover", "fold"),
    ("deer", "fawn", "snorts", "leaves", "forest"),
    ("goose", "gosling", "honks", "barley", "yard"),
    ("dog", "puppy", "barks", "bones", "kennel"),
    ("cat", "kitten", "meows", "mice", "basket"),
    ("duck", "duckling", "quacks", "snails", "pond"),
    ("frog", "tadpole", "croaks", "flies", "marsh"),
    ("bee", "larva", "hums", "nectar", "hive"),
    ("owl", "owlet", "hoots", "voles", "hollow tree"),
    ("bear", "cub", "growls", "berries", "cave"),
    ("fox", "kit", "yelps", "rabbits", "den"),
    ("lion", "whelp", "roars", "meat", "grassland"),
)

COLOURS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "the sky": "blue",
    "a lemon": "yellow",
    "blood": "red",
    "a carrot": "orange",
    "a plum": "purple",
    "chocolate": "brown",
    "milk": "white",
    "a strawberry": "red",
    "a frog": "green",
    "a raven": "black",
    "the sea": "blue",
    "butter": "yellow",
    "an elephant": "grey",
    "a flamingo": "pink",
    "a pumpkin": "orange",
    "a pea": "green",
    "ash": "grey",
    "a cherry": "red",
    "a swan": "white",
    "tar": "black",
    "corn": "yellow",
    "mud": "brown",
}

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "wet": "dry",
    "old": "young",
    "light": "dark",
    "high": "low",
    "hard": "soft",
    "full": "empty",
    "early": "late",
    "loud": "quiet",
    "strong": "weak",
    "rich": "poor",
    "near": "far",
    "open": "closed",
    "sweet": "sour",
    "thick": "thin",
    "happy": "sad",
    "clean": "dirty",
    "deep": "shallow",
}
