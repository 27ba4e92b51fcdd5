"""GPT-2's architecture, described once and without PyTorch: sizes, counts, Hugging Face's keys.

What plain GPT-2 cannot say (no biases, no positions) stands in `config.json` under `gptmill`; the
weights there then hold zeros, so that `transformers` computes the same logits without knowing it.
"""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from gptmill.errors import UserError

ACTIVATIONS = ("gelu_new", "gelu", "relu")  # gelu_new: the tanh approximation, GPT-2's own


@dataclass(frozen=True)
class GPT2Config:
    """The architecture. `width` is divided among `heads`; `context_length` is in tokens.

    Fields without a default are sizes; those with one are options, and the default is GPT-2's.
    """

    vocabulary_size: int
    context_length: int
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    bias: bool = True
    activation: str = "gelu_new"
    tied_head: bool = True
    positions: str = "learned"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {sorted(ACTIVATIONS)}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def require(self, writer: str, **known: Collection[Any]) -> None:
        """Refuse to write a model in a format that cannot say how it computes.

        Args:
            writer: the format, for the message.
            known: the values that it can express of an option; of an option that is not named,
                GPT-2's own. So an option that is new here is refused until a format knows it.

        Raises:
            UserError: an option has another value.
        """
        for field in fields(self):
            if field.default is MISSING or field.name == "dropout":  # of training alone
                continue
            value = getattr(self, field.name)
            if value not in known.get(field.name, (field.default,)):
                raise UserError(f"{writer} cannot express {field.name} {value!r}")

    def count_parameters(self, labels: int | None = None) -> int:
        """Parameters of the language model, or of a classifier of so many labels; a tied matrix
        counts once."""
        matrices = 12 * self.width**2  # attention's 3 + 1, the two of the feed-forward 4 each
        norms, biases = 2 * self.width, (3 + 1 + 4 + 1 + 2) * self.width
        total = self.vocabulary_size * self.width
        total += self.layers * (matrices + norms + self.bias * biases)
        total += (1 + self.bias) * self.width
        total += self.context_length * self.width if self.positions == "learned" else 0
        if labels is not None:
            return total + labels * self.width
        return total + (0 if self.tied_head else self.vocabulary_size * self.width)


# OpenAI's four: layers, heads, width. Vocabulary 50,257 and context 1,024 throughout.
GPT2_SIZES = {
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}


def gpt2_config(size: str) -> GPT2Config:
    """The configuration of an OpenAI size, `124M` to `1558M`."""
    layers, heads, width = GPT2_SIZES[size]
    return GPT2Config(50257, 1024, layers, heads, width, dropout=0.1)


def flops_per_token(config: GPT2Config, tokens: int) -> int:
    """Floating-point operations of one training token in a sequence of `tokens`: six per weight
    in a matrix product plus attention's 12·layers·width·tokens (PaLM, Chowdhery et al. 2022,
    appendix B, without the causal halving)."""
    block = 12 * config.width**2
    weights = config.layers * block + config.vocabulary_size * config.width
    return 6 * weights + 12 * config.layers * config.width * tokens


LARGEST_SIZE = 2**24  # of a vocabulary, a context or a width: more is a damaged file
# Other names for the tanh approximation that GPT-2 was trained with.
ACTIVATION_NAMES = {name: name for name in ACTIVATIONS} | {
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
}
# What we compute. A config that asks for something else would load and give other logits.
FIXED = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
# Hugging Face's defaults for the keys we read: a config may leave them out.
DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "resid_pdrop": 0.1,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
}


def to_json(config: GPT2Config) -> dict[str, Any]:
    """The architecture as Hugging Face's GPT-2 writes it, with our own section at the end.

    Raises:
        UserError: an option for which neither has a key.
    """
    config.require(
        "Hugging Face's GPT-2 layout",
        bias=(True, False),
        activation=ACTIVATIONS,
        tied_head=(True, False),
        positions=("learned", "none"),
    )
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocabulary_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None,
        "activation_function": config.activation,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tied_head,
        "use_cache": True,
        "dtype": "float32",
        "gptmill": {"bias": config.bias, "positions": config.positions},
    }


def from_json(values: Mapping[str, Any], origin: str) -> GPT2Config:
    """The architecture that a `config.json` describes; `origin` names it in errors.

    Hugging Face has three dropout rates and we have one: the residual's stands for all.

    Raises:
        UserError: another model family, an option we do not compute, or a value out of range.
    """
    values = without_nulls(values, origin)
    for key, value in FIXED.items():
        found = values.get(key, value if key != "model_type" else None)
        if found != value:
            raise UserError(f"{origin}: {key} is {found!r}, and only {value!r} can be loaded")
    values = {**DEFAULTS, **values}
    activation = values["activation_function"]
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise UserError(f"{origin}: activation_function {activation!r} is none of {known}")
    ours = {"bias": True, "positions": "learned"} | values.get("gptmill", {})
    if not isinstance(ours["bias"], bool) or ours["positions"] not in ("learned", "none"):
        raise UserError(f"{origin}: bias is true or false, positions 'learned' or 'none': {ours}")
    try:
        if values.get("n_inner", 4 * checked_size(values, "n_embd")) != 4 * values["n_embd"]:
            raise ValueError(f"n_inner is {values['n_inner']}, not 4 times n_embd")
        return GPT2Config(
            vocabulary_size=checked_size(values, "vocab_size"),
            context_length=checked_size(values, "n_positions"),
            layers=checked_size(values, "n_layer"),
            heads=checked_size(values, "n_head"),
            width=checked_size(values, "n_embd"),
            dropout=_rate(values, "resid_pdrop"),
            bias=ours["bias"],
            activation=ACTIVATION_NAMES[activation],
            tied_head=_truth(values, "tie_word_embeddings"),
            positions=ours["positions"],
        )
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from None


def without_nulls(values: Any, origin: object) -> dict[str, Any]:
    """A `config.json` without the keys that it names and gives no value: null is the default.

    Raises:
        UserError: it or its section `gptmill` is not an object.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} is not a JSON object")
    values = {key: value for key, value in values.items() if value is not None}
    if not isinstance(values.get("gptmill", {}), dict):
        raise UserError(f"{origin}: gptmill is {values['gptmill']!r}, not an object")
    return values


def _rate(values: Mapping[str, Any], key: str) -> float:
    if type(values[key]) not in (int, float) or not 0 <= values[key] < 1:
        raise ValueError(f"{key} is {values[key]!r}, not a rate from 0 to 1")
    return values[key]


def _truth(values: Mapping[str, Any], key: str) -> bool:
    if not isinstance(values[key], bool):
        raise ValueError(f"{key} is {values[key]!r}, neither true nor false")
    return values[key]


def checked_size(values: Mapping[str, Any], key: str) -> int:
    """A file's value that has to be a size; a `ValueError` if it is not."""
    if type(values[key]) is not int or not 1 <= values[key] <= LARGEST_SIZE:
        raise ValueError(f"{key} is {values[key]!r}, not an integer from 1 to {LARGEST_SIZE:,}")
    return values[key]
