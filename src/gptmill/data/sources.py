"""Which of several corpora a document belongs to."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from gptmill.errors import UserError
from gptmill.sources import Mixed


def source_of(document: str, mixture: Sequence[Mixed]) -> int:
    """The first of the mixture whose pattern matches the document's id.

    Raises:
        UserError: none does.
    """
    for number, mixed in enumerate(mixture):
        if fnmatchcase(document, mixed.documents):
            return number
    raise UserError(
        f"tokenize.mixture: document {document!r} belongs to none of "
        f"{', '.join(mixed.documents for mixed in mixture)}; add a pattern, '*' at the end takes "
        "the rest"
    )
