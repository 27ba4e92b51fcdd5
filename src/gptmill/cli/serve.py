"""`gptmill serve`: the models over HTTP."""

import argparse
import math
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
        "PyTorch is not loaded. On loopback only, unless --host says otherwise; beyond it "
        "requests need an API key (GPTMILL_API_KEY, or --api-key-file).",
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of ONNX folders")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=11435, help="0 takes any that is free")
    parser.add_argument("--max-batch", type=int, default=16, help="requests of a model at once")
    parser.add_argument("--max-queue", type=int, default=128, help="requests that may wait: 503")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens of one answer")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of one request: 504")
    parser.add_argument("--threads", type=int, help="CPU threads of a model (every core)")
    parser.add_argument(
        "--prefix-cache",
        type=float,
        default=256,
        metavar="MIB",
        help="memory of each model for what it has read lately, which prompts that begin "
        "the same do not compute again; 0 keeps nothing",
    )
    parser.add_argument(
        "--drain", type=float, default=5, help="seconds for running answers when told to stop"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="info writes a line for each request",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="json: an object a line"
    )
    parser.add_argument("--api-key-file", type=Path, help="file of API keys, one a line")
    add_names(parser, "--allowed-hosts", "names it answers to, as models.example.com")
    add_names(parser, "--allowed-origins", "pages that may use it, as https://example.com")
    add_names(parser, "--trusted-proxies", "addresses whose X-Forwarded headers are believed")


def add_names(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    parser.add_argument(name, nargs="+", default=[], metavar="NAME", help=help)


def serve(options: argparse.Namespace) -> None:
    """Listen until interrupted."""
    try:
        from gptmill.serve.run import run
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'gptmill[serve]'") from None
    from gptmill.serve.access import Access, check_patterns, read_keys
    from gptmill.serve.logs import configure
    from gptmill.serve.service import Limits, Service

    configure(options.log_level, options.log_format)
    check_limits(options)
    hosts, origins = options.allowed_hosts, options.allowed_origins
    check_patterns(hosts, "--allowed-hosts", "models.example.com", origin=False)
    check_patterns(origins, "--allowed-origins", "https://example.com", origin=True)
    access = Access(
        host=options.host,
        keys=read_keys(options.api_key_file),
        allowed_hosts=tuple(hosts),
        allowed_origins=tuple(origins),
        trusted_proxies=tuple(options.trusted_proxies),
    )
    limits = Limits(
        max_batch=options.max_batch,
        max_queue=options.max_queue,
        max_tokens=options.max_tokens,
        timeout=options.timeout,
        threads=options.threads,
        drain=options.drain,
        prefix_cache=options.prefix_cache,
    )
    service = Service(options.models, limits)
    for reason in service.catalogue.skipped.values():
        print(f"left out: {reason}", file=sys.stderr)
    run(service, access, options.port)


def check_limits(options: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        UserError: one is out of its range.
    """
    for name in ("max_batch", "max_tokens", "timeout", "threads"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, and finite")
    if not options.max_queue >= 0:
        raise UserError("--max-queue must be 0 or more")
    for name in ("drain", "prefix_cache"):
        if not 0 <= getattr(options, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be 0 or more, and finite")
    if not 0 <= options.port < 2**16:
        raise UserError("--port must be from 0 (any that is free) to 65535")
