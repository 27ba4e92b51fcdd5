"""How OpenAI's paths wrap text."""

import codecs
import time
from abc import ABC, abstractmethod
from typing import Any

from gptmill.serve.engine import Piece
from gptmill.serve.language_model import LanguageModel
from gptmill.serve.scores import Candidate, Scored
from gptmill.tokenizer import Tokenizer


class Wording(ABC):
    """How a path wraps text; one object per answer.

    Args:
        answer_id: of the whole answer, which its choices share.
        index: the choice's.
    """

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, name: str, model: LanguageModel, answer_id: str, index: int = 0) -> None:
        self._model = name
        self._tokenizer = model.tokenizer
        self._id, self._index = f"{self.prefix}-{answer_id}", index
        self._created = int(time.time())

    def chunk(self, piece: Piece | None, reason: str | None) -> dict[str, Any]:
        """A piece of a stream, or its end."""
        choice = {"index": self._index, **self.part(piece), "finish_reason": reason}
        return self.envelope(self.chunk_object, [choice])

    def choice(self, piece: Piece, reason: str) -> dict[str, Any]:
        """A choice of an answer in one."""
        return {"index": self._index, **self.all(piece), "finish_reason": reason}

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What stands around choices."""
        about = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**about, "choices": choices}

    @abstractmethod
    def part(self, piece: Piece | None) -> dict[str, Any]:
        """The text of a chunk."""

    @abstractmethod
    def all(self, piece: Piece) -> dict[str, Any]:
        """The text of a whole answer."""


class ChatWording(Wording):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    _begun = False

    def part(self, piece: Piece | None) -> dict[str, Any]:
        delta = {} if self._begun else {"role": "assistant"}
        self._begun = True
        if piece is not None:
            delta["content"] = piece.text
        return {"delta": delta, "logprobs": self._logprobs(piece)}

    def all(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: Piece | None) -> dict[str, Any] | None:
        if piece is None or not piece.scored:
            return None
        return {"content": [self._scored(scored) for scored in piece.scored], "refusal": None}

    def _scored(self, scored: Scored) -> dict[str, Any]:
        top = [_candidate(self._tokenizer, candidate) for candidate in scored.top]
        return {**_candidate(self._tokenizer, scored.chosen), "top_logprobs": top}


class CompletionWording(Wording):
    """`/v1/completions`."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, name: str, model: LanguageModel, answer_id: str, index: int = 0) -> None:
        super().__init__(name, model, answer_id, index)
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0  # in characters of the answer, whatever its tokens look like

    def part(self, piece: Piece | None) -> dict[str, Any]:
        return self.all(piece or Piece("", []))

    def all(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text, "logprobs": self._logprobs(piece.scored)}

    def _logprobs(self, scored: list[Scored]) -> dict[str, Any] | None:
        if not scored:
            return None
        offsets = []
        for one in scored:
            offsets.append(self._offset)
            raw = self._tokenizer.decode_bytes([one.chosen.id])
            self._offset += len(self._characters.decode(raw))
        return {
            "tokens": [self._text(one.chosen) for one in scored],
            "token_logprobs": [one.chosen.logprob for one in scored],
            "top_logprobs": [self._likeliest(one) for one in scored],
            "text_offset": offsets,
        }

    def _likeliest(self, scored: Scored) -> dict[str, float | None] | None:
        if scored.chosen.logprob is None:
            return None
        return {self._text(candidate): candidate.logprob for candidate in scored.top}

    def _text(self, candidate: Candidate) -> str:
        """The token's text, or its bytes as OpenAI writes them: two tokens never look the same."""
        raw = self._tokenizer.decode_bytes([candidate.id])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _candidate(tokenizer: Tokenizer, candidate: Candidate) -> dict[str, Any]:
    raw = tokenizer.decode_bytes([candidate.id])
    text = raw.decode("utf-8", errors="replace")
    return {"token": text, "logprob": candidate.logprob, "bytes": list(raw)}
