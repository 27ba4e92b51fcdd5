"""Continuous batching: whoever shares the batch, each request gets what it gets alone."""

import queue
import threading
import time

import numpy as np
import pytest

from gptmill.errors import UserError
from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Generator, OnnxDecoder, open_session
from gptmill.serve import prefill
from gptmill.serve.engine import Engine
from gptmill.serve.metrics import Meter, Metrics
from gptmill.serve.prefill import Pace
from gptmill.serve.request import Busy, Finished, Overdue, Piece, Request
from gptmill.serve.scores import score
from tests.unit.serve.conftest import CONTEXT, eventually

PROMPTS = ["the cat", "the dog ran over the hill and the cat sat", "a", "mat", "on the hill " * 5]
FAR = 1e9  # seconds: no deadline


class Poisoned(OnnxDecoder):
    """Fails on one token; counts what runs; waits where told."""

    poison = -1
    broken = False
    widest = 0

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.gate = threading.Event()
        self.gate.set()

    def sibling(self) -> "Poisoned":
        return Poisoned(self._session, self.context_length)

    def step(self, ids: np.ndarray) -> np.ndarray:
        self.gate.wait()
        type(self).widest = max(self.widest, len(ids))
        if self.broken:
            raise RuntimeError("every step fails")
        return super().step(ids)

    def _run(self, ids: np.ndarray, positions: np.ndarray, *, every: bool) -> np.ndarray:
        if (ids == type(self).poison).any():
            raise RuntimeError("poison")
        return super()._run(ids, positions, every=every)


@pytest.fixture
def generator(models):
    return Generator(models / "text", threads=1)


@pytest.fixture
def start_engine(models, generator):
    engines = []

    def start(max_batch=4, max_queue=100) -> Engine:
        decoder = Poisoned(open_session(models / "text", 1), CONTEXT)
        engine = Engine(
            decoder, generator.tokenizer, Meter(Metrics(), "text"),
            max_batch=max_batch, max_queue=max_queue,
        )  # fmt: skip
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine._decoder.gate.set()
        engine.close()
    Poisoned.poison, Poisoned.widest = -1, 0


class Listener:
    """A request and what came of it."""

    def __init__(self, engine, ids, options, deadline=FAR, **more) -> None:
        self.events: queue.Queue = queue.Queue()
        self.request = Request(ids, options, CONTEXT, deadline, self.events.put, **more)
        engine.submit(self.request)

    def result(self) -> tuple[str, Finished]:
        """All its text, and how it ended; raises what ended it."""
        text = ""
        while isinstance(event := self.events.get(timeout=20), Piece):
            text += event.text
        if isinstance(event, Exception):
            raise event
        return text, event


def hold_pace(engine, monkeypatch) -> None:
    """Prompts are read eight tokens at a time, however quick the machine is."""
    monkeypatch.setattr(Pace, "MOST", 8)
    engine._pace.tokens = 8


OPTIONS = {
    "greedy": SamplingOptions(max_new_tokens=30),
    "past the context": SamplingOptions(max_new_tokens=CONTEXT + 20),
    "sampled": SamplingOptions(max_new_tokens=20, temperature=2.0, top_k=50, top_p=0.9, seed=7),
    "penalised": SamplingOptions(max_new_tokens=25, temperature=1.5, repetition_penalty=1.3),
}


@pytest.mark.parametrize("max_batch", [1, 4, 16])
def test_a_request_gets_what_it_gets_alone(max_batch, start_engine, generator):
    engine = start_engine(max_batch)
    asked = []
    for number, prompt in enumerate(PROMPTS):
        for options in OPTIONS.values():
            ids = generator.tokenizer.encode(prompt)
            asked.append((ids, options, Listener(engine, ids, options)))
            time.sleep(0.002 * (number % 3))  # some join while others run
    for ids, options, listener in asked:
        text, finished = listener.result()
        alone = generator.generate([ids], options)[0]
        assert text == alone.text
        assert finished.ids == alone.ids
        assert (finished.reason, finished.prompt_tokens) == (alone.stop_reason, len(ids))
    assert Poisoned.widest == max_batch or 4 < Poisoned.widest < max_batch


