"""Ollama's protocol, through its own client."""

import json

import ollama
import pytest
from safetensors.numpy import load_file

from gptmill.files import sha256_tree
from gptmill.generate.sampling import SamplingOptions
from gptmill.prompt import format_prompt
from gptmill.runtime.session import Generator
from gptmill.serve.catalogue import Catalogue
from gptmill.tokenizer import load_tokenizer
from tests.unit.serve.conftest import CONTEXT, HTTP, alone

GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def client(running) -> ollama.Client:
    return ollama.Client(running.address)


@pytest.mark.parametrize("stream", [False, True])
def test_generate(stream, client, models):
    expected = alone(models, "text", "the cat")
    answer = client.generate("text", "the cat", options=GREEDY, stream=stream)
    parts = list(answer) if stream else [answer]
    last = parts[-1]
    assert "".join(part.response for part in parts) == expected.text
    assert len(parts) > 2 or not stream
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert last.done_reason == "length"
    assert last.eval_count == 12
    assert last.prompt_eval_count == len(expected.prompt_ids)
    assert last.context == expected.prompt_ids + expected.ids
    assert last.total_duration >= last.prompt_eval_duration + last.eval_duration > 0


@pytest.mark.parametrize("stream", [False, True])
def test_chat(stream, client, models):
    prompt = format_prompt({"instruction": "on", "input": ""}, "phi3")
    expected = alone(models, "instructions", prompt)
    messages = [{"role": "user", "content": "on"}]
    answer = client.chat("instructions", messages, options=GREEDY, stream=stream)
    parts = list(answer) if stream else [answer]
    assert "".join(part.message.content for part in parts) == expected.text
    assert {part.message.role for part in parts} == {"assistant"}
    assert parts[-1].done and parts[-1].prompt_eval_count == len(expected.prompt_ids)


def test_several_turns_and_a_system_message(client, models):
    turns = [("system", "go"), ("user", "a"), ("assistant", "b"), ("user", "on")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = client.chat("instructions", messages, options=GREEDY)
    tokenizer = load_tokenizer(models / "instructions")
    parts = ("go\n\n", "<|user|>\na\n<|assistant|>\n", "b", "<|user|>\non\n<|assistant|>\n")
    system, prompt, said, question = (tokenizer.encode(part) for part in parts)
    ids = [*system, *prompt, *said, tokenizer.end_of_text, *question]
    assert answer.message.content == alone(models, "instructions", ids).text
    assert answer.prompt_eval_count == len(ids)


def test_the_oldest_turns_go_first(client, models):
    """96 tokens of context, 12 of them for the answer; a turn has 28."""
    messages = [{"role": "user", "content": f"turn {number}"} for number in range(6)]
    answer = client.chat("instructions", messages, options=GREEDY)
    prompt = "".join(f"<|user|>\nturn {number}\n<|assistant|>\n" for number in (3, 4, 5))
    expected = alone(models, "instructions", prompt)
    assert len(expected.prompt_ids) == 84
    assert answer.message.content == expected.text
    assert answer.prompt_eval_count == len(expected.prompt_ids)


def test_an_answer_begun_is_continued(client, models):
    messages = [{"role": "user", "content": "on"}, {"role": "assistant", "content": "the c"}]
    answer = client.chat("instructions", messages, options=GREEDY)
    prompt = "<|user|>\non\n<|assistant|>\nthe c"
    assert answer.message.content == alone(models, "instructions", prompt).text


def test_generate_asks_an_instruction_model_in_its_style_unless_raw(client, models):
    ask = {"model": "instructions", "prompt": "on", "options": GREEDY}
    styled = "<|user|>\non\n<|assistant|>\n"
    assert client.generate(**ask).response == alone(models, "instructions", styled).text
    with_system = alone(models, "instructions", f"go\n\n{styled}").text
    assert client.generate(**ask, system="go").response == with_system
    raw = client.generate(**ask, raw=True)
    assert raw.response == alone(models, "instructions", "on").text
    assert raw.context is None


def test_a_context_goes_on(client, models):
    first = client.generate("text", "the cat", options=GREEDY)
    second = client.generate("text", " sat", options=GREEDY, context=first.context)
    expected = alone(models, "text", first.context + alone(models, "text", " sat").prompt_ids)
    assert second.response == expected.text


def test_stop_and_seed(client, models):
    whole = alone(models, "text", "the cat").text
    stop = whole[3:6]
    answer = client.generate("text", "the cat", options={**GREEDY, "stop": ["zzz", stop]})
    assert (answer.response, answer.done_reason) == (whole[: whole.index(stop)], "stop")
    sampled = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "num_predict": 12}
    ask = lambda seed: client.generate("text", "the cat", options={**sampled, **seed}).response  # noqa: E731
    assert ask({"seed": 5}) == alone(models, "text", "the cat", temperature=3.0, seed=5).text
    assert len({ask({}) for _ in range(3)}) == 3


def test_ollamas_defaults(client, models):
    answer = client.generate("text", "the cat", options={"seed": 3, "num_predict": 12})
    defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 3}
    assert answer.response == alone(models, "text", "the cat", **defaults).text


def test_a_smaller_window(client, generator_with_window):
    options = {"temperature": 0, "num_predict": 40, "num_ctx": 8}
    answer = client.generate("text", "the cat sat on the mat and the dog", options=options)
    assert answer.response == generator_with_window(8, 40)
    assert answer.prompt_eval_count == 8


@pytest.fixture
def generator_with_window(models):
    def generate(context: int, tokens: int) -> str:
        generator = Generator(models / "text", threads=1)
        generator.decoder.context_length = context
        options = SamplingOptions(max_new_tokens=tokens)
        return generator.generate(["the cat sat on the mat and the dog"], options)[0].text

    return generate


