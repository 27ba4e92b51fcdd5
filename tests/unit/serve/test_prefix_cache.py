"""A prompt that begins like an earlier one, or like one that runs, computes only its rest, and gets
the answer that it gets without the cache."""

import itertools
import queue

import numpy as np
import pytest

from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Generator, OnnxDecoder, open_session
from gptmill.serve.engine import Engine
from gptmill.serve.metrics import Meter, Metrics
from gptmill.serve.prefix_cache import BLOCK_TOKENS, PrefixCache
from gptmill.serve.request import Finished, Request
from tests.unit.serve.conftest import HTTP, LONG

FAR = 1e9  # seconds: no deadline
PLENTY = 2**26


class Counting(OnnxDecoder):
    """Counts the tokens that are computed."""

    computed = 0

    def sibling(self) -> "Counting":
        return Counting(self._session, self.context_length)

    def _run(self, ids: np.ndarray, positions: np.ndarray, *, every: bool) -> np.ndarray:
        type(self).computed += ids.size
        return super()._run(ids, positions, every=every)


@pytest.fixture(scope="module")
def generator(models):
    return Generator(models / "long", threads=1)


@pytest.fixture
def start_engine(models, generator):
    engines = []

    def start(prefix_bytes=PLENTY) -> Engine:
        Counting.computed = 0
        decoder = Counting(open_session(models / "long", 1), LONG)
        engine = Engine(
            decoder, generator.tokenizer, Meter(Metrics(), "long"),
            max_batch=8, max_queue=100, prefix_bytes=prefix_bytes,
        )  # fmt: skip
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


def ask(engine, prompts, **options):
    """The answers' ids and log-probabilities to prompts that come together."""
    sampling = SamplingOptions(**{"max_new_tokens": 12, **options})
    heard = [queue.Queue() for _ in prompts]
    engine.submit(
        *(
            Request(ids, sampling, LONG, FAR, events.put, top_candidates=1, score_end=True)
            for ids, events in zip(prompts, heard)
        )
    )
    return [_answer(events) for events in heard]


def _answer(events):
    logprobs = []
    while not isinstance(event := events.get(timeout=20), Finished):
        logprobs += [scored.chosen.logprob for scored in event.scored]
    return event.ids, logprobs


def ids_of(seed, tokens):
    return np.random.default_rng(seed).integers(1, 270, tokens).tolist()


def test_answers_are_the_same_with_and_without(start_engine):
    base, other = ids_of(0, 150), ids_of(1, 70)
    rounds = [
        [base],
        [base],  # all of it is known
        [base[:100] + other, base[:40], other],
        [base + other[:n] for n in (1, 15, 16, 17, 40)],
    ]
    without, within = start_engine(0), start_engine()
    for prompts in rounds:
        for plain, cached in zip(ask(without, prompts), ask(within, prompts)):
            assert cached[0] == plain[0]
            assert cached[1] == pytest.approx(plain[1], abs=1e-4)


def test_only_the_rest_is_computed(start_engine):
    base = ids_of(0, 150)
    engine = start_engine()
    ask(engine, [base], max_new_tokens=1)
    assert Counting.computed == 150
    ask(engine, [base + [5] * 10], max_new_tokens=1)
    assert Counting.computed == 150 + 160 - 144  # whole blocks are known
    ask(engine, [[7, *base]], max_new_tokens=1)  # the same tokens, elsewhere
    assert Counting.computed == 166 + 151


