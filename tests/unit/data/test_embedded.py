"""The embedded corpora: exact probabilities, one derivation a text, one right answer a task."""

import hashlib
import itertools
import math
import re
import sys
from random import Random

import pytest

from gptmill.embedded import (
    SPAM_SHARE,
    instructions,
    lexicon,
    message_log_likelihood_ratio,
    messages,
    source,
    stories,
    story_nats,
)
from gptmill.embedded.instructions import FAMILIES
from gptmill.embedded.messages import LABELS, PROGRAMS, message_nats
from gptmill.embedded.stories import (
    ENDINGS,
    SCENES,
    Thing,
    World,
    _meeting,
    _opening,
    _play,
    tell,
)


class Walker:
    """Follows a given path of choices and then always the first; remembers what it passed."""

    def __init__(self, path):
        self.path, self.sizes, self.parts, self.probability = path, [], [], 1.0

    def say(self, text):
        self.parts.append(text)

    def pick(self, options, weights=None, *, before="", after=""):
        step = len(self.sizes)
        index = self.path[step] if step < len(self.path) else 0
        weights = weights or [1] * len(options)
        self.sizes.append(len(options))
        self.probability *= weights[index] / math.fsum(weights)
        self.parts.append(before + options[index] + after)
        return options[index]


def derivations(program):
    """Every derivation of a program: (text, probability), by depth-first search."""
    path = []
    while True:
        walker = Walker(path)
        program(walker)
        yield "".join(walker.parts).removesuffix(source.END), walker.probability
        path = path + [0] * (len(walker.sizes) - len(path))
        while path and path[-1] == walker.sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return
        path[-1] += 1


class PrefixAuditor(source.Sampler):
    """A sampler that checks at every choice that none of the texts offered begins another."""

    checked: set = set()

    def pick(self, options, weights=None, *, before="", after=""):
        key = (tuple(options), after)
        if key not in self.checked:
            texts = sorted(option + after for option in options)
            for one, other in itertools.pairwise(texts):  # sorted: a prefix is a neighbour's
                assert not other.startswith(one), f"{one!r} begins {other!r}"
            self.checked.add(key)
        return super().pick(options, weights, before=before, after=after)


@pytest.fixture
def tiny_lexicon(monkeypatch):
    """Few enough words to enumerate every derivation of a part of a story."""
    for name in ("NAMES", "THINGS", "PLACES", "ANIMALS", "FEELINGS"):
        monkeypatch.setattr(lexicon, name, getattr(lexicon, name)[:3])
    for name in ("COLOURS", "LOOKS", "PLACE_LOOKS", "MANNERS", "SPOTS", "SIDES", "SPELT"):
        monkeypatch.setattr(lexicon, name, getattr(lexicon, name)[:1])
    clauses = sys.modules["gptmill.embedded.messages"].CLAUSES[:4]
    monkeypatch.setattr(sys.modules["gptmill.embedded.stories"], "CLAUSES", clauses)


def test_a_seed_gives_the_same_corpus_for_ever():
    """Every figure of the documentation was measured on these texts; the digests are those of
    the generator that weighed each choice anew."""
    drawn = {
        "6e17ec2bc410": [f"{s.text} {s.nats:.9f}" for s in stories(1, 200)],
        "8d7a6d31f006": [
            f"{m.label} {m.text} {m.log_likelihood_ratio:.9f}" for m in messages(2, 500)
        ],
        "43e97ec0b3af": [f"{i.instruction} {i.input} {i.output}" for i in instructions(3, 200)],
    }
    for digest, lines in drawn.items():
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] == digest


def test_story_scorer_agrees_with_the_generator():
    for story in stories(3, 3000):
        assert story_nats(story.text) == pytest.approx(story.nats, abs=1e-9)


def test_every_choice_of_a_story_is_prefix_free():
    random = Random(5)
    for _ in range(3000):
        tell(PrefixAuditor(random))


def test_every_choice_of_a_message_is_prefix_free():
    random = Random(5)
    for label in LABELS * 1000:
        PROGRAMS[label](PrefixAuditor(random))


def test_story_probabilities_sum_to_one_over_distinct_texts(tiny_lexicon):
    def tail(draw):
        world = World("Tom", "Sam", Thing("lamp", "red"), Thing("kite", "blue"))
        if _play(draw, world, SCENES + ENDINGS) not in ENDINGS:
            _play(draw, world, ENDINGS)

    found = list(derivations(tail))
    assert len(found) > 1000
    assert len({text for text, _ in found}) == len(found)
    assert math.fsum(probability for _, probability in found) == pytest.approx(1, abs=1e-12)
    for text, probability in found[::19]:
        assert source.nats(tail, text) == pytest.approx(-math.log(probability), abs=1e-9)


