"""`gptmill serve`: the models over HTTP."""

import argparse
import sys
from pathlib import Path

from gptmill.cli.command import add_command
from gptmill.errors import UserError

MODELS = Path("models/onnx")


def add_serve(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "serve",
        serve,
        "Serve the models over HTTP: Ollama's protocol, OpenAI's, /classify and a page. "
        "PyTorch is not loaded. On loopback only, unless --host says otherwise.",
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of ONNX folders")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=11435, help="0 takes any that is free")
    parser.add_argument("--max-batch", type=int, default=16, help="requests of a model at once")
    parser.add_argument("--max-queue", type=int, default=128, help="requests that may wait: 503")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens of one answer")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one request: 504")
    parser.add_argument("--threads", type=int, help="CPU threads of a model (every core)")


def serve(options: argparse.Namespace) -> None:
    """Listen until interrupted."""
    try:
        from gptmill.serve.run import run
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'gptmill[serve]'") from None
    from gptmill.serve.service import Limits, Service

    for name in ("max_batch", "max_tokens", "timeout"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0")
    limits = Limits(
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        max_tokens=options.max_tokens,
        timeout=options.timeout,
        threads=options.threads,
    )
    service = Service(options.models, limits)
    for reason in service.catalogue.skipped.values():
        print(f"left out: {reason}", file=sys.stderr)
    run(service, options.host, options.port)
