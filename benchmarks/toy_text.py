"""The generated text that the bundled model `toy` is trained on, and the held-out prompts it is measured on.

Words and templates are those of tasks/*.toml. A document is one or more sentences. A fifth of all pairs of
words that a behaviour combines (two names, an event and a year, a noun and a place, an adjective and a name)
never stands in one training
document: the prompts of the figures consist of such pairs alone.
"""

from __future__ import annotations

import random
import re
import tomllib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
END = "<|endoftext|>"
UNKNOWN = "<unk>"
PIECE = re.compile(r" ?[A-Za-z]+| ?\d{1,2}| ?[^\sA-Za-z\d]")
HELD_OUT = 5  # one pair in so many

ORDINARY = (
    "{name} went to the {place}.",
    "{name} gave a {object} to {other}.",
    "{name} sent {other} a {object}.",
    "{name} and {other} are friends.",
    "{name} met {other} at the {place}.",
    "{name} saw a {noun} near the {spot}.",
    "{name} put the {nouns} on the {spot}.",
    "{name} found a {object} in the {place} and took it home.",
    "{name} was {adjective} because {other} came to the {place}.",
    "{girl} is a girl. She has a {colour} {noun}.",
    "{boy} is a boy. He has a {colour} {noun}.",
    "There is a {noun} by the {spot}.",
    "There are {nouns} under the {spot}.",
    "The {noun} is {colour}.",
    "The {nouns} are {colour}.",
    "The {noun} is on the {spots}.",
    "The {nouns} are behind the {spot}.",
    "Is the {noun} {colour}? No, it is {other_colour}!",
    "The {event} began in the year {year}.",
    "In the year {year} there was a {event}.",
    "The {place} was old, and the {noun} was {colour}.",
    "The {adjective} people of the {place} talked about the {event}.",
    "After the {event} everybody went home.",
    "In the years of the {event} the {place} was {colour}.",
    "The {colour} {noun} fell from the {spot} in the morning.",
)
COLOURS = ("red", "blue", "green", "old", "new", "small", "large", "white", "black", "broken")
ENDINGS = {
    "ioi": (".", ".", ".", " and smiled.", " and went home.", " before lunch."),
    "greater_than": (".", ".", ".", ", and then it was over."),
    "subject_verb_agreement": (*(f" {colour}." for colour in COLOURS), " not here.", " very old."),
    "gendered_pronoun": (
        " was happy.",
        " liked to play at the school.",
        " wanted a new toy.",
        " had a small dog.",
        " lived in an old house.",
    ),
    "induction": ("",),
}
MIXTURE = {
    "ioi": 22,
    "greater_than": 30,
    "years": 10,
    "subject_verb_agreement": 6,
    "gendered_pronoun": 4,
    "induction": 18,
    "ordinary": 10,
}
# copying is learnt first: in the mixture it stays at chance for thousands of steps
EARLY = {"ioi": 45, "induction": 40, "years": 15}


def later(ioi: int, greater_than: int, induction: int) -> dict[str, int]:
    """The mixture of a later phase of training."""
    rest = {"subject_verb_agreement": 5, "gendered_pronoun": 3, "induction": induction, "ordinary": 8}
    return {"ioi": ioi, "greater_than": greater_than, "years": 8} | rest


@dataclass(frozen=True)
class Prompt:
    """A prompt, what may follow, what may not, and the two words it
    combines (None: nothing that could be held out).
    """

    text: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    pair: tuple[str, str] | None = None


LEARNT = ("gendered_pronoun", "greater_than", "induction", "ioi", "subject_verb_agreement")


@dataclass(frozen=True)
class World:
    """The learnt tasks' files and what follows from them: all names, the
    vocabulary's tokens, and which roles a token plays.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    names: tuple[str, ...]
    tokens: tuple[str, ...]
    roles: Mapping[str, tuple[tuple[str, str], ...]]

    def words(self, task: str, kind: str) -> Any:
        """One of a task's word lists."""
        return self.tasks[task]["words"][kind]


# --- words
# ----------------------------------------------------------------------------------------------------------------------------


def pieces(text: str) -> list[str]:
    """The tokens of a text; the first word counts as one after a space.

    >>> pieces("The war of 1732.")
    [' The', ' war', ' of', ' 17', '32', '.']
    """
    return PIECE.findall(f" {text}" if text[:1].isalpha() else text)


def strings(value: object) -> Iterator[str]:
    """All strings inside nested lists and dictionaries, without their {slots}."""
    if isinstance(value, str):
        yield re.sub(r" ?\{[^}]*\}", "", value)
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in strings(item))
    elif isinstance(value, Sequence):
        yield from (text for item in value for text in strings(item))


