"""The tokenizer a corpus is encoded with: OpenAI's, or one trained on its training split."""

from pathlib import Path
from tempfile import TemporaryDirectory

from gptmill.data.splits import Plan, split_documents
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from gptmill.params import Start
from gptmill.tokenizer import (
    Tokenizer,
    load_gpt2_files,
    load_tokenizer,
    train_byte_pairs,
    train_vocabulary,
)

GPT2_MANIFEST = Path("profiles/manifests/gpt2_bpe.json")


def make_tokenizer(kind: str, plan: Plan, vocabulary_size: int, foundation: Start) -> Tokenizer:
    """GPT-2's byte pairs, those of the model to be continued, or BPE, characters or words learned
    from the training split alone.

    Raises:
        UserError: GPT-2's files cannot be fetched, the foundation is none or has no tokenizer, or
            the vocabulary is too small.
    """
    if kind == "foundation" and foundation.source == "none":
        raise UserError("tokenize.kind: foundation needs a pretrain.foundation to continue")
    if kind == "foundation" and foundation.source == "folder":
        return load_tokenizer(Path(foundation.location))
    if kind in ("gpt2", "foundation"):  # what is published as GPT-2 has GPT-2's byte pairs
        return _fetch_gpt2()
    texts = (document.text for document in split_documents(plan, "train"))
    if kind == "bpe":
        return train_byte_pairs(texts, vocabulary_size)
    return train_vocabulary(texts, kind, vocabulary_size)


def _fetch_gpt2() -> Tokenizer:
    with TemporaryDirectory() as folder:
        files = fetch(GPT2_MANIFEST, Path(folder) / "gpt2")
        by_name = {path.name: path for path in files}
        return load_gpt2_files(by_name["encoder.json"], by_name["vocab.bpe"])
