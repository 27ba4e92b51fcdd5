"""Writes an ONNX folder of random weights and a context of 1,024 tokens to the path it is given."""

import sys
import tempfile
from pathlib import Path

from gptmill.export.onnx import export_language_model
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.tokenizer import train_byte_pairs
from gptmill.weights.folder import save_model
from tests.support.onnx_folders import TEXT, randomise


def main(output: Path) -> None:
    tokenizer = train_byte_pairs([TEXT], 280)
    model = GPT2(GPT2Config(tokenizer.vocabulary_size, 1024, layers=2, heads=4, width=32)).eval()
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        save_model(plain, model, tokenizer, provenance={}, prompt_style="phi3")
        export_language_model(plain, output, opset=20)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
