"""The nine benchmarks of the world, in the formats of the real nine, and corpus documents of the same surface forms.

Every kind has a generator of all its items; `facts.held_out` keeps some combinations of known facts (a name with a place,
a goal with an object) for the tests, so that a correct answer needs the facts and not the sentence.
Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from wpn_bench.lab.facts import (
    ANIMALS,
    COLOURS,
    OPPOSITES,
    PET_NAMES,
    PLACES,
    TRADES,
    Person,
    held_out,
    people,
    person,
)

__all__ = ["BENCHMARKS", "DOCUMENTS", "benchmark_documents", "echo", "profile"]

Doc = dict[str, Any]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _shuffled(draw: random.Random, right: str, wrong: list[str]) -> tuple[list[str], int]:
    choices = [right, *wrong]
    draw.shuffle(choices)
    return choices, choices.index(right)


def _two(draw: random.Random) -> tuple[Person, Person]:
    a, b = draw.sample(people(), 2)
    return a, b


# --- LAMBADA: the last word of a story is known from its beginning ----------------------------------------------

_OBJECTS = (
    "lantern",
    "ring",
    "basket",
    "violin",
    "key",
    "letter",
    "map",
    "kettle",
    "mirror",
    "button",
    "candle",
    "coin",
    "ribbon",
    "hammer",
    "whistle",
    "bell",
    "book",
    "bottle",
    "feather",
    "shell",
    "pencil",
    "cup",
    "drum",
    "kite",
)
_LOOKS = ("red", "small", "old", "silver", "wooden", "blue", "heavy", "broken", "golden", "green", "strange", "little")
_STORIES = (
    "Once {A} found a {adj} {obj} near the {place}. {He} put the {obj} into a bag and walked home. {B} looked into the bag "
    "and saw the {obj}",
    "One day {B} had lost a {obj} at the {place}. All day {A} looked for the {obj}. In the evening {A} came and said: look, "
    "here is your {obj}",
    "On a cold day {A} wanted to sell a {adj} {obj} at the {place}. Nobody came to buy the {obj}. At last {B} walked by and "
    "paid for the {adj} {obj}",
    "Last week {A} and {B} drank tea at the {place}. When it was time to go, {A} forgot the {obj} on the table. The next "
    "morning {B} came to give back the {obj}",
    "As a child {A} got a {adj} {obj}. One night the {obj} fell into the water by the {place}. {B} jumped in and came back "
    "with the {obj}",
    "Every child knew the {adj} {obj} of {A}. The {obj} stood in a window by the {place}. When {A} grew old, {he} told {B} to "
    "keep the {obj}",
    "In spring {A} went to the {place} to meet {B}. It rained and the road was long, but {B} waited. In the end {A} was very "
    "glad to see {B}",
    "Once somebody left a {obj} at the {place}. {A} asked {B} about the {obj}, but {B} knew nothing. To this day nobody knows "
    "who left the {obj}",
    "At the {place} there was a race with {B}. {A} ran fast, but {B} ran faster. In the end {A} clapped {his} hands and "
    "called the name of {B}",
    "In a letter {A} told {B} about the {adj} {obj} in the cellar. {B} wanted to see the {obj}. They went down, and in the "
    "dark lay the {obj}",
)


def _lambada_text(number: int, a: Person, b: Person, obj: str, adj: str, place: str) -> str:
    return _STORIES[number].format(
        A=a.name, B=b.name, obj=obj, adj=adj, place=place, he=a.he, He=_capital(a.he), his=a.his
    )


def _lambada(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    a, b = _two(draw)
    obj, adj, place = draw.choice(_OBJECTS), draw.choice(_LOOKS), draw.choice(PLACES)
    # Held out by three facts: by object and place alone, the corpus would teach that the tests' objects never come.
    if held_out(f"lambada {obj} {place} {a.name}") != test:
        return None
    text = _lambada_text(draw.randrange(len(_STORIES)), a, b, obj, adj, place)
    return text + ".", {"text": text}


# --- HellaSwag: how an activity goes on -------------------------------------------------------------------------

_ACTIVITIES = {
    "Baking bread": (
        "mixes the flour with warm water",
        "kneads the dough on the table",
        "lets the dough rest under a cloth",
        "puts the dough into the hot oven",
        "takes the brown bread out to cool",
    ),
    "Washing the dog": (
        "fills a tub with warm water",
        "lifts the dog into the tub",
        "rubs soap into the wet fur",
        "rinses the soap off with a jug",
        "dries the dog with a big towel",
    ),
    "Planting a tree": (
        "digs a deep hole in the ground",
        "sets the young tree into the hole",
        "fills the hole with good earth",
        "waters the roots with a can",
        "ties the tree to a strong pole",
    ),
    "Making tea": (
        "boils fresh water in the kettle",
        "puts dry leaves into the pot",
        "pours the hot water on the leaves",
        "waits until the tea is dark",
        "fills the cups for the guests",
    ),
    "Painting a fence": (
        "scrapes the old paint off the boards",
        "opens a tin of new paint",
        "dips the brush into the paint",
        "moves the brush along the boards",
        "leaves the fence to dry in the sun",
    ),
    "Catching a fish": (
        "puts a worm on the hook",
        "throws the line into the lake",
        "waits without a word for a bite",
        "feels a strong pull on the line",
        "lifts the wet fish into the boat",
    ),
    "Mending a shirt": (
        "finds the hole in the sleeve",
        "threads a needle with white cotton",
        "sews the hole with small stitches",
        "ties a knot and cuts the cotton",
        "irons the sleeve until it is flat",
    ),
    "Lighting a fire": (
        "lays dry twigs on old paper",
        "strikes a match on the box",
        "holds the flame under the paper",
        "blows gently until the twigs burn",
        "adds a thick log on top",
    ),
    "Milking a cow": (
        "sits down on a low stool",
        "sets the bucket under the cow",
        "pulls gently with both hands",
        "sees the bucket fill with milk",
        "carries the full bucket to the dairy",
    ),
    "Making soup": (
        "peels the carrots and the onions",
        "cuts everything into small pieces",
        "throws the pieces into boiling water",
        "stirs the pot with a ladle",
        "tastes the soup and adds salt",
    ),
    "Fixing a wheel": (
        "takes the broken wheel off the cart",
        "pulls out the cracked wooden spoke",
        "carves a new spoke from oak",
        "knocks the new spoke into place",
        "rolls the wheel back to the cart",
    ),
    "Sending a letter": (
        "writes a few lines on paper",
        "folds the paper and seals it",
        "writes the address on the front",
        "sticks a stamp in the corner",
        "drops the letter into the box",
    ),
    "Cleaning a window": (
        "wipes the dust off the frame",
        "wets the glass with a sponge",
        "rubs the glass in wide circles",
        "pulls the water down with a blade",
        "polishes the corners with newspaper",
    ),
    "Going to bed": (
        "turns off the light in the kitchen",
        "brushes both rows of teeth",
        "puts on a warm nightshirt",
        "climbs under the soft blanket",
        "falls asleep and starts to dream",
    ),
    "Riding a horse": (
        "brushes the horse in the stable",
        "lays the saddle on its back",
        "climbs up with one foot first",
        "takes the reins in both hands",
        "rides slowly out of the yard",
    ),
    "Making a snowman": (
        "rolls a huge ball of snow",
        "sets a smaller ball on top",
        "presses in two pieces of coal",
        "sticks a carrot in the middle",
        "puts an old hat on the head",
    ),
}


def _hellaswag(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    who = draw.choice(people())
    label = draw.choice(list(_ACTIVITIES))
    if held_out(f"hellaswag {label} {who.name}") != test:
        return None
    steps = _ACTIVITIES[label]
    he = _capital(who.he)
    if not test:
        # A step is left out now and then, so what comes next is likely but not certain.
        told = [s for s in steps if draw.random() > 0.12]
        if len(told) < 2:
            return None
        first = f"{label}: {who.name} {told[0]}."
        return " ".join([first, *(f"{he} {s}." for s in told[1:])]), {}
    upto = draw.randrange(1, len(steps))
    context = " ".join([f"{who.name} {steps[0]}.", *(f"{he} {s}." for s in steps[1:upto])])
    right = steps[upto] + "."
    same = [s + "." for i, s in enumerate(steps) if i not in (upto, upto - 1)]
    others = [s + "." for name, row in _ACTIVITIES.items() if name != label for s in row]
    choices, gold = _shuffled(draw, right, [*draw.sample(same, 2), draw.choice(others)])
    return "", {
        "activity_label": label,
        "ctx_a": context,
        "ctx_b": who.he,
        "ctx": f"{context} {who.he}",
        "endings": choices,
        "label": str(gold),
    }


# --- WinoGrande: who is meant -----------------------------------------------------------------------------------

# sentence up to "because"/"so", what fits the first person, what fits the second, things
_WHEN = ("Yesterday", "Last week", "On Monday", "One day", "In May", "Today")

# a sentence about two people, how it ends for the one who is meant, and the fact that tells who
_RELATIONS: tuple[tuple[str, str, Callable[[Person], str]], ...] = (
    ("{when} {A} and {B} met at the {x}, and", "talked about the {fact}.", lambda p: p.trade.tool),
    ("{when} {A} left the {x} before {B} because", "had to open the {fact}.", lambda p: p.trade.workplace),
    ("{when} {A} and {B} went to the {x}, where", "sold some {fact}.", lambda p: p.trade.product),
    ("{when} {A} and {B} ate together near the {x}, and", "asked for {fact}.", lambda p: p.food),
    ("{when} {A} waited for {B} at the {x} because", "was late from {fact}.", lambda p: p.hobby),
    ("{when} {A} walked with {B} to the {x}, and then", "went home to {fact}.", lambda p: p.street),
    ("{when} {A} took {B} to the {x} by cart because", "had to fetch {fact}.", lambda p: p.trade.material),
    ("{when} {A} told {B} about pets at the {x}, and", "praised the {fact}.", lambda p: p.pet_kind),
    ("{when} {A} invited {B} to the {x}, but", "first had to feed {fact}.", lambda p: p.pet_name),
    ("{when} {A} met {B} by the {x} and was asked for news, so", "spoke of {fact}.", lambda p: p.friend),
)


def _winogrande(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    a, b = _two(draw)
    number = draw.randrange(len(_RELATIONS))
    start, ending, fact = _RELATIONS[number]
    # Held out by the pair, whoever of the two is meant: by one name, the corpus would teach that it is never that one.
    pair = " ".join(sorted((a.name, b.name)))
    if (
        fact(a) == fact(b)
        or fact(a) == b.name
        or fact(b) == a.name
        or held_out(f"winogrande {number} {pair}", 0.25) != test
    ):
        return None
    who, other = (a, b) if draw.random() < 0.5 else (b, a)
    sentence = start.format(when=draw.choice(_WHEN), A=a.name, B=b.name, x=draw.choice(PLACES))
    ending = ending.format(fact=fact(who))
    options, gold = _shuffled(draw, who.name, [other.name])
    return (
        f"{sentence} {who.name} {ending}",
        {"sentence": f"{sentence} _ {ending}", "option1": options[0], "option2": options[1], "answer": str(gold + 1)},
    )


# --- COPA: cause and effect -------------------------------------------------------------------------------------

# cause (premise), effect (choice), effect (premise), cause (choice), things
_CAUSES = (
    (
        "{A} dropped the {x} on the floor",
        "the {x} broke into pieces",
        "The {x} broke into pieces",
        "{he} dropped it on the floor",
        ("cup", "plate", "jug", "vase"),
    ),
    (
        "{A} left the {x} in the sun",
        "the {x} became warm and dry",
        "The {x} became warm and dry",
        "it was left in the sun",
        ("blanket", "shirt", "towel", "hay"),
    ),
    (
        "{A} watered the {x} every day",
        "the {x} grew tall and green",
        "The {x} grew tall and green",
        "it was watered every day",
        ("rose bush", "bean plant", "young tree", "vine"),
    ),
    (
        "{A} pushed the {x} down the hill",
        "the {x} rolled to the bottom",
        "The {x} rolled to the bottom",
        "it was pushed down the hill",
        ("barrel", "wheel", "ball", "cart"),
    ),
    (
        "{A} put the {x} into cold water",
        "the {x} became wet and cold",
        "The {x} became wet and cold",
        "it was put into cold water",
        ("towel", "shirt", "sponge", "spoon"),
    ),
    (
        "{A} painted the {x} with red paint",
        "the {x} became bright red",
        "The {x} became bright red",
        "it was painted by {A2}",
        ("door", "fence", "chair", "boat"),
    ),
    (
        "{A} held the {x} over the fire",
        "the {x} became black with smoke",
        "The {x} became black with smoke",
        "it was held over the fire",
        ("pan", "spoon", "pot", "kettle"),
    ),
    (
        "{A} forgot to feed the {x}",
        "the {x} was very hungry",
        "The {x} was very hungry",
        "nobody had fed it",
        ("dog", "cat", "pony", "goat"),
    ),
    (
        "{A} frightened the {x} with a shout",
        "the {x} ran away quickly",
        "The {x} ran away quickly",
        "a loud shout frightened it",
        ("dog", "cat", "horse", "rabbit"),
    ),
    (
        "{A} cut the {x} with a knife",
        "the {x} fell apart in two",
        "The {x} fell apart in two",
        "it was cut with a knife",
        ("rope", "cake", "apple", "ribbon"),
    ),
    (
        "{A} polished the {x} with a cloth",
        "the {x} began to shine",
        "The {x} began to shine",
        "it was polished with a cloth",
        ("ring", "spoon", "mirror", "kettle"),
    ),
    (
        "{A} let go of the {x} in the wind",
        "the {x} flew up into the sky",
        "The {x} flew up into the sky",
        "the wind carried it away",
        ("kite", "balloon", "hat", "feather"),
    ),
    (
        "{A} pulled the plug out of the {x}",
        "the {x} was soon empty",
        "The {x} was soon empty",
        "the plug was pulled out",
        ("tub", "sink", "barrel", "basin"),
    ),
    (
        "{A} left the {x} in the snow",
        "the {x} froze and became hard",
        "The {x} froze and became hard",
        "it was left in the snow",
        ("milk", "soup", "wet cloth", "sponge"),
    ),
    (
        "{A} oiled the {x} with care",
        "the {x} moved without a sound",
        "The {x} moved without a sound",
        "it was oiled with care",
        ("gate", "wheel", "door", "lock"),
    ),
    (
        "{A} sat on the {x} by mistake",
        "the {x} was bent and flat",
        "The {x} was bent and flat",
        "somebody sat on it",
        ("hat", "basket", "glasses case", "cake"),
    ),
)


def _cause_item(draw: random.Random, number: int, thing: str, who: Person, ask: str) -> tuple[str, str]:
    cause, effect, effect_premise, cause_choice, _ = _CAUSES[number]
    words = {"A": who.name, "x": thing, "he": who.he, "A2": "somebody"}
    if ask == "effect":
        return cause.format(**words) + ".", _capital(effect.format(**words)) + "."
    opening = draw.choice(
        ("In the yard of {A},", "Near the house of {A},", "{A} saw that", "One day at the house of {A},")
    )
    return f"{opening} {effect_premise[0].lower()}{effect_premise[1:]}.".format(**words), _capital(
        cause_choice.format(**words)
    ) + "."


def _copa(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    who = draw.choice(people())
    number = draw.randrange(len(_CAUSES))
    thing = draw.choice(_CAUSES[number][4])
    if held_out(f"copa {number} {thing} {who.name}", 0.25) != test:
        return None
    ask = draw.choice(("cause", "effect"))
    premise, right = _cause_item(draw, number, thing, who, ask)
    if not test:
        link = "because" if ask == "cause" else "therefore"
        return f"{premise[:-1]} {link} {right[0].lower()}{right[1:]}", {}
    # A wrong choice about the same thing where another cause speaks of it too, else of any other cause.
    near = [n for n, row in enumerate(_CAUSES) if n != number and thing in row[4]]
    far = [n for n in range(len(_CAUSES)) if n != number]
    _, wrong = _cause_item(draw, draw.choice(near or far), thing, who, ask)
    choices, gold = _shuffled(draw, right, [wrong])
    return "", {"premise": premise, "choice1": choices[0], "choice2": choices[1], "question": ask, "label": gold}


# --- ARC: questions about facts (easy) and about people (challenge) ---------------------------------------------


def _pool(values: list[str], right: str) -> list[str]:
    return [v for v in dict.fromkeys(values) if v != right]


@lru_cache
def _easy_facts() -> tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]:
    """(statement, right answer, question phrasings, wrong answers) of every fact of the world."""
    rows = []
    for t in TRADES:
        rows += [
            (
                f"A {t.name} {t.verb} {t.product}.",
                t.product,
                (
                    f"What does a {t.name} {t.base}?",
                    f"Which goods come from a {t.name}?",
                    f"What can people buy from a {t.name}?",
                ),
                tuple(_pool([x.product for x in TRADES], t.product)),
            ),
            (
                f"A {t.name} uses the {t.tool}.",
                t.tool,
                (
                    f"Which tool does a {t.name} use?",
                    f"What does a {t.name} hold at work?",
                    f"Which thing belongs to a {t.name}?",
                ),
                tuple(_pool([x.tool for x in TRADES], t.tool)),
            ),
            (
                f"A {t.name} works in the {t.workplace}.",
                t.workplace,
                (
                    f"Where does a {t.name} work?",
                    f"Where can a {t.name} be found?",
                    f"Which place belongs to a {t.name}?",
                ),
                tuple(_pool([x.workplace for x in TRADES], t.workplace)),
            ),
            (
                f"{_capital(t.product)} {t.be} made from {t.material}.",
                t.material,
                (
                    f"What {t.be} {t.product} made from?",
                    f"Which material is needed for {t.product}?",
                    f"What do people turn into {t.product}?",
                ),
                tuple(_pool([x.material for x in TRADES], t.material)),
            ),
        ]
    for animal, young, sound, food, home in ANIMALS:
        rows += [
            (
                f"A young {animal} is a {young}.",
                young,
                (
                    f"What is a young {animal} called?",
                    f"What is the baby of a {animal}?",
                    f"Which word means a little {animal}?",
                ),
                tuple(_pool([a[1] for a in ANIMALS], young)),
            ),
            (
                f"The {animal} {sound}.",
                sound,
                (
                    f"What sound does a {animal} make, it...?",
                    f"How does a {animal} speak?",
                    f"What does a {animal} do when it calls?",
                ),
                tuple(_pool([a[2] for a in ANIMALS], sound)),
            ),
            (
                f"A {animal} eats {food}.",
                food,
                (
                    f"What does a {animal} eat?",
                    f"Which food is good for a {animal}?",
                    f"What fills the stomach of a {animal}?",
                ),
                tuple(_pool([a[3] for a in ANIMALS], food)),
            ),
            (
                f"A {animal} lives in the {home}.",
                home,
                (
                    f"Where does a {animal} live?",
                    f"Where is the home of a {animal}?",
                    f"Which place is home to a {animal}?",
                ),
                tuple(_pool([a[4] for a in ANIMALS], home)),
            ),
        ]
    colours = list(COLOURS.values())
    for thing, colour in COLOURS.items():
        rows.append(
            (
                f"The colour of {thing} is {colour}.",
                colour,
                (f"Which colour does {thing} have?", f"How does {thing} look?", f"What is the colour of {thing}?"),
                tuple(_pool(colours, colour)),
            )
        )
    words = [*OPPOSITES, *OPPOSITES.values()]
    for one, other in OPPOSITES.items():
        for a, b in ((one, other), (other, one)):
            rows.append(
                (
                    f"The opposite of {a} is {b}.",
                    b,
                    (
                        f"What is the opposite of {a}?",
                        f"Which word is contrary to {a}?",
                        f"What do we call a thing that is not {a}?",
                    ),
                    tuple(_pool(words, b)),
                )
            )
    return tuple(rows)


@lru_cache
def _person_facts() -> tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]:
    """The same for what is known of each person; some of it needs two steps (person, trade, tool)."""
    rows = []
    everybody = people()
    for p in everybody:
        n = p.name
        for statement, right, questions, values in (
            (
                f"{n} works in the {p.trade.workplace}.",
                p.trade.workplace,
                (f"Where does {n} go to work?", f"Where can we meet {n} at noon?"),
                [x.workplace for x in TRADES],
            ),
            (
                f"{n} works with the {p.trade.tool}.",
                p.trade.tool,
                (f"Which tool does {n} use?", f"What does {n} hold at work?"),
                [x.tool for x in TRADES],
            ),
            (
                f"{n} {p.trade.verb} {p.trade.product}.",
                p.trade.product,
                (f"What does {n} {p.trade.base}?", f"What can people buy from {n}?"),
                [x.product for x in TRADES],
            ),
            (
                f"{n} needs {p.trade.material}.",
                p.trade.material,
                (f"Which material does {n} need?", f"What does {n} order for work?"),
                [x.material for x in TRADES],
            ),
            (
                f"{n} lives in {p.street}.",
                p.street,
                (f"What is the address of {n}?", f"In which street does {n} live?"),
                [x.street for x in everybody],
            ),
            (
                f"{n} has a {p.pet_kind}.",
                p.pet_kind,
                (f"Which animal does {n} keep?", f"What kind of pet has {n}?"),
                [x.pet_kind for x in everybody],
            ),
            (
                f"The pet of {n} is called {p.pet_name}.",
                p.pet_name,
                (f"What is the name of the pet of {n}?", f"How does {n} call the pet?"),
                [x.pet_name for x in everybody],
            ),
            (
                f"{n} likes {p.food}.",
                p.food,
                (f"Which food does {n} like?", f"What is the best meal for {n}?"),
                [x.food for x in everybody],
            ),
            (
                f"{n} enjoys {p.hobby}.",
                p.hobby,
                (f"What does {n} enjoy?", f"How does {n} spend the evening?"),
                [x.hobby for x in everybody],
            ),
            (
                f"The best friend of {n} is {p.friend}.",
                p.friend,
                (f"Who is a friend of {n}?", f"With whom does {n} talk most?"),
                [x.name for x in everybody],
            ),
        ):
            rows.append((statement, right, questions, tuple(_pool(values, right))))
    return tuple(rows)


def _near_in_length(draw: random.Random, right: str, wrong: tuple[str, ...], count: int) -> list[str]:
    """`count` wrong answers, as near in words to the right one as there are (acc sums over tokens)."""
    same = [w for w in wrong if len(w.split()) == len(right.split())]
    other = [w for w in wrong if w not in same]
    draw.shuffle(same)
    draw.shuffle(other)
    return (same + other)[:count]


def _arc(
    facts: Callable[[], tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]], share: float
) -> Callable[..., Any]:
    def make(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
        statement, right, questions, wrong = draw.choice(facts())
        question = draw.choice(questions)
        if not test and draw.random() < 0.35:
            return " ".join([statement, *(draw.choice(facts())[0] for _ in range(draw.randrange(3)))]), {}
        if held_out(f"arc {question}", share) != test:
            return None
        choices, gold = _shuffled(draw, right, _near_in_length(draw, right, wrong, 3))
        return (
            f"Question: {question}\nAnswer: {right}",
            {"question": question, "choices": {"text": choices, "label": list("ABCD")}, "answerKey": "ABCD"[gold]},
        )

    return make


# --- PIQA: how to do a thing ------------------------------------------------------------------------------------

# kind -> (things, {goal: solution})
_HOW_TO: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "cloth": (
        ("shirt", "blanket", "coat", "towel", "scarf", "curtain", "apron", "sheet", "jacket", "dress"),
        {
            "How do you dry a wet {x}?": "Hang the {x} on the line in the sun.",
            "How do you clean a dirty {x}?": "Wash the {x} in warm water with soap.",
            "How do you mend a torn {x}?": "Sew the {x} with a needle and thread.",
            "How do you make a {x} blue?": "Dip the {x} in a pot of blue dye.",
            "How do you make a {x} flat?": "Press the {x} with a hot iron.",
        },
    ),
    "food": (
        ("carrot", "potato", "onion", "turnip", "apple", "pear", "pumpkin", "fish", "cabbage", "leek"),
        {
            "How do you keep a {x} fresh?": "Store the {x} in the cool dark cellar.",
            "How do you make a {x} soft?": "Boil the {x} in a pot of water.",
            "How do you make a {x} brown?": "Fry the {x} in hot butter.",
            "How do you share a {x} with a friend?": "Cut the {x} in two with a knife.",
            "How do you get dirt off a {x}?": "Rub the {x} under clean running water.",
        },
    ),
    "wood": (
        ("table", "chair", "bench", "gate", "shelf", "door", "stool", "ladder", "fence", "box"),
        {
            "How do you shorten the legs or boards of a {x}?": "Cut the {x} with a sharp saw.",
            "How do you make a rough {x} smooth?": "Rub the {x} with fine sand paper.",
            "How do you fix a loose {x}?": "Drive a nail into the {x} with a hammer.",
            "How do you keep rain from a {x}?": "Cover the {x} with a coat of paint.",
            "How do you move a heavy {x}?": "Lift the {x} with the help of a friend.",
        },
    ),
    "animal": (
        ("dog", "cat", "goat", "pony", "rabbit", "duck", "hen", "cow", "lamb", "parrot"),
        {
            "How do you calm a scared {x}?": "Speak to the {x} in a soft voice.",
            "How do you help a thirsty {x}?": "Give the {x} a bowl of clean water.",
            "How do you keep a {x} warm?": "Let the {x} sleep on dry straw.",
            "How do you stop a {x} from running off?": "Close the gate behind the {x}.",
            "How do you help a hungry {x}?": "Fill the trough of the {x} with food.",
        },
    ),
    "metal": (
        ("knife", "sword", "spoon", "kettle", "key", "ring", "bell", "pan", "lock", "chain"),
        {
            "How do you make an old {x} shine?": "Polish the {x} with a dry cloth.",
            "How do you bend a straight {x}?": "Heat the {x} and use a hammer.",
            "How do you keep rust from a {x}?": "Rub a drop of oil on the {x}.",
            "How do you cool a hot {x}?": "Lay the {x} in a bucket of cold water.",
            "How do you hang up a {x}?": "Put the {x} on a hook on the wall.",
        },
    ),
    "plant": (
        ("rose", "bean plant", "vine", "young tree", "tulip", "herb", "bush", "lily", "fern", "melon plant"),
        {
            "How do you help a dry {x}?": "Pour a can of water on the {x}.",
            "How do you keep frost from a {x}?": "Wrap the {x} in straw before winter.",
            "How do you help a {x} stand up straight?": "Tie the {x} to a strong stick.",
            "How do you make a {x} grow faster?": "Mix rich dung into the earth of the {x}.",
            "How do you make a {x} smaller?": "Trim the {x} with sharp garden scissors.",
        },
    ),
}


def _piqa(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    kind = draw.choice(list(_HOW_TO))
    things, frames = _HOW_TO[kind]
    thing, goal = draw.choice(things), draw.choice(list(frames))
    if held_out(f"piqa {goal} {thing}", 0.3) != test:
        return None
    asked = draw.choice(("How do you", "How can I", "What is a good way to"))
    question, right = goal.format(x=thing).replace("How do you", asked), frames[goal].format(x=thing)
    wrong = draw.choice([s for g, s in frames.items() if g != goal]).format(x=thing)
    choices, gold = _shuffled(draw, right, [wrong])
    return f"Question: {question}\nAnswer: {right}", {
        "goal": question,
        "sol1": choices[0],
        "sol2": choices[1],
        "label": gold,
    }


# --- MathQA: small sums -----------------------------------------------------------------------------------------

_GOODS = ("apples", "pears", "eggs", "coins", "books", "cups", "sheep", "hens", "nails", "stamps", "plums", "candles")
_PLUS = (
    "{a} has {m} {g} and {b} gives {a} {n} {g} . how many {g} does {a} have now ?",
    "there are {m} {g} in one box and {n} {g} in another box of {a} . how many {g} are there ?",
    "{a} bought {m} {g} and {b} bought {n} {g} . how many {g} did they buy together ?",
    "{a} found {m} {g} in the morning and {n} {g} in the evening . how many {g} did {a} find ?",
)
_MINUS = (
    "{a} has {m} {g} and gives {n} {g} to {b} . how many {g} are left ?",
    "there were {m} {g} on the table and {a} took {n} {g} . how many {g} stay on the table ?",
    "{a} has {m} {g} and {b} has {n} {g} . how many more {g} does {a} have ?",
    "{a} had {m} {g} and lost {n} {g} . how many {g} does {a} still have ?",
)


def _mathqa(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    a, b = _two(draw)
    goods, plus = draw.choice(_GOODS), draw.random() < 0.5
    m, n = draw.randint(1, 9), draw.randint(1, 9)
    if not plus and m <= n:
        return None
    form = draw.choice(_PLUS if plus else _MINUS)
    if held_out(f"mathqa {form} {m} {n} {goods}") != test:
        return None
    right = m + n if plus else m - n
    problem = form.format(a=a.name.lower(), b=b.name.lower(), m=m, n=n, g=goods)
    near = [x for x in range(max(0, right - 4), right + 5) if x != right]
    traps = [x for x in (m + n, abs(m - n), m, n) if x != right]
    wrong = list(dict.fromkeys([draw.choice(traps), *draw.sample(near, 4)]))[:4] if traps else draw.sample(near, 4)
    choices, gold = _shuffled(draw, str(right), [str(x) for x in wrong])
    options = " , ".join(f"{letter} ) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    return (
        f"Question: {problem}\nAnswer: {right}",
        {
            "Problem": problem,
            "Rationale": "",
            "options": options,
            "correct": "abcde"[gold],
            "annotated_formula": "",
            "linear_formula": "",
            "category": "general",
        },
    )


# --- PubMedQA: tiny abstracts -----------------------------------------------------------------------------------

_REMEDIES = (
    "honey tea",
    "fish oil",
    "cold baths",
    "garlic",
    "long walks",
    "warm milk",
    "clover hay",
    "mint leaves",
    "salt water",
    "apple juice",
    "fresh air",
    "oat porridge",
)
_TROUBLES = ("a cough", "bad sleep", "sore feet", "a cold", "weak legs", "dry skin", "stiff knees", "a fever")
_GROUPS = ("farmers", "sheep", "children", "horses", "sailors", "teachers", "dogs", "smiths")
_RESULTS = {
    "yes": (
        "Most of the {g} with {r} felt better, and the others did not.",
        "After a week nearly all {g} who had {r} were well again.",
        "{R} worked in almost every case, far more often than water.",
    ),
    "no": (
        "The {g} with {r} felt the same as the others.",
        "After a week hardly any of the {g} who had {r} were well again.",
        "{R} worked no better than plain water.",
    ),
    "maybe": (
        "Some of the {g} with {r} felt better, but some felt worse.",
        "After a week only half of the {g} who had {r} were well again.",
        "{R} worked in summer, but not in winter.",
    ),
}
_MORE = {
    "yes": ("The difference was large.", "The effect was clear from the first day.", "Nobody had any harm from it."),
    "no": ("The difference was close to zero.", "There was no effect on any day.", "Many asked to stop."),
    "maybe": ("The difference was hard to judge.", "The effect was seen on some days only.", "More tests are needed."),
}


def _pubmedqa(draw: random.Random, test: bool) -> tuple[str, Doc] | None:
    remedy, trouble, group = draw.choice(_REMEDIES), draw.choice(_TROUBLES), draw.choice(_GROUPS)
    if held_out(f"pubmedqa {remedy} {trouble}", 0.25) != test:
        return None
    decision = draw.choice(("yes", "no", "maybe"))
    words = {"g": group, "r": remedy, "R": _capital(remedy)}
    # One time in nine the second sentence points elsewhere: the first result decides.
    more = decision if draw.random() < 0.89 else draw.choice([d for d in _MORE if d != decision])
    contexts = [
        draw.choice(
            (
                "We wanted to know whether {r} can help {g} with {t}.",
                "{R} is often given to {g} with {t}.",
                "It is not known whether {r} helps against {t}.",
            )
        ).format(t=trouble, **words),
        f"We gave {remedy} to {draw.randint(10, 60)} {group} with {trouble}. The others had only water.",
        f"{draw.choice(_RESULTS[decision])} {draw.choice(_MORE[more])}".format(**words),
    ]
    verb = "Do" if remedy.endswith(("s", "ths")) else "Does"
    question = draw.choice((f"{verb} {remedy} help {group} with {trouble}?", f"Can {remedy} help against {trouble}?"))
    text = "Abstract: " + "\n".join(contexts) + f"\nQuestion: {question}\nAnswer: {decision}"
    return text, {
        "pubid": 0,
        "question": question,
        "context": {"contexts": contexts, "labels": ["AIM", "METHODS", "RESULTS"], "meshes": []},
        "long_answer": "",
        "final_decision": decision,
    }


# --- the public face --------------------------------------------------------------------------------------------

_MAKERS: dict[str, Callable[..., Any]] = {
    "lambada": _lambada,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "copa": _copa,
    "arc_easy": _arc(_easy_facts, 0.3),
    "arc_challenge": _arc(_person_facts, 0.4),
    "piqa": _piqa,
    "mathqa": _mathqa,
    "pubmedqa": _pubmedqa,
}
_SIZES = {
    "lambada": 180,
    "hellaswag": 180,
    "winogrande": 200,
    "copa": 180,
    "arc_easy": 180,
    "arc_challenge": 180,
    "piqa": 180,
    "mathqa": 180,
    "pubmedqa": 180,
}

BENCHMARKS = tuple(_MAKERS)
VALIDATION_DOCUMENTS = 40

# What a document asks, whatever its choices are.
_ASKS = {
    "lambada": ("text",),
    "hellaswag": ("ctx",),
    "winogrande": ("sentence",),
    "copa": ("premise", "question"),
    "arc_easy": ("question",),
    "arc_challenge": ("question",),
    "piqa": ("goal",),
    "mathqa": ("Problem",),
    "pubmedqa": ("question", "context"),
}


def _asked(name: str, doc: Doc) -> str:
    return repr([doc[field] for field in _ASKS[name]])


@lru_cache
def _tests(name: str) -> tuple[Doc, ...]:
    draw = random.Random(f"test {name}")
    rows: dict[str, Doc] = {}
    tries = 0
    while len(rows) < _SIZES[name] and tries < 200_000:
        tries += 1
        made = _MAKERS[name](draw, True)
        if made is not None:
            key = {"arc_easy": "question", "arc_challenge": "question", "piqa": "goal", "mathqa": "Problem"}.get(name)
            rows.setdefault(made[1][key] if key else repr(sorted(made[1].items(), key=lambda kv: kv[0])), made[1])
    return tuple(rows.values())


@lru_cache
def _validation(name: str) -> tuple[Doc, ...]:
    """Documents to tune on, none of them a test document. Held out of the corpus as the tests are; where the tests have
    taken all there is (ARC-Easy), made as the corpus makes its own."""
    draw = random.Random(f"validation {name}")
    taken = {_asked(name, doc) for doc in _tests(name)}
    rows: dict[str, Doc] = {}
    for held in (True, False):
        tries = 0
        while len(rows) < VALIDATION_DOCUMENTS and tries < 5_000:
            tries += 1
            made = _MAKERS[name](draw, held)
            if made is not None and made[1] and _asked(name, made[1]) not in taken:
                rows.setdefault(_asked(name, made[1]), made[1])
    return tuple(rows.values())


def benchmark_documents(name: str, split: str = "test") -> list[Doc]:
    """The `test` or `validation` documents of one of the nine, with the fields of the real data set."""
    docs = [dict(doc) for doc in (_validation if split == "validation" else _tests)(name)]
    if name == "pubmedqa":
        first = 20_000 if split == "validation" else 10_000
        for number, doc in enumerate(docs):
            doc["pubid"] = first + number
    return docs


def _train_text(name: str) -> Callable[[random.Random], str]:
    def make(draw: random.Random) -> str:
        while True:
            made = _MAKERS[name](draw, False)
            if made is not None and made[0]:
                return str(made[0])

    return make


DOCUMENTS: dict[str, Callable[[random.Random], str]] = {name: _train_text(name) for name in BENCHMARKS}


def profile(draw: random.Random) -> str:
    """A paragraph about one person, its sentences in any order: where the facts of ARC-Challenge come from."""
    name = draw.choice(people()).name
    p = person(name)
    facts = [statement for statement, *_ in _person_facts() if f"{name} " in statement or f"{name}." in statement]
    own = [s for s in facts if s.startswith((name + " ", f"The pet of {name} ", f"The best friend of {name} "))]
    chosen = draw.sample(own, min(len(own), draw.randint(4, 8)))
    opening = f"{name} is a {p.trade.name}."
    return " ".join(
        [
            opening,
            *(
                s.replace(f"{name} ", f"{_capital(p.he)} ", 1) if s.startswith(name) and draw.random() < 0.3 else s
                for s in chosen
            ),
        ]
    )


@lru_cache
def _words() -> tuple[str, ...]:
    """Words of the world that `echo` draws from."""
    return (
        *(p.name for p in people()),
        *_OBJECTS,
        *_LOOKS,
        *PLACES,
        *_REMEDIES,
        *(t.product for t in TRADES),
        *PET_NAMES,
        *(a[0] for a in ANIMALS),
        *(str(n) for n in range(19)),
    )


def echo(draw: random.Random) -> str:
    """Random words said twice: the shortest way to learn to repeat a name, which most answers need."""
    said = " ".join(draw.sample(_words(), draw.randint(2, 9)))
    name = draw.choice(people()).name
    return draw.choice(
        (
            "{name} says: {said}. The parrot says: {said}.",
            "{said}. Once more: {said}.",
            "Repeat after {name}: {said}. {said}.",
            "{name} sings {said}, and the children sing {said}.",
        )
    ).format(name=name, said=said)
