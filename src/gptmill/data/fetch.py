"""Files from their sources: checked, resumed, and mirrored for machines without a network.

Each file of a manifest is downloaded once to `cache/<sha256>` and copied from there; a download in
progress is `cache/<sha256>.partial`, of one process at a time, and is continued by the next run.
Servers are not believed: neither length nor compression nor pace that they tell or keep fills disk
or memory, or holds a run for ever.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests
import urllib3
from filelock import FileLock
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from gptmill.data.archive import member_chunks, member_sha256
from gptmill.data.manifest import Entry, destination_names, read_manifest, url_parts
from gptmill.data.transfer import (
    CHUNK_BYTES,
    HOPELESS,
    PACE_SECONDS,
    Failed,
    Interrupted,
    body,
    body_start,
    expected_size,
    most,
    network_reason,
    paced,
    size,
)
from gptmill.errors import UserError
from gptmill.files import atomic_folder, disk_error, sha256
from gptmill.process.interrupt import keeps
from gptmill.process.pool import impatient_pool

PARALLEL_DOWNLOADS = 8
ATTEMPTS = 5
BACKOFF_SECONDS = 1.0  # doubled after every failed attempt
LONGEST_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = (10, 60)  # to connect; between two bytes


def mirror_from_environment() -> str | None:
    """`GPTMILL_MIRROR`: a folder or an http(s) address, laid out HOST/PATH."""
    return os.environ.get("GPTMILL_MIRROR") or None


def offline_from_environment() -> bool:
    """Whether `GPTMILL_OFFLINE` asks for no network at all (1, true or yes)."""
    return os.environ.get("GPTMILL_OFFLINE", "").lower() in {"1", "true", "yes"}


def fetch(
    manifest: Path,
    destination: Path,
    *,
    cache: Path,
    mirror: str | None = None,
    offline: bool = False,
) -> list[Path]:
    """Put every file of a manifest into `destination`, which is replaced as a whole.

    A mirror (folder or http address, HOST/PATH percent-decoded) is tried before the source.
    Offline, only the cache and a mirror that is a folder are used. Where an entry has
    `member_sha256`, the member's hash decides and the zip may have been packed again.

    Returns:
        The files, in the manifest's order.

    Raises:
        UserError: the manifest is malformed, files are missing offline (all are listed, with the
            place to put each), a download failed, a checksum differs, a zip is unsafe, the disk
            is full. `destination` is then as it was; finished downloads stay in the cache.
    """
    entries = read_manifest(manifest)
    names = destination_names(entries)
    cache.mkdir(parents=True, exist_ok=True)
    missing = _missing(entries, cache)
    if missing and offline:
        missing = _fill_offline(missing, cache, mirror)
    if missing:
        _download_all(missing, cache, mirror, offline)
    with atomic_folder(destination) as folder:
        for entry, name in zip(entries, names, strict=True):
            _place(entry, cache / entry.sha256, folder / name)
    return [destination / name for name in names]


# --- What the cache has


def _missing(entries: Sequence[Entry], cache: Path) -> list[Entry]:
    """Entries that no good file in the cache answers; each hash once."""
    unique = {entry.sha256: entry for entry in entries}
    return [
        entry
        for entry in unique.values()
        if not (cache / entry.sha256).is_file() or _fault(entry, cache / entry.sha256)
    ]


def _fault(entry: Entry, path: Path) -> str | None:
    """What is wrong with a downloaded file, or None. A member's hash decides if it is given."""
    expected, found = entry.sha256, ""
    try:
        if entry.member_sha256 is None:
            found = sha256(path)
        else:
            expected, found = entry.member_sha256, member_sha256(entry, path)
    except UserError as error:
        return str(error)
    if found == expected:
        return None
    what = f"{entry.member}: " if entry.member_sha256 else ""
    return f"{what}expected SHA-256 {expected}, got {found} ({size(path):,} bytes)"


