"""Any `tokenizer.json`, run by Hugging Face's `tokenizers`: what is more than GPT-2's byte pairs.

Imported where it is used: our own kinds do without that library.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.files import write_json
from gptmill.tokenizer.base import Decoding, Tokenizer
from gptmill.tokenizer.byte_pairs import raw

# What `transformers` takes a space away from in the text of a model of words, in its order.
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
# Characters at the end of a text that the next token may still change, by that or by a decoder
# that replaces over token boundaries: twice the longest of CLEANED.
UNSETTLED = 8
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
NOWHERE = "\U0010fffe"  # a noncharacter: stands in no text


class LibraryTokenizer(Tokenizer):
    """The tokens, special tokens and rules of a `tokenizer.json`, all of them.

    `encode` is what `transformers.AutoTokenizer` answers with `add_special_tokens=False`: added
    tokens count wherever they stand, but for the end-of-text token, whose characters are text.

    Args:
        fast: the library's tokenizer, added tokens included.
        config: of `tokenizer_config.json`, what belongs to the tokens: special tokens by their
            role, cleaning, the chat template.
        end_of_text: one of its ids.
        origin: the file, for errors.
    """

    def __init__(self, fast: Any, config: dict[str, Any], end_of_text: int, origin: str) -> None:
        self.config, self.end_of_text, self.origin = config, end_of_text, origin
        self.text: str = fast.to_str()
        self.json: dict[str, Any] = json.loads(self.text)
        self._fast = self._ready(fast)
        self.vocabulary: dict[str, int] = self._fast.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(self.vocabulary.values()) + 1
        self.tokens: dict[int, str] = {id: token for token, id in self.vocabulary.items()}
        decoder = self.json["decoder"] or {}
        self._byte_level = decoder.get("type") == "ByteLevel"

    @property
    def identity(self) -> tuple[str, int]:
        return self.text, self.end_of_text

    @property
    def beginning_of_text(self) -> int:
        return self._role("bos_token")

    @property
    def padding(self) -> int:
        return self._role("pad_token")

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._encoded(self._fast, texts)
        # Rare, and known only afterwards: what is normalized may become the token's characters.
        for row, ids in enumerate(found):
            if self.end_of_text in ids:
                [found[row]] = self._encoded(self._ending_is_text, [texts[row]])
        return found

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        if self._byte_level:
            return b"".join(self._bytes.get(int(id), b"") for id in ids)
        return self.decode(ids).encode()

    def decode(self, ids: Sequence[int]) -> str:
        if self._byte_level:
            text = super().decode(ids)
        else:
            text = self._fast.decode([int(id) for id in ids], skip_special_tokens=False)
        return _cleaned(text) if self.config["clean_up_tokenization_spaces"] else text

    def decoding(self) -> Decoding:
        if self._byte_level and not self.config["clean_up_tokenization_spaces"]:
            return super().decoding()
        return _DecodingText(self.decode, self._is_byte, self._unsettled())

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self.text + "\n", encoding="utf-8", newline="\n")
        write_json(folder / "tokenizer_config.json", self.config)

    def special_tokens(self) -> dict[int, bool]:
        """Ids of added tokens, and whether each is one that no text is made of."""
        return {entry["id"]: entry["special"] for entry in self.json["added_tokens"]}

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        return {id: _token_bytes(token) for id, token in self.tokens.items()}

    @cached_property
    def _ending_is_text(self) -> Any:
        """The library's tokenizer without the end-of-text token among those that it looks for."""
        ending = self.tokens[self.end_of_text]
        inside = ending in _model_vocabulary(self.json["model"])
        added = [
            entry if entry["content"] != ending else entry | {"content": NOWHERE}
            for entry in self.json["added_tokens"]
            if entry["content"] != ending or not inside  # the others' ids follow from their order
        ]
        text = json.dumps(self.json | {"added_tokens": added})
        return self._ready(open_library(text, self.origin))

    def _ready(self, fast: Any) -> Any:
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = bool(self.config.get("split_special_tokens"))
        return fast

    def _encoded(self, fast: Any, texts: Sequence[str]) -> list[list[int]]:
        whole = [
            text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts
        ]
        try:
            found = fast.encode_batch_fast(whole, add_special_tokens=False)
        except Exception as error:  # the library raises no class of its own
            raise UserError(f"{self.origin} cannot encode this text: {error}") from None
        return [encoding.ids for encoding in found]

    def _role(self, name: str) -> int:
        return self.vocabulary.get(self.config.get(name) or "", self.end_of_text)

    def _is_byte(self, token: int) -> bool:
        return BYTE_TOKEN.fullmatch(self.tokens.get(token, "")) is not None

    def _unsettled(self) -> int:
        decoders = (self.json["decoder"] or {}).get("decoders", [])
        kinds = [decoder["type"] for decoder in decoders]
        late = "Fuse" in kinds and "Replace" in kinds[kinds.index("Fuse") :]
        return UNSETTLED if late or self.config["clean_up_tokenization_spaces"] else 0


class _DecodingText:
    """For decoders that look at more than one token: all of them are decoded again each time.

    Held back are bytes that stand for one character in several tokens, which only the token after
    them completes, and `unsettled` characters.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        is_byte: Callable[[int], bool],
        unsettled: int,
    ) -> None:
        self._decode, self._is_byte, self._unsettled = decode, is_byte, unsettled
        self._ids: list[int] = []
        self._shown = 0  # characters
        self._bytes = 0  # tokens at the end that are single bytes

    def push(self, token: int) -> str:
        self._ids.append(token)
        self._bytes = self._bytes + 1 if self._is_byte(token) else 0
        text = self._decode(self._ids[: len(self._ids) - self._bytes]).rstrip("\ufffd")
        return self._show(text[: max(0, len(text) - self._unsettled)])

    def finish(self) -> str:
        return self._show(self._decode(self._ids))

    def _show(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown += len(piece)
        return piece


def open_library(text: str, origin: str) -> Any:
    """The library's tokenizer of a `tokenizer.json`.

    Raises:
        UserError: the library cannot read it.
    """
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what panics in Rust is no Exception
        raise UserError(f"{origin} is not a tokenizer that can be read: {error}") from None


def _token_bytes(token: str) -> bytes:
    try:
        return raw(token)
    except KeyError:  # an added token is spelled as it is
        return token.encode()


def _model_vocabulary(model: dict[str, Any]) -> set[str]:
    vocabulary = model["vocab"]
    return set(vocabulary) if isinstance(vocabulary, dict) else {token for token, _ in vocabulary}


def _cleaned(text: str) -> str:
    for spaced in CLEANED:
        text = text.replace(spaced, spaced.strip())
    return text
