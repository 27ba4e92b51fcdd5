"""How OpenAI's paths word text: server-sent events, or one object."""

import codecs
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gptmill.serve.answering import Exchange, Usage
from gptmill.serve.refusal import Refused, error_body
from gptmill.serve.request import Finished, Piece
from gptmill.serve.scores import Candidate, Scored
from gptmill.tokenizer import Tokenizer


class OpenAIWording(ABC):
    """What `/v1/chat/completions` and `/v1/completions` have in common."""

    media_type = "text/event-stream"
    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, exchange: Exchange) -> None:
        self._question = exchange.question
        prompts = exchange.asks[:: self._question.tries]
        self._so_far = Usage(sum(len(ask.prompt_ids) for ask in prompts), 0)
        self._tokenizer = exchange.model.tokenizer
        self._id, self._created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())

    @abstractmethod
    def part(self, index: int, piece: Piece | None) -> dict[str, Any]:
        """The text of a choice's chunk; None is that of its end."""

    @abstractmethod
    def all(self, index: int, piece: Piece) -> dict[str, Any]:
        """The text of a whole choice."""

    def chunk(self, index: int, piece: Piece) -> bytes:
        self._so_far = self._so_far._replace(generated=self._so_far.generated + piece.tokens)
        return self._choice_event(index, self.part(index, piece), None)

    def end(self, index: int, finished: Finished) -> bytes:
        return self._choice_event(index, self.part(index, None), _reason(finished))

    def last(self, usage: Usage) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self._question.stream_options.include_usage:
            return done
        return event({**self._envelope(self.chunk_object, []), "usage": _usage(usage)}) + done

    def error(self, error: Refused) -> bytes:
        return event(error_body("/v1/", error))

    def whole(self, answers: Sequence[tuple[Piece, Finished]], usage: Usage) -> dict[str, Any]:
        choices = [
            {"index": index, **self.all(index, piece), "finish_reason": _reason(finished)}
            for index, (piece, finished) in enumerate(answers)
        ]
        return {**self._envelope(self.whole_object, choices), "usage": _usage(usage)}

    def _choice_event(self, index: int, part: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": index, **part, "finish_reason": reason}
        chunk, options = self._envelope(self.chunk_object, [choice]), self._question.stream_options
        if options.continuous_usage_stats:
            return event({**chunk, "usage": _usage(self._so_far)})
        return event({**chunk, "usage": None} if options.include_usage else chunk)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self._id, "object": kind, "created": self._created}
        return {**about, "model": self._question.model, "choices": choices}


class ChatWording(OpenAIWording):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._begun: set[int] = set()

    def part(self, index: int, piece: Piece | None) -> dict[str, Any]:
        delta = {} if index in self._begun else {"role": "assistant"}
        self._begun.add(index)
        if piece is not None:
            delta["content"] = piece.text
        return {"delta": delta, "logprobs": self._logprobs(piece)}

    def all(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(piece)}

    def _logprobs(self, piece: Piece | None) -> dict[str, Any] | None:
        if piece is None or not piece.scored:
            return None
        content = [token_scores(self._tokenizer, scored) for scored in piece.scored]
        return {"content": content, "refusal": None}


class CompletionWording(OpenAIWording):
    """`/v1/completions`."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        # Characters of each choice so far, whatever its tokens look like.
        self._characters: dict[int, codecs.IncrementalDecoder] = defaultdict(
            lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
        )
        self._offsets: dict[int, int] = defaultdict(int)

    def part(self, index: int, piece: Piece | None) -> dict[str, Any]:
        return self.all(index, piece or Piece("", []))

    def all(self, index: int, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text, "logprobs": self._logprobs(index, piece.scored)}

    def _logprobs(self, index: int, scored: list[Scored]) -> dict[str, Any] | None:
        if not scored:
            return None
        offsets = []
        for one in scored:
            offsets.append(self._offsets[index])
            raw = self._tokenizer.decode_bytes([one.chosen.id])
            self._offsets[index] += len(self._characters[index].decode(raw))
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


def event(value: dict[str, Any], name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def token_scores(tokenizer: Tokenizer, scored: Scored) -> dict[str, Any]:
    """A token with its log-probability and the likeliest in its place."""
    top = [_candidate(tokenizer, candidate) for candidate in scored.top]
    return {**_candidate(tokenizer, scored.chosen), "top_logprobs": top}


def _candidate(tokenizer: Tokenizer, candidate: Candidate) -> dict[str, Any]:
    raw = tokenizer.decode_bytes([candidate.id])
    text = raw.decode("utf-8", errors="replace")
    return {"token": text, "logprob": candidate.logprob, "bytes": list(raw)}


def _reason(finished: Finished) -> str:
    return "length" if finished.reason == "length" else "stop"


def _usage(usage: Usage) -> dict[str, Any]:
    known = usage.reused is not None
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.total,
        **({"prompt_tokens_details": {"cached_tokens": usage.reused}} if known else {}),
    }