def test_a_prompt_longer_than_the_context_is_seen_from_its_end(start_engine, generator):
    ids = generator.tokenizer.encode("the cat sat on the mat " * 40)
    options = SamplingOptions(max_new_tokens=20)
    text, finished = Listener(start_engine(), ids, options).result()
    assert text == generator.generate([ids], options)[0].text
    assert finished.prompt_tokens == CONTEXT < len(ids)


def test_a_long_prompt_is_read_between_the_steps_of_others(start_engine, generator, monkeypatch):
    engine = start_engine()
    hold_pace(engine, monkeypatch)
    done = []
    step, extend = engine._decoder.step, engine._entrance.extend
    both = threading.Event()  # a quick engine would be done with the first before the second comes

    def counted(ids):
        if len(done) > 5:
            both.wait(20)
        done.append("step")
        return step(ids)

    monkeypatch.setattr(engine._decoder, "step", counted)
    monkeypatch.setattr(engine._entrance, "extend", lambda ids: done.append(ids) or extend(ids))
    ids = generator.tokenizer.encode("the cat sat on the mat " * 40)[:80]
    first = Listener(engine, [1, 2], SamplingOptions(max_new_tokens=60))
    shown = first.events.get(timeout=20).text  # it runs
    options = SamplingOptions(max_new_tokens=5, temperature=2.0, seed=3)
    second = Listener(engine, ids, options)
    both.set()
    assert second.result()[0] == generator.generate([ids], options)[0].text
    alone = generator.generate([[1, 2]], SamplingOptions(max_new_tokens=60))[0]
    assert shown + first.result()[0] == alone.text
    pieces = [at for at, what in enumerate(done) if not isinstance(what, str)][1:]
    assert len(pieces) == 10 and np.diff(pieces).tolist() == [2] * 9


def test_a_failed_step_amid_a_prefill_ends_nobody(start_engine, generator, monkeypatch):
    engine = start_engine()
    hold_pace(engine, monkeypatch)
    extend, pieces = engine._entrance.extend, []

    def fail_after_the_third(ids):
        pieces.append(ids)
        engine._decoder.broken = len(pieces) == 4  # the first is the running one's own prompt
        return extend(ids)

    monkeypatch.setattr(engine._entrance, "extend", fail_after_the_third)
    ids = generator.tokenizer.encode("the cat sat on the mat " * 40)[:80]
    options = SamplingOptions(max_new_tokens=40)
    asked = [(prompt, Listener(engine, prompt, options)) for prompt in ([1, 2], ids)]
    for prompt, listener in asked:
        assert listener.result()[0] == generator.generate([prompt], options)[0].text


def test_a_full_queue_refuses_and_takes_again(start_engine):
    engine = start_engine(max_batch=2, max_queue=1)
    engine._decoder.gate.clear()
    held = [Listener(engine, [1, 2], SamplingOptions(max_new_tokens=10**6)) for _ in range(3)]
    with pytest.raises(Busy, match="2 requests run and 1 wait"):
        Listener(engine, [3], SamplingOptions())
    held[0].request.canceled = True
    engine._decoder.gate.set()
    eventually(lambda: len(engine._live) == 2)
    assert Listener(engine, [3], SamplingOptions(max_new_tokens=2))


