"""Little stories whose exact probability is known: the floor no language model can go below.

Two children meet, each with a thing of their own; something happens, perhaps something else, and
the day ends. Names, things, places, counts and who holds what must be remembered from earlier
sentences, so a model reaches the floor only by using the whole story.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from gptmill.embedded import lexicon, source
from gptmill.embedded.lexicon import number_word, object_, spell, subject
from gptmill.embedded.messages import CLAUSES, write_clause
from gptmill.embedded.source import END, Draw

DEFAULT_COUNT = 6000
"""Stories that make about 2 MB of text."""


@dataclass(frozen=True)
class Story:
    """One story and its surprise under the source that wrote it."""

    text: str
    nats: float
    """-ln p(text), exactly, the decision to end included."""


@dataclass(frozen=True)
class Thing:
    """A thing in the story, told apart by its noun."""

    noun: str
    colour: str


@dataclass
class World:
    """What the story has established so far."""

    hero: str
    friend: str
    mine: Thing
    """What the hero holds."""
    yours: Thing
    """What the friend holds."""


@dataclass(frozen=True)
class Scene:
    """Something that may happen: its first words tell it apart from every other scene."""

    weight: float
    head: Callable[[World], str]
    body: Callable[[Draw, World], None]


def stories(seed: int, count: int = DEFAULT_COUNT) -> Iterator[Story]:
    """Draw stories, independent of each other and reproducible from the seed."""
    random = Random(seed)
    for _ in range(count):
        yield Story(*source.sample(tell, random))


def story_nats(text: str) -> float:
    """Parse a story and return -ln p(text) in nats.

    Raises:
        ValueError: The text is not a story of this grammar; says where it departs.
    """
    return source.nats(tell, text)


def tell(draw: Draw) -> None:
    """Tell one story: an opening, a meeting, one or two scenes, and an ending."""
    world = _meeting(draw, _opening(draw))
    first = _play(draw, world, SCENES)
    others = tuple(scene for scene in SCENES if scene is not first)
    if _play(draw, world, others + ENDINGS) not in ENDINGS:
        _play(draw, world, ENDINGS)


def _play(draw: Draw, world: World, scenes: Sequence[Scene]) -> Scene:
    heads = [scene.head(world) for scene in scenes]
    scene = scenes[heads.index(draw.pick(heads, [scene.weight for scene in scenes]))]
    scene.body(draw, world)
    return scene


def _without(options: Sequence[str], *taken: str) -> tuple[str, ...]:
    return tuple(option for option in options if option not in taken)


def _opening(draw: Draw) -> str:
    """Introduce the hero and where the story takes place; return the hero."""
    if draw.pick(("One", "Every")) == "Every":
        return _habit(draw)
    draw.pick(lexicon.WEATHER, before=" ")
    draw.pick(lexicon.TIMES, before=" ", after=",")
    hero = draw.pick(lexicon.NAMES, before=" ")
    draw.pick(lexicon.MANNERS, before=" ")
    draw.pick(tuple(lexicon.MOVES.values()), before=" ", after=" to the")
    _place(draw)
    return hero


def _habit(draw: Draw) -> str:
    """Introduce a habit in the present tense and break it in the past tense."""
    draw.pick(lexicon.TIMES, before=" ")
    hero = draw.pick(lexicon.NAMES, before=" ")
    move = draw.pick(tuple(lexicon.MOVES), before=" ", after=" to the")
    draw.pick(lexicon.PLACES, before=" ", after=".")
    draw.say(f" Today {subject(hero)} {lexicon.MOVES[move]} to the")
    _place(draw)
    return hero


def _place(draw: Draw) -> None:
    draw.pick(lexicon.PLACE_LOOKS, before=" ")
    draw.pick(lexicon.PLACES, before=" ", after=".")


def _meeting(draw: Draw, hero: str) -> World:
    """Give the hero a thing, and a friend another."""
    draw.say(f" {subject(hero).capitalize()} had a")
    mine = _thing(draw, lexicon.THINGS)
    met = draw.pick((f". There {subject(hero)} met", ". Soon"))
    friend = draw.pick(_without(lexicon.NAMES, hero), before=" ")
    draw.say(" with a" if "met" in met else " came with a")
    yours = _thing(draw, _without(lexicon.THINGS, mine.noun))
    draw.say(".")
    return World(hero, friend, mine, yours)


def _thing(draw: Draw, nouns: Sequence[str]) -> Thing:
    draw.pick(lexicon.LOOKS, before=" ")
    colour = draw.pick(lexicon.COLOURS, before=" ")
    return Thing(draw.pick(nouns, before=" "), colour)


def _somewhere(draw: Draw) -> None:
    draw.pick(lexicon.SIDES, before=" ", after=" the")
    draw.pick(lexicon.LOOKS, before=" ")
    draw.pick(lexicon.SPOTS, before=" ")


def _lose(draw: Draw, world: World) -> None:
    """...and looked for it."""
    draw.pick(lexicon.MANNERS, before=" ", after=" in the")
    _place(draw)
    draw.pick((f" {world.friend} found the {world.mine.noun}", f" It was found by {world.friend}"))
    _somewhere(draw)
    draw.say(".")


def _show(draw: Draw, world: World) -> None:
    """...and the friend shows the other thing."""
    draw.say(f" and {world.friend} showed the {world.yours.noun} to {world.hero}.")
    draw.pick((world.hero, world.friend), before=" ", after=" was")
    draw.pick(lexicon.FEELINGS, before=" ", after=".")


def _count(draw: Draw, world: World) -> None:
    """...some things, then more or fewer of them: a small sum."""
    numbers = {number_word(number): number for number in range(10)}
    first = draw.pick([number_word(number) for number in lexicon.ADDENDS[0]], before=" ")
    draw.pick(lexicon.LOOKS, before=" ")
    nouns = _without(lexicon.THINGS, world.mine.noun, world.yours.noun)
    draw.pick([lexicon.PLURALS[noun] for noun in nouns], before=" ")
    _somewhere(draw)
    him = object_(world.hero)
    gave = draw.pick((f". {world.friend} gave {him}", f". {world.friend} took from {him}"))
    second = draw.pick([number_word(number) for number in lexicon.ADDENDS[1]], before=" ")
    more = "gave" in gave
    total = numbers[first] + numbers[second] * (1 if more else -1)
    draw.say(f"{' more' if more else ''}. Now {world.hero} had {number_word(total)}.")


def _asks(draw: Draw, world: World) -> None:
    """Name someone who is not in the story yet as the one who asks."""
    stranger = _without(lexicon.NAMES, world.hero, world.friend)
    draw.pick(stranger, before='?" asked ')
    draw.pick(lexicon.MANNERS, before=" ", after=".")


def _who(draw: Draw, world: World) -> None:
    """Ask who has one of the two things; the answer is in the story."""
    noun = draw.pick((world.mine.noun, world.yours.noun), before=" ")
    _asks(draw, world)
    owner = world.hero if noun == world.mine.noun else world.friend
    draw.say(f' "{owner} has the {noun}," said {world.friend}.')


def _colour(draw: Draw, world: World) -> None:
    """Ask for the colour of one of the two things."""
    noun = draw.pick((world.mine.noun, world.yours.noun), before=" ")
    _asks(draw, world)
    colour = world.mine.colour if noun == world.mine.noun else world.yours.colour
    draw.say(f' "The {noun} is {colour}," said {world.friend}.')


def _where(draw: Draw, world: World) -> None:
    """Put both things away and ask for one of them."""
    mine, yours = world.mine.noun, world.yours.noun
    here = draw.pick(lexicon.PLACES, before=" in the ", after=f" and {world.friend} put the")
    there = draw.pick(_without(lexicon.PLACES, here), before=f" {yours} in the ", after=".")
    noun = draw.pick((mine, yours), before=' "Where is the ')
    _asks(draw, world)
    draw.say(f' "The {noun} is in the {here if noun == mine else there}," said {world.friend}.')


def _spell(draw: Draw, world: World) -> None:
    """Spell a thing, an animal or a colour letter by letter."""
    word = draw.pick(lexicon.SPELT, before=" ", after=f'?" asked {world.hero}')
    draw.pick(lexicon.MANNERS, before=" ", after=".")
    draw.say(f' "{spell(word)}," said {world.friend}.')


def _number(draw: Draw, world: World) -> None:
    """Read a number aloud."""
    tens = draw.pick("23456789", before=" ")
    units = draw.pick("123456789", after=" on the")
    draw.pick(lexicon.LOOKS, before=" ")
    draw.pick(lexicon.SPOTS, before=" ", after=".")
    draw.say(f' "It says {number_word(int(tens + units))}," said {world.hero}.')


def _animal(draw: Draw, world: World) -> None:
    """...animal takes a thing and hides it."""
    draw.pick(lexicon.LOOKS)
    draw.pick(lexicon.COLOURS, before=" ")
    draw.pick(lexicon.ANIMALS, before=" ")
    draw.pick(lexicon.MANNERS, before=" ", after=" took the")
    draw.pick((world.mine.noun, world.yours.noun), before=" ", after=" and hid it")
    _somewhere(draw)
    draw.pick((world.hero, world.friend), before=". ", after=" followed it to the")
    _place(draw)


def _race(draw: Draw, world: World) -> None:
    """...to a place; one wins a prize."""
    _place(draw)
    winner = draw.pick((world.hero, world.friend), before=" ", after=" won a")
    _thing(draw, _without(lexicon.THINGS, world.mine.noun, world.yours.noun))
    loser = world.friend if winner == world.hero else world.hero
    draw.pick(lexicon.FEELINGS, before=f" and {loser} was ", after=".")


def _letter(draw: Draw, world: World) -> None:
    """...from someone, in the words of the messages, which fine-tuning then finds known."""
    stranger = _without(lexicon.NAMES, world.hero, world.friend)
    draw.pick(stranger, before=" ", after=': "')
    write_clause(draw, CLAUSES)
    draw.say('."')


def _act(draw: Draw, world: World) -> None:
    """Do something to a thing, told in the active and in the passive voice."""
    done = draw.pick(tuple(lexicon.ACTIONS.values()), before=" ", after=" the")
    noun = draw.pick((world.mine.noun, world.yours.noun), before=" ", after=f'. "Who {done} the')
    draw.say(f" {noun}")
    _asks(draw, world)
    passive = f"{noun} was {lexicon.PARTICIPLES[done]} by {world.hero}"
    draw.say(f' "The {passive}," said {world.friend}.')


def _take_home(draw: Draw, world: World) -> None:
    draw.pick(lexicon.MANNERS, before=" ", after=f" took the {world.mine.noun} to the")
    _place(draw)
    draw.say(END)


def _feel(draw: Draw, world: World) -> None:
    feeling = draw.pick(lexicon.FEELINGS, before=" ", after=f" and {world.friend} was")
    draw.pick(_without(lexicon.FEELINGS, feeling), before=" ", after="." + END)


def _dream(draw: Draw, world: World) -> None:
    draw.pick((f"{world.hero}", f"{world.friend}"), before=" ", after=" dreamed of a")
    draw.pick(lexicon.LOOKS, before=" ")
    draw.pick(lexicon.COLOURS, before=" ")
    draw.pick(lexicon.ANIMALS, before=" ", after=" in the")
    _place(draw)
    draw.say(END)


SCENES = (
    Scene(1.0, lambda w: f" {w.hero} dropped the {w.mine.noun} and looked for it", _lose),
    Scene(1.0, lambda w: f" {w.hero} showed the {w.mine.noun} to {w.friend}", _show),
    Scene(1.5, lambda w: f" {w.hero} found", _count),
    Scene(1.5, lambda w: ' "Who has the', _who),
    Scene(1.0, lambda w: ' "What colour is the', _colour),
    Scene(1.5, lambda w: f" {w.hero} put the {w.mine.noun}", _where),
    Scene(0.5, lambda w: ' "How do you spell', _spell),
    Scene(0.5, lambda w: f" {w.friend} wrote the number", _number),
    Scene(1.5, lambda w: " A ", _animal),
    Scene(1.5, lambda w: " They raced to the", _race),
    Scene(1.3, lambda w: f" Then {w.hero}", _act),
    Scene(2.0, lambda w: f" {w.friend} got a letter from", _letter),
)
"""What may happen; the weights are relative."""

ENDINGS = (
    Scene(4.0, lambda w: f" At last {w.hero}", _take_home),
    Scene(3.0, lambda w: f" {w.hero} was", _feel),
    Scene(4.0, lambda w: " That night", _dream),
)
"""How a story may end; their weights add up to about as much as the scenes', so that half of the
stories have a second scene."""
