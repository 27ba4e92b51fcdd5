"""Completing functions: which are asked for, and what share of the answers is Python."""

import numpy as np

from gptmill.evaluate.python_completion import as_text, complete_functions, completion_metrics
from gptmill.generate.sampling import SamplingOptions
from gptmill.tokenizer import VocabularyTokenizer, train_vocabulary

MODULE = "\n\n\n".join(f'def f{n}(a):\n    """Say {n}."""\n    return a' for n in range(9)) + "\n"
LONG = 'def long(a):\n    """' + "word " * 60 + '"""\n    return a\n'
TOKENIZER: VocabularyTokenizer = train_vocabulary([MODULE + LONG], "character", 100)


class Typist:
    """Continues each prompt with a text chosen by the digit in its name."""

    vocabulary_size, context_length = TOKENIZER.vocabulary_size, 100

    def __init__(self, continuations: dict[str, str]) -> None:
        self.continuations = continuations

    def prefill(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        prompts = [TOKENIZER.decode(row[real == 1].tolist()) for row, real in zip(ids, mask)]
        self.rows = [list(self.continuations[prompt[5]]) for prompt in prompts]
        return self._logits()

    def step(self, ids: np.ndarray) -> np.ndarray:
        return self._logits()

    def keep(self, rows: np.ndarray) -> None:
        self.rows = [self.rows[row] for row in rows]

    def _logits(self) -> np.ndarray:
        logits = np.zeros((len(self.rows), self.vocabulary_size), np.float32)
        for row, text in zip(logits, self.rows):
            row[TOKENIZER.ids[text.pop(0)] if text else TOKENIZER.end_of_text] = 50
        return logits


def test_the_share_that_is_python() -> None:
    whole, broken = "\n    return a\n", "\n    return ((a\n"
    typist = Typist({str(n): whole if n % 3 else broken for n in range(9)})
    options = SamplingOptions(max_new_tokens=40, seed=1)
    attempts = complete_functions(typist, TOKENIZER, [MODULE, LONG, "def cut(:"], 20, options)
    assert len(attempts) == 9  # all but the one too long for the context, and the text cut short
    assert {attempt.header[5]: attempt.whole for attempt in attempts} == {
        str(n): bool(n % 3) for n in range(9)
    }
    assert completion_metrics(attempts) == {
        "completions/tried": 9,
        "completions/parse_share": 6 / 9,
    }
    assert as_text(attempts).count("# whole\n") == 6


def test_a_stop_string_ends_a_function() -> None:
    typist = Typist({str(n): "\n    return a\n\n\ndef f((" for n in range(9)})
    asked = SamplingOptions(max_new_tokens=40, seed=1)
    stopped = SamplingOptions(max_new_tokens=40, seed=1, stop_strings=("\ndef ",))
    for options, share in ((asked, 0.0), (stopped, 1.0)):
        attempts = complete_functions(typist, TOKENIZER, [MODULE], 4, options)
        assert len(attempts) == 4
        assert completion_metrics(attempts)["completions/parse_share"] == share


def test_nothing_to_complete_is_no_share() -> None:
    options = SamplingOptions(max_new_tokens=40)
    attempts = complete_functions(Typist({}), TOKENIZER, ["x = 1\n"], 4, options)
    assert completion_metrics(attempts) == {"completions/tried": 0}