def test_a_client_leaves_places_to_others(start_engine):
    engine = start_engine(max_batch=1, max_queue=4)
    engine._decoder.gate.clear()
    endless = SamplingOptions(max_new_tokens=10**6)
    greedy = [Listener(engine, [1, 2], endless, client="greedy") for _ in range(4)]
    with pytest.raises(Busy, match="4 requests of one client"):
        Listener(engine, [1], endless, client="greedy")
    modest = Listener(engine, [3], SamplingOptions(max_new_tokens=2), client="modest")
    engine._decoder.gate.set()
    assert isinstance(greedy[0].events.get(timeout=20), Piece)
    greedy[0].request.canceled = True
    assert modest.result()  # before the three that came earlier
    assert all(listener.events.empty() for listener in greedy[2:])


def test_draining_ends_what_waits_and_lets_the_rest_go_on(start_engine):
    engine = start_engine(max_batch=1)
    running = Listener(engine, [1, 2], SamplingOptions(max_new_tokens=30))
    assert isinstance(running.events.get(timeout=20), Piece)
    waiting = Listener(engine, [1], SamplingOptions())
    engine.drain()
    with pytest.raises(Busy, match="shutting down"):
        waiting.result()
    with pytest.raises(Busy, match="shutting down"):
        Listener(engine, [1], SamplingOptions())
    assert running.result()


def test_a_canceled_request_frees_its_slot_at_once(start_engine):
    engine = start_engine(max_batch=1)
    first = Listener(engine, [1, 2], SamplingOptions(max_new_tokens=10_000))
    assert isinstance(first.events.get(timeout=20), Piece)  # it runs
    waiting = Listener(engine, [3], SamplingOptions(max_new_tokens=3))
    never = Listener(engine, [4], SamplingOptions(max_new_tokens=3))
    never.request.canceled = True
    first.request.canceled = True
    assert len(waiting.result()[1].ids) <= 3
    eventually(lambda: not engine._live)
    assert engine._decoder._length == 0  # its rows are gone
    count = first.events.qsize()
    time.sleep(0.05)
    assert first.events.qsize() == count < 9_000  # it says nothing more
    assert never.events.empty()


def test_an_overdue_request_ends_running_or_waiting(start_engine):
    engine = start_engine(max_batch=1)
    soon = time.monotonic() + 0.1
    running = Listener(engine, [1, 2], SamplingOptions(max_new_tokens=10**6), soon)
    waiting = Listener(engine, [1, 2], SamplingOptions(max_new_tokens=5), soon)
    for listener in (running, waiting):
        with pytest.raises(Overdue):
            listener.result()
    assert Listener(engine, [1], SamplingOptions(max_new_tokens=5)).result()


def test_a_request_that_fails_harms_no_other(start_engine, generator, caplog):
    engine = start_engine(max_batch=8)
    ids = generator.tokenizer.encode("the dog ran")
    options = SamplingOptions(max_new_tokens=40)
    alone = generator.generate([ids], options)[0]
    poison = next(id for id in range(270, 0, -1) if id not in alone.ids + ids)
    Poisoned.poison = poison
    good = [Listener(engine, ids, options) for _ in range(3)]
    bad = Listener(engine, [*ids, poison], options)
    good += [Listener(engine, ids, options) for _ in range(3)]
    with pytest.raises(RuntimeError, match="poison"):
        bad.result()
    assert [listener.result()[0] for listener in good] == [alone.text] * 6
    (logged,) = [record for record in caplog.records if record.message == "a request failed"]
    assert "poison" in str(logged.exc_info[1])


def test_one_that_fails_in_a_step_leaves_the_others_where_they_were(start_engine, generator):
    """The token at which the decoder fails is one that a single request generates itself."""
    options = SamplingOptions(max_new_tokens=40, temperature=3.0)
    seeds = [SamplingOptions(**{**vars(options), "seed": seed}) for seed in range(4)]
    ids = generator.tokenizer.encode("the dog ran")
    alone = [generator.generate([ids], option)[0] for option in seeds]
    others = {id for one in alone[1:] for id in one.ids}
    Poisoned.poison = next(id for id in alone[0].ids[3:-1] if id not in others and id not in ids)
    engine = start_engine()
    listeners = [Listener(engine, ids, option) for option in seeds]
    with pytest.raises(RuntimeError, match="poison"):
        listeners[0].result()
    for listener, expected in zip(listeners[1:], alone[1:]):
        assert listener.result()[0] == expected.text


