"""A real server on a free port of loopback, over tiny models with large random weights."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import pytest
import uvicorn

from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.generate.sampling import SamplingOptions
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.reading import Reading
from gptmill.runtime.session import Generator
from gptmill.serve.access import Access
from gptmill.serve.run import listen, server
from gptmill.serve.service import Limits, Service
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import save_model
from tests.support.onnx_folders import LABELS, TEXT, randomise

HTTP = httpx.Client(verify=False, trust_env=False)  # one, for its making takes a while
CONTEXT, LONG = 96, 1024
LOOPBACK = Access("127.0.0.1")
SIZES = {"layers": 2, "heads": 4, "width": 32}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """ONNX folders `text`, `instructions` (Phi-3's style), `long`, which is the latter with a
    context of 1,024, and `classifier`."""
    plain = tmp_path_factory.mktemp("models")
    root = plain / "onnx"
    tokenizer = train_byte_pairs([TEXT], 280)
    made = [("text", None, CONTEXT), ("instructions", "phi3", CONTEXT), ("long", "phi3", LONG)]
    for seed, (name, style, context) in enumerate(made):
        model = GPT2(GPT2Config(tokenizer.vocabulary_size, context, **SIZES)).eval()
        randomise(model, seed)
        save_model(plain / name, model, tokenizer, provenance={}, prompt_style=style)
        export_language_model(plain / name, root / name, opset=20)
    config = GPT2Config(tokenizer.vocabulary_size, CONTEXT, **SIZES)
    model = GPT2Classifier(config, len(LABELS)).eval()
    randomise(model)
    save_model(
        plain / "classifier", model, tokenizer, provenance={}, reading=Reading(tuple(LABELS))
    )
    export_classifier(plain / "classifier", root / "classifier", opset=20)
    return root


class Running:
    """A server that listens: its address, and the service behind."""

    def __init__(self, service: Service, access: Access = LOOPBACK) -> None:
        self.service = service
        self._listener = listen(access.host, 0)
        self.address = f"http://{access.host}:{self._listener.getsockname()[1]}"
        self._server: uvicorn.Server = server(service, access)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture(scope="session")
def start(models) -> Callable[..., Running]:
    """Starts a server with other limits, for the length of a `with` block."""

    @contextmanager
    def start(access: Access = LOOPBACK, **limits) -> Iterator[Running]:
        running = Running(Service(models, Limits(threads=1, **limits)), access)
        try:
            yield running
        finally:
            running.stop()

    return start


@pytest.fixture(scope="session")
def running(start) -> Iterator[Running]:
    """The server that most tests share."""
    with start() as running:
        yield running


@cache
def generator(folder: Path) -> Generator:
    return Generator(folder, threads=1)


def alone(models, name: str, prompt: str | list[int], **options):
    """What the model gives to one prompt, nobody beside it."""
    sampling = SamplingOptions(**{"max_new_tokens": 12, **options})
    return generator(models / name).generate([prompt], sampling)[0]


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)