def test_what_was_answered_is_known_too(start_engine):
    engine = start_engine()
    prompt = ids_of(0, 40)
    [(answer, _)] = ask(engine, [prompt], max_new_tokens=60)
    before = Counting.computed
    turn = prompt + answer + [3, 4]
    ask(engine, [turn], max_new_tokens=1)
    known = (len(prompt) + len(answer) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert known >= 96 and Counting.computed - before == len(turn) - known


def test_what_requests_have_in_common_is_read_once(start_engine):
    system = ids_of(0, 160)
    engine = start_engine()
    prompts = [system + ids_of(seed, 10) for seed in range(1, 7)]
    ask(engine, prompts, max_new_tokens=1)
    assert Counting.computed == 170 + 5 * 10
    plain = start_engine(0)
    ask(plain, prompts, max_new_tokens=1)
    assert Counting.computed == 6 * 170


def test_a_live_request_lends_its_prompt(start_engine):
    engine = start_engine()
    base, events = ids_of(0, 150), queue.Queue()
    endless = SamplingOptions(max_new_tokens=10**6, stop_tokens=())
    first = Request(base, endless, LONG, FAR, events.put)
    engine.submit(first)
    events.get(timeout=20)  # it runs
    [(answer, _)] = ask(engine, [[*base, 5]], max_new_tokens=2)
    assert engine._meter._reused._value.get() == 144
    first.canceled = True
    assert answer == ask(start_engine(0), [[*base, 5]], max_new_tokens=2)[0][0]


def test_the_bound_holds_and_the_longest_unused_goes_first():
    block = np.zeros((2, 2, BLOCK_TOKENS, 4), np.float32)
    cache = PrefixCache(4 * block.nbytes)

    def tokens(seed):
        return [seed] * BLOCK_TOKENS

    read = []

    def reader(start, stop):
        read.append((start, stop))
        return block.copy()

    cache.store(tokens(1) + tokens(2), reader)
    cache.store(tokens(1) + tokens(3) + [9], reader)
    assert read == [(0, 16), (16, 32), (16, 32)]  # the first block is there
    cache.store(tokens(4), reader)
    assert cache.bytes == 4 * block.nbytes
    assert len(cache.find(tokens(1) + tokens(2))) == 2
    cache.store(tokens(5), reader)  # 1-3 was not used for longest
    assert cache.bytes == 4 * block.nbytes
    assert [len(cache.find(tokens(1) + tokens(n))) for n in (2, 3)] == [2, 1]
    cache.store([n for seed in range(10, 20) for n in tokens(seed)], reader)
    assert cache.bytes == 4 * block.nbytes
    assert len(cache.find([n for seed in range(10, 20) for n in tokens(seed)])) == 4


def test_a_failed_request_leaves_nothing(start_engine, monkeypatch):
    engine = start_engine()
    extend = engine._entrance.extend
    monkeypatch.setattr(engine._entrance, "extend", lambda ids: extend(ids) * np.nan)
    events: queue.Queue = queue.Queue()
    engine.submit(Request(ids_of(0, 60), SamplingOptions(), LONG, FAR, events.put))
    assert isinstance(events.get(timeout=20), Exception)
    assert engine._prefixes.bytes == 0


def counters(address):
    lines = HTTP.get(f"{address}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if 'model="long"' in line]
    names = {
        "hits": 'prefix_cache_requests_total{model="long",result="hit"}',
        "misses": 'prefix_cache_requests_total{model="long",result="miss"}',
        "reused": 'tokens_total{kind="reused",model="long"}',
        "bytes": 'prefix_cache_bytes{model="long"}',
    }
    return {
        key: sum(float(value) for name, value in pairs if name == f"gptmill_{text}")
        for key, text in names.items()
    }


def usage_of(answer):
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {"prompt": usage["prompt_tokens"], "cached": cached}


def converse(address, turns):
    """A chat of several turns; its answers, and what the metrics said after each."""
    messages, answers, seen = [], [], []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"the cat and the dog, {turn}"})
        body = {"model": "long", "messages": messages, "temperature": 0, "max_tokens": 24}
        answer = HTTP.post(f"{address}/v1/chat/completions", json=body).json()
        answers.append(answer["choices"][0]["message"]["content"])
        messages.append({"role": "assistant", "content": answers[-1]})
        seen.append({**counters(address), **usage_of(answer)})
    return answers, seen


def test_a_chat_reuses_its_history(start):
    with start(prefix_cache=0) as without:
        plain, seen = converse(without.address, 4)
        assert [turn["hits"] for turn in seen] == [0] * 4 and seen[-1]["bytes"] == 0
    with start() as within:
        answers, seen = converse(within.address, 4)
    assert answers == plain
    assert [turn["hits"] for turn in seen] == [0, 1, 2, 3]
    assert [turn["misses"] for turn in seen] == [1, 1, 1, 1]
    for before, turn in itertools.pairwise(seen):
        assert turn["cached"] == turn["reused"] - before["reused"]
        assert turn["cached"] >= before["prompt"] - BLOCK_TOKENS
        assert turn["bytes"] > before["bytes"]
