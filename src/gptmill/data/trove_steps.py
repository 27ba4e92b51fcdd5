"""Steps of a datatrove pipeline that the library has not, or not without downloads of their own."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.io import DataFolder, get_datafolder
from datatrove.pipeline.decont import NGramsDecontFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.utils.text import ngrams, simplify_text

NO_TEXT = "\0"  # stands for it until it is counted: a reader skips what is empty in silence


def adapt(reader: Any, data: dict[str, Any], path: str, id_in_file: int | str) -> dict[str, Any]:
    """The library's own adapter, but for documents without a text."""
    found = reader._default_adapter(data, path, id_in_file)
    text = found["text"]
    return found | {"text": text if isinstance(text, str) and text.strip() else NO_TEXT}


class HasText(BaseFilter):
    """Counts what `adapt` has marked."""

    name = "text"

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return doc.text != NO_TEXT or (False, "no_text")


class TextReader(BaseDiskReader):
    """A file a document, plain or compressed; UTF-8."""

    name = "text"

    def read_file(self, filepath: str) -> Any:
        with self.data_folder.open(filepath, "rt", encoding="utf-8", compression="infer") as file:
            document = self.get_document_from_dict({"text": file.read()}, filepath, 0)
        if document:
            yield document


class LanguageOf(BaseFilter):
    """Keep documents of some languages, by `py3langid`, whose model lies in its package.

    datatrove's own filter downloads fastText's model when it first runs.
    """

    name = "language"

    def __init__(self, languages: list[str], threshold: float) -> None:
        super().__init__()
        self.languages, self.threshold = languages, threshold
        self._model: Any = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self._model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        language, probability = self._model.classify(doc.text)
        return bool(language in self.languages and probability >= self.threshold) or (
            False,
            "language",
        )


def write_index(decontamination: NGramsDecontFilter, addresses: list[str], column: str) -> None:
    """The filter's index of hashed runs of words, made of texts instead of lighteval's tasks."""
    config = decontamination.config
    hashes: set[int] = set()
    for address in addresses:
        for text in _texts(get_datafolder(address), column):
            simple = simplify_text(text, config.norm_config)
            words = decontamination.tokenizer.word_tokenize(simple)
            runs = map(" ".join, ngrams(words, config.n_grams))
            hashes.update(map(decontamination.hash_func, runs))
    data = np.array(sorted(hashes), config.hash_config.np_descr).tobytes()
    decontamination.index_folder.makedirs("", exist_ok=True)
    decontamination.index_folder.pipe_file("held_out.index.hashes", data)


def _texts(folder: DataFolder, column: str) -> Any:
    """The texts of a folder's files: lines of JSON, else the whole file."""
    for path in folder.list_files():
        lines = ".jsonl" in PurePosixPath(path).suffixes
        reader = (JsonlReader if lines else TextReader)(folder, text_key=column or "text")
        yield from (document.text for document in reader.read_file(path))
