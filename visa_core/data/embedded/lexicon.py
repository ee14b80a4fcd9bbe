"""Words of the embedded corpus: facts with slots, value clauses, instructions.

Each predicate owns the sixteen words of each of its slots. A slot cannot be guessed (1 in 16), and
a small model can learn
within minutes to copy it, because the word it must copy is told by the predicate alone.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOT_WORDS = 16


@dataclass(frozen=True, kw_only=True)
class Predicate:
    """A kind of fact: a topic for queries, surface forms with {a} and {b}, and the words that fill
    them.
    """

    topic: str
    forms: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]


def _numbers(start: int, step: int = 1) -> tuple[str, ...]:
    return tuple(str(start + step * i) for i in range(SLOT_WORDS))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PREDICATES: tuple[Predicate, ...] = (
    Predicate(
        topic="the meeting",
        forms=("{a} leads the meeting at {b}", "The meeting at {b} is led by {a}"),
        a=_words(
            "Amara Bruno Chloe Dmitri Elena Farid Greta Hiro Ingrid Jonas Keiko Luca Mira "
            "Nadia Omar Priya"
        ),
        b=tuple(f"{hour}{part}" for hour in range(4, 12) for part in ("am", "pm")),
    ),
    Predicate(
        topic="the train",
        forms=("The train to {a} leaves from platform {b}", "Platform {b} serves the train to {a}"),
        a=_words(
            "Oslo Lisbon Vienna Prague Dublin Athens Warsaw Turin Lyon Porto Bergen Ghent "
            "Basel Graz Malmo Krakow"
        ),
        b=_numbers(1),
    ),
    Predicate(
        topic="the shop",
        forms=("The shop sells {b} {a} a day", "Each day {b} {a} leave the shop"),
        a=_words(
            "lamps chairs kettles mirrors carpets clocks baskets ladders curtains shelves "
            "vases hammers mattresses radios umbrellas candles"
        ),
        b=_numbers(21),
    ),
    Predicate(
        topic="the soup",
        forms=("The soup needs {b} grams of {a}", "Add {b} grams of {a} to the soup"),
        a=_words(
            "lentils carrots spinach barley onions celery pumpkin leeks beans turnips "
            "cabbage fennel garlic parsnips tomatoes rice"
        ),
        b=_numbers(110, 10),
    ),
    Predicate(
        topic="the course",
        forms=("The {a} course lasts {b} weeks", "It takes {b} weeks to finish the {a} course"),
        a=_words(
            "algebra biology drawing spanish history physics sewing coding geology music "
            "statistics cooking logic botany poetry welding"
        ),
        b=_numbers(41),
    ),
    Predicate(
        topic="the rent",
        forms=("A flat near the {a} costs {b} euros", "Expect {b} euros for a flat near the {a}"),
        a=_words(
            "harbour stadium museum castle airport library hospital market cathedral bridge "
            "theatre factory school brewery canal zoo"
        ),
        b=_numbers(515, 10),
    ),
    Predicate(
        topic="the medicine",
        forms=(
            "Doctor {a} prescribes {b} milligrams",
            "A dose of {b} milligrams comes from doctor {a}",
        ),
        a=_words(
            "Abbott Becker Castro Duval Eriksen Fischer Gomez Haddad Ivanov Jensen Kowalski "
            "Lindgren Moreau Novak Okafor Petrov"
        ),
        b=_numbers(703, 6),
    ),
    Predicate(
        topic="the trail",
        forms=(
            "The trail past {a} is {b} kilometers long",
            "Walkers cover {b} kilometers past {a}",
        ),
        a=_words(
            "Elbrus Fuji Denali Etna Rainier Vesuvius Kenya Logan Olympus Ararat Teide "
            "Snowdon Triglav Hekla Pilatus Rysy"
        ),
        b=_numbers(61),
    ),
    Predicate(
        topic="the concert",
        forms=("The {a} concert falls on a {b} evening", "One {b} evening brings the {a} concert"),
        a=_words(
            "violin piano cello flute harp guitar organ trumpet oboe clarinet drum banjo "
            "lute tuba viola bassoon"
        ),
        b=_words(
            "january february march april may june july august september october november "
            "december monday tuesday friday sunday"
        ),
    ),
    Predicate(
        topic="the book",
        forms=("{a} printed the book in {b}", "The book was printed by {a} in {b}"),
        a=_words(
            "Ashford Bellamy Carver Dunmore Everett Fairfax Goddard Hartley Irvine Jarvis "
            "Kendall Langley Marlowe Norwood Osborne Pembroke"
        ),
        b=_numbers(1903, 5),
    ),
    Predicate(
        topic="the garden",
        forms=("Water the {a} every {b} days", "Every {b} days the {a} want water"),
        a=_words(
            "roses tulips ferns orchids lilies daisies poppies irises violets peonies "
            "asters begonias dahlias zinnias lupins crocuses"
        ),
        b=_words(
            "two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen"
        ),
    ),
    Predicate(
        topic="the van",
        forms=("The {a} van carries {b} boxes", "There are {b} boxes in the {a} van"),
        a=_words(
            "red blue green yellow white black orange purple silver brown golden pink grey "
            "turquoise crimson beige"
        ),
        b=_numbers(81),
    ),
)

OPENERS: dict[float, tuple[str, ...]] = {
    1.0: ("above all", "always", "by all means"),
    0.5: ("ideally", "where possible", "now and then"),
    -0.5: ("you need not", "feel free not to", "it hardly helps to"),
    -1.0: ("never", "refuse to", "do not ever"),
}
"""Intensity on the Likert grid -> phrases that give a value clause that intensity."""

STEMS: dict[str, tuple[str, ...]] = {
    "self-direction": (
        "choose your own path",
        "think with full freedom",
        "sketch a plan nobody gave you",
        "question the manual",
    ),
    "stimulation": (
        "seek a daring adventure",
        "try exciting things",
        "take the unknown turn",
        "swap routine for surprise",
    ),
    "hedonism": (
        "enjoy every pleasure",
        "indulge your senses",
        "linger over dessert",
        "stay in the warm bath",
    ),
    "achievement": (
        "aim for success",
        "prove your ambition",
        "finish ahead of everyone",
        "beat last month's score",
    ),
    "power": (
        "claim authority over others",
        "gather wealth and status",
        "sit at the head",
        "make rivals obey",
    ),
    "security": (
        "keep everyone safe",
        "protect your health",
        "check the locks twice",
        "store supplies for emergencies",
    ),
    "conformity": (
        "obey the rules",
        "stay polite and lawful",
        "wait quietly in line",
        "do what neighbours expect",
    ),
    "tradition": (
        "honour old customs",
        "respect the elders",
        "repeat grandmother's ritual",
        "light the ancestral lantern",
    ),
    "benevolence": (
        "care for your friends",
        "be honest and forgiving",
        "bring soup to someone ill",
        "listen until they smile",
    ),
    "universalism": (
        "defend equality for all",
        "protect nature everywhere",
        "share with strangers abroad",
        "plant trees for tomorrow",
    ),
}
"""Value -> verb phrases; the first two name the value openly, the last two only imply it."""

QUERIES: tuple[str, ...] = (
    "What should I know about {topics} ?",
    "Tell me about {topics} .",
    "Can you help with {topics} ?",
    "I need details on {topics} .",
)

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "self-direction": ("independent", "self-direction", "freedom"),
    "stimulation": ("adventurous", "stimulation", "novelty"),
    "hedonism": ("indulgent", "hedonism", "pleasure"),
    "achievement": ("ambitious", "achievement", "success"),
    "power": ("dominant", "power", "status"),
    "security": ("cautious", "security", "safety"),
    "conformity": ("obedient", "conformity", "rules"),
    "tradition": ("traditional", "tradition", "custom"),
    "benevolence": ("caring", "benevolence", "kindness"),
    "universalism": ("tolerant", "universalism", "equality"),
}
"""Value -> an adjective and two nouns that instructions use for it."""

SHIFT_PHRASES: dict[float, tuple[str, ...]] = {
    2.0: ("turn fully from rejecting to embracing {noun}", "flip it to strongly favour {noun}"),
    1.5: ("make it far more {adjective}", "push hard towards {noun}"),
    1.0: ("make it more {adjective}", "put more weight on {noun}"),
    0.5: ("make it slightly more {adjective}", "add a touch of {noun}"),
    -0.5: ("make it slightly less {adjective}", "tone down {noun} a little"),
    -1.0: ("make it less {adjective}", "put less weight on {noun}"),
    -1.5: ("make it far less {adjective}", "push hard away from {noun}"),
    -2.0: ("turn fully from embracing to rejecting {noun}", "flip it to strongly oppose {noun}"),
}
"""Change in a value -> what an instruction says."""

AXIS_PHRASES: tuple[str, ...] = (
    "make this more {pole}-minded",
    "lean towards {pole}",
    "rewrite it in the spirit of {pole}",
)
"""Instructions for one pole of an axis: each value of the pole changes by +0.5."""
