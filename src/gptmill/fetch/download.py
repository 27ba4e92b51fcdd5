"""Files from their sources: checked, resumed, and mirrored for machines without a network.

Each file of a manifest is downloaded once to `cache/<sha256>` and copied from there; a download in
progress is `cache/<sha256>.partial`, of one process at a time, and is continued by the next run.
Servers are not trusted: no length, compression or pace of theirs fills the disk or the memory, or
stops a run for ever.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests
import urllib3
from filelock import FileLock
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from gptmill.errors import UserError
from gptmill.fetch.archive import member_chunks, member_sha256
from gptmill.fetch.environment import mirror_from_environment, offline_from_environment
from gptmill.fetch.manifest import RemoteFile, destination_names, read_manifest, url_parts
from gptmill.fetch.transfer import (
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
from gptmill.files import atomic_folder, disk_error, sha256, state_root
from gptmill.process.interrupt import keeps
from gptmill.process.pool import impatient_pool

PARALLEL_DOWNLOADS = 8
ATTEMPTS = 5
BACKOFF_SECONDS = 1.0  # doubled after every failed attempt
LONGEST_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = (10, 60)  # to connect; between two bytes


def fetch(
    manifest: Path,
    destination: Path,
    *,
    cache: Path | None = None,
    mirror: str | None = None,
    offline: bool | None = None,
) -> list[Path]:
    """Put every file of a manifest into `destination`, which is replaced as a whole.

    Where a file has `member_sha256`, the member's hash decides and the zip may have been packed
    again.

    Args:
        cache: where downloads are kept, by their hash; None is `.state/downloads`.
        mirror, offline: as for `obtain`.

    Returns:
        The files, in the manifest's order.

    Raises:
        UserError: the manifest is malformed, a zip is unsafe, or as `obtain`. `destination` is then
            as it was; finished downloads stay in the cache.
    """
    files = read_manifest(manifest)
    names = destination_names(files)
    cache = state_root() / "downloads" if cache is None else cache
    obtain({cache / file.sha256: file for file in files}, mirror=mirror, offline=offline)
    with atomic_folder(destination) as folder:
        for file, name in zip(files, names, strict=True):
            _place(file, cache / file.sha256, folder / name)
    return [destination / name for name in names]


def obtain(
    wanted: Mapping[Path, RemoteFile], *, mirror: str | None = None, offline: bool | None = None
) -> None:
    """Download each file to its path, unless it is there with the right checksum.

    Offline, only a mirror that is a folder is used.

    Args:
        wanted: path -> what belongs there; all paths in one folder.
        mirror: a folder or http(s) address, laid out HOST/PATH (percent-decoded), tried before the
            source; None is `GPTMILL_MIRROR`.
        offline: use no network; None is `GPTMILL_OFFLINE`.

    Raises:
        UserError: files are missing offline (all are listed, with the path for each), a download
            failed, a checksum differs, the disk is full.
    """
    mirror = mirror_from_environment() if mirror is None else mirror
    offline = offline_from_environment() if offline is None else offline
    for folder in {path.parent for path in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = {path: file for path, file in wanted.items() if not _present(file, path)}
    if missing and offline:
        _require_in_mirror(missing, mirror)
    if missing:
        _download_all(missing, mirror, offline)


# --- What is here already


def _present(file: RemoteFile, path: Path) -> bool:
    return path.is_file() and _fault(file, path) is None


def _fault(file: RemoteFile, path: Path) -> str | None:
    """What is wrong with a downloaded file, or None. A member's hash decides if it is given."""
    expected, found = file.sha256, ""
    try:
        if file.member_sha256 is not None:
            expected, found = file.member_sha256, member_sha256(file, path)
        elif expected:
            found = sha256(path)
    except UserError as error:
        return str(error)
    if found == expected:
        return None
    member = f"{file.member}: " if file.member_sha256 else ""
    return f"{member}expected SHA-256 {expected}, got {found} ({size(path):,} bytes)"


def _require_in_mirror(missing: Mapping[Path, RemoteFile], mirror: str | None) -> None:
    """Refuse, in one message, all files that a mirror folder does not have."""
    lines = []
    for path, file in missing.items():
        if _mirror_file(file, mirror) is None:
            size = f"{file.bytes:,} bytes" if file.bytes is not None else "size unknown"
            wrong = ", where a file with another checksum is" if path.exists() else ""
            lines.append(f"  {file.url}\n    ({size}) goes to {path}{wrong}")
    if lines:
        raise UserError(
            f"offline, and {len(lines)} file(s) are missing. Fetch each on another machine and put "
            "it where the line says, or point GPTMILL_MIRROR to a folder laid out HOST/PATH:\n"
            + "\n".join(lines)
        )


# --- Downloading


