"""How Ollama's paths word text: lines of JSON. Durations are nanoseconds."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gptmill.serve.answering import Exchange, Usage
from gptmill.serve.refusal import Refused
from gptmill.serve.request import Finished, Piece
from gptmill.serve.scores import Candidate, Scored
from gptmill.tokenizer import Tokenizer

NANOSECONDS = 1_000_000_000


class OllamaWording(ABC):
    """What `/api/chat` and `/api/generate` have in common."""

    media_type = "application/x-ndjson"

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @staticmethod
    @abstractmethod
    def text(text: str) -> dict[str, Any]:
        """A piece of text."""

    def chunk(self, index: int, piece: Piece) -> bytes:
        return _line({**self._message(piece), "done": False})

    def end(self, index: int, finished: Finished) -> bytes:
        return _line({**self._message(Piece("", [])), **self._done(finished)})

    def last(self, usage: Usage) -> bytes:
        return b""

    def error(self, error: Refused) -> bytes:
        return _line({"error": error.message})

    def whole(self, answers: Sequence[tuple[Piece, Finished]], usage: Usage) -> dict[str, Any]:
        [(piece, finished)] = answers
        return {**self._message(piece), **self._done(finished)}

    def _message(self, piece: Piece) -> dict[str, Any]:
        value = {**head(self._exchange.question.model), **self.text(piece.text)}
        if piece.scored:
            tokenizer = self._exchange.model.tokenizer
            value["logprobs"] = [_logprob(tokenizer, scored) for scored in piece.scored]
        return value

    def _done(self, finished: Finished) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": "length" if finished.reason == "length" else "stop",
            "total_duration": nanoseconds(time.monotonic() - self._exchange.started),
            "load_duration": nanoseconds(self._exchange.load_seconds),
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": nanoseconds(finished.prompt_seconds),
            "eval_count": len(finished.ids),
            "eval_duration": nanoseconds(finished.seconds),
        }


class ChatWording(OllamaWording):
    """`/api/chat`."""

    @staticmethod
    def text(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}


class GenerateWording(OllamaWording):
    """`/api/generate`, whose last line has the ids from which to continue."""

    @staticmethod
    def text(text: str) -> dict[str, Any]:
        return {"response": text}

    def _done(self, finished: Finished) -> dict[str, Any]:
        done = super()._done(finished)
        if self._exchange.question.raw:
            return done
        [ask] = self._exchange.asks
        return {**done, "context": ask.prompt_ids + finished.ids}


def head(model: str) -> dict[str, Any]:
    """What each line begins with."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": model, "created_at": now}


def nanoseconds(seconds: float) -> int:
    """As Ollama counts."""
    return int(seconds * NANOSECONDS)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _logprob(tokenizer: Tokenizer, scored: Scored) -> dict[str, Any]:
    value = _token(tokenizer, scored.chosen)
    if scored.top:
        value["top_logprobs"] = [_token(tokenizer, candidate) for candidate in scored.top]
    return value


def _token(tokenizer: Tokenizer, candidate: Candidate) -> dict[str, Any]:
    raw = tokenizer.decode_bytes([candidate.id])
    return {
        "token": raw.decode("utf-8", errors="replace"),
        "logprob": candidate.logprob,
        "bytes": list(raw),
    }
