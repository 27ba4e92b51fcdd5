"""A small part of each dataset, made by the stages' own code, to count what the whole will be.

What is not on this machine is not fetched: the manifest states its bytes, and what else is assumed
is said. Embedded sources are drawn from; downloads that are cached, in a mirror folder, or local
files are read.
"""

import contextlib
import io
import shutil
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gptmill.data.classification import RAW_FILE, read_labeled, write_embedded_messages
from gptmill.data.corpus import EMBEDDED_FILE, documents, write_documents
from gptmill.data.instructions import write_embedded_instructions
from gptmill.data.own_files import LeftOut
from gptmill.data.python_functions import LEFT_OUT, write_functions
from gptmill.data.raw import INSTRUCTIONS_FILE, found_files, read_fetched, write_own
from gptmill.embedded import instructions, messages, stories
from gptmill.errors import UserError
from gptmill.fetch.download import fetch
from gptmill.fetch.manifest import RemoteFile, read_manifest
from gptmill.files import read_json, state_root, write_json
from gptmill.sources import Dataset, Embedded, Files, Hub, Manifest, Stdlib, Trove

STORIES, MESSAGES, INSTRUCTIONS = 400, 4000, 800  # drawn from the embedded sources
WARM_UP = 40
FILES, BYTES = 6, 1_500_000  # of a corpus that is at hand, at most
READ_WHOLE = 20_000_000  # bytes of tables that are read whole
MODULES = 25  # every so many of Python's modules
# Of a manifest without sizes, or a dataset of which only the size is known.
UNKNOWN_BYTES = 500_000
EACH = {"classification": 85, "instructions": 185}  # bytes of a message, of an entry as JSON


@dataclass(frozen=True)
class Sample:
    """A raw dataset's folder with part of it, or nothing where nothing is at hand.

    Attributes:
        folder: laid out as `data/raw/<name>`; None if nothing is at hand.
        scale: how many times the sample the whole is.
        bytes: of the whole, on disk.
        items: documents, messages or entries of the whole.
        download: bytes that a run fetches, 0 for what is made or already here.
        seconds: what making it takes here, downloads not counted.
        assumed: what was taken for granted, in words; '' if nothing was.
    """

    folder: Path | None
    scale: float
    bytes: int
    items: int
    download: int = 0
    seconds: float = 0.0
    assumed: str = ""


