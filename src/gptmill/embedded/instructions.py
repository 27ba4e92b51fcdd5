"""Tasks with exactly one right answer, in the words of the stories.

Each family combines elements (verbs, names, things, numbers) that training shows in other
combinations. `Instruction.combination` names family and arguments whatever the phrasing: split by
it, and a held-out combination was never seen in any phrasing. What that holds out, by family:

past, passive, pronoun    a name with a verb and a place or thing
question, negative        a name with a described place
plural                    a colour, a noun and a number
spelling, backwards       words in this company and order; each word occurs in others
sum                       a sum told of a name and a thing; the twenty sums themselves are all seen
digits, words             the number altogether, in this direction: its tens and units are seen
who, where                the facts: things, owners or places, their order, and which is asked for
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from gptmill.embedded import lexicon
from gptmill.embedded.lexicon import number_word, spell, subject

DEFAULT_COUNT = 8000
"""Three passes over them fit into about a minute and a half of fine-tuning."""


@dataclass(frozen=True)
class Instruction:
    """One task and its only right answer."""

    instruction: str
    input: str
    output: str
    family: str
    combination: str
    """Family and arguments, the same for every phrasing: the key to split by."""


@dataclass(frozen=True)
class Task:
    """The arguments of a task, with the text that states them and the answer."""

    arguments: tuple[str, ...]
    input: str
    output: str


Draft = Callable[[Random], Task]


def instructions(seed: int, count: int = DEFAULT_COUNT) -> list[Instruction]:
    """Draw tasks from all families in turn, reproducible from the seed, no entry twice.

    A combination may come back in another phrasing, never in the same one.

    Raises:
        ValueError: More entries are asked for than the smallest family can give.
    """
    random = Random(seed)
    seen: set[tuple[str, str]] = set()
    entries: list[Instruction] = []
    names = [*FAMILIES, *HARDER]
    while len(entries) < count:
        family = names[len(entries) % len(names)]
        entries.append(_fresh(family, random, seen))
    return entries


def _fresh(family: str, random: Random, seen: set[tuple[str, str]]) -> Instruction:
    phrasings, draft = FAMILIES[family]
    for _ in range(1000):
        task = draft(random)
        entry = Instruction(
            instruction=random.choice(phrasings),
            input=task.input,
            output=task.output,
            family=family,
            combination=":".join((family, *task.arguments)),
        )
        if (entry.instruction, entry.input) not in seen:
            seen.add((entry.instruction, entry.input))
            return entry
    raise ValueError(f"family {family!r} is exhausted after {len(seen)} entries; ask for fewer")


def _past(random: Random) -> Task:
    name, place = random.choice(lexicon.NAMES), random.choice(lexicon.PLACES)
    verb = random.choice(tuple(lexicon.MOVES))
    sentence = "{} {} to the {}."
    return Task(
        (name, verb, place),
        sentence.format(name, verb, place),
        sentence.format(name, lexicon.MOVES[verb], place),
    )


def _whereabouts(random: Random) -> tuple[tuple[str, ...], str, str]:
    name, place = random.choice(lexicon.NAMES), random.choice(lexicon.PLACES)
    look = random.choice(lexicon.PLACE_LOOKS)
    return (name, look, place), name, f"in the {look} {place}"


def _question(random: Random) -> Task:
    arguments, name, where = _whereabouts(random)
    return Task(arguments, f"{name} is {where}.", f"Is {name} {where}?")


def _negative(random: Random) -> Task:
    arguments, name, where = _whereabouts(random)
    return Task(arguments, f"{name} is {where}.", f"{name} is not {where}.")


def _passive(random: Random) -> Task:
    name, thing = random.choice(lexicon.NAMES), random.choice(lexicon.THINGS)
    past = random.choice(tuple(lexicon.PARTICIPLES))
    return Task(
        (name, past, thing),
        f"{name} {past} the {thing}.",
        f"The {thing} was {lexicon.PARTICIPLES[past]} by {name}.",
    )


def _pronoun(random: Random) -> Task:
    name, thing = random.choice(lexicon.NAMES), random.choice(lexicon.THINGS)
    past = random.choice(tuple(lexicon.PARTICIPLES))
    return Task(
        (name, past, thing),
        f"{name} {past} the {thing}.",
        f"{subject(name).capitalize()} {past} the {thing}.",
    )


def _plural(random: Random) -> Task:
    nouns = lexicon.PLURALS | lexicon.ANIMAL_PLURALS
    noun, colour = random.choice(tuple(nouns)), random.choice(lexicon.COLOURS)
    number = number_word(random.randint(2, 9))
    return Task(
        (colour, noun, number), f"one {colour} {noun}, {number}", f"{number} {colour} {nouns[noun]}"
    )


def _spelling(random: Random) -> Task:
    first, second = random.sample(lexicon.SPELT, 2)
    return Task((first, second), f"{first} {second}", f"{spell(first)} {spell(second)}")


def _sum(random: Random) -> Task:
    name = random.choice(lexicon.NAMES)
    plural = random.choice(tuple(lexicon.PLURALS.values()))
    first, second = random.choice(lexicon.ADDENDS[0]), random.choice(lexicon.ADDENDS[1])
    more = random.random() < 0.5
    change = "finds" if more else "loses"
    total = first + second if more else first - second
    he = subject(name).capitalize()
    question = f"{name} has {number_word(first)} {plural}. {he} {change} {number_word(second)}."
    return Task(
        (name, str(first), change, str(second), plural), question, f"{number_word(total)} {plural}"
    )


def _digits(random: Random) -> Task:
    number, noun = random.randint(21, 99), random.choice(tuple(lexicon.PLURALS.values()))
    return Task((str(number),), f"{number_word(number)} {noun}", f"{number} {noun}")


def _words(random: Random) -> Task:
    number, noun = random.randint(21, 99), random.choice(tuple(lexicon.PLURALS.values()))
    return Task((str(number),), f"{number} {noun}", f"{number_word(number)} {noun}")


def _backwards(random: Random) -> Task:
    first, second, third = random.sample(lexicon.ANIMALS, 3)
    return Task(
        (first, second, third), f"{first}, {second}, {third}", f"{third}, {second}, {first}"
    )


def _lookup(random: Random, fact: str, answers: tuple[str, ...], asking: str) -> Task:
    """Two facts about two things in either order, one of which is asked for."""
    things, found = random.sample(lexicon.THINGS, 2), random.sample(answers, 2)
    facts = [fact.format(thing, answer) for thing, answer in zip(things, found)]
    asked = random.randrange(2)
    return Task(
        (*things, *found, str(asked)),
        " ".join((*facts, asking.format(things[asked]))),
        facts[asked],
    )


def _who(random: Random) -> Task:
    return _lookup(random, "The {} is with {}.", lexicon.NAMES, "Who has the {}?")


def _where(random: Random) -> Task:
    return _lookup(random, "The {} is in the {}.", lexicon.PLACES, "Where is the {}?")


FAMILIES: dict[str, tuple[tuple[str, ...], Draft]] = {
    "past": (("Tell it in the past.", "Say that it was yesterday."), _past),
    "question": (("Ask whether it is so.", "Make a question."), _question),
    "passive": (("Begin with the thing.", "Tell it in the passive."), _passive),
    "negative": (("Say that it is not so.", "Say no."), _negative),
    "pronoun": (("Say he or she.", "Take out the name."), _pronoun),
    "plural": (("Say it of many.", "Count them."), _plural),
    "spelling": (("How do you spell it?", "Spell the words."), _spelling),
    "sum": (("How many now?", "Count what is there now."), _sum),
    "digits": (("Write the number in digits.", "Write it as a number."), _digits),
    "words": (("Read the number.", "Say the number in words."), _words),
    "backwards": (("Say it backwards.", "Begin with the last."), _backwards),
    "who": (("Who has it?", "Find the owner."), _who),
    "where": (("Where is it?", "Find the thing."), _where),
}
"""Each family: the ways to ask for it, and how to draw a task."""

HARDER = ("spelling", "backwards", "digits")
"""Families with two turns a round, because more examples help them."""
