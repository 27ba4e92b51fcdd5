"""Text to token ids and back: GPT-2's byte pairs, a trained BPE, characters, words, or any other
`tokenizer.json`.

Every kind is saved beside the model as `tokenizer.json`, which `transformers` and the Rust
`tokenizers` open as it is; byte-pair kinds also as GPT-2's own `vocab.json` and `merges.txt`.
Running our own kinds needs `tiktoken` alone; the `tokenizers` package trains, and runs what is
more than they can express.
"""

from gptmill.tokenizer.base import END_OF_TEXT, UNKNOWN, Tokenizer
from gptmill.tokenizer.byte_pairs import (
    GPT2_PATTERN,
    BytePairTokenizer,
    byte_pairs_from_merges,
    train_byte_pairs,
)
from gptmill.tokenizer.folder import load_gpt2_files, load_stop_tokens, load_tokenizer
from gptmill.tokenizer.library import LibraryTokenizer
from gptmill.tokenizer.vocabulary import (
    WORD_PATTERN,
    VocabularyTokenizer,
    split_words,
    train_vocabulary,
)

__all__ = [
    "END_OF_TEXT",
    "GPT2_PATTERN",
    "UNKNOWN",
    "WORD_PATTERN",
    "BytePairTokenizer",
    "LibraryTokenizer",
    "Tokenizer",
    "VocabularyTokenizer",
    "byte_pairs_from_merges",
    "load_gpt2_files",
    "load_stop_tokens",
    "load_tokenizer",
    "split_words",
    "train_byte_pairs",
    "train_vocabulary",
]
