"""Model folders as GGUF, for llama.cpp and Ollama, with a Modelfile beside.

The names and metadata are those that llama.cpp reads for its architecture `gpt2`; the format is
the `gguf` package's, which llama.cpp's authors keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType

from gptmill.card import ModelCard
from gptmill.errors import UserError
from gptmill.files import atomic_file, read_json
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.prompt import format_prompt
from gptmill.tokenizer import (
    BytePairTokenizer,
    LibraryTokenizer,
    Tokenizer,
    load_tokenizer,
)
from gptmill.weights.folder import complete_parameters, load_language_model

DTYPES = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
Q8_0_BLOCK = 32  # values with a common scale; a row holds whole blocks
EPSILON = 1e-5
BLOCK_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}


def export_gguf(folder: Path, path: Path, dtype: str = "f16") -> Path:
    """Write a language model's folder as one GGUF file, and `<its name>.Modelfile` beside it.

    Args:
        dtype: of the matrices, `f32`, `f16` or `q8_0`; vectors and positions stay f32.

    Returns:
        The Modelfile, for `ollama create NAME -f MODELFILE`.

    Raises:
        UserError: not a GPT-2 folder, or one that llama.cpp's GPT-2 cannot compute.
    """
    if dtype not in DTYPES:
        raise UserError(f"no GGUF type '{dtype}': there are {', '.join(DTYPES)}")
    card, tokenizer = ModelCard.read(folder), load_tokenizer(folder)
    # Missing biases and positions are written as zeros, which compute the same.
    card.architecture.require(
        f"{folder}: llama.cpp's GPT-2",
        bias=(True, False),
        tied_head=(True, False),
        positions=("learned", "none"),
    )
    model = load_language_model(folder)
    vocabulary = _vocabulary(tokenizer, folder)
    _check_ids(tokenizer, card.stop_tokens, model.config.vocabulary_size, folder)
    with atomic_file(path) as beside:
        writer = gguf.GGUFWriter(beside, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
        _add_architecture(writer, model.config, folder.name)
        writer.add_file_type(DTYPES[dtype][1])
        _add_tokenizer(writer, tokenizer, vocabulary, model.config.vocabulary_size)
        _add_chat(writer, card.stop_tokens, folder)
        _add_tensors(writer, model, DTYPES[dtype][0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return _write_modelfile(card, path, tokenizer)


def _check_ids(tokenizer: Tokenizer, stops: Sequence[int], rows: int, folder: Path) -> None:
    size = tokenizer.vocabulary_size
    if size > rows:
        raise UserError(f"{folder} has {size} tokens and only {rows} rows for them: add rows")
    if unknown := [stop for stop in stops if stop >= size]:
        raise UserError(f"{folder}: its stop tokens {unknown} are none of its {size} tokens")


def _add_architecture(writer: gguf.GGUFWriter, config: GPT2Config, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(4 * config.width)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_layer_norm_eps(EPSILON)


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer: tokens in GPT-2's printable spelling, and merges."""

    tokens: dict[int, str]
    kinds: dict[int, TokenType]
    merges: list[str]


def _vocabulary(tokenizer: Tokenizer, folder: Path) -> Vocabulary:
    """Raises UserError for what llama.cpp's `gpt2` tokenizer would cut otherwise."""
    if isinstance(tokenizer, BytePairTokenizer):
        tokens = {id: token for token, id in tokenizer.vocabulary().items()}
        kinds = {tokenizer.end_of_text: TokenType.CONTROL}
        return Vocabulary(tokens, kinds, [" ".join(pair) for pair in tokenizer.merges])
    if not isinstance(tokenizer, LibraryTokenizer):
        raise UserError(f"{folder}: GGUF holds byte-pair tokenizers, not characters or words")
    if obstacle := _obstacle(tokenizer.json):
        raise UserError(
            f"{folder}: GGUF's GPT-2 tokenizer has byte pairs with GPT-2's own rules, and this "
            f"one has {obstacle}: its ids would be others"
        )
    kinds = {
        id: TokenType.CONTROL if special else TokenType.USER_DEFINED
        for id, special in tokenizer.special_tokens().items()
    }
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer.json["model"]["merges"]]
    return Vocabulary(tokenizer.tokens, kinds, merges)


