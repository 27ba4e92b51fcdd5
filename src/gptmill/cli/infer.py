"""`gptmill generate`, `chat`, `classify`: what the models answer."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gptmill.cli.command import add_command, all_threads
from gptmill.errors import UserError

if TYPE_CHECKING:
    from gptmill.generate.loop import Decoder
    from gptmill.generate.sampling import SamplingOptions
    from gptmill.tokenizer import Tokenizer

LANGUAGE_MODEL = Path("models/onnx/language_model")
INSTRUCTIONS = Path("models/onnx/instructions")
CLASSIFIER = Path("models/onnx/classifier")


def add_sampling(parser: argparse.ArgumentParser, temperature: float) -> None:
    from gptmill.sampling_options import declarations

    defaults = {"max_new_tokens": 128, "temperature": temperature}
    for option in declarations():
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=option.kind,
            default=defaults.get(option.name, option.default),
            help=option.help,
        )
    parser.add_argument("--stop", action="append", default=[], help="end at this text; repeatable")


def add_generate(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "generate",
        generate,
        "Continue a text, or answer an instruction. A folder with model.onnx runs in ONNX Runtime "
        "without PyTorch, any other GPT-2 folder in PyTorch.",
    )
    parser.add_argument("--model", type=Path, default=LANGUAGE_MODEL, help="model folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", default="", help="text to continue")
    source.add_argument(
        "--instruction", help="instruction to answer, in the prompt style of the model"
    )
    parser.add_argument("--input", default="", help="input that belongs to --instruction")
    parser.add_argument(
        "--task",
        type=Path,
        help="label --prompt: show it after examples, JSON lines of text and label",
    )
    parser.add_argument("--shots", type=int, default=4, help="examples of --task to show")
    add_sampling(parser, temperature=0.0)


def generate(options: argparse.Namespace) -> None:
    """Print the continuation as it comes."""
    from gptmill.prompt import format_prompt

    speaker = open_text_generator(options.model)
    if options.instruction is not None:
        entry = {"instruction": options.instruction, "input": options.input}
        speaker.stream(format_prompt(entry, speaker.style()), options)
    elif options.task is not None:
        _generate_label(speaker, options)
    else:
        print(options.prompt, end="", flush=True)
        speaker.stream(options.prompt, options)


def _generate_label(speaker: "TextGenerator", options: argparse.Namespace) -> None:
    """Print the examples, the text and what the model puts on the line of its label."""
    from gptmill.evaluate.fewshot import read_task, shown_prompt

    if not options.prompt or options.shots < 0:
        raise UserError("--task needs a text in --prompt, and --shots of at least 0")
    ids = shown_prompt(
        speaker.decoder,
        speaker.tokenizer,
        read_task(options.task),
        options.prompt,
        options.shots,
        options.seed,
    )
    print(speaker.tokenizer.decode(ids), end="", flush=True)
    options.stop.append("\n")
    speaker.stream(ids, options)


def add_chat(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "chat", chat, "Talk with an instruction model in the terminal.")
    parser.add_argument("--model", type=Path, default=INSTRUCTIONS, help="model folder")
    add_sampling(parser, temperature=0.0)


def chat(options: argparse.Namespace) -> None:
    """Answer each line; the conversation so far is the context, its oldest turns cut first."""
    from gptmill.serve.prompts import Message, conversation_ids

    speaker = open_text_generator(options.model)
    style, context = speaker.style(), speaker.decoder.context_length
    room = context - min(options.max_new_tokens, context // 4)
    print("Type a message; /reset starts over, Ctrl-D ends.", file=sys.stderr)
    conversation: list[Message] = []
    while True:
        try:
            message = input("> ").strip()
        except EOFError:
            print()
            return
        if message == "/reset":
            conversation = []
        elif message:
            conversation.append(Message("user", message))
            ids = conversation_ids(conversation, style, speaker.tokenizer, room)
            conversation.append(Message("assistant", speaker.stream(ids, options)))


def add_classify(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "classify", classify, "Label texts: from the command line, a file, or a pipe."
    )
    parser.add_argument("texts", nargs="*", help="texts; without any, lines of standard input")
    parser.add_argument("--model", type=Path, default=CLASSIFIER, help="ONNX classifier folder")
    parser.add_argument(
        "--file", type=Path, help="a table (CSV, TSV, JSON, JSON lines, Parquet) or lines of text"
    )
    parser.add_argument(
        "--column", default="", help="the table's column of texts; without, one of a usual name"
    )
    parser.add_argument("--output", type=Path, help="write the table with its labels here")


def classify(options: argparse.Namespace) -> None:
    """Print label, probability and text, a line each, or write a table with its labels."""
    from gptmill.cli.label import label_file, show
    from gptmill.data.text_files import decode, lines
    from gptmill.runtime.session import Classifier

    if options.file:
        label_file(Classifier(options.model), options.file, options.column, options.output)
        return
    if options.column or options.output:
        raise UserError("--column and --output go with --file")
    # Bytes, since text's line ends would be made one kind.
    texts = options.texts or lines(decode(sys.stdin.buffer.read(), origin="standard input")[0])
    empty = next((i for i, text in enumerate(texts, start=1) if not text.strip()), None)
    if not texts or empty:
        raise UserError(f"text {empty} is empty" if empty else "no text to classify")
    for text, result in zip(texts, Classifier(options.model).classify(texts)):
        show(result, text)


class TextGenerator(NamedTuple):
    """A language model ready to continue text, and how it wants to be asked (None: no style)."""

    decoder: "Decoder"
    tokenizer: "Tokenizer"
    prompt_style: str | None
    stop_tokens: tuple[int, ...]

    def stream(self, prompt: str | list[int], options: argparse.Namespace) -> str:
        """Print the continuation of the prompt as it comes; return it."""
        from gptmill.generate.loop import stream

        text = ""
        sampling = _sampling(options, self.stop_tokens)
        for piece in stream(self.decoder, self.tokenizer, prompt, sampling):
            print(piece, end="", flush=True)
            text += piece
        print()
        return text

    def style(self) -> str:
        """The prompt style; a `UserError` where the model has none."""
        if self.prompt_style is None:
            raise UserError(
                "this model was not trained on instructions: give it a text with "
                f"`gptmill generate --prompt`, or use --model {INSTRUCTIONS}"
            )
        return self.prompt_style


def open_text_generator(folder: Path) -> TextGenerator:
    """A model folder: in ONNX Runtime if it holds a graph, else in PyTorch."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: run `make repro`, or name a folder with --model")
    if (folder / "model.onnx").exists():
        from gptmill.runtime.session import Generator

        generator = Generator(folder)
        return TextGenerator(
            generator.decoder, generator.tokenizer, generator.prompt_style, generator.stop_tokens
        )
    from gptmill.card import ModelCard
    from gptmill.engine.runtime import open_runtime
    from gptmill.generate.torch_decoder import TorchDecoder
    from gptmill.tokenizer import load_tokenizer
    from gptmill.weights.folder import load_language_model

    card = ModelCard.read(folder)
    runtime = open_runtime(seed=0, threads=all_threads(), precision="float32")
    model = load_language_model(folder).to(runtime.device)
    return TextGenerator(
        TorchDecoder(model),
        load_tokenizer(folder),
        card.prompt_style,
        card.stop_tokens,
    )


def _sampling(options: argparse.Namespace, stop_tokens: tuple[int, ...]) -> "SamplingOptions":
    from gptmill.sampling_options import SamplingOptions, declarations

    numbers = {option.name: getattr(options, option.name) for option in declarations()}
    return SamplingOptions(**numbers, stop_tokens=stop_tokens, stop_strings=tuple(options.stop))
