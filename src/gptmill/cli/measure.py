"""`gptmill perplexity`, `compare`: how good a model is, and what changed it."""

import argparse
from pathlib import Path

from gptmill.cli.command import add_command, add_processes, all_threads
from gptmill.errors import UserError


def add_perplexity(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "perplexity",
        perplexity,
        "Measure how well a model predicts a text, in units that compare across tokenizers. The "
        "method is the sliding window that the documentation of transformers describes.",
    )
    parser.add_argument("--model", type=Path, required=True, help="any GPT-2 folder")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file")
    parser.add_argument("--window", type=int, help="tokens in a window (the model's context)")
    parser.add_argument("--stride", type=int, help="tokens between windows (half the window)")
    parser.add_argument(
        "--bos", action=argparse.BooleanOptionalAction, default=False,
        help="put <|endoftext|> first, so that the first token is scored too",
    )  # fmt: skip
    add_processes(parser)


def perplexity(options: argparse.Namespace) -> None:
    """Print nats, bits and perplexity with window, stride, BOS and normalization stated."""
    import numpy as np

    from gptmill.data.text_files import read_text
    from gptmill.engine.runtime import open_runtime
    from gptmill.tasks.language_model import Likelihood, token_nats
    from gptmill.tokenizer import load_tokenizer
    from gptmill.weights.folder import load_language_model

    runtime = open_runtime(seed=0, threads=all_threads(), precision="float32")
    model = load_language_model(options.model).to(runtime.device)
    window, stride = _windows(options, model.config.context_length)
    tokenizer = load_tokenizer(options.model)
    text = read_text(options.text).replace("\r\n", "\n")
    ids = np.array([tokenizer.end_of_text] * options.bos + tokenizer.encode(text))
    if len(ids) < 2:
        raise UserError(f"{options.text} has {len(ids)} tokens, and nothing to predict")
    # A window of transformers is its inputs and their last target.
    nats = token_nats(model, ids, window - 1, stride, runtime)
    if not runtime.first:
        return
    result = Likelihood(nats.sum(), len(nats), len(text.encode()), len(text.split()))
    rows: dict[str, object] = {
        "tokens scored": result.tokens,
        "bytes": result.bytes,
        "words": result.words,
    }
    names = {"loss": "nats per token"}
    for name, value in result.metrics().items():
        rows[names.get(name, name.replace("_", " "))] = f"{value:.6g}"
    rows |= {"window": window, "stride": stride, "BOS": "yes" if options.bos else "no"}
    rows["normalization"] = "by tokens scored, UTF-8 bytes, words between white space"
    for name, shown in rows.items():
        print(f"{name:16} {shown}")


def _windows(options: argparse.Namespace, context: int) -> tuple[int, int]:
    """Window and stride in tokens, checked."""
    window = context if options.window is None else options.window
    if not 2 <= window <= context:
        raise UserError(f"--window {window} must be 2 to the model's context, {context}")
    stride = window // 2 if options.stride is None else options.stride
    if not 1 <= stride < window:
        raise UserError(f"--stride {stride} must be 1 to {window - 1}, less than the window")
    return window, stride


def add_compare(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "compare",
        compare,
        "Lay executions side by side: what differs in parameters, data and code, and every metric "
        "with its difference.",
    )
    parser.add_argument(
        "references",
        nargs="+",
        help="revisions, DVC experiments, MLflow executions (latest, latest~1), or 'workspace'",
    )
    parser.add_argument("--output", type=Path, help="write an HTML page as well")


def compare(options: argparse.Namespace) -> None:
    """Print the table, and write the page if asked."""
    from shutil import get_terminal_size

    from gptmill.compare.compare import compare, terminal_table, write_page

    comparison = compare(options.references)
    print(terminal_table(comparison, get_terminal_size((100, 24)).columns))
    if options.output:
        write_page(comparison, options.output)
        print(options.output)
