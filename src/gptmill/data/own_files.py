"""Which files a source names, what split a file's name says, and what was left out."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptmill.data.tables import SPLIT_NAMES
from gptmill.data.text_files import plain_stem, plain_suffix
from gptmill.files import write_json

REPORT = "left_out.json"
README = "a README"
# train.txt, train-00000-of-00002.parquet, TinyStories-valid.txt, wiki.test.txt
_NAMED = re.compile(rf"(?:^|.*[-_.])({'|'.join(SPLIT_NAMES)})(?:[-_.]\d[\w-]*)?$", re.IGNORECASE)
LISTED = 10  # of what is left out, on the terminal; the whole list is in left_out.json


@dataclass
class LeftOut:
    """Files and records that were not taken: reason → what."""

    files: dict[str, list[str]] = field(default_factory=dict)
    records: Counter[str] = field(default_factory=Counter)

    def file(self, path: Path, reason: str) -> None:
        self.files.setdefault(reason, []).append(str(path))

    def tell(self, folder: Path) -> None:
        """Print a summary, and write all of it to `folder`."""
        for reason, paths in self.files.items():
            more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
            print(f"left out, {reason}: {', '.join(paths[:LISTED])}{more}")
        records = {reason: count for reason, count in sorted(self.records.items()) if count}
        for reason, count in records.items():
            print(f"{count:,} × {reason}")
        write_json(folder / REPORT, {"files": self.files, "records": records})


def source_files(path: str, suffixes: Sequence[str], left_out: LeftOut) -> list[Path]:
    """The files of a path: one file, all of a folder and those below it, or what a glob matches.

    Of a folder, files that are hidden, named README or of another kind are left out, and said.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        found, base = sorted(place.rglob("*")), place
    else:
        base = Path(place.anchor)
        pattern = str(place.relative_to(base)) if place.anchor else path
        found = sorted(base.glob(pattern)) if any(c in path for c in "*?[") else []
        return [file for file in found if file.is_file()]
    kept = []
    for file in found:
        parts = file.relative_to(base).parts
        if not file.is_file() or any(part.startswith(".") for part in parts):
            continue
        if file.stem.upper() == "README":
            left_out.file(file, README)
        elif plain_suffix(file) not in suffixes:
            left_out.file(file, f"not one of {' '.join(suffixes)}")
        elif not file.stat().st_size:
            left_out.file(file, "empty")
        else:
            kept.append(file)
    return kept


def named_splits(files: Sequence[Path]) -> dict[Path, str]:
    """The split that each file's name, or its folder's, says; nothing unless one says train."""
    found = {}
    for file in files:
        for name in (plain_stem(file), file.parent.name):
            if match := _NAMED.match(name):
                found[file] = SPLIT_NAMES[match[1].lower()]
                break
    return found if "train" in found.values() and set(found.values()) != {"train"} else {}