def _obstacle(fast: dict[str, Any]) -> str | None:
    """What of a `tokenizer.json` is more than GPT-2's rules and added tokens."""
    model, rules = fast["model"], fast["pre_tokenizer"]
    if model["type"] != "BPE":
        return f"a {model['type']} model"
    if fast["normalizer"] is not None:
        return f"the normalizer {fast['normalizer']['type']}"
    if rules is None or rules["type"] != "ByteLevel" or not rules["use_regex"]:
        return f"the pre-tokenizer {rules and rules['type']}"
    if rules["add_prefix_space"]:
        return "a space put before every text (add_prefix_space)"
    for option in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"the option {option}"
    trimmed = [token["content"] for token in fast["added_tokens"] if _is_trimming(token)]
    return f"added tokens that take the space beside them, {trimmed}" if trimmed else None


def _is_trimming(token: dict[str, Any]) -> bool:
    return token["lstrip"] or token["rstrip"] or token["single_word"]


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocabulary: Vocabulary, rows: int
) -> None:
    """One token for each row of the embedding; a row without one is unused."""
    tokens = [vocabulary.tokens.get(id, f"[PAD{id}]") for id in range(rows)]
    kinds = [
        vocabulary.kinds.get(id, TokenType.NORMAL if id in vocabulary.tokens else TokenType.UNUSED)
        for id in range(rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.beginning_of_text)
    writer.add_add_bos_token(False)


def _add_chat(writer: gguf.GGUFWriter, stops: Sequence[int], folder: Path) -> None:
    """Chat template and stop tokens. GGUF names two: end of text and end of turn."""
    if stops:
        writer.add_eos_token_id(stops[0])
        writer.add_pad_token_id(stops[0])
    if len(stops) > 1:
        writer.add_eot_token_id(stops[1])
    path = folder / "tokenizer_config.json"
    template = read_json(path, dict).get("chat_template") if path.exists() else None
    if template:
        writer.add_chat_template(template)


def _add_tensors(writer: gguf.GGUFWriter, model: GPT2, kind: GGMLQuantizationType) -> None:
    for name, tensor in sorted(complete_parameters(model).items()):
        values = np.ascontiguousarray(tensor.detach().numpy())
        chosen = _tensor_kind(name, values.shape, kind)
        packed = gguf.quants.quantize(values, chosen)
        writer.add_tensor(_gguf_name(name), packed, raw_dtype=chosen)


def _tensor_kind(
    name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> GGMLQuantizationType:
    """llama.cpp adds positions and vectors in f32; rows that q8_0 cannot cut stay f16."""
    if len(shape) == 1 or name.startswith("transformer.wpe"):
        return GGMLQuantizationType.F32
    if kind == GGMLQuantizationType.Q8_0 and shape[-1] % Q8_0_BLOCK:
        return GGMLQuantizationType.F16
    return kind


def _gguf_name(name: str) -> str:
    """`transformer.h.3.mlp.c_fc.bias` is `blk.3.ffn_up.bias`."""
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{BLOCK_NAMES[part]}.{kind}"


def _write_modelfile(card: ModelCard, path: Path, tokenizer: Tokenizer) -> Path:
    """What `ollama create` reads: the file, the prompt around a message, and where to stop."""
    style = card.prompt_style
    prompt = "{{ .Prompt }}"
    if style is not None:
        around = format_prompt({"instruction": prompt, "input": ""}, style)
        prompt = f"{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{around}"
    end = tokenizer.decode([tokenizer.end_of_text])
    stops = [tokenizer.decode([stop]) for stop in card.stop_tokens] or [end]
    lines = [
        f"FROM ./{path.name}",
        f'TEMPLATE """{prompt}{{{{ .Response }}}}{end}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        f"PARAMETER num_ctx {card.architecture.context_length}",
    ]
    modelfile = path.with_suffix(".Modelfile")
    with atomic_file(modelfile) as beside:
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return modelfile
