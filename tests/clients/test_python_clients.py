"""Python's clients: each asks what it is made for, and gets what the model answers alone."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from tests.clients.conftest import KEY, QUESTION, own_answer, proves

MESSAGES = [{"role": "user", "content": QUESTION}]


def person_type():
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    return Person


def whole(pieces: list[str]) -> str:
    assert len([piece for piece in pieces if piece]) > 1
    return "".join(pieces)


# ollama


@proves("ollama", "models", "ollama")
def test_ollama_models():
    import ollama

    names = [model.model for model in ollama.Client().list().models]
    assert "instructions:latest" in names and "classifier:latest" in names


@proves("ollama", "chat", "ollama")
def test_ollama_chat():
    import ollama

    answer = ollama.Client().chat("instructions", MESSAGES, options={"temperature": 0})
    assert answer.message.content == own_answer() and answer.done_reason == "stop"


@proves("ollama", "stream", "ollama")
def test_ollama_stream():
    import ollama

    async def pieces() -> list[str]:
        stream = await ollama.AsyncClient().chat(
            "instructions", MESSAGES, options={"temperature": 0}, stream=True
        )
        return [part.message.content async for part in stream]

    assert whole(asyncio.run(pieces())) == own_answer()


@proves("ollama", "completion", "ollama")
def test_ollama_completion():
    import ollama

    answer = ollama.Client().generate(
        "language_model", "One day", options={"temperature": 0, "num_predict": 16}
    )
    assert answer.eval_count == 16 and answer.response


@proves("ollama", "structured", "ollama")
def test_ollama_structured():
    import ollama

    model = person_type()
    answer = ollama.Client().chat("instructions", MESSAGES, format=model.model_json_schema())
    assert model.model_validate_json(answer.message.content)


@proves("ollama", "embeddings", "ollama")
def test_ollama_embeddings():
    import ollama

    one, other = ollama.Client().embed("language_model", ["Mia", "barn"]).embeddings
    assert len(one) == len(other) == 128 and one != other


@proves("ollama", "error", "ollama")
def test_ollama_error():
    import ollama

    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as raised:
        ollama.Client().chat("nobody", MESSAGES)
    assert raised.value.status_code == 404


# openai


@proves("openai", "models", "openai")
def test_openai_models():
    import openai

    names = [model.id for model in openai.OpenAI().models.list()]
    assert "instructions" in names and "classifier" not in names


@proves("openai", "chat", "openai")
def test_openai_chat():
    import openai

    answer = openai.OpenAI().chat.completions.create(
        model="instructions", messages=MESSAGES, temperature=0
    )
    assert answer.choices[0].message.content == own_answer()


@proves("openai", "stream", "openai")
def test_openai_stream():
    import openai

    async def pieces() -> list[str]:
        stream = await openai.AsyncOpenAI().chat.completions.create(
            model="instructions", messages=MESSAGES, temperature=0, stream=True
        )
        return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert whole(asyncio.run(pieces())) == own_answer()


@proves("openai", "completion", "openai")
def test_openai_completion():
    import openai

    answer = openai.OpenAI().completions.create(model="language_model", prompt="One day", seed=1)
    assert answer.usage.completion_tokens == 16 and answer.choices[0].text


@proves("openai", "structured", "openai")
def test_openai_structured():
    import openai

    answer = openai.OpenAI().chat.completions.parse(
        model="instructions", messages=MESSAGES, response_format=person_type()
    )
    assert answer.choices[0].message.parsed.name is not None


@proves("openai", "embeddings", "openai")
def test_openai_embeddings():
    import openai

    answer = openai.OpenAI().embeddings.create(model="language_model", input=["Mia", "barn"])
    assert [len(one.embedding) for one in answer.data] == [128, 128]


@proves("openai", "responses", "openai")
def test_openai_responses():
    import openai

    answer = openai.OpenAI().responses.create(model="instructions", input=QUESTION, temperature=0)
    assert answer.output_text == own_answer() and answer.status == "completed"


@proves("openai", "error", "openai")
def test_openai_error():
    import openai

    with pytest.raises(openai.NotFoundError) as raised:
        openai.OpenAI().chat.completions.create(model="nobody", messages=MESSAGES)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="another").models.list()


# LangChain


@pytest.fixture
def langchain_openai():
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="instructions", temperature=0)


@proves("LangChain, OpenAI", "chat", "langchain-openai")
def test_langchain_openai_chat(langchain_openai):
    assert langchain_openai.invoke(QUESTION).content == own_answer()


@proves("LangChain, OpenAI", "stream", "langchain-openai")
def test_langchain_openai_stream(langchain_openai):
    assert whole([chunk.content for chunk in langchain_openai.stream(QUESTION)]) == own_answer()


@proves("LangChain, OpenAI", "structured", "langchain-openai")
def test_langchain_openai_structured(langchain_openai):
    model = person_type()
    assert isinstance(langchain_openai.with_structured_output(model).invoke(QUESTION), model)


@proves("LangChain, OpenAI", "completion", "langchain-openai")
def test_langchain_openai_completion():
    from langchain_openai import OpenAI

    assert OpenAI(model="language_model", temperature=0, max_tokens=16).invoke("One day")


@proves("LangChain, OpenAI", "embeddings", "langchain-openai")
def test_langchain_openai_embeddings():
    from langchain_openai import OpenAIEmbeddings

    made = OpenAIEmbeddings(model="language_model", check_embedding_ctx_length=False)
    assert [len(one) for one in made.embed_documents(["Mia", "barn"])] == [128, 128]


@proves("LangChain, OpenAI", "responses", "langchain-openai")
def test_langchain_openai_responses():
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="instructions", temperature=0, use_responses_api=True)
    assert model.invoke(QUESTION).text == own_answer()
    assert whole([chunk.text for chunk in model.stream(QUESTION)]) == own_answer()


@pytest.fixture
def langchain_ollama():
    from langchain_ollama import ChatOllama

    return ChatOllama(model="instructions", temperature=0)


@proves("LangChain, Ollama", "chat", "langchain-ollama")
def test_langchain_ollama_chat(langchain_ollama):
    assert langchain_ollama.invoke(QUESTION).content == own_answer()


@proves("LangChain, Ollama", "stream", "langchain-ollama")
def test_langchain_ollama_stream(langchain_ollama):
    assert whole([chunk.content for chunk in langchain_ollama.stream(QUESTION)]) == own_answer()


@proves("LangChain, Ollama", "structured", "langchain-ollama")
def test_langchain_ollama_structured(langchain_ollama):
    model = person_type()
    assert isinstance(langchain_ollama.with_structured_output(model).invoke(QUESTION), model)


@proves("LangChain, Ollama", "completion", "langchain-ollama")
def test_langchain_ollama_completion():
    from langchain_ollama import OllamaLLM

    assert OllamaLLM(model="language_model", temperature=0, num_predict=16).invoke("One day")


@proves("LangChain, Ollama", "embeddings", "langchain-ollama")
def test_langchain_ollama_embeddings():
    from langchain_ollama import OllamaEmbeddings

    vectors = OllamaEmbeddings(model="language_model").embed_documents(["Mia", "barn"])
    assert [len(one) for one in vectors] == [128, 128]


# LlamaIndex


@pytest.fixture
def llama_index_openai(server):
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model="instructions", api_base=f"{server}/v1", api_key=KEY, is_chat_model=True,
        temperature=0, context_window=128, should_use_structured_outputs=True,
    )  # fmt: skip


@proves("LlamaIndex, OpenAI", "chat", "llama-index-llms-openai-like")
def test_llama_index_openai_chat(llama_index_openai):
    assert llama_index_openai.complete(QUESTION).text == own_answer()


@proves("LlamaIndex, OpenAI", "stream", "llama-index-llms-openai-like")
def test_llama_index_openai_stream(llama_index_openai):
    stream = llama_index_openai.stream_complete(QUESTION)
    assert whole([chunk.delta for chunk in stream]) == own_answer()


@pytest.fixture
def llama_index_ollama(server):
    from llama_index.llms.ollama import Ollama

    return Ollama(model="instructions", base_url=server, temperature=0, context_window=128)


@proves("LlamaIndex, Ollama", "chat", "llama-index-llms-ollama")
def test_llama_index_ollama_chat(llama_index_ollama):
    from llama_index.core.llms import ChatMessage

    answer = llama_index_ollama.chat([ChatMessage(role="user", content=QUESTION)])
    assert answer.message.content == own_answer()


@proves("LlamaIndex, Ollama", "stream", "llama-index-llms-ollama")
def test_llama_index_ollama_stream(llama_index_ollama):
    stream = llama_index_ollama.stream_complete(QUESTION)
    assert whole([chunk.delta for chunk in stream]) == own_answer()


@proves("LlamaIndex, Ollama", "structured", "llama-index-llms-ollama")
def test_llama_index_ollama_structured(llama_index_ollama):
    model = person_type()
    answer = llama_index_ollama.as_structured_llm(model).complete(QUESTION)
    assert isinstance(answer.raw, model)


# LiteLLM


@proves("LiteLLM", "chat", "litellm")
def test_litellm_chat(server):
    import litellm

    for model, base in (("openai", f"{server}/v1"), ("ollama_chat", server)):
        answer = litellm.completion(
            f"{model}/instructions", messages=MESSAGES, temperature=0, api_base=base, api_key=KEY
        )
        assert answer.choices[0].message.content == own_answer()


@proves("LiteLLM", "stream", "litellm")
def test_litellm_stream(server):
    import litellm

    for model, base in (("openai", f"{server}/v1"), ("ollama_chat", server)):
        stream = litellm.completion(
            f"{model}/instructions", messages=MESSAGES, temperature=0, api_base=base, api_key=KEY,
            stream=True,
        )  # fmt: skip
        assert whole([chunk.choices[0].delta.content or "" for chunk in stream]) == own_answer()


@proves("LiteLLM", "completion", "litellm")
def test_litellm_completion(server):
    import litellm

    answer = litellm.text_completion(
        model="text-completion-openai/language_model", prompt="One day", max_tokens=16,
        api_base=f"{server}/v1", api_key=KEY,
    )  # fmt: skip
    assert answer.choices[0].text


@proves("LiteLLM", "structured", "litellm")
def test_litellm_structured(server):
    import litellm

    model = person_type()
    for prefix, base in (("openai", f"{server}/v1"), ("ollama_chat", server)):
        answer = litellm.completion(
            f"{prefix}/instructions", messages=MESSAGES, response_format=model, api_base=base,
            api_key=KEY,
        )  # fmt: skip
        assert model.model_validate_json(answer.choices[0].message.content)


@proves("LiteLLM", "embeddings", "litellm")
def test_litellm_embeddings(server):
    import litellm

    for prefix, base in (("openai", f"{server}/v1"), ("ollama", server)):
        answer = litellm.embedding(
            f"{prefix}/language_model", input=["Mia", "barn"], api_base=base, api_key=KEY
        )
        assert [len(one["embedding"]) for one in answer.data] == [128, 128]


@proves("LiteLLM", "error", "litellm")
def test_litellm_error(server):
    import litellm

    with pytest.raises(litellm.NotFoundError):
        litellm.completion("openai/nobody", messages=MESSAGES, api_base=f"{server}/v1", api_key=KEY)


# instructor, pydantic-ai, DSPy, llm


@proves("instructor", "structured", "instructor")
def test_instructor_structured():
    import instructor
    import openai

    model = person_type()
    client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    answer = client.chat.completions.create(
        model="long", messages=MESSAGES, max_retries=0, response_model=model
    )
    assert isinstance(answer, model)


@pytest.fixture
def agent(server):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server}/v1", api_key=KEY)
    return lambda **more: Agent(
        OpenAIChatModel("instructions", provider=provider),
        model_settings={"temperature": 0},
        **more,
    )


@proves("pydantic-ai", "chat", "pydantic-ai-slim")
def test_pydantic_ai_chat(agent):
    assert agent().run_sync(QUESTION).output == own_answer()


@proves("pydantic-ai", "stream", "pydantic-ai-slim")
def test_pydantic_ai_stream(agent):
    async def pieces() -> list[str]:
        async with agent().run_stream(QUESTION) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    assert whole(asyncio.run(pieces())) == own_answer()


@proves("pydantic-ai", "structured", "pydantic-ai-slim")
def test_pydantic_ai_structured(agent):
    from pydantic_ai import NativeOutput

    model = person_type()
    assert isinstance(agent(output_type=NativeOutput(model)).run_sync(QUESTION).output, model)


@proves("pydantic-ai", "responses", "pydantic-ai-slim")
def test_pydantic_ai_responses(server):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server}/v1", api_key=KEY)
    model = OpenAIResponsesModel("instructions", provider=provider)
    agent = Agent(model, model_settings={"temperature": 0})
    assert agent.run_sync(QUESTION).output == own_answer()


@proves("DSPy", "chat", "dspy")
def test_dspy_chat(server):
    import dspy

    model = dspy.LM(
        "openai/instructions", api_base=f"{server}/v1", api_key=KEY, temperature=0, cache=False
    )
    assert model(QUESTION) == [own_answer()]


@proves("DSPy", "embeddings", "dspy")
def test_dspy_embeddings(server):
    import dspy

    embedder = dspy.Embedder(
        "openai/language_model", api_base=f"{server}/v1", api_key=KEY, caching=False
    )
    assert embedder(["Mia", "barn"]).shape == (2, 128)


def run_llm(tmp_path, *arguments: str) -> str:
    """`llm` with a home of its own, in which our server is a model by its own file of models."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def llm_home(server, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: instructions\n  api_base: {server}/v1\n"
        "  supports_schema: true\n  api_key_name: ours\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"ours": KEY}))
    return tmp_path


