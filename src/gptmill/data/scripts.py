"""Whether a text puts spaces between its words."""

import re

import numpy as np

# Thai, Lao, Myanmar, Khmer; kana, Han and their extensions. Korean has spaces.
_NO_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
FIRST = 0x0E00  # of the characters above
LONGEST_WORD = 30  # characters of the mean word: DNA, hexadecimal, one unbroken line
SAMPLE = 100_000  # characters that are looked at


def without_spaces(text: str) -> bool:
    """Whether most of a text's letters are of a script without spaces, or its words endless."""
    text = text[:SAMPLE]
    words = len(text.split())
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    crowded = len(_NO_SPACES.findall(text)) if codes.max(initial=0) >= FIRST else 0
    if not words or (not crowded and len(text) <= LONGEST_WORD * words):
        return False
    letters = sum(map(len, text.split()))
    return 2 * crowded > letters or letters > LONGEST_WORD * words