def draw(name: str, section: Dataset, folder: Path) -> Sample:
    """Make a sample of dataset `name` in the empty `folder`."""
    if isinstance(section, Files):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # a plan prints its own table alone
                section, files = found_files(name, section, LeftOut())
        except UserError:
            size = UNKNOWN_BYTES
            said = f"{section.path} has no file yet: {_bytes(size)}"
            return Sample(None, 1.0, size, max(1, size // EACH.get(name, size)), assumed=said)
    if isinstance(section, Embedded):
        return _embedded(name, section, folder)
    if isinstance(section, Stdlib):
        return _functions(folder)
    if isinstance(section, Hub | Trove):
        size = UNKNOWN_BYTES
        place = section.repository if isinstance(section, Hub) else section.path
        said = f"{place} is not looked at: {_bytes(size)}"
        return Sample(None, 1.0, size, max(1, size // EACH.get(name, size)), assumed=said)
    if isinstance(section, Manifest):
        return _fetched(name, Path(section.path), folder)
    return _local(name, section, files, folder)


def _embedded(name: str, section: Embedded, folder: Path) -> Sample:
    writes: dict[str, tuple[int, Callable[[int], None], str]] = {
        "corpus": (
            STORIES,
            lambda n: write_documents(stories(section.seed, n), folder / EMBEDDED_FILE),
            EMBEDDED_FILE,
        ),
        "classification": (
            MESSAGES,
            lambda n: write_embedded_messages(
                islice(messages(section.seed, n), n), folder / RAW_FILE
            ),
            RAW_FILE,
        ),
        "instructions": (
            INSTRUCTIONS,
            lambda n: write_embedded_instructions(
                instructions(section.seed, n), folder / "instructions.json"
            ),
            "instructions.json",
        ),
    }
    most, write, file = writes[name]
    count = min(section.count, most)
    write(min(count, WARM_UP))  # imports, and the source's own tables
    start = time.process_time()
    write(count)
    seconds = time.process_time() - start
    scale = section.count / count
    size = round((folder / file).stat().st_size * scale)
    return Sample(folder, scale, size, section.count, seconds=seconds * scale)


def _functions(folder: Path) -> Sample:
    """Every so many of the interpreter's modules, read as the stage reads all of them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [
        path
        for path in sorted(library.rglob("*.py"))
        if not LEFT_OUT & set(path.relative_to(library).parts)
    ]
    part = folder / "library"
    part.mkdir()
    chosen = modules[::MODULES]
    for number, path in enumerate(chosen):
        shutil.copy(path, part / f"{number}_{path.name}")
    start = time.process_time()
    write_functions(folder, part)
    seconds = time.process_time() - start
    shutil.rmtree(part)
    texts = list(folder.glob("*.txt"))
    scale = len(modules) / len(chosen)
    size = sum(path.stat().st_size for path in texts)
    return Sample(
        folder, scale, round(size * scale), round(len(texts) * scale), seconds=seconds * scale
    )


def _local(name: str, section: Files, files: Sequence[Path], folder: Path) -> Sample:
    """All of a few files, some of many, read as the stage reads them."""
    sizes = [path.stat().st_size for path in files]
    if name == "corpus" and all(path.suffix.lower() == ".txt" for path in files):
        return _some_files(files, sizes, folder)
    few = sum(sizes) <= READ_WHOLE
    chosen = files if few else files[:: max(1, len(files) // FILES)]
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        write_own(name, section, chosen, folder, LeftOut())
    seconds = time.process_time() - start
    scale = sum(sizes) / max(1, sum(path.stat().st_size for path in chosen))
    made = sum(path.stat().st_size for path in folder.iterdir())
    items = round(scale * _items(name, folder))
    return Sample(folder, scale, round(made * scale), items, seconds=seconds * scale)


def _items(name: str, folder: Path) -> int:
    """Documents, texts or entries of a raw folder."""
    if name == "instructions":
        return len(read_json(folder / INSTRUCTIONS_FILE))
    if name == "classification":
        return len(read_labeled(folder / RAW_FILE))
    return sum(1 for _ in documents(folder))


def _some_files(paths: Sequence[Path], sizes: Sequence[int], folder: Path) -> Sample:
    """Files spread over all of them; a file too long for a sample is cut after so many bytes."""
    step = max(1, len(paths) // FILES)
    kept = 0
    for path in list(paths)[::step]:
        with path.open("rb") as file:
            content = file.read(BYTES if len(paths) == 1 else BYTES // FILES)
        text = content.decode("utf-8", errors="ignore")
        (folder / path.name).with_suffix(".txt").write_text(text, encoding="utf-8", newline="\n")
        kept += len(content)
    return Sample(folder, sum(sizes) / max(kept, 1), sum(sizes), len(paths))


def _fetched(name: str, manifest: Path, folder: Path) -> Sample:
    entries = read_manifest(manifest)
    size = sum(entry.bytes or UNKNOWN_BYTES for entry in entries)
    wanted = entries[:: max(1, len(entries) // FILES)]
    files = _at_hand(wanted, folder)
    absent = 0 if _cached(entries) else size
    if files is None:
        return _unseen(name, entries, size)
    if name == "corpus":
        sizes = [entry.bytes or file.stat().st_size for entry, file in zip(wanted, files)]
        part = _some_files(files, sizes, folder)
        shutil.rmtree(folder / "fetched")
        scale = part.scale * size / sum(sizes)
        return Sample(folder, scale, size, len(entries), absent)
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        read_fetched(name, files, folder)
    items = _items(name, folder)
    made = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Sample(folder, 1.0, made, items, absent, time.process_time() - start)


def _unseen(name: str, entries: Sequence[RemoteFile], size: int) -> Sample:
    """Nothing but the manifest's bytes to go by."""
    each = EACH.get(name)
    items = len(entries) if each is None else round(size / each)
    said = f"{name}: not downloaded yet, {_bytes(size)}"
    if any(entry.bytes is None for entry in entries):
        said += " (assumed: the manifest states no size)"
    if each is not None:
        said += f" at {each} bytes each"
    return Sample(None, 1.0, size, items, size, assumed=said)


def _at_hand(entries: Sequence[RemoteFile], folder: Path) -> list[Path] | None:
    """The files, where the cache or a mirror folder has them all: nothing is downloaded."""
    # The run's cache is read and never filled: a plan leaves nothing behind.
    cache = state_root() / "downloads" if _cached(entries) else folder / "cache"
    manifest = folder / "manifest.json"
    write_json(manifest, [vars(entry) for entry in entries])
    try:
        return fetch(manifest, folder / "fetched", cache=cache, offline=True)
    except UserError:
        return None
    finally:
        manifest.unlink()
        shutil.rmtree(folder / "cache", ignore_errors=True)


def _cached(entries: Sequence[RemoteFile]) -> bool:
    return all((state_root() / "downloads" / entry.sha256).is_file() for entry in entries)


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