@proves("llm", "chat", "llm")
def test_llm_chat(llm_home):
    arguments = ["-m", "ours", "-o", "temperature", "0", "--no-stream", QUESTION]
    assert run_llm(llm_home, *arguments).strip() == own_answer()


@proves("llm", "stream", "llm")
def test_llm_stream(llm_home):
    assert (
        run_llm(llm_home, "-m", "ours", "-o", "temperature", "0", QUESTION).strip() == own_answer()
    )


@proves("llm", "structured", "llm")
def test_llm_structured(llm_home):
    value = json.loads(run_llm(llm_home, "-m", "ours", "--schema", "name, age int", QUESTION))
    assert set(value) == {"name", "age"}


@proves("llm, llm-ollama", "chat", "llm-ollama")
def test_llm_ollama_chat(tmp_path):
    arguments = ["-m", "instructions:latest", "-o", "temperature", "0", QUESTION]
    assert run_llm(tmp_path, *arguments).strip() == own_answer()


@proves("llm, llm-ollama", "models", "llm-ollama")
def test_llm_ollama_models(tmp_path):
    assert "instructions:latest" in run_llm(tmp_path, "ollama", "models")


@proves("llm, llm-ollama", "embeddings", "llm-ollama")
def test_llm_ollama_embeddings(tmp_path):
    assert run_llm(tmp_path, "embed", "-m", "language_model:latest", "-c", "Mia").startswith("[")