def test_no_sliding_where_it_is_not_wanted(running):
    body = {"model": "text", "prompt": "the cat", "stream": False, "options": {"temperature": 0}}
    body["options"]["stop"] = []
    for changes in ({"shift": False}, {"options": {"temperature": 0, "num_predict": -2}}):
        answer = HTTP.post(f"{running.address}/api/generate", json={**body, **changes}).json()
        assert answer["prompt_eval_count"] + answer["eval_count"] == CONTEXT
        assert answer["done_reason"] == "length"
    long = {**body, "prompt": "the cat " * 99, "truncate": False}
    answer = HTTP.post(f"{running.address}/api/generate", json=long)
    assert answer.status_code == 400 and f"the context {CONTEXT}" in answer.json()["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(stream, client):
    ask = {"options": GREEDY, "logprobs": True, "top_logprobs": 3, "stream": stream}
    answer = client.generate("text", "the cat", **ask)
    parts = list(answer) if stream else [answer]
    scored = [one for part in parts for one in part.logprobs or []]
    assert len(scored) == 12
    for one in scored:
        tops = [top.logprob for top in one.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, tops[0])  # greedy
    assert client.generate("text", "the cat", options=GREEDY, logprobs=True).logprobs
    assert client.generate("text", "the cat", options=GREEDY).logprobs is None


VERDICT = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "kind": {"enum": ["good", "bad"]},
    },
    "required": ["score", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 2.0])
def test_a_schema_is_kept(temperature, client):
    """Random weights would write no JSON of their own."""
    options = {"temperature": temperature, "num_predict": 60, "seed": 1, "top_k": 0, "top_p": 1.0}
    messages = [{"role": "user", "content": "on"}]
    answer = client.chat("instructions", messages, format=VERDICT, options=options)
    value = json.loads(answer.message.content)
    assert list(value) == ["score", "kind"]
    assert 0 <= value["score"] <= 100 and value["kind"] in ("good", "bad")
    assert answer.done_reason == "stop"


def test_json_is_an_object_however_few_tokens_it_may_have(client):
    answer = client.generate("text", "the", format="json", options=GREEDY)
    assert isinstance(json.loads(answer.response), dict) and answer.done_reason == "stop"
    assert not client.generate("text", "the", options=GREEDY).response.startswith("{")


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"$ref": "#/nowhere"}], ids=str)
def test_a_schema_that_cannot_be_kept_is_refused(schema, client):
    with pytest.raises(ollama.ResponseError, match="format is no JSON schema") as raised:
        client.generate("text", "the", format=schema, options=GREEDY)
    assert raised.value.status_code == 400


def test_what_is_there(client, models):
    listed = {model.model: model for model in client.list().models}
    assert list(listed) == [
        "classifier:latest",
        "instructions:latest",
        "long:latest",
        "text:latest",
    ]
    assert listed["text:latest"].digest == sha256_tree(models / "text")
    assert listed["text:latest"].size == (models / "text" / "model.onnx").stat().st_size
    assert listed["text:latest"].details.quantization_level == "F32"
    shown = client.show("instructions")
    assert shown.modelinfo["gpt2.context_length"] == CONTEXT
    assert "<|user|>\n{{ .Prompt }}\n<|assistant|>" in shown.template
    assert shown.capabilities == ["completion", "embedding"]
    assert client.show("classifier:latest").capabilities == ["classify"]
    client.generate("text", "")
    assert "text:latest" in [model.model for model in client.ps().models]


def test_the_parameters_are_counted(models):
    for card in Catalogue(models):
        stored = load_file(models.parent / card.name / "model.safetensors")
        assert card.parameters == sum(values.size for values in stored.values())


def test_an_empty_prompt_loads_the_model(client):
    answer = client.generate("text:latest", "")
    assert (answer.response, answer.done, answer.done_reason) == ("", True, "load")
    assert client.chat("instructions", []).done_reason == "load"


@pytest.mark.parametrize(
    ("method", "changes", "status", "message"),
    [
        ("generate", {"model": "absent"}, 404, "model 'absent' not found"),
        ("generate", {"model": "text:int3"}, 404, "model 'text:int3' not found"),
        ("generate", {"model": "classifier"}, 400, "is a classifier"),
        ("chat", {"model": "text"}, 400, "does not support chat"),
        ("generate", {"options": {"temprature": 1}}, 400, "did you mean temperature"),
        ("generate", {"options": {"mirostat": 2}}, 400, "mirostat is not supported"),
        ("generate", {"options": {"temperature": -1}}, 400, "temperature is -1"),
        ("generate", {"options": {"top_p": "much"}}, 400, "options.top_p"),
        ("generate", {"suffix": "end"}, 400, "does not support suffix"),
        ("generate", {"context": [10**6]}, 400, "context has ids"),
        ("generate", {"top_logprobs": 21}, 400, "top_logprobs"),
        ("chat", {"messages": [{"role": "robot", "content": ""}]}, 400, "messages.0.role"),
        ("chat", {"tools": [{"type": "function"}]}, 400, "does not support tools"),
    ],
    ids=str,
)
def test_what_is_refused_says_why(method, changes, status, message, running):
    own = {"prompt": "a"} if method == "generate" else {"messages": [{"role": "user"}]}
    body = {"model": "instructions", **own, **changes}
    answer = HTTP.post(f"{running.address}/api/{method}", json=body)
    assert answer.status_code == status and message in answer.json()["error"]


def test_options_that_change_no_text_are_taken(client, models):
    options = {**GREEDY, "num_thread": 4, "num_gpu": 0, "mirostat": 0, "presence_penalty": 0.0}
    answer = client.generate("text", "the cat", options=options, keep_alive="5m", think=False)
    assert answer.response == alone(models, "text", "the cat").text
