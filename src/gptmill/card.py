"""What a model folder says of itself, without PyTorch: everyone who opens a folder takes a card.

`config.json` and `generation_config.json` as Hugging Face's GPT-2 has them. What `transformers` has
no key for stands in `config.json` under `gptmill`: `bias`, `positions`, `prompt_style`, and how a
classifier reads (`gptmill.reading.Reading`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmill.errors import UserError
from gptmill.files import read_json, write_json
from gptmill.model.config import GPT2Config, from_json, to_json, without_nulls
from gptmill.prompt import chat_template
from gptmill.reading import Reading
from gptmill.tokenizer import Tokenizer, load_stop_tokens

GENERATE, CLASSIFY = "generate", "classify"
ARCHITECTURES = {GENERATE: "GPT2LMHeadModel", CLASSIFY: "GPT2ForSequenceClassification"}
READOUTS = ("last_token", "padded_last")
# `transformers` reads a classifier at the last token that is not this one. No token is -1, so
# that a classifier trained on its last position, padded or not, is read there.
NO_PADDING = -1


@dataclass(frozen=True)
class ModelCard:
    """A model, its weights excepted.

    Attributes:
        task: `generate` or `classify`.
        stop_tokens: ids that end a continuation.
        prompt_style: of an instruction model (`gptmill.prompt`); None for any other.
        reading: of a classifier: its labels, and how it takes a text; None for any other.
    """

    task: str
    architecture: GPT2Config
    stop_tokens: tuple[int, ...] = ()
    prompt_style: str | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if self.reading is not None and self.reading.readout not in READOUTS:
            raise ValueError(f"readout {self.reading.readout!r} is none of {READOUTS}")

    @classmethod
    def read(cls, folder: Path) -> "ModelCard":
        """The card of a folder, ours or another's.

        Raises:
            UserError: no config, or of a model that is not GPT-2 as we compute it.
        """
        path = folder / "config.json"
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist")
        values = without_nulls(read_json(path), path)
        classifies = ARCHITECTURES[CLASSIFY] in _names(values.get("architectures", []), path)
        ours = values.get("gptmill", {})
        return cls(
            task=CLASSIFY if classifies else GENERATE,
            architecture=from_json(values, str(path)),
            stop_tokens=tuple(load_stop_tokens(folder, values)),
            prompt_style=ours.get("prompt_style"),
            reading=Reading.from_config(_labels(values, path), ours) if classifies else None,
        )

    def write(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Write both configs, and complete `tokenizer_config.json`, which must be there."""
        write_json(folder / "config.json", self._config(tokenizer))
        if self.task == GENERATE:
            write_json(folder / "generation_config.json", self._special_tokens(tokenizer))
        self._complete_tokenizer_config(folder / "tokenizer_config.json")

    def classifier(self, folder: Path) -> tuple[GPT2Config, Reading]:
        """Architecture and reading; a `UserError` where the folder's model does not classify."""
        self.require(CLASSIFY, folder)
        assert self.reading is not None
        return self.architecture, self.reading

    def require(self, task: str, folder: Path) -> "ModelCard":
        """This card; a `UserError` where the folder's model has another task."""
        if self.task != task:
            raise UserError(
                f"{folder} is a classifier, not a language model"
                if task == GENERATE
                else f"{folder} is not a classifier but a language model"
            )
        return self

    def _config(self, tokenizer: Tokenizer) -> dict[str, Any]:
        config = {
            "architectures": [ARCHITECTURES[self.task]],
            **to_json(self.architecture),
            **self._special_tokens(tokenizer),
        }
        if self.reading is not None:
            config |= _classifier_keys(self.reading)
            config["gptmill"] |= {k: v for k, v in vars(self.reading).items() if k != "labels"}
        elif self.prompt_style is not None:
            config["gptmill"]["prompt_style"] = self.prompt_style
        return config

    def _special_tokens(self, tokenizer: Tokenizer) -> dict[str, Any]:
        stops = list(self.stop_tokens)
        return {
            "bos_token_id": tokenizer.beginning_of_text,
            "eos_token_id": stops[0] if len(stops) == 1 else stops,
            "pad_token_id": tokenizer.padding,
        }

    def _complete_tokenizer_config(self, path: Path) -> None:
        """GPT-2 has no padding token; end-of-text serves, as the book does it."""
        values = read_json(path)
        values |= {
            "pad_token": values.get("pad_token", values["eos_token"]),
            "model_max_length": self.architecture.context_length,
        }
        if self.prompt_style is not None:
            values["chat_template"] = chat_template(self.prompt_style)
        write_json(path, values)


def _classifier_keys(reading: Reading) -> dict[str, Any]:
    keys = {
        "id2label": {str(index): name for index, name in enumerate(reading.labels)},
        "label2id": {name: index for index, name in enumerate(reading.labels)},
        "problem_type": "single_label_classification",
    }
    return keys if reading.readout == "last_token" else keys | {"pad_token_id": NO_PADDING}


def _names(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list):
        raise UserError(f"{path}: architectures is {value!r}, not a list of names")
    return value


def _labels(values: Mapping[str, Any], path: Path) -> list[str]:
    """Class names in the order of the logits. Hugging Face leaves two out of its configs."""
    names = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    keys = [str(index) for index in range(len(names))]
    if not isinstance(names, dict) or sorted(names) != sorted(keys):
        raise UserError(f"{path}: id2label does not name 0 to K - 1: {names}")
    return [names[key] for key in keys]
