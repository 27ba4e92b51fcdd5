"""A corpus of any size and place, read and filtered by datatrove (Penedo et al. 2024).

Its readers take JSON lines, CSV, Parquet, WARC and plain texts from any address of fsspec; one task
reads one file, so the documents and their order depend neither on the executor nor on its workers.
What finished stays in `.state`, and a rerun skips it. The package is optional: nothing here is
imported unless `download.corpus.source` is datatrove.
"""

import gzip
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from gptmill.data.corpus import EMBEDDED_FILE, FILTERED_FILE
from gptmill.data.text_files import without_surrogates
from gptmill.errors import UserError
from gptmill.files import atomic_file, state_root, write_json
from gptmill.sources import Trove

UNHASHED = {"executor", "workers", "slurm_partition", "slurm_time"}
POLL_SECONDS = 5.0


def write_trove(section: Trove, folder: Path) -> None:
    """Read, filter and write a corpus as `documents.jsonl` and `filtered.json` into `folder`.

    Raises:
        UserError: datatrove is absent or of another version, the address cannot be read or holds no
            matching file, a task failed, or nothing is left.
    """
    _require(section.version)
    run = _Run(section, _files(section))
    run.state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.state / "lock")  # `gptmill doctor --clean` leaves what is held
    try:
        with lock:
            texts = run.finish()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"download.corpus: datatrove failed: {error}; finished tasks are kept in {run.state}, "
            "and the same command continues"
        ) from error
    reasons = run.dropped()
    count = 0
    path = folder / EMBEDDED_FILE
    with atomic_file(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as out:
        for line in _lines(texts):
            value = {"id": str(line["id"]), "text": without_surrogates(line["text"]), "nats": None}
            out.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    told = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
    print(f"{section.path}: {count:,} documents, dropped: {told or 'none'}")
    if not count:
        raise UserError(
            f"download.corpus: no document of {section.path} is left: {told or 'empty'}"
        )
    write_json(folder / FILTERED_FILE, dict(sorted(reasons.items())))


def _require(wanted: str) -> None:
    try:
        found = version("datatrove")
    except PackageNotFoundError:
        found = ""
    if found != wanted:
        raise UserError(
            f"download.corpus.version: datatrove {wanted} is asked for, and "
            f"{found or 'none'} is installed: pip install 'gptmill[datatrove]' "
            f"'datatrove=={wanted}', or write the installed version"
        )


def _files(section: Trove) -> dict[str, str]:
    """Each file of the address, with what changes when its content does."""
    from datatrove.io import get_datafolder

    try:
        place = get_datafolder(section.path)
        names = place.list_files(glob_pattern=section.pattern or None)
        found = {name: str(place.fs.ukey(place.resolve_paths(name))) for name in names}
    except Exception as error:  # what a file system raises is its own
        raise UserError(f"download.corpus.path: {section.path}: {error}") from error
    if not found:
        raise UserError(
            f"download.corpus.path: {section.path} holds no file "
            f"{section.pattern or 'at all'}: name a folder, or another pattern"
        )
    return found


class _Run:
    """One corpus in the making; `state` is named by all that decides its documents."""

    def __init__(self, section: Trove, files: dict[str, str]) -> None:
        self.section, self.tasks = section, len(files)
        known = section.model_dump(exclude=UNHASHED) | {"files": files}
        key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        self.state = (state_root() / "datatrove" / key).absolute()
        self.steps: list[str] = []

    def finish(self) -> Path:
        """Run what is not finished; the folder of the documents."""
        from datatrove.pipeline.writers import JsonlWriter

        steps = [*_reader(self.section), *self._filters()]
        self._execute("read", [*steps, JsonlWriter(str(self.state / "read"))], self.tasks)
        return self._without_near_duplicates() if self.section.minhash else self.state / "read"

    def _filters(self) -> list[Any]:
        from datatrove.pipeline import filters
        from datatrove.pipeline.formatters import PIIFormatter

        from gptmill.data.trove_steps import LanguageOf

        section, steps = self.section, []
        if section.urls:
            steps.append(filters.URLFilter())
        if section.languages:
            steps.append(LanguageOf(section.languages, section.language_threshold))
        kinds = {
            "gopher_repetition": filters.GopherRepetitionFilter,
            "gopher_quality": filters.GopherQualityFilter,
            "c4_quality": filters.C4QualityFilter,
            "fineweb_quality": filters.FineWebQualityFilter,
        }
        steps += [kinds[name]() for name in section.quality]
        if section.held_out:
            steps.append(self._decontamination())
        if section.pii:
            # One replacement each: the library's own would depend on what came before.
            steps.append(
                PIIFormatter(email_replacement="email@example.com", ip_replacement="192.0.2.1")
            )
        return steps

    def _decontamination(self) -> Any:
        from datatrove.pipeline.decont import NGramsDecontFilter

        from gptmill.data.trove_steps import write_index

        found = NGramsDecontFilter(str(self.state / "held_out"))
        write_index(found, self.section.held_out, self.section.text)
        return found

    def _without_near_duplicates(self) -> Path:
        """MinHash with bands (Broder 1997; Leskovec et al. 2014), the library's four pipelines."""
        from datatrove.pipeline import dedup
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter

        read, kept = str(self.state / "read"), self.state / "kept"
        signatures, buckets, remove = (str(self.state / name) for name in "sbr")
        config = dedup.MinhashConfig()
        signature = dedup.MinhashDedupSignature(signatures, config)
        self._execute("signatures", [JsonlReader(read), signature], self.tasks)
        self._execute(
            "buckets",
            [dedup.MinhashDedupBuckets(signatures, buckets, config=config)],
            config.num_buckets,
        )
        self._execute("clusters", [dedup.MinhashDedupCluster(buckets, remove, config)], 1)
        leave_out = dedup.MinhashDedupFilter(remove)
        writer = JsonlWriter(str(kept))
        self._execute("minhash", [JsonlReader(read), leave_out, writer], self.tasks)
        return kept

    def _execute(self, name: str, steps: list[Any], tasks: int) -> None:
        """Run a pipeline's tasks, but for those that finished before, and wait for them."""
        self.steps.append(name)
        section = self.section
        common: dict[str, Any] = {
            "tasks": tasks,
            "workers": min(section.workers, tasks),
            "logging_dir": str(self.state / "logs" / name),
        }
        executor = _executor(section, steps, common)
        executor.run()
        while executor.get_incomplete_ranks(skip_completed=True):
            if section.executor != "slurm" or not _queued(executor.job_id):
                logs = common["logging_dir"]
                raise UserError(f"download.corpus: tasks of `{name}` failed; see {logs}")
            time.sleep(POLL_SECONDS)

    def dropped(self) -> Counter[str]:
        """Reason → documents, by the library's statistics of every task."""
        found: Counter[str] = Counter()
        for name in self.steps:
            for file in sorted((self.state / "logs" / name / "stats").glob("*.json")):
                for step in json.loads(file.read_text(encoding="utf-8")):
                    found += _reasons(name, step)
        return found


def _reasons(name: str, step: dict[str, Any]) -> Counter[str]:
    """The reasons of one step of one task. What a step drops without a reason is named for it: for
    the pipeline, or for the extractor of a page that has no text or could not be read."""
    stats = {
        key: int(value["total"] if isinstance(value, dict) else value)
        for key, value in step["stats"].items()
    }
    told = Counter(
        {
            key.removeprefix("dropped_"): value
            for key, value in stats.items()
            if key.startswith("dropped_")
        }
    )
    if "EXTRAC" in step["name"].upper():  # it has words of its own for what it could not read
        return Counter({"no_main_text": stats.get("total", 0) - stats.get("forwarded", 0)})
    return told + Counter({name: stats.get("dropped", 0) - told.total()})


def _reader(section: Trove) -> list[Any]:
    from datatrove.pipeline import readers

    from gptmill.data.trove_steps import HasText, TextReader, adapt

    kinds = {
        "text": TextReader,
        "jsonl": readers.JsonlReader,
        "csv": readers.CSVReader,
        "parquet": readers.ParquetReader,
        "warc": readers.WarcReader,
    }
    reader = kinds[section.format](
        section.path,
        text_key=section.text or "text",
        glob_pattern=section.pattern or None,
        adapter=adapt,
    )
    if section.format != "warc":
        return [reader, HasText()]
    from datatrove.pipeline.extractors import Trafilatura

    return [reader, HasText(), Trafilatura()]  # its documents are pages of HTML


def _executor(section: Trove, steps: list[Any], common: dict[str, Any]) -> Any:
    from datatrove import executor

    if section.executor == "local":
        return executor.LocalPipelineExecutor(steps, **common)
    if section.executor == "ray":
        return executor.RayPipelineExecutor(steps, **common, mem_per_cpu_gb=1)
    return executor.SlurmPipelineExecutor(
        steps,
        **common,
        partition=section.slurm_partition,
        time=section.slurm_time,
        mail_type="NONE",
        # The library's own command lies beside Python, which need not be in the path.
        env_command=f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        slurm_logs_folder=f"{common['logging_dir']}/slurm",  # not in the project's folder
    )


def _queued(job: str) -> bool:
    """Whether Slurm still has the job, waiting or running."""
    done = subprocess.run(["squeue", "-h", "-j", str(job)], capture_output=True, text=True)
    return bool(done.stdout.strip())


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)
