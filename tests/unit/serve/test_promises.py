"""What a request says is done or refused: nothing of it is cut, dropped or renamed in silence."""

import json

import httpx
import ollama
import openai
import pytest

from gptmill.generate.sampling import SamplingOptions
from gptmill.runtime.session import Generator
from tests.unit.serve.conftest import CONTEXT, HTTP, alone, eventually

GREEDY = {"temperature": 0, "num_predict": 12}
STYLED = "<|user|>\n{}\n<|assistant|>\n"


@pytest.fixture
def post(running):
    def post(path: str, **body) -> httpx.Response:
        return HTTP.post(running.address + path, json={"model": "instructions", **body})

    return post


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


NULLABLE = {
    "stream": False, "options": None, "format": None, "keep_alive": None, "think": None,
    "logprobs": None, "top_logprobs": None, "truncate": None, "shift": None,
}  # fmt: skip
OPTIONS = [
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed",
    "num_predict", "num_ctx", "stop", "mirostat", "num_thread", "presence_penalty",
]  # fmt: skip


def test_null_is_absent(post):
    """As in Go, whose decoder leaves a field as it is."""
    nothing = dict.fromkeys(("system", "raw", "context", "suffix", "template", "images"))
    body = {**NULLABLE, **nothing, "options": {**dict.fromkeys(OPTIONS), "num_predict": 2}}
    assert post("/api/generate", prompt="a", **body).json()["eval_count"] == 2
    turn = {**user("a"), "images": None, "tool_calls": None, "tool_name": None, "thinking": None}
    body["options"]["num_predict"] = 2
    chat = {key: body[key] for key in NULLABLE}
    assert post("/api/chat", messages=[turn], tools=None, **chat).json()["eval_count"] == 2
    assert post("/api/generate", **{**NULLABLE, "prompt": None}).json()["done_reason"] == "load"