def test_beginning_of_a_story_sums_to_one(tiny_lexicon, monkeypatch):
    monkeypatch.setattr(lexicon, "WEATHER", lexicon.WEATHER[:2])
    monkeypatch.setattr(lexicon, "MOVES", {"runs": "ran", "goes": "went"})

    def beginning(draw):
        _meeting(draw, _opening(draw))

    found = list(derivations(beginning))
    assert len({text for text, _ in found}) == len(found) > 1000
    assert math.fsum(probability for _, probability in found) == pytest.approx(1, abs=1e-12)


def test_children_are_said_to_have_what_they_came_with():
    """Read with regular expressions, which know nothing of the grammar."""
    checked = 0
    for story in stories(8, 400):
        had = re.search(r"(?:, |Every \w+ )(\w+) .*?[SH]h?e had a \w+ \w+ (\w+)\.", story.text)
        came = re.search(r"(?:met|Soon) (\w+) (?:came )?with a \w+ \w+ (\w+)\.", story.text)
        owners = {match[2]: match[1] for match in (had, came)}
        for owner, noun in re.findall(r'"(\w+) has the (\w+),"', story.text):
            assert owners[noun] == owner, story.text
            checked += 1
    assert checked > 40


def test_story_must_agree_with_itself():
    asked = next(story.text for story in stories(1, 200) if '"Who has the' in story.text)
    owner = asked.split('"Who has the')[1].split('"')[2].split(" has")[0]
    other = next(name for name in lexicon.NAMES if name not in asked)
    before, _, after = asked.rpartition(f'"{owner} has')
    with pytest.raises(ValueError, match=f"expected .*{owner} has"):
        story_nats(f'{before}"{other} has{after}')


@pytest.mark.parametrize("broken", ["", "Once upon a time", "{}", "{} "])
def test_scorer_refuses_text_outside_the_grammar(broken):
    text = next(stories(1, 1)).text
    if broken == "{}":
        text = text[:-1]  # the last full stop: the decision to end is missing
    with pytest.raises(ValueError, match="outside the grammar at character"):
        story_nats(broken.format(text))


def test_stories_are_two_megabytes_all_different():
    corpus = [story.text for story in stories(1)]
    assert 1.8e6 < sum(map(len, corpus)) < 2.2e6
    assert len(set(corpus)) == len(corpus)


def test_message_probabilities_sum_to_one(monkeypatch):
    module = sys.modules["gptmill.embedded.messages"]
    monkeypatch.setattr(module, "CLAUSES", module.CLAUSES[:9])
    monkeypatch.setattr(module, "_GO_ON", (1.0, 0.4))
    slots = {slot: options[:1] for slot, options in module._SLOTS.items()}
    monkeypatch.setattr(module, "_SLOTS", slots)
    for label in LABELS:
        found = list(derivations(module.PROGRAMS[label]))
        assert len({text for text, _ in found}) == len(found) > 1000
        assert math.fsum(probability for _, probability in found) == pytest.approx(1, abs=1e-12)


def test_message_scorer_agrees_with_the_generator():
    random = Random(2)
    for label in LABELS * 500:
        text, nats = source.sample(PROGRAMS[label], random)
        assert message_nats(text, label) == pytest.approx(nats, abs=1e-9)


@pytest.fixture(scope="module")
def drawn():
    """Enough messages for statistics, drawn once."""
    return list(messages(4, 8000))


def test_posterior_is_calibrated(drawn):
    """Where the exact posterior says p, a share p of the messages is spam."""
    prior = math.log(SPAM_SHARE / (1 - SPAM_SHARE))
    bins = {}
    for message in drawn:
        posterior = 1 / (1 + math.exp(-message.log_likelihood_ratio - prior))
        bins.setdefault(int(posterior * 4), []).append((posterior, message.label == "spam"))
    assert len(bins) == 4
    for pairs in bins.values():
        expected = sum(posterior for posterior, _ in pairs)
        deviation = math.sqrt(sum(posterior * (1 - posterior) for posterior, _ in pairs))
        assert abs(sum(spam for _, spam in pairs) - expected) < 3 * deviation


def test_best_accuracy_and_length_of_messages(drawn):
    right = {label: [] for label in LABELS}
    for message in drawn:
        right[message.label].append((message.log_likelihood_ratio > 0) == (message.label == "spam"))
    balanced = sum(sum(hits) / len(hits) for hits in right.values()) / 2
    assert 0.95 <= balanced <= 0.97
    assert len(right["spam"]) / len(drawn) == pytest.approx(SPAM_SHARE, abs=0.012)
    assert all(5 <= len(message.text.split()) <= 30 for message in drawn)


