"""OpenAI's completions beyond one answer to one text: echo, prompts' scores, many, n, best_of."""

import httpx
import numpy as np
import openai
import pytest

from gptmill.runtime.session import OnnxDecoder, open_session
from gptmill.tokenizer import load_tokenizer
from tests.unit.serve.conftest import CONTEXT, HTTP, alone

TEXT = "the cat sat on the mat"
GREEDY = {"max_tokens": 6, "temperature": 0}


@pytest.fixture
def client(running):
    with openai.OpenAI(base_url=f"{running.address}/v1", api_key="none") as client:
        yield client


@pytest.fixture
def complete(client):
    def complete(prompt=TEXT, **options):
        return client.completions.create(model="text", prompt=prompt, **options)

    return complete


@pytest.fixture(scope="module")
def tokenizer(models):
    return load_tokenizer(models / "text")


def expected_logprobs(models, ids: list[int]) -> list[float]:
    """From the model's logits after each beginning of a text, one beginning at a time."""
    decoder = OnnxDecoder(open_session(models / "text", 1), CONTEXT)
    found = []
    for end in range(1, len(ids)):
        logits = decoder.prefill(np.array([ids[:end]]), np.ones((1, end), np.int64))[0]
        logits = logits.astype(np.float64)
        found.append(float(logits[ids[end]] - np.log(np.exp(logits - logits.max()).sum())))
        found[-1] -= float(logits.max())
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("given", ["text", "ids"])
def test_the_scores_of_a_prompt(stream, given, complete, models, tokenizer):
    text = TEXT * 3  # longer than one piece of logits
    ids = tokenizer.encode(text)
    prompt = text if given == "text" else ids
    answer = complete(prompt, max_tokens=0, echo=True, logprobs=2, stream=stream)
    parts = [part.choices[0] for part in (answer if stream else [answer]) if part.choices]
    assert "".join(part.text for part in parts) == text
    assert parts[-1].finish_reason == "length"
    scored = parts[0].logprobs
    assert scored.token_logprobs[0] is None and scored.top_logprobs[0] is None
    expected = expected_logprobs(models, ids)
    assert scored.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert "".join(scored.tokens) == text and len(scored.tokens) == len(ids)
    assert [text[at:].startswith(t) for at, t in zip(scored.text_offset, scored.tokens)]
    assert scored.text_offset == np.cumsum([0, *map(len, scored.tokens[:-1])]).tolist()
    for top in scored.top_logprobs[1:]:
        assert len(top) >= 2 and max(top.values()) <= 0


def test_the_answer_follows_its_prompt(complete, models):
    answer = complete(echo=True, logprobs=1, **GREEDY)
    whole = alone(models, "text", TEXT, max_new_tokens=6)
    assert answer.choices[0].text == TEXT + whole.text
    logprobs = answer.choices[0].logprobs
    own = len(logprobs.tokens) - 6  # of the answer, which may end inside a character
    assert "".join(logprobs.tokens[:own]) == TEXT
    assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())  # greedy
    assert complete(echo=True, **GREEDY).choices[0].logprobs is None
    assert answer.usage.completion_tokens == 6


def test_nothing_is_generated_at_no_tokens(complete, tokenizer):
    answer = complete(max_tokens=0)
    assert answer.choices[0].text == "" and answer.usage.completion_tokens == 0
    full = tokenizer.encode(TEXT * 99)[:CONTEXT]
    assert complete(full, max_tokens=0).usage.prompt_tokens == CONTEXT
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        complete(full, max_tokens=1)


@pytest.mark.parametrize("kind", ["texts", "ids"])
def test_several_prompts(kind, complete, models, tokenizer):
    texts = ["the cat", "on the hill", "the cat"]
    prompts = texts if kind == "texts" else [tokenizer.encode(text) for text in texts]
    answer = complete(prompts, **GREEDY)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    expected = [alone(models, "text", text, max_new_tokens=6).text for text in texts]
    assert [choice.text for choice in answer.choices] == expected
    read = sum(len(tokenizer.encode(text)) for text in texts)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (read, 18)
    streamed = {}
    for part in complete(prompts, stream=True, **GREEDY):
        at = part.choices[0].index
        streamed[at] = streamed.get(at, "") + part.choices[0].text
    assert [streamed[at] for at in range(3)] == expected


def test_n_are_the_random_streams_of_one_seed(complete, client, models):
    hot = {"max_tokens": 8, "temperature": 3, "seed": 5}
    answer = complete(n=4, **hot)
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 4
    sampled = {"max_new_tokens": 8, "temperature": 3, "seed": 5}
    assert texts[0] == alone(models, "text", TEXT, **sampled).text
    assert texts == [choice.text for choice in complete(n=4, **hot).choices]
    ask = {"model": "instructions", "messages": [{"role": "user", "content": "a"}], **hot}
    chats = client.chat.completions.create(**ask, n=3).choices
    assert [one.index for one in chats] == [0, 1, 2]
    assert len({one.message.content for one in chats}) == 3


def test_what_is_the_same_is_prefilled_once(running, complete, monkeypatch):
    widths = []
    begin = OnnxDecoder.begin

    def counted(self, padding, held):
        widths.append(len(padding))
        begin(self, padding, held)

    monkeypatch.setattr(OnnxDecoder, "begin", counted)
    complete(n=8, max_tokens=2, temperature=2)
    assert widths == [1]


def test_the_best_of_several(complete):
    hot = {"max_tokens": 8, "temperature": 2, "seed": 1}
    every = complete(n=6, logprobs=0, **hot).choices
    means = [np.mean(choice.logprobs.token_logprobs) for choice in every]
    best = complete(n=2, best_of=6, **hot)
    order = np.argsort(means)[::-1][:2]
    assert [choice.text for choice in best.choices] == [every[at].text for at in order]
    assert best.choices[0].logprobs is None and best.usage.completion_tokens == 48


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n": 3, "best_of": 2}, "best_of is 2, less than n, 3"),
        ({"n": 65}, "n: "),
        ({"prompt": ["a"] * 10, "n": 7}, "64 answers a request at most"),
        ({"prompt": [[1, 10**6]]}, "token ids that this model has not"),
        ({"best_of": 2, "stream": True}, "best_of cannot be streamed"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(body, message, running):
    body = {"model": "text", "prompt": "a", **body}
    answer = HTTP.post(f"{running.address}/v1/completions", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_all_or_none_find_a_place(start):
    with start(max_batch=2, max_queue=2) as running:
        ask = {"model": "text", "prompt": "a", "max_tokens": 2}
        url = f"{running.address}/v1/completions"
        assert HTTP.post(url, json={**ask, "n": 5}).status_code == 503
        assert HTTP.post(url, json={**ask, "n": 4}).status_code == 200


def test_tokens_of_a_text_and_back(running, tokenizer):
    def post(path: str, **body) -> httpx.Response:
        return HTTP.post(running.address + path, json={"model": "text", **body})

    text = "the cat — 猫"
    ids = tokenizer.encode(text)
    for name in ("prompt", "content"):
        found = post("/tokenize", **{name: text}).json()
        assert found == {"tokens": ids, "count": len(ids), "max_model_len": CONTEXT}
    assert post("/detokenize", tokens=ids).json() == {"content": text, "prompt": text}
    assert post("/tokenize").status_code == 400
    assert post("/detokenize", tokens=[10**6]).status_code == 400
    assert "model is missing" in post("/tokenize", model="", prompt="a").text
    assert post("/tokenize", prompt="").json()["count"] == 0
