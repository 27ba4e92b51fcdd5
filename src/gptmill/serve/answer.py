"""One answer on its way from an engine's thread to its client."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import ClassVar
from weakref import WeakKeyDictionary

from gptmill.serve.refusal import Refused, refusal
from gptmill.serve.request import Event, Finished, Piece, Request

MAX_PENDING = 1024  # pieces that wait for a client who does not read


class Outbox:
    """Hands events from engines' threads to an event loop, those of one step in one call."""

    _of: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, "Outbox"]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Callable[[Event], None], Event]] = deque()
        self._called = False

    @classmethod
    def of_running_loop(cls) -> "Outbox":
        """The one that all answers of a loop share."""
        loop = asyncio.get_running_loop()
        return cls._of.setdefault(loop, cls(loop))

    def put(self, take: Callable[[Event], None], event: Event) -> None:
        """Have the loop take an event; called from any thread."""
        self._events.append((take, event))
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # first: what is put from now on calls again, or is still seen here
        while self._events:
            take, event = self._events.popleft()
            take(event)


class Answer:
    """The pieces of one answer as they come; whoever stops listening says `cancel`.

    `finished` says how it ended, once the pieces are through.
    """

    finished: Finished

    def __init__(self) -> None:
        self._outbox = Outbox.of_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._head: Piece | Finished | None = None
        self.request: Request | None = None

    def put(self, event: Event) -> None:
        """Called from the engine's thread."""
        self._outbox.put(self._take, event)

    def _take(self, event: Event) -> None:
        if self._events.qsize() == MAX_PENDING:
            self.cancel()
            event = Refused(503, "the client reads too slowly", "slow_reader")
        if self._events.qsize() <= MAX_PENDING:
            self._events.put_nowait(event)

    async def ready(self) -> None:
        """Wait for the first event, so that what fails at once has a status of its own."""
        self._head = await self._next()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text until the end.

        Raises:
            Refused: the time is over, the server closes, or the model fails.
        """
        while (piece := await self.next_piece()) is not None:
            yield piece

    async def next_piece(self) -> Piece | None:
        """The next of `pieces`, or None at their end."""
        event, self._head = self._head or await self._next(), None
        if isinstance(event, Finished):
            self.finished = event
            return None
        return event

    async def whole(self) -> Piece:
        """All pieces as one. Raises what `pieces` does."""
        pieces = [piece async for piece in self.pieces()]
        scored = [one for piece in pieces for one in piece.scored]
        return Piece("".join(piece.text for piece in pieces), scored)

    def cancel(self) -> None:
        """Free what the answer holds; harmless after its end."""
        if self.request:
            self.request.canceled = True

    async def _next(self) -> Piece | Finished:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise refusal(event)
        return event