def _fill_offline(missing: list[Entry], cache: Path, mirror: str | None) -> list[Entry]:
    """Take what a mirror folder has; whatever is then missing is listed in one error."""
    in_mirror = [entry for entry in missing if _mirror_file(entry, mirror)]
    absent = [entry for entry in missing if entry not in in_mirror]
    if not absent:
        return in_mirror
    lines = []
    for entry in absent:
        size = f"{entry.bytes:,} bytes" if entry.bytes is not None else "size unknown"
        wrong = ", where a file with another checksum is" if (cache / entry.sha256).exists() else ""
        lines.append(f"  {entry.url}\n    ({size}) goes to {cache / entry.sha256}{wrong}")
    raise UserError(
        f"offline, and {len(absent)} file(s) are missing. Fetch each on another machine and put "
        "it where the line says, or point GPTMILL_MIRROR to a folder laid out HOST/PATH:\n"
        + "\n".join(lines)
    )


# --- Downloading


@dataclass(frozen=True)
class _Downloader:
    """What every transfer of one call shares."""

    session: requests.Session
    cache: Path
    mirror: str | None
    offline: bool
    progress: Callable[[int], object]

    def download(self, entry: Entry) -> None:
        """One file into the cache: from the mirror if it has it, else from the source.

        Where another process is at the same file, this one waits and takes what came.
        """
        with FileLock(self._locks() / f"download-{entry.sha256[:16]}.lock"):
            if _missing([entry], self.cache):
                self._download(entry)

    def _locks(self) -> Path:
        folder = self.cache.parent / "locks"
        folder.mkdir(exist_ok=True)
        return folder

    def _download(self, entry: Entry) -> None:
        partial = self.cache / f"{entry.sha256}.partial"
        self.progress(size(partial))
        failures = []
        for address in self._addresses(entry):
            try:
                self._obtain(address, entry, partial)
                partial.replace(self.cache / entry.sha256)
                return
            except Failed as failure:
                failures.append(str(failure))
        raise UserError("\n".join(failures))

    def _addresses(self, entry: Entry) -> list[Path | str]:
        local = _mirror_file(entry, self.mirror)
        if self.offline:
            return [local] if local else []
        mirrored = local or _mirror_address(entry, self.mirror)
        return [mirrored, entry.url] if mirrored else [entry.url]

    def _obtain(self, address: Path | str, entry: Entry, partial: Path) -> None:
        """A checked file at `partial`, or `Failed`; what was wrong is kept for a look at it."""
        resumed = size(partial) > 0
        self._bring(address, entry, partial)
        fault = _fault(entry, partial)
        if fault and resumed:
            # The bytes of an earlier run may belong to another version of the file: begin again.
            self._discard(partial)
            self._bring(address, entry, partial)
            fault = _fault(entry, partial)
        if fault:
            self.progress(-size(partial))
            rejected = partial.replace(partial.with_suffix(".rejected"))
            raise Failed(
                f"{address}: {fault}; what came is kept in {rejected}. If the source has changed, "
                "use a mirror with the old file; if a proxy or login page answered, get past it"
            )

    def _bring(self, address: Path | str, entry: Entry, partial: Path) -> None:
        """Copy from a folder, or download in several attempts with growing waits."""
        if isinstance(address, Path):
            self._discard(partial)
            self._copy(address, partial)
            return
        for attempt in range(1, ATTEMPTS + 1):
            wait = BACKOFF_SECONDS * 2 ** (attempt - 1)
            try:
                self._stream(address, entry, partial)
                return
            except Interrupted as interruption:
                reason = str(interruption)
                wait = max(wait, interruption.wait)
                if interruption.restart:
                    self._discard(partial)
            except HOPELESS as error:
                raise Failed(f"{address}: {type(error).__name__}: {error}") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = network_reason(error)
            if attempt < ATTEMPTS:
                time.sleep(min(wait, LONGEST_WAIT_SECONDS))
        kept = f"; {size(partial):,} bytes are kept in {partial}" if size(partial) else ""
        raise Failed(f"{address}: {reason} ({ATTEMPTS} attempts{kept}): run again to continue")

    def _copy(self, source: Path, partial: Path) -> None:
        """From a mirror that is a folder; what it cannot read is its fault, not our disk's."""
        with partial.open("wb") as target:
            try:
                with source.open("rb") as file:
                    chunks = iter(lambda: file.read(1 << 20), b"")
                    for chunk in chunks:
                        target.write(chunk)
                        self.progress(len(chunk))
            except OSError as error:
                if error.filename is None and disk_error(error, partial):
                    raise
                raise Failed(f"{source} cannot be read: {error}") from None

    def _stream(self, address: str, entry: Entry, partial: Path) -> None:
        """One request, appended to `partial`; `Interrupted` unless every byte came."""
        offset = size(partial)
        headers = {"Accept-Encoding": "identity"}  # offsets count the file's own bytes
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with self.session.get(
            address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS
        ) as response:
            start = body_start(response, address, offset)
            if start is None:
                return
            if start < offset:  # a server without ranges sends everything again
                self._discard(partial)
            expected = expected_size(response, entry, start)
            limit = most(entry, partial)
            with paced(response, lambda: size(partial)) as pace:
                self._append(response, partial, limit)
        received = size(partial)
        if received > limit and limit != entry.bytes:
            self._discard(partial)
            raise Failed(f"{address}: more than {limit:,} bytes came, without end: nothing is kept")
        if pace.cut:
            raise Interrupted(f"less than {CHUNK_BYTES:,} bytes came in {PACE_SECONDS:g} s")
        if expected is not None and received < expected:
            raise Interrupted(f"the download stopped at {received:,} of {expected:,} bytes")

    def _append(self, response: requests.Response, partial: Path, most: int) -> None:
        """Write the body, and no more than `most` bytes of the file, whatever the server sends."""
        with partial.open("ab", buffering=0) as file:
            for chunk in body(response):
                file.write(chunk)
                self.progress(len(chunk))
                if file.tell() > most:
                    return

    def _discard(self, partial: Path) -> None:
        self.progress(-size(partial))
        partial.unlink(missing_ok=True)


