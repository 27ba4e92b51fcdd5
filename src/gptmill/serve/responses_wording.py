"""How `/v1/responses` words text: one object, or the events in which it grows."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from gptmill.serve.answering import Exchange, Usage
from gptmill.serve.openai_wording import event, token_scores
from gptmill.serve.refusal import Refused
from gptmill.serve.request import Finished, Piece


class ResponseWording:
    """One response with one message."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange) -> None:
        self._question, self._tokenizer = exchange.question, exchange.model.tokenizer
        self._id, self._item = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        self._created, self._number = int(time.time()), 0
        self._text, self._logprobs = "", list[dict[str, Any]]()
        self._finished: Finished | None = None

    def chunk(self, index: int, piece: Piece) -> bytes:
        begun = self._begin()
        scores = self._add(piece)
        delta = {"delta": piece.text, "logprobs": scores, **self._place()}
        return begun + self._event("response.output_text.delta", **delta)

    def end(self, index: int, finished: Finished) -> bytes:
        begun, self._finished = self._begin(), finished
        text = {"text": self._text, "logprobs": self._logprobs, **self._place()}
        item = {"output_index": 0, "item": self._message()}
        return b"".join(
            (
                begun,
                self._event("response.output_text.done", **text),
                self._event("response.content_part.done", part=self._part(), **self._place()),
                self._event("response.output_item.done", **item),
            )
        )

    def last(self, usage: Usage) -> bytes:
        response = self._response(usage)
        return self._event(f"response.{response['status']}", response=response)

    def error(self, error: Refused) -> bytes:
        about = {"code": error.code or "server_error", "message": error.message}
        failed = {**self._response(None), "status": "failed", "error": about}
        return self._event("response.failed", response=failed)

    def whole(self, answers: Sequence[tuple[Piece, Finished]], usage: Usage) -> dict[str, Any]:
        [(piece, self._finished)] = answers
        self._add(piece)
        return self._response(usage)

    def _begin(self) -> bytes:
        """What comes before the first piece."""
        if self._number:
            return b""
        response = self._response(None)
        item = {**self._message(), "content": []}
        return b"".join(
            (
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", part=self._part(), **self._place()),
            )
        )

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **values}, kind)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _add(self, piece: Piece) -> list[dict[str, Any]]:
        scores = [token_scores(self._tokenizer, scored) for scored in piece.scored]
        self._text += piece.text
        self._logprobs += scores
        return scores

    def _status(self) -> str:
        if self._finished is None:
            return "in_progress"
        return "incomplete" if self._finished.reason == "length" else "completed"

    def _part(self) -> dict[str, Any]:
        about = {"type": "output_text", "text": self._text}
        return {**about, "annotations": [], "logprobs": self._logprobs}

    def _message(self) -> dict[str, Any]:
        about = {"id": self._item, "type": "message", "role": "assistant"}
        return {**about, "status": self._status(), "content": [self._part()]}

    def _response(self, usage: Usage | None) -> dict[str, Any]:
        question, status = self._question, self._status()
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": question.model,
            "output": [] if self._finished is None else [self._message()],
            "usage": None if usage is None else _usage(usage),
            "incomplete_details": cut,
            "error": None,
            "instructions": question.instructions or None,
            "max_output_tokens": question.max_output_tokens,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "text": {"format": question.text.as_sent()},
            "metadata": question.metadata,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "store": False,  # whatever was asked: nothing is kept
            "truncation": "disabled",
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.reused or 0},
        "output_tokens": usage.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total,
    }
