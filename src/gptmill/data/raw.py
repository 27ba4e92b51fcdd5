"""The three raw data sets, from any source, in the one layout that the pipeline reads."""

from collections.abc import Sequence
from pathlib import Path

from gptmill.data import own_corpus, own_instructions, own_labeled
from gptmill.data.classification import RAW_FILE, write_embedded_messages, write_sms_messages
from gptmill.data.corpus import EMBEDDED_FILE, write_documents
from gptmill.data.instructions import write_embedded_instructions
from gptmill.data.own_files import README, LeftOut, source_files
from gptmill.data.python_functions import write_functions
from gptmill.data.text_files import decode
from gptmill.data.trove import write_trove
from gptmill.embedded import instructions, messages, stories
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from gptmill.fetch.hub import snapshot
from gptmill.files import atomic_folder
from gptmill.sources import Dataset, Embedded, Files, Hub, Manifest, Stdlib, Trove

INSTRUCTIONS_FILE = "instructions.json"
TAKEN = {
    "corpus": own_corpus.TAKEN,
    "classification": own_labeled.TAKEN,
    "instructions": own_instructions.TAKEN,
}


def make_raw(name: str, section: Dataset, output: Path) -> None:
    """Make data set `name` in `output`, replaced as a whole.

    Raises:
        UserError: a download failed, or the source does not hold what the data set needs.
    """
    left_out = LeftOut()
    files: Sequence[Path] = ()
    if isinstance(section, Files):
        section, files = found_files(name, section, left_out)
    if isinstance(section, Manifest):
        _make_fetched(name, section, output)
        return
    with atomic_folder(output) as folder:
        if isinstance(section, Embedded):
            _make_embedded(name, section, folder)
        elif isinstance(section, Stdlib):
            write_functions(folder)
        elif isinstance(section, Trove):
            write_trove(section, folder)
        else:
            if isinstance(section, Hub):
                repository = snapshot(
                    section.repository, section.revision, [section.path], "dataset"
                )
                files = source_files(str(repository / section.path), TAKEN[name], left_out)
                if not files:
                    raise UserError(
                        f"download.{name}.path: {section.repository} has no file {section.path} at "
                        f"revision {section.revision}"
                    )
            write_own(name, section, files, folder, left_out)
            left_out.tell(folder)


def found_files(
    name: str, section: Files, left_out: LeftOut
) -> tuple[Files | Embedded, Sequence[Path]]:
    """The files of a section, or what it names instead, which is said.

    Raises:
        UserError: no file and nothing instead, or files of which none is of a known kind.
    """
    files = source_files(section.path, TAKEN[name], left_out)
    if files:
        return section, files
    unread = [file for reason, them in left_out.files.items() if reason != README for file in them]
    if unread or section.instead is None:
        there = f", only {', '.join(unread[:5])}" if unread else ""
        raise UserError(
            f"download.{name}.path: {section.path} holds no file that can be read{there}; put "
            f"yours there ({' '.join(TAKEN[name])}, also .gz and .zst), name one of another kind "
            "in the path itself, or set source to embedded"
        )
    print(f"{section.path} holds no file: the embedded data are used for {name} instead")
    return section.instead, ()


def write_own(
    name: str, section: Files | Hub, files: Sequence[Path], folder: Path, left_out: LeftOut
) -> None:
    """Read files of any layout into the one of data set `name`."""
    columns = section.model_dump(include={"text", "label", "separator", "encoding"})
    if name == "corpus":
        own_corpus.write_own_corpus(files, folder, **columns, left_out=left_out)
    elif name == "classification":
        own_labeled.write_own_labeled(files, folder / RAW_FILE, **columns, left_out=left_out)
    else:
        own_instructions.write_own_instructions(
            files, folder / INSTRUCTIONS_FILE, **columns, left_out=left_out
        )


def _make_embedded(name: str, section: Embedded, folder: Path) -> None:
    if name == "corpus":
        write_documents(stories(section.seed, section.count), folder / EMBEDDED_FILE)
    elif name == "classification":
        write_embedded_messages(messages(section.seed, section.count), folder / RAW_FILE)
    else:
        entries = instructions(section.seed, section.count)
        write_embedded_instructions(entries, folder / INSTRUCTIONS_FILE)


def _make_fetched(name: str, section: Manifest, output: Path) -> None:
    files = fetch(Path(section.path), output)
    read_fetched(name, files, output)


def read_fetched(name: str, files: Sequence[Path], folder: Path) -> None:
    """Read downloaded files of any layout, UCI's SMS collection among them, where they lie."""
    left_out = LeftOut()
    if name == "corpus":
        _read_fetched_corpus(files, folder, left_out)
    elif name == "instructions":
        own_instructions.write_own_instructions(
            files, folder / INSTRUCTIONS_FILE, encoding="", left_out=left_out
        )
    elif len(files) == 1 and not files[0].suffix:
        write_sms_messages(files[0], folder / RAW_FILE)
    else:
        own_labeled.write_own_labeled(
            files, folder / RAW_FILE, text="", label="", encoding="", left_out=left_out
        )
    if left_out.records or left_out.files:
        left_out.tell(folder)


def _read_fetched_corpus(files: Sequence[Path], folder: Path, left_out: LeftOut) -> None:
    """Plain texts stay as they are but for their encoding; of other kinds documents are made."""
    if any(file.suffix.lower() != ".txt" for file in files):
        own_corpus.write_own_corpus(
            files, folder, text="", encoding="", separator="", left_out=left_out
        )
        return
    for file in files:
        text, encoding = decode(file.read_bytes(), origin=str(file))
        if encoding not in ("utf-8", "utf-8-sig"):
            print(f"{file}: read as {encoding}: {' '.join(text[:60].split())!r} …")
            file.write_text(text, encoding="utf-8", newline="")