def test_where_every_step_fails_requests_still_end(start_engine, generator):
    """Each is prefilled again for each token: slow, and right."""
    engine = start_engine()
    engine._decoder.broken = True
    ids, options = generator.tokenizer.encode("the dog"), SamplingOptions(max_new_tokens=6)
    listeners = [Listener(engine, ids, options) for _ in range(3)]
    expected = generator.generate([ids], options)[0].text
    assert [listener.result()[0] for listener in listeners] == [expected] * 3


def test_a_listener_that_raises_harms_nobody(start_engine):
    engine = start_engine()

    def deaf(event) -> None:
        raise RuntimeError("the event loop is closed")

    listener = Listener(engine, [1], SamplingOptions(max_new_tokens=400))
    for deadline in (FAR, 0):
        engine.submit(Request([1], SamplingOptions(), CONTEXT, deadline, deaf))
    assert len(listener.result()[1].ids) == 400
    eventually(lambda: not engine._live)


def test_a_defect_of_the_engine_ends_its_requests_and_not_the_engine(start_engine, monkeypatch):
    engine = start_engine()
    monkeypatch.setattr(engine, "_next_group", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Listener(engine, [1], SamplingOptions()).result()
    monkeypatch.undo()
    assert Listener(engine, [1], SamplingOptions(max_new_tokens=5)).result()


def test_closing_ends_every_request(start_engine):
    engine = start_engine(max_batch=1)
    listeners = [Listener(engine, [1], SamplingOptions(max_new_tokens=10**6)) for _ in range(3)]
    engine.close()
    for listener in listeners:
        with pytest.raises(Busy, match="shutting down"):
            listener.result()
    with pytest.raises(Busy):
        Listener(engine, [1], SamplingOptions())


def test_a_damaged_models_logits_end_the_request(start_engine, monkeypatch):
    engine = start_engine()
    monkeypatch.setattr(engine._entrance, "extend", lambda ids: np.full((1, 1, 280), np.nan))
    with pytest.raises(UserError, match="not finite"):
        Listener(engine, [1], SamplingOptions()).result()


def test_scores_are_the_models_own_distribution(start_engine, generator):
    ids = generator.tokenizer.encode("the cat")
    logits = generator.decoder.prefill(np.array([ids]), np.ones((1, len(ids)), np.int64))[0]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    options = SamplingOptions(max_new_tokens=1, temperature=0.5, top_k=3)
    listener = Listener(start_engine(), ids, options, top_candidates=4)
    events = [listener.events.get(timeout=20) for _ in range(2)]
    scored = events[0].scored[0]
    assert scored.chosen.id == events[1].ids[0]
    assert scored.chosen.logprob == pytest.approx(expected[scored.chosen.id], abs=1e-5)
    order = np.argsort(-expected)[:4]
    assert [candidate.id for candidate in scored.top] == order.tolist()
    assert [c.logprob for c in scored.top] == pytest.approx(expected[order], abs=1e-5)
    assert score(logits, 0, 10**6).top[-1].id == int(expected.argmin())


@pytest.mark.parametrize(("step", "tokens"), [(0.1, 45), (0.02, 8), (0.001, 8), (9.0, 256)])
def test_a_piece_takes_as_long_as_a_step(step, tokens, monkeypatch):
    now = 0.0
    monkeypatch.setattr(prefill.time, "monotonic", lambda: now)
    pace = Pace()
    for turn in range(40):
        with pace.stepping():
            now += step
        with pace.reading(pace.tokens):
            now += 0.01 + 0.002 * pace.tokens + 5.0 * (turn % 7 == 3)  # held up now and then
    assert pace.tokens == pytest.approx(tokens, abs=1)