def _download_all(entries: list[Entry], cache: Path, mirror: str | None, offline: bool) -> None:
    """Download in parallel; every failure is told, in the manifest's order."""
    needed = sum(entry.bytes or 0 for entry in entries)
    _check_room(cache, needed)
    keeps("what has come of the downloads")
    with (
        requests.Session() as session,
        tqdm(total=needed or None, unit="B", unit_scale=True, desc="download", disable=None) as bar,
        impatient_pool(PARALLEL_DOWNLOADS) as pool,
    ):
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=PARALLEL_DOWNLOADS))
        downloader = _Downloader(session, cache, mirror, offline, bar.update)

        def attempt(entry: Entry) -> str | None:
            try:
                downloader.download(entry)
            except UserError as error:
                return str(error)
            except OSError as error:
                told = disk_error(error, cache / entry.sha256)
                return str(told or f"cannot write {cache / entry.sha256}: {error}")
            return None

        failures = [failure for failure in pool.map(attempt, entries) if failure]
    if failures:
        raise UserError("\n".join(failures))


def _check_room(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"{cache} has {free / 2**20:.0f} MiB free and the downloads need "
            f"{needed / 2**20:.0f} MiB: free some space or move the project"
        )


def _mirror_file(entry: Entry, mirror: str | None) -> Path | None:
    """The entry's file in a mirror that is a folder, if it is there."""
    if mirror is None or urlsplit(mirror).scheme in {"http", "https"}:
        return None
    if not Path(mirror).is_dir():
        raise UserError(f"the mirror {mirror} is neither a folder nor an http(s) address")
    path = Path(mirror).joinpath(*url_parts(entry.url))
    return path if path.is_file() else None


def _mirror_address(entry: Entry, mirror: str | None) -> str | None:
    """The entry's address on a mirror that is a server."""
    if mirror is None or urlsplit(mirror).scheme not in {"http", "https"}:
        return None
    return "/".join([mirror.rstrip("/"), *(quote(part) for part in url_parts(entry.url))])


# --- Into the destination


def _place(entry: Entry, source: Path, target: Path) -> None:
    """Copy a checked file, or its member, to where it belongs."""
    if entry.member is None:
        shutil.copyfile(source, target)
        return
    with target.open("wb") as file:
        for chunk in member_chunks(entry, source):
            file.write(chunk)
