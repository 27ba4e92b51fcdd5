"""Fixtures of small model folders and their exports."""

from tests.support.onnx_folders import (
    classifier,
    classifier_onnx,
    language_model,
    language_model_onnx,
    make_classifier,
    make_language_model,
    tokenizer,
)

__all__ = [
    "classifier",
    "classifier_onnx",
    "language_model",
    "language_model_onnx",
    "make_classifier",
    "make_language_model",
    "tokenizer",
]
