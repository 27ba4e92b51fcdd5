"""What clients do to a server under load: ask, leave, read slowly, send what is malformed."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

MODEL = "instructions"
WORDS = [
    "Make a question.",
    "Mia is in the barn.",
    "the cat",
    "the dog ran",
    "one day",
    "over a hill",
]
TOKENS = 24  # of an answer at most
BUSY = 503


@dataclass
class Outcome:
    """What came of the requests. A stream is lost if it began and did not end as its protocol says;
    a status is strange if it is not what docs/serving.md says for that request."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    away: int = 0  # not answered, because the server had been told to stop
    stopping: bool = False

    @property
    def requests(self) -> int:
        return sum(self.kinds.values())

    def note(self, kind: str, status: int, *expected: int) -> bool:
        """Count an answer; whether it is a 200."""
        self.statuses[status] += 1
        if status not in (*expected, BUSY):
            self.strange.append(f"{kind}: {status}")
        return status == 200


class Client:
    """One client, which does one thing after another."""

    def __init__(self, address: str, number: int, outcome: Outcome) -> None:
        self._draw, self._outcome = random.Random(number), outcome
        self._address = address
        self._http = httpx.AsyncClient(
            base_url=address, timeout=120, trust_env=False, verify=False,
            limits=httpx.Limits(max_connections=1),
        )  # fmt: skip
        self._history: list[dict[str, str]] = []

    async def run(self, until: Callable[[], bool]) -> None:
        """Until told to stop, or until the server is away."""
        does: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "streamed chat": (4, self._chat),
            "streamed text": (3, self._text),
            "whole text": (3, self._whole),
            "classification": (1, self._classify),
            "canceled": (2, self._leave),
            "slow reader": (1, self._read_slowly),
            "malformed": (3, self._malformed),
            "broken off": (1, self._break_off),
        }
        kinds, weights = list(does), [weight for weight, _ in does.values()]
        async with self._http:
            while not until():
                [kind] = self._draw.choices(kinds, weights)
                try:
                    await does[kind][1]()
                except (httpx.HTTPError, OSError) as error:
                    if self._outcome.stopping:
                        self._outcome.away += 1
                        return
                    self._outcome.lost.append(f"{kind}: {error!r}")
                self._outcome.kinds[kind] += 1

    async def _chat(self) -> None:
        """A conversation that grows, over Ollama's protocol; its end is a line with `done`."""
        self._history = [*self._history[-4:], {"role": "user", "content": self._words()}]
        body = {"model": MODEL, "messages": self._history, "options": {"num_predict": TOKENS}}
        async with self._http.stream("POST", "/api/chat", json=body) as answer:
            if not self._outcome.note("chat", answer.status_code, 200):
                return await self._wait(answer)
            lines = [json.loads(line) for line in await self._lines(answer)]
        self._ended("chat", bool(lines and (lines[-1].get("done") or "error" in lines[-1])))
        text = "".join(line.get("message", {}).get("content", "") for line in lines)
        self._history.append({"role": "assistant", "content": text})

    async def _text(self, pause: float = 0) -> None:
        """A completion over OpenAI's protocol, whose end is `[DONE]`."""
        body = {"model": MODEL, "prompt": self._words(), "max_tokens": TOKENS, "stream": True}
        async with self._http.stream("POST", "/v1/completions", json=body) as answer:
            if not self._outcome.note("text", answer.status_code, 200):
                return await self._wait(answer)
            last = [line for line in await self._lines(answer, pause) if line][-1:]
        self._ended("text", bool(last) and (last == ["data: [DONE]"] or '"error"' in last[0]))

    async def _read_slowly(self) -> None:
        await self._text(pause=0.1)

    async def _whole(self) -> None:
        body = {"model": MODEL, "prompt": self._words(), "max_tokens": TOKENS}
        answer = await self._http.post("/v1/completions", json=body)
        if not self._outcome.note("whole", answer.status_code, 200):
            await self._wait(answer)

    async def _classify(self) -> None:
        texts = [self._words() for _ in range(self._draw.randint(1, 8))]
        answer = await self._http.post("/classify", json={"texts": texts})
        self._outcome.note("classify", answer.status_code, 200)

    async def _leave(self) -> None:
        """Leave in the middle of a stream, after none to three of its lines."""
        body = {"model": MODEL, "prompt": self._words(), "options": {"num_predict": 200}}
        async with self._http.stream("POST", "/api/generate", json=body) as answer:
            if not self._outcome.note("canceled", answer.status_code, 200):
                return await self._wait(answer)
            lines = answer.aiter_lines()
            with contextlib.suppress(StopAsyncIteration):
                for _ in range(self._draw.randint(0, 3)):
                    await anext(lines)

    async def _malformed(self) -> None:
        whole = {"model": MODEL, "prompt": "the cat"}
        path, status, sent = self._draw.choice([
            ("/v1/completions", 400, {"content": b'{"model": '}),
            ("/v1/completions", 400, {"json": {**whole, "temperature": "hot"}}),
            ("/v1/completions", 400, {"json": {**whole, "max_tokens": -1}}),
            ("/v1/completions", 400, {"json": {**whole, "nonsense": 1}}),
            ("/v1/completions", 400, {"content": b"\xff\xfe\x00"}),
            ("/v1/completions", 413, {"content": b" " * (2**20 + 1)}),
            ("/v1/completions", 415, {"content": b"x", "headers": {"Content-Encoding": "gzip"}}),
            ("/v1/completions", 404, {"json": {**whole, "model": "none"}}),
            ("/api/generate", 400, {"json": {**whole, "options": {"top_k": "many"}}}),
            ("/api/generate", 400, {"json": {**whole, "format": {"type": "nothing"}}}),
            ("/api/tags", 405, {"json": {}}),
            ("/nowhere", 404, {"json": {}}),
        ])  # fmt: skip
        answer = await self._http.post(path, **sent)
        self._outcome.note(f"malformed {path}", answer.status_code, status)

    async def _break_off(self) -> None:
        """A body that ends too early, a head that never ends, or no HTTP at all; then gone."""
        where = urlsplit(self._address)
        _reader, writer = await asyncio.open_connection(where.hostname, where.port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
        writer.write(self._draw.choice([head + b"\r\n{", head, b"\x16\x03\x01\x00\xff\r\n\r\n"]))
        await writer.drain()
        await asyncio.sleep(self._draw.random() / 10)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _wait(self, answer: httpx.Response) -> None:
        """As a busy server asks for."""
        await asyncio.sleep(float(answer.headers.get("retry-after", 0)))

    async def _lines(self, answer: httpx.Response, pause: float = 0) -> list[str]:
        """What came until the stream ended, or broke."""
        lines = []
        with contextlib.suppress(httpx.HTTPError):
            async for line in answer.aiter_lines():
                lines.append(line)
                await asyncio.sleep(pause)
        return lines

    def _ended(self, kind: str, properly: bool) -> None:
        if not properly:
            self._outcome.lost.append(f"{kind}: it ended without its last line")

    def _words(self) -> str:
        return " ".join(self._draw.choices(WORDS, k=self._draw.randint(1, 6)))


async def traffic(
    address: str, clients: int, seconds: float, stop: Callable[[], Awaitable[None]]
) -> Outcome:
    """So many clients for so long; then `stop` tells the server to stop, while they go on."""
    outcome = Outcome()
    ends = time.monotonic() + seconds
    running = [
        asyncio.ensure_future(
            Client(address, number, outcome).run(lambda: time.monotonic() > ends + 60)
        )
        for number in range(clients)
    ]
    await asyncio.sleep(seconds)
    outcome.stopping = True
    await stop()
    await asyncio.gather(*running)
    return outcome
