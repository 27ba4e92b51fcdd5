"""What Ollama's clients are told about models."""

from datetime import UTC, datetime
from typing import Any

from gptmill.prompt import format_prompt
from gptmill.serve.catalogue import Card


def _details(card: Card) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": "gpt2",
        "families": ["gpt2"],
        "parameter_size": f"{card.parameters / 1e6:.1f}M",
        "quantization_level": card.precision,
    }


def listed(card: Card) -> dict[str, Any]:
    """A model in `/api/tags`."""
    return {
        "name": card.tagged,
        "model": card.tagged,
        "modified_at": card.modified.isoformat(),
        "size": card.bytes,
        "digest": card.digest,
        "details": _details(card),
        "capabilities": _capabilities(card),
    }


def running(card: Card, until: datetime | None) -> dict[str, Any]:
    """An open model in `/api/ps`; None stays while the server does."""
    expires = until or datetime(9999, 12, 31, tzinfo=UTC)
    more = {
        "expires_at": expires.isoformat(),
        "size_vram": 0,
        "context_length": card.context_length,
    }
    return {**listed(card), **more}


def shown(card: Card) -> dict[str, Any]:
    """`/api/show`."""
    template = "{{ .Prompt }}"
    if card.prompt_style is not None:
        around = format_prompt({"instruction": template, "input": ""}, card.prompt_style)
        template = f"{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{around}"
    architecture = card.model.architecture
    info = {
        "general.architecture": "gpt2",
        "general.parameter_count": card.parameters,
        "gpt2.context_length": card.context_length,
        "gpt2.embedding_length": architecture.width,
        "gpt2.block_count": architecture.layers,
        "gpt2.attention.head_count": architecture.heads,
        "gpt2.vocab_size": architecture.vocabulary_size,
    }
    return {
        "modelfile": f'# served by gptmill\nFROM {card.name}\nTEMPLATE """{template}"""\n',
        "parameters": f"num_ctx {card.context_length}",
        "template": template,
        "details": _details(card),
        "model_info": info,
        "capabilities": _capabilities(card),
        "modified_at": card.modified.isoformat(),
    }


def _capabilities(card: Card) -> list[str]:
    return ["classify"] if card.is_classifier else ["completion", "embedding"]
