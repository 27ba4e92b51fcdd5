"""The words that stories, messages and instructions share, so that each corpus helps the next."""

BOYS = (
    "Tom", "Sam", "Ben", "Max", "Leo", "Dan", "Jack", "Finn",
    "Hugo", "Paul", "Adam", "Bill", "Carl", "Fred", "Nick", "Owen",
)  # fmt: skip
GIRLS = (
    "Mia", "Ann", "Lily", "Sue", "Zoe", "Kate", "Rose", "Emma",
    "Nora", "Jane", "Ella", "Ruth", "Lucy", "Meg", "Ivy", "Tess",
)  # fmt: skip
NAMES = BOYS + GIRLS

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "purple")

PLURALS = {
    "lamp": "lamps",
    "kite": "kites",
    "ball": "balls",
    "book": "books",
    "cup": "cups",
    "hat": "hats",
    "drum": "drums",
    "bell": "bells",
    "coin": "coins",
    "map": "maps",
    "rope": "ropes",
    "key": "keys",
    "box": "boxes",
    "ring": "rings",
    "doll": "dolls",
    "boat": "boats",
    "stone": "stones",
    "leaf": "leaves",
    "brush": "brushes",
    "knife": "knives",
    "coat": "coats",
    "shell": "shells",
    "glass": "glasses",
    "spoon": "spoons",
    "flag": "flags",
    "mask": "masks",
    "pencil": "pencils",
    "basket": "baskets",
    "candle": "candles",
    "watch": "watches",
    "scarf": "scarves",
    "dress": "dresses",
}
"""Singular to plural of the things that people carry."""
THINGS = tuple(PLURALS)

ANIMAL_PLURALS = {
    "cat": "cats",
    "dog": "dogs",
    "bird": "birds",
    "fox": "foxes",
    "duck": "ducks",
    "horse": "horses",
    "rabbit": "rabbits",
    "frog": "frogs",
    "mouse": "mice",
    "goat": "goats",
    "goose": "geese",
    "cow": "cows",
    "pig": "pigs",
    "wolf": "wolves",
    "bear": "bears",
    "lion": "lions",
}
"""Singular to plural of animals."""
ANIMALS = tuple(ANIMAL_PLURALS)

PLACES = (
    "garden",
    "kitchen",
    "park",
    "school",
    "forest",
    "barn",
    "market",
    "library",
    "village",
    "castle",
    "cave",
    "tower",
    "bakery",
    "stable",
    "harbour",
    "valley",
)
"""Places that one is *in* and goes *to*."""

SPOTS = ("table", "tree", "wall", "door", "bench", "bush", "chair", "gate")
"""Things that stand still, with something under, behind or near them."""
SIDES = ("under", "behind", "near", "beside")

MOVES = {
    "walks": "walked",
    "runs": "ran",
    "rides": "rode",
    "goes": "went",
    "hurries": "hurried",
    "drives": "drove",
    "jumps": "jumped",
    "comes": "came",
    "marches": "marched",
    "races": "raced",
}
"""Present to past of verbs that take *to the PLACE*."""

ACTIONS = {
    "finds": "found",
    "takes": "took",
    "sees": "saw",
    "hides": "hid",
    "paints": "painted",
    "cleans": "cleaned",
    "sells": "sold",
    "breaks": "broke",
    "makes": "made",
    "wants": "wanted",
}
"""Present to past of verbs that take *the THING*."""

PARTICIPLES = {
    "found": "found",
    "took": "taken",
    "saw": "seen",
    "hid": "hidden",
    "painted": "painted",
    "cleaned": "cleaned",
    "sold": "sold",
    "broke": "broken",
    "made": "made",
    "wanted": "wanted",
}
"""Past to past participle of the same verbs."""

FEELINGS = (
    "happy", "sad", "tired", "proud", "hungry", "glad", "sleepy", "calm", "cross", "thirsty",
    "merry", "lonely", "worried", "pleased", "jealous", "silent",
)  # fmt: skip
WEATHER = (
    "sunny", "rainy", "windy", "cold", "warm", "quiet", "bright", "foggy", "snowy", "lovely",
    "dark", "stormy", "mild", "frosty", "busy", "fine",
)  # fmt: skip
TIMES = ("morning", "afternoon", "evening", "day")
MANNERS = (
    "slowly", "quickly", "softly", "gladly", "sadly", "proudly", "loudly", "kindly", "bravely",
    "secretly", "suddenly", "carefully",
)  # fmt: skip
LOOKS = (
    "big", "small", "new", "nice", "funny", "lovely", "strange", "shiny", "pretty", "little",
    "heavy", "broken", "dirty", "round", "wooden", "cheap", "tiny", "splendid", "simple", "famous",
)  # fmt: skip
PLACE_LOOKS = (
    "old", "big", "small", "quiet", "pretty", "dark", "busy", "lovely", "empty", "famous",
    "strange", "little", "green", "sunny", "distant", "nearest",
)  # fmt: skip

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

ADDENDS = (range(3, 8), range(1, 3))
"""What sums begin with, and what is added or taken away: few enough that all are seen."""


def number_word(number: int) -> str:
    """Write a number below one hundred in words.

    Raises:
        ValueError: The number is negative or above 99.
    """
    if not 0 <= number <= 99:
        raise ValueError(f"number_word knows 0 to 99, not {number}")
    if number < 20:
        return UNITS[number]
    tens, units = divmod(number, 10)
    return TENS[tens - 2] + (f"-{UNITS[units]}" if units else "")


def spell(word: str) -> str:
    """Spell a word: `spell("cat")` is `"c-a-t"`."""
    return "-".join(word)


def subject(name: str) -> str:
    """The pronoun *he* or *she* of a name in the lexicon."""
    return "he" if name in BOYS else "she"


def object_(name: str) -> str:
    """The pronoun *him* or *her* of a name in the lexicon."""
    return "him" if name in BOYS else "her"


SPELT = tuple(word for word in (*THINGS, *ANIMALS, *COLOURS) if len(word) <= 4)
"""Words short enough to be spelt letter by letter."""