@dataclass(frozen=True)
class _Downloader:
    """What every transfer of one call shares."""

    session: requests.Session
    mirror: str | None
    offline: bool
    progress: Callable[[int], object]

    def download(self, file: RemoteFile, target: Path) -> None:
        """Download to `target`: from the mirror if it has the file, else from the source.

        Where another process downloads the same file, this one waits and takes the result.
        """
        locks = target.parent.parent / "locks"  # beside the folder, which others may hash
        locks.mkdir(exist_ok=True)
        with FileLock(locks / f"{target.parent.name}-{target.name[:32]}.lock"):
            if not _present(file, target):
                self._download(file, target)

    def _download(self, file: RemoteFile, target: Path) -> None:
        partial = target.with_name(f"{target.name}.partial")
        self.progress(size(partial))
        failures = []
        for address in self._addresses(file):
            try:
                self._obtain(address, file, partial)
                partial.replace(target)
                return
            except Failed as failure:
                failures.append(str(failure))
        raise UserError("\n".join(failures))

    def _addresses(self, file: RemoteFile) -> list[Path | str]:
        local = _mirror_file(file, self.mirror)
        if self.offline:
            return [local] if local else []
        mirrored = local or _mirror_address(file, self.mirror)
        return [mirrored, file.url] if mirrored else [file.url]

    def _obtain(self, address: Path | str, file: RemoteFile, partial: Path) -> None:
        """A checked file at `partial`, or `Failed`; what was wrong is kept for a look at it."""
        resumed = size(partial) > 0
        self._bring(address, file, partial)
        fault = _fault(file, partial)
        if fault and resumed:
            # The bytes of an earlier run may belong to another version of the file: begin again.
            self._discard(partial)
            self._bring(address, file, partial)
            fault = _fault(file, partial)
        if fault:
            self.progress(-size(partial))
            rejected = partial.replace(partial.with_suffix(".rejected"))
            raise Failed(
                f"{address}: {fault}; what came is kept in {rejected}. If the source has changed, "
                "use a mirror with the old file; if a proxy or login page answered, get past it"
            )

    def _bring(self, address: Path | str, file: RemoteFile, partial: Path) -> None:
        """Copy from a folder, or download in several attempts with growing waits."""
        if isinstance(address, Path):
            self._discard(partial)
            self._copy(address, partial)
            return
        for attempt in range(1, ATTEMPTS + 1):
            wait = BACKOFF_SECONDS * 2 ** (attempt - 1)
            try:
                self._stream(address, file, partial)
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

    def _stream(self, address: str, file: RemoteFile, partial: Path) -> None:
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
            expected = expected_size(response, file, start)
            limit = most(file, partial)
            with paced(response, lambda: size(partial)) as pace:
                self._append(response, partial, limit)
        received = size(partial)
        if received > limit and limit != file.bytes:
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


def _download_all(missing: Mapping[Path, RemoteFile], mirror: str | None, offline: bool) -> None:
    """Download in parallel, and report every failure, in the order of the files."""
    needed = sum(file.bytes or 0 for file in missing.values())
    _check_room(next(iter(missing)).parent, needed)
    keeps("what has come of the downloads")
    with (
        requests.Session() as session,
        tqdm(total=needed or None, unit="B", unit_scale=True, desc="download", disable=None) as bar,
        impatient_pool(PARALLEL_DOWNLOADS) as pool,
    ):
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=PARALLEL_DOWNLOADS))
        downloader = _Downloader(session, mirror, offline, bar.update)

        def attempt(target: Path) -> str | None:
            try:
                downloader.download(missing[target], target)
            except UserError as error:
                return str(error)
            except OSError as error:
                return str(disk_error(error, target) or f"cannot write {target}: {error}")
            return None

        failures = [failure for failure in pool.map(attempt, missing) if failure]
    if failures:
        raise UserError("\n".join(failures))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 2**20:.0f} MiB free and the downloads need "
            f"{needed / 2**20:.0f} MiB: free some space or move the project"
        )


def _mirror_file(file: RemoteFile, mirror: str | None) -> Path | None:
    """Where the file is in a mirror that is a folder, if it is there."""
    if mirror is None or urlsplit(mirror).scheme in {"http", "https"}:
        return None
    if not Path(mirror).is_dir():
        raise UserError(f"the mirror {mirror} is neither a folder nor an http(s) address")
    path = Path(mirror).joinpath(*url_parts(file.url))
    return path if path.is_file() else None


def _mirror_address(file: RemoteFile, mirror: str | None) -> str | None:
    """The file's address on a mirror that is a server."""
    if mirror is None or urlsplit(mirror).scheme not in {"http", "https"}:
        return None
    return "/".join([mirror.rstrip("/"), *(quote(part) for part in url_parts(file.url))])


# --- Into the destination


def _place(file: RemoteFile, source: Path, target: Path) -> None:
    """Copy a checked file, or its member, to where it belongs."""
    if file.member is None:
        shutil.copyfile(source, target)
        return
    with target.open("wb") as output:
        for chunk in member_chunks(file, source):
            output.write(chunk)