def test_ratio_of_a_message_is_the_difference_of_what_the_sources_say(drawn):
    for message in drawn[:500]:
        ratio = message_nats(message.text, "ham") - message_nats(message.text, "spam")
        assert message.log_likelihood_ratio == pytest.approx(ratio, abs=1e-9)
        assert message_log_likelihood_ratio(message.text) == ratio


def test_word_order_is_evidence():
    spam = message_log_likelihood_ratio("hi Tom. you have won the kite. new cups at the park")
    ham = message_log_likelihood_ratio("hi Tom. have you won the kite. new cups at the park")
    assert spam - ham > 3


def test_message_scorer_refuses_text_outside_the_grammar():
    with pytest.raises(ValueError, match="outside the grammar at character 0"):
        message_log_likelihood_ratio("free money")
    with pytest.raises(ValueError, match="'eggs'"):
        message_nats("hi Tom", "eggs")


HAND_WORKED = {
    ("past", "Mia goes to the cave."): "Mia went to the cave.",
    ("question", "Tom is in the old park."): "Is Tom in the old park?",
    ("passive", "Mia took the leaf."): "The leaf was taken by Mia.",
    ("negative", "Tom is in the old cave."): "Tom is not in the old cave.",
    ("pronoun", "Mia took the knife."): "She took the knife.",
    ("plural", "one red mouse, seven"): "seven red mice",
    ("spelling", "lamp cat"): "l-a-m-p c-a-t",
    ("sum", "Tom has five leaves. He loses two."): "three leaves",
    ("sum", "Mia has six knives. She finds one."): "seven knives",
    ("digits", "sixty-one knives"): "61 knives",
    ("words", "38 leaves"): "thirty-eight leaves",
    ("backwards", "dog, cat, fox"): "fox, cat, dog",
    ("who", "The leaf is with Mia. The knife is with Tom. Who has the leaf?"): (
        "The leaf is with Mia."
    ),
    ("where", "The leaf is in the park. The knife is in the cave. Where is the knife?"): (
        "The knife is in the cave."
    ),
}


def test_answers_worked_by_hand(monkeypatch):
    monkeypatch.setattr(lexicon, "NAMES", ("Tom", "Mia"))
    monkeypatch.setattr(lexicon, "THINGS", ("leaf", "knife"))
    monkeypatch.setattr(lexicon, "PLACES", ("park", "cave"))
    monkeypatch.setattr(lexicon, "PLACE_LOOKS", ("old",))
    monkeypatch.setattr(lexicon, "MOVES", {"goes": "went"})
    monkeypatch.setattr(lexicon, "PARTICIPLES", {"took": "taken"})
    monkeypatch.setattr(lexicon, "PLURALS", {"knife": "knives", "leaf": "leaves"})
    monkeypatch.setattr(lexicon, "ANIMAL_PLURALS", {"mouse": "mice"})
    monkeypatch.setattr(lexicon, "ANIMALS", ("cat", "dog", "fox"))
    monkeypatch.setattr(lexicon, "COLOURS", ("red",))
    monkeypatch.setattr(lexicon, "SPELT", ("cat", "lamp"))
    random, answers = Random(1), {}
    for family, (_, draft) in FAMILIES.items():
        for task in (draft(random) for _ in range(3000)):
            answers[family, task.input] = task.output
    assert {key: answers.get(key) for key in HAND_WORKED} == HAND_WORKED
    assert {family for family, _ in HAND_WORKED} == set(FAMILIES)


def test_instructions_repeat_only_in_other_phrasings():
    drawn = instructions(3, 6000)
    assert len({(task.instruction, task.input) for task in drawn}) == len(drawn)
    answers = {}
    for task in drawn:
        assert task.combination.startswith(f"{task.family}:")
        assert answers.setdefault((task.combination, task.input), task.output) == task.output
    assert len(answers) < len(drawn), "no combination came back in another phrasing"


def test_everything_is_reproducible():
    assert list(stories(1, 50)) == list(stories(1, 50)) != list(stories(2, 50))
    assert list(messages(1, 50)) == list(messages(1, 50)) != list(messages(2, 50))
    assert instructions(1, 50) == instructions(1, 50) != instructions(2, 50)


def test_too_many_instructions_are_refused(monkeypatch):
    module = sys.modules["gptmill.embedded.instructions"]
    monkeypatch.setattr(module, "FAMILIES", {"words": module.FAMILIES["words"]})
    monkeypatch.setattr(module, "HARDER", ())
    monkeypatch.setattr(lexicon, "PLURALS", {"lamp": "lamps"})
    with pytest.raises(ValueError, match="exhausted"):
        instructions(1, 500)