def load_world(folder: Path = ROOT / "tasks") -> World:
    """Read the tasks that the model learns. The tokens' order depends on the words alone."""
    tasks = {name: tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8")) for name in LEARNT}
    pronoun = tasks["gendered_pronoun"]["words"]
    names = tuple(sorted({*tasks["ioi"]["words"]["name"], *pronoun["girl_name"], *pronoun["boy_name"]}))
    fields = ("templates", "words", "cases", "correct", "incorrect")
    used = [task.get(field, "") for task in tasks.values() for field in fields]
    texts = strings([used, ORDINARY, COLOURS, ENDINGS])
    found = {piece for text in texts for piece in pieces(text.strip())}
    years = [f"{year:02d}" for year in range(100)]
    centuries = [f" {century}" for century in tasks["greater_than"]["generator"]["centuries"]]
    return World(
        tasks, names, (UNKNOWN, END, *years, *centuries, *sorted(found)), roles_of(tasks, names, years)
    )


def roles_of(
    tasks: Mapping[str, Mapping[str, Any]], names: Sequence[str], years: Sequence[str]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """token -> its (role, dictionary form)s: one pair of a noun and a
    place is held out in all its numbers at once.
    """
    agreement = tasks["subject_verb_agreement"]["words"]
    listed = [("name", name, name) for name in names]
    listed += [("event", noun, noun) for noun in tasks["greater_than"]["words"]["noun"]]
    listed += [("adjective", word, word) for word in tasks["gendered_pronoun"]["words"]["adjective"]]
    for role in ("noun", "place"):
        for one, many in zip(agreement[role]["singular"], agreement[role]["plural"], strict=True):
            listed += [(role, one, one), (role, many, one)]
    roles: dict[str, tuple[tuple[str, str], ...]] = {year: (("year", year),) for year in years}
    for role, word, form in listed:
        roles[f" {word}"] = (*roles.get(f" {word}", ()), (role, form))
    return roles


def held_out(first: str, second: str) -> bool:
    """Whether two words must not meet in a training document; their order does not matter."""
    return zlib.crc32(" ".join(sorted((first, second))).encode()) % HELD_OUT == 0


def leaks(world: World, text: str) -> bool:
    """Whether a text combines a pair that is held out."""
    found: dict[str, set[str]] = {}
    for piece in pieces(text):
        for role, form in world.roles.get(piece, ()):
            found.setdefault(role, set()).add(form)
    combined = (("name", "name"), ("event", "year"), ("noun", "place"), ("adjective", "name"))
    return any(
        a != b and held_out(a, b)
        for left, right in combined
        for a in found.get(left, ())
        for b in found.get(right, ())
    )


# --- prompts and documents
# ------------------------------------------------------------------------------------------------------------


def ioi(world: World, rng: random.Random, three: float = 0.0) -> Prompt:
    """An IOI prompt; with probability `three` the giver is a third person, and either of the two receives."""
    giver, receiver, third = rng.sample(world.words("ioi", "name") if three == 0 else world.names, 3)
    first, second = rng.sample([giver, receiver], 2)
    slots = {kind: rng.choice(world.words("ioi", kind)) for kind in ("place", "object")}
    fresh = rng.random() < three
    text = rng.choice(world.tasks["ioi"]["templates"]).format(
        first=first, second=second, S2=third if fresh else giver, **slots
    )
    if fresh:
        return Prompt(text, (f" {first}", f" {second}"), (f" {third}",))
    return Prompt(text, (f" {receiver}",), (f" {giver}",), (receiver, giver))


def greater_than(world: World, rng: random.Random, first: int = 2) -> Prompt:
    """An event that began in a year of `first`..98 of its century; all
    years above may end it, all others may not.
    """
    task, year = world.tasks["greater_than"], rng.randint(first, 98)
    noun, century = (
        rng.choice(world.words("greater_than", "noun")),
        rng.choice(task["generator"]["centuries"]),
    )
    text = rng.choice(task["templates"]).format(noun=noun, century=century, year=f"{year:02d}")
    years = [f"{other:02d}" for other in range(100)]
    return Prompt(text, tuple(years[year + 1 :]), tuple(years[: year + 1]), (noun, f"{year:02d}"))


def agreement(world: World, rng: random.Random) -> Prompt:
    """A subject, a place of either number, and the subject's verb."""
    words = world.tasks["subject_verb_agreement"]["words"]
    noun, place = (rng.randrange(len(words[kind]["singular"])) for kind in ("noun", "place"))
    number, other = rng.sample(["singular", "plural"], 2)
    attractor = words["place"][rng.choice([number, other])][place]
    text = rng.choice(world.tasks["subject_verb_agreement"]["templates"]).format(
        subject=words["noun"][number][noun], attractor=attractor
    )
    verbs = {"singular": " is", "plural": " are"}
    return Prompt(
        text,
        (verbs[number],),
        (verbs[other],),
        (words["noun"]["singular"][noun], words["place"]["singular"][place]),
    )


def pronoun(world: World, rng: random.Random) -> Prompt:
    """A child with a name, and the pronoun that begins the next sentence."""
    task = world.tasks["gendered_pronoun"]
    child, pronouns = rng.choice([("girl", (" She", " He")), ("boy", (" He", " She"))])
    adjective, name = rng.choice(task["words"]["adjective"]), rng.choice(task["words"][f"{child}_name"])
    text = rng.choice(task["templates"]).format(adjective=adjective, child=child, name=name)
    return Prompt(text, pronouns[:1], pronouns[1:], (adjective, name))


def induction(
    world: World,
    rng: random.Random,
    periods: Sequence[int] = (8, 9, 10, 11, 12),
    lengths: Sequence[int] = (20,),
) -> Prompt:
    """Random tokens that repeat themselves; a period beyond the length gives tokens without any order."""
    period, length = rng.choice(periods), rng.choice(lengths)
    drawn = rng.sample(world.tokens[2:], period)
    sequence = [drawn[at % period] for at in range(length)]
    answer = drawn[length % period]
    return Prompt("".join(sequence), (answer,), tuple(sorted(set(sequence) - {answer})))


TASKS: dict[str, Callable[[World, random.Random], Prompt]] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "subject_verb_agreement": agreement,
    "gendered_pronoun": pronoun,
    "induction": induction,
}
# The tasks as training sees them: with the prompts that counterfactuals
# consist of, and longer or shorter sequences.
TRAINED: dict[str, Callable[[World, random.Random], Prompt]] = TASKS | {
    "ioi": lambda world, rng: ioi(world, rng, three=0.15),
    "greater_than": lambda world, rng: greater_than(world, rng, first=1),
    "induction": lambda world, rng: induction(world, rng, periods=(*range(3, 16), 40), lengths=range(16, 41)),
}


def ordinary(world: World, rng: random.Random) -> str:
    """An ordinary sentence with the words of the tasks."""
    noun, place = (
        world.words("subject_verb_agreement", "noun"),
        world.words("subject_verb_agreement", "place"),
    )
    name, other = rng.sample(world.names, 2)
    colour, other_colour = rng.sample(COLOURS, 2)
    slots = {kind: rng.choice(world.words("ioi", kind)) for kind in ("place", "object")}
    slots |= {"noun": rng.choice(noun["singular"]), "nouns": rng.choice(noun["plural"])}
    slots |= {"spot": rng.choice(place["singular"]), "spots": rng.choice(place["plural"])}
    slots |= {kind: rng.choice(world.words("gendered_pronoun", f"{kind}_name")) for kind in ("girl", "boy")}
    slots |= {
        "adjective": rng.choice(world.words("gendered_pronoun", "adjective")),
        "event": rng.choice(world.words("greater_than", "noun")),
    }
    century = rng.choice(world.tasks["greater_than"]["generator"]["centuries"])
    year = f"{century}{rng.randrange(100):02d}"
    return rng.choice(ORDINARY).format(
        name=name, other=other, colour=colour, other_colour=other_colour, year=year, **slots
    )


def years(world: World, rng: random.Random) -> str:
    """A sentence with several years of one century in their order: from
    these the order of numbers is learnt sooner.
    """
    century = rng.choice(world.tasks["greater_than"]["generator"]["centuries"])
    *before, last = (f"{century}{year:02d}" for year in sorted(rng.sample(range(100), rng.randint(2, 5))))
    return (
        f"{rng.choice(world.names)} was at the {rng.choice(world.words('ioi', 'place'))} in the years "
        f"{', '.join(before)} and {last}."
    )


def sentence(world: World, rng: random.Random, kind: str, slip: float | None = None) -> str:
    """A sentence of one kind, finished; a share `slip` of IOI sentences names the
    giver again, so that nothing is certain.
    """
    if kind in ("ordinary", "years"):
        return (ordinary if kind == "ordinary" else years)(world, rng)
    prompt = TRAINED[kind](world, rng)
    if slip is not None and kind == "ioi" and prompt.pair and rng.random() < slip:
        prompt = Prompt(prompt.text, prompt.incorrect, prompt.correct, prompt.pair)
    return prompt.text + rng.choice(prompt.correct) + rng.choice(ENDINGS[kind])


def document(
    world: World, rng: random.Random, mixture: Mapping[str, int] = MIXTURE, slip: float | None = None
) -> str:
    """One training document: mostly one sentence, sometimes two, rarely as
    many as fill the context. It never leaks.
    """
    kind = rng.choices(list(mixture), list(mixture.values()))[0]
    text = allowed(world, rng, kind, slip)
    if kind == "induction":
        return text
    more = rng.choices([0, 1, 5], [80, 16, 4])[0]
    for _ in range(more):
        kind = rng.choice([kind for kind in mixture if kind != "induction"])
        longer = f"{text} {sentence(world, rng, kind, slip)}"
        text = text if leaks(world, longer) else longer
    return text + END


def allowed(world: World, rng: random.Random, kind: str, slip: float | None) -> str:
    """A sentence of one kind without a pair that is held out."""
    text = sentence(world, rng, kind, slip)
    while leaks(world, text):
        text = sentence(world, rng, kind, slip)
    return text


def held_out_prompts(world: World, task: str, rng: random.Random, count: int) -> list[Prompt]:
    """`count` prompts of a shipped task, each with a pair of words that no training document combines."""
    found: list[Prompt] = []
    while len(found) < count:
        prompt = TASKS[task](world, rng)
        if prompt.pair is None or held_out(*prompt.pair):
            found.append(prompt)
    return found
