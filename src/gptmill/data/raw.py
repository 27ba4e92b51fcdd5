"""The three raw datasets, each embedded or fetched, in the one layout the pipeline reads."""

import shutil
from pathlib import Path

from gptmill.data.corpus import EMBEDDED_FILE, write_documents
from gptmill.data.embedded import instructions, messages, stories
from gptmill.data.fetch import fetch, mirror_from_environment, offline_from_environment
from gptmill.data.instructions import write_embedded_instructions
from gptmill.data.python_functions import write_functions
from gptmill.data.spam import write_embedded_messages, write_sms_messages
from gptmill.errors import UserError
from gptmill.files import atomic_folder, state_root
from gptmill.params import Dataset

EMBEDDED, STDLIB = "embedded", "stdlib"


def make_raw(name: str, section: Dataset, output: Path) -> None:
    """Make dataset `name` (corpus, spam or instructions) in `output`, replaced as a whole.

    Raises:
        UserError: a download failed, or the source does not hold what the dataset needs.
    """
    if section.source == EMBEDDED:
        with atomic_folder(output) as folder:
            _make_embedded(name, section, folder)
        return
    if section.source == STDLIB or Path(section.source).is_dir():
        if name != "corpus":
            raise UserError(f"download.{name}.source: {section.source} is a corpus")
        with atomic_folder(output) as folder:
            _make_local_corpus(section.source, folder)
        return
    files = fetch(
        Path(section.source),
        output,
        cache=state_root() / "downloads",
        mirror=mirror_from_environment(),
        offline=offline_from_environment(),
    )
    if name == "spam":
        write_sms_messages(_only(files, "spam"), output / "messages.csv")
    elif name == "instructions":
        _only(files, "instructions").replace(output / "instructions.json")


def _make_embedded(name: str, section: Dataset, folder: Path) -> None:
    if name == "corpus":
        write_documents(stories(section.seed, section.count), folder / EMBEDDED_FILE)
    elif name == "spam":
        write_embedded_messages(messages(section.seed, section.count), folder / "messages.csv")
    else:
        entries = instructions(section.seed, section.count)
        write_embedded_instructions(entries, folder / "instructions.json")


def _make_local_corpus(source: str, folder: Path) -> None:
    if source == STDLIB:
        write_functions(folder)
        return
    texts = sorted(Path(source).glob("*.txt"))
    if not texts:
        raise UserError(f"download.corpus.source: {source} has no *.txt file; put yours there")
    for text in texts:
        shutil.copy(text, folder)


def _only(files: list[Path], name: str) -> Path:
    if len(files) != 1:
        raise UserError(f"download.{name}.source: its manifest names {len(files)} files, not one")
    return files[0]