def test_options_stand_beside_options_too(post, models):
    expected = alone(models, "instructions", "the cat").text
    beside = {"prompt": "the cat", "raw": True, "stream": False, "num_predict": 12}
    assert post("/api/generate", temperature=0, **beside).json()["response"] == expected
    both = post("/api/generate", temperature=0, options={"temperature": 0}, **beside)
    assert both.json()["response"] == expected
    torn = post("/api/generate", temperature=0, options={"temperature": 1}, **beside)
    assert torn.status_code == 400 and "temperature is 0, and 1 in options" in torn.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/generate", {"prompt": "a", "tempreture": 1}, "did you mean temperature?"),
        (
            "/api/chat",
            {"messages": [{**user("a"), "nmae": "x"}]},
            "messages.0: unknown option nmae",
        ),
        (
            "/api/chat",
            {"messages": [{**user("a"), "tool_calls": [1]}]},
            "tool_calls is not support",
        ),
        ("/api/generate", {"prompt": "a", "options": {"num_predict": 0}}, "options.num_predict: 0"),
        ("/api/generate", {"prompt": "a", "options": {"num_predict": -3}}, "options.num_predict"),
        ("/api/generate", {"prompt": "a", "options": {"repeat_penalty": -1}}, "repeat_penalty is"),
        (
            "/api/generate",
            {"prompt": "a", "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}},
            "repeat_last_n is not supported",
        ),
        ("/api/generate", {"prompt": "a", "keep_alive": "5 minutes"}, "keep_alive: '5 minutes'"),
        ("/api/generate", {"prompt": "a", "format": "xml"}, "format"),
        ("/api/generate", {"prompt": "a", "options": {"temperature": True}}, "is true, which is"),
        ("/v1/completions", {"prompt": [True, False]}, "prompt is [true, false], which is not"),
        ("/v1/completions", {"prompt": [[1], [True]]}, "prompt is [[1], [true]], which is not"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"1": True}}, "logit_bias is"),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}, "max_tokens is true, which is"),
        ("/api/show", {"color": 1}, "unknown option color"),
        ("/v1/completions", {"prompt": "a", "stream_options": {"x": 1}}, "stream_options: unknown"),
        (
            "/v1/chat/completions",
            {"messages": [{**user("a"), "name": "Meg"}]},
            "messages.0: name is not supported",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "messages.0.content",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
            "unknown option x",
        ),
        ("/v1/chat/completions", {"messages": [user("a")], "min_p": 2}, "min_p is 2"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_by_the_clients_own_names(path, body, message, post):
    answer = post(path, **body)
    assert answer.status_code == 400 and message in answer.text
    for ours in ("max_new_tokens", "repetition_penalty", "constrained", "str:"):
        assert ours not in answer.text


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_last_n": 64}, {"repeat_penalty": 0.0}, {"repeat_last_n": 0, "repeat_penalty": 2},
        {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}, {"typical_p": 1.0},
        {"stop": ""}, {"top_k": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_means_off_changes_nothing(options, post, models):
    body = {"prompt": "the cat", "raw": True, "stream": False, "options": {**GREEDY, **options}}
    expected = alone(models, "instructions", "the cat").text
    assert post("/api/generate", **body).json()["response"] == expected


def test_ollamas_penalties_are_those_of_openai(post, running):
    penalties = {"frequency_penalty": 1.5, "presence_penalty": 0.7}
    options = {**GREEDY, **penalties}
    body = {"prompt": "the cat", "raw": True, "stream": False}
    answer = post("/api/generate", options=options, **body).json()["response"]
    assert answer != post("/api/generate", options=GREEDY, **body).json()["response"]
    ask = {"prompt": "the cat", "temperature": 0, "max_tokens": 12, **penalties}
    assert post("/v1/completions", **ask).json()["choices"][0]["text"] == answer


LONG_CHAT = [user("the cat " * 60), assistant("b"), user("on")]


def test_a_prompt_beyond_the_context_is_an_error_over_v1(running):
    client = openai.OpenAI(base_url=f"{running.address}/v1", api_key="none", max_retries=0)
    ask = {"model": "instructions", "max_tokens": 4}
    for call in (
        lambda: client.chat.completions.create(messages=LONG_CHAT, **ask),
        lambda: client.completions.create(prompt="the cat " * 60, **ask),
        lambda: client.completions.create(prompt=[1] * CONTEXT, **ask),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            call()
        assert raised.value.code == "context_length_exceeded"
        assert f"maximum context length is {CONTEXT} tokens" in str(raised.value)
    fits = client.completions.create(prompt=[1] * (CONTEXT - 3), temperature=0, **ask)
    assert fits.usage.prompt_tokens == CONTEXT - 3
    assert (fits.usage.completion_tokens, fits.choices[0].finish_reason) == (3, "length")


def test_truncate_false_cuts_nothing(post):
    for path, body in (
        ("/api/chat", {"messages": LONG_CHAT}),
        ("/api/generate", {"prompt": "the cat " * 60}),
    ):
        cut = post(path, stream=False, options=GREEDY, **body)
        assert cut.status_code == 200 and cut.json()["prompt_eval_count"] <= CONTEXT
        whole = post(path, stream=False, options=GREEDY, truncate=False, **body)
        assert whole.status_code == 400
        assert "exceeds the context length: it has" in whole.json()["error"]
        assert str(CONTEXT) in whole.json()["error"]


def test_a_prefill_after_a_long_question_keeps_the_question(post, models):
    """Question and answer begun are more than the room of 84 tokens: all of both is read."""
    question = next(
        text
        for text in ("on " * count for count in range(99))
        if len(alone(models, "instructions", STYLED.format(text) + "the c").prompt_ids) > 86
    )
    messages = [user("first"), assistant("b"), user(question), assistant("the c")]
    answer = post("/api/chat", messages=messages, options=GREEDY, stream=False).json()
    expected = alone(models, "instructions", STYLED.format(question) + "the c")
    assert 84 < answer["prompt_eval_count"] == len(expected.prompt_ids) <= CONTEXT
    assert answer["message"]["content"] == expected.text


@pytest.mark.parametrize(
    "messages",
    [[assistant("")], [assistant("")] * 2, [{"role": "assistant", "content": None}]],
    ids=str,
)
def test_an_empty_turn_is_answered(messages, post, models):
    ask = {"messages": messages, "options": GREEDY, "stream": False}
    answer = post("/api/chat", **ask)
    assert answer.status_code == 200
    generator = Generator(models / "instructions", threads=1)
    start = generator.tokenizer.end_of_text
    expected = generator.generate([[start]], SamplingOptions(max_new_tokens=12))[0].text
    assert answer.json()["message"]["content"] == expected
    openai_body = {"messages": messages, "temperature": 0, "max_tokens": 12}
    choice = post("/v1/chat/completions", **openai_body).json()["choices"][0]
    assert choice["message"]["content"] == expected
    empty = post("/v1/completions", prompt="", temperature=0, max_tokens=12).json()
    assert empty["choices"][0]["text"] == expected


def opened(running) -> list[str]:
    return [card.name for card, _ in running.service.opened()]


def test_keep_alive_unloads(start):
    with start() as running:
        client = ollama.Client(running.address)
        ask = {"options": {"num_predict": 2}}
        client.generate("text", "a", **ask)
        assert client.ps().models[0].expires_at.year == 9999
        unloaded = client.generate("text", "", keep_alive=0)
        assert unloaded.done_reason == "unload"
        eventually(lambda: opened(running) == [])
        client.generate("text", "a", keep_alive=0, **ask)
        eventually(lambda: opened(running) == [])
        client.generate("text", "a", keep_alive="300ms", **ask)
        assert opened(running) == ["text"]
        eventually(lambda: opened(running) == [])
        client.generate("text", "a", keep_alive="1h", **ask)
        for ever in (-1, 4.5e16, "1000000h"):
            client.generate("text", "a", keep_alive=ever, **ask)
        assert client.ps().models[0].expires_at.year == 9999


def test_a_model_in_use_is_not_unloaded(start):
    with start(max_tokens=400) as running:
        body = {"model": "text", "prompt": "the cat", "options": {"temperature": 0}}
        with HTTP.stream("POST", f"{running.address}/api/generate", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            ollama.Client(running.address).generate("text", "", keep_alive=0)
            last = json.loads(list(lines)[-1])
        assert last["done_reason"] == "length" and last["eval_count"] == 400
        eventually(lambda: opened(running) == [])


def ending(models) -> tuple[str, int]:
    """A prompt and a seed whose answer ends by itself, and how many tokens it has."""
    for seed in range(400):
        ended = alone(models, "text", "the cat", temperature=2.0, seed=seed, max_new_tokens=30)
        if ended.stop_reason == "end_of_text" and len(ended.ids) > 1:
            return ended, seed
    raise AssertionError("no answer ends")


def test_log_probabilities_are_of_the_answers_tokens(running, models):
    ended, seed = ending(models)
    body = {"model": "text", "prompt": "the cat", "seed": seed, "temperature": 2.0}
    legacy = HTTP.post(
        f"{running.address}/v1/completions", json={**body, "logprobs": 1, "max_tokens": 30}
    ).json()["choices"][0]
    assert legacy["finish_reason"] == "stop"
    scored = legacy["logprobs"]
    assert len(scored["tokens"]) == len(ended.ids) == len(scored["text_offset"])
    options = {"temperature": 2.0, "seed": seed, "num_predict": 30, "top_k": 0, "top_p": 1.0}
    ask = {"model": "text", "prompt": "the cat", "options": options, "stream": False}
    address = f"{running.address}/api/generate"
    ours = HTTP.post(address, json={**ask, "logprobs": True}).json()
    assert len(ours["logprobs"]) == len(ended.ids)
    whole = HTTP.post(address, json={**ask, "logprobs": True, "end_logprob": True}).json()
    assert len(whole["logprobs"]) == len(ended.ids) + 1
    assert whole["logprobs"][-1]["token"] == "<|endoftext|>"


@pytest.mark.parametrize("stream", [False, True])
def test_text_offsets_count_the_characters_of_the_answer(stream, running, models):
    """Random bytes: many tokens are parts of characters, or no text at all."""
    client = openai.OpenAI(base_url=f"{running.address}/v1", api_key="none")
    tokenizer = Generator(models / "text", threads=1).tokenizer
    for seed in range(5):
        answer = client.completions.create(
            model="text", prompt="the", logprobs=0, max_tokens=40, temperature=3, seed=seed,
            stream=stream,
        )  # fmt: skip
        parts = [part.choices[0] for part in (answer if stream else [answer])]
        text = "".join(part.text for part in parts)
        offsets = [at for part in parts if part.logprobs for at in part.logprobs.text_offset]
        ids = alone(models, "text", "the", temperature=3, seed=seed, max_new_tokens=40).ids
        assert len(offsets) == len(ids) and offsets[0] == 0
        for at, offset in enumerate(offsets):
            before = tokenizer.decode_bytes(ids[:at])
            complete = before.decode("utf-8", errors="ignore")
            shown = tokenizer.decode(ids[:at])
            assert offset <= len(text)
            # Where the tokens before end with a character, the rest of the text starts there.
            if shown.encode() == before and complete == shown:
                assert text[:offset] == shown


def test_a_completion_has_sixteen_tokens_unless_it_says_otherwise(running):
    body = {"model": "text", "prompt": "the cat", "temperature": 0}
    answer = HTTP.post(f"{running.address}/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 16
