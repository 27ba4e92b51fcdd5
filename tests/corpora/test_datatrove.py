"""Corpora by datatrove: every reader and filter, S3, executors, reruns. `make test-data` has what
they need; elsewhere they are skipped."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="datatrove is not installed: make test-data")

import pandas as pd
from datatrove.pipeline.filters.base_filter import BaseFilter
from filelock import FileLock

from gptmill.data import trove
from gptmill.data.corpus import documents, filtered
from gptmill.data.trove import write_trove
from gptmill.data.trove_steps import HasText
from gptmill.errors import UserError
from gptmill.files import sha256_tree
from gptmill.sources import Trove
from tests.clusters.conftest import hosts  # noqa: F401 (fixtures)
from tests.clusters.test_slurm import slurm  # noqa: F401

OFF = {
    "source": "datatrove", "version": trove.version("datatrove"), "pattern": "", "format": "jsonl",
    "text": "", "urls": False, "languages": [], "language_threshold": 0.5, "quality": [],
    "held_out": [], "pii": False, "minhash": False, "executor": "local", "workers": 1,
    "slurm_partition": "", "slurm_time": "",
}  # fmt: skip
WORDS = [
    *("the", "of", "and", "a", "with", "that", "cat", "river", "walks", "sees", "long", "house"),
    *("when", "over", "was", "garden", "tree"),
]
GERMAN = "Der Hund läuft durch den Garten und sieht die Katze auf dem alten Baum sitzen. " * 3


def prose(seed: int, sentences: int = 40) -> str:
    chance = random.Random(seed)
    made = (" ".join(chance.choices(WORDS, k=chance.randrange(6, 14))) for _ in range(sentences))
    return "\n".join(f"{sentence.capitalize()}." for sentence in made)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".state/datatrove"


def section(path, **values) -> Trove:
    return Trove.model_validate(OFF | {"path": str(path)} | values)


def made(tmp_path: Path, wanted: Trove, name: str = "raw") -> dict[str, str]:
    """Write the corpus; id → text."""
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    write_trove(wanted, out)
    return {document.id: document.text for document in documents(out)}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt").write(text)


# --- Readers


def test_json_csv_parquet_and_text_plain_and_compressed(tmp_path):
    texts = [f"Text {number}.\nIts second line, {number}." for number in range(6)]
    rows = [{"body": text} for text in texts]
    for name, half in (("0.jsonl.gz", rows[:3]), ("1.jsonl", rows[3:])):
        write_lines(tmp_path / "jsonl" / name, half)
    (tmp_path / "csv").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "csv/0.csv.gz", index=False)
    (tmp_path / "parquet").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "parquet/0.parquet")
    (tmp_path / "text/sub").mkdir(parents=True)
    for number, text in enumerate(texts):
        data = text.encode()
        if number % 2:
            (tmp_path / f"text/sub/{number}.txt.gz").write_bytes(gzip.compress(data))
        else:
            (tmp_path / f"text/{number}.txt").write_bytes(data)
    for kind in ("jsonl", "csv", "parquet", "text"):
        column = "" if kind == "text" else "body"
        found = made(tmp_path, section(tmp_path / kind, format=kind, text=column), kind + "-raw")
        assert sorted(found.values()) == texts, kind


@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_zstandard_is_read(tmp_path, kind):
    zstandard = pytest.importorskip("zstandard")
    data = json.dumps({"text": "A text."}) if kind == "jsonl" else "A text."
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/0.{kind}.zst").write_bytes(zstandard.compress(data.encode()))
    assert list(made(tmp_path, section(tmp_path / "in", format=kind)).values()) == ["A text."]


def test_a_crawl_becomes_the_text_of_its_pages(tmp_path):
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    (tmp_path / "crawl").mkdir()
    with (tmp_path / "crawl/0.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number in range(4):
            paragraphs = "".join(f"<p>{prose(10 * number + i, 6)}</p>" for i in range(4))
            html = f"<html><body><nav>Menu</nav><article>{paragraphs}</article></body></html>"
            headers = StatusAndHeaders(
                "200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.0"
            )
            payload = io.BytesIO(html.encode())
            if number == 3:
                payload = io.BytesIO(b"<html><body></body></html>")
            record = writer.create_warc_record(
                f"http://example.com/{number}", "response", payload=payload, http_headers=headers
            )
            writer.write_record(record)
    found = made(tmp_path, section(tmp_path / "crawl", format="warc"))
    assert len(found) == 3 and filtered(tmp_path / "raw") == {"no_main_text": 1}
    assert all("<p>" not in text and len(text) > 500 for text in found.values())
    assert any(prose(0, 6).split("\n")[0] in text for text in found.values())


# --- Filters


def test_each_drop_is_counted_with_its_reason(tmp_path):
    good = [{"text": prose(n), "url": "https://en.wikipedia.org/wiki/A"} for n in range(5)]
    bad = [
        {"text": GERMAN, "url": "https://example.org"},
        {"text": "too short", "url": "https://example.org"},
        {"text": prose(50), "url": "http://xxx-porn-sex.com/a"},
        {"text": prose(51) + "\n" + prose(99)[200:600], "url": "https://example.org"},
        {"text": (prose(52, 3) + "\n") * 12, "url": "https://example.org"},
    ]
    write_lines(tmp_path / "in/0.jsonl", [*good, *bad])
    write_lines(tmp_path / "held/test.jsonl", [{"text": prose(99)}])
    everything = section(
        tmp_path / "in",
        urls=True,
        languages=["en"],
        quality=["gopher_repetition", "gopher_quality"],
        held_out=[str(tmp_path / "held")],
    )
    found = made(tmp_path, everything)
    assert list(found.values()) == [row["text"] for row in good]
    reasons = filtered(tmp_path / "raw")
    assert sum(reasons.values()) == len(bad), reasons
    assert reasons["language"] >= 1 and reasons["contaminated"] == 1 and reasons["domain"] == 1
    assert {"gopher_short_doc", "dup_line_frac"} & reasons.keys()


def test_the_rules_of_c4_and_fineweb(tmp_path):
    """Documents of which each breaks one rule of the papers."""
    good = prose(1)
    bad = {
        "few": "One sentence stands here. Another one follows.",
        "latin": good + "\nLorem ipsum dolor sit amet.",
        "code": good + "\nA function has { in it.",
        "list": "\n".join(f"{word} is in the list of words" for word in WORDS),
        "short": "\n".join(f"{word.capitalize()} sees it." for word in WORDS * 3),
    }
    write_lines(tmp_path / "in/0.jsonl", [{"text": text} for text in [good, *bad.values()]])
    found = made(tmp_path, section(tmp_path / "in", quality=["c4_quality"]), "c4")
    reasons = filtered(tmp_path / "c4")
    assert next(iter(found.values())) == good
    assert reasons["lorem_ipsum"] == reasons["curly_bracket"] == 1
    assert reasons["too_few_sentences"] == 2  # of the list no line ends a sentence
    found = made(tmp_path, section(tmp_path / "in", quality=["fineweb_quality"]), "fineweb")
    reasons = filtered(tmp_path / "fineweb")
    assert good in found.values() and bad["short"] not in found.values()
    assert reasons["line_punct_ratio"] == 1 and reasons["short_line_ratio"] == 1


def test_what_has_no_text_is_counted(tmp_path):
    rows = [{"text": "A text."}, {"text": ""}, {"text": None}, {"other": "x"}, {"text": 5}]
    write_lines(tmp_path / "in/0.jsonl", rows)
    assert list(made(tmp_path, section(tmp_path / "in")).values()) == ["A text."]
    assert filtered(tmp_path / "raw") == {"no_text": 4}


def test_addresses_of_people_and_machines_are_replaced(tmp_path):
    write_lines(
        tmp_path / "in/0.jsonl", [{"text": "Write to ann.b@corp.com from 8.8.8.8, please."}]
    )
    [text] = made(tmp_path, section(tmp_path / "in", pii=True)).values()
    assert text == "Write to email@example.com from 192.0.2.1, please."


def test_near_duplicates_go_by_minhash(tmp_path):
    texts = [prose(number) for number in range(6)]
    changed = texts[2].replace("river", "stream", 2)
    write_lines(tmp_path / "in/0.jsonl", [{"text": text} for text in texts[:4]])
    write_lines(tmp_path / "in/1.jsonl", [{"text": text} for text in [changed, *texts[4:]]])
    found = made(tmp_path, section(tmp_path / "in", minhash=True))
    assert len(found) == 6 and len({texts[2], changed} & set(found.values())) == 1
    assert filtered(tmp_path / "raw") == {"minhash": 1}


# --- Places, executors, reruns


def many(tmp_path: Path, files: int = 5) -> Path:
    for number in range(files):
        rows = [{"text": prose(10 * number + row)} for row in range(4)]
        write_lines(tmp_path / f"in/{number}.jsonl", rows)
    return tmp_path / "in"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An S3 server of moto's with an empty bucket."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpora")
    yield client
    server.stop()


def test_a_bucket_gives_what_the_folder_gives(tmp_path, bucket):
    folder = many(tmp_path)
    for path in folder.iterdir():
        bucket.upload_file(str(path), "corpora", f"deep/{path.name}")
    expected = made(tmp_path, section(folder), "local")
    found = made(tmp_path, section("s3://corpora/deep"), "bucket")
    assert list(found.values()) == list(expected.values()) and len(found) == 20
    assert list(made(tmp_path, section(f"file://{folder}"), "file")) == list(expected)


@pytest.mark.parametrize(("executor", "workers"), [("local", 2), ("ray", 2)])
def test_executors_and_workers_give_the_same_corpus(tmp_path, monkeypatch, executor, workers):
    if executor == "ray":
        pytest.importorskip("ray")
    folder = many(tmp_path)
    made(tmp_path, section(folder, minhash=True), "one")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
    several = section(folder, minhash=True, executor=executor, workers=workers)
    made(tmp_path, several, "several")
    assert sha256_tree(tmp_path / "several") == sha256_tree(tmp_path / "one")
    assert len(list(documents(tmp_path / "one"))) == 20


def test_a_real_slurm_gives_the_same_corpus(tmp_path, slurm):  # noqa: F811
    """Two nodes; the job's tasks find their command though the environment's path does not."""
    folder = many(tmp_path)
    made(tmp_path, section(folder), "one")
    wanted = section(folder, executor="slurm", workers=2, slurm_partition="all", slurm_time="5:00")
    out = tmp_path / "several"
    out.mkdir()
    program = (
        "import sys; from pathlib import Path; from gptmill.data.trove import write_trove; "
        "from gptmill.sources import Trove; "
        "write_trove(Trove.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    environment = os.environ | {"SLURM_CONF": f"{slurm.folder}/slurm.conf"}
    environment |= {"DVC_ROOT": str(tmp_path / "other"), "PATH": "/usr/bin:/bin:/usr/sbin"}
    environment |= {"PYTHONPATH": f"{Path('src').absolute()}:{Path.cwd()}"}
    command = [sys.executable, "-c", program, wanted.model_dump_json(), str(out)]
    done = subprocess.run(
        [*slurm.host.enter(), *command], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert sha256_tree(out) == sha256_tree(tmp_path / "one")
    assert "COMPLETED" in (slurm.folder / "jobs.txt").read_text()


def test_doctor_clears_what_no_download_holds(tmp_path, state):
    from gptmill.engine.checkpoint import remove_unfinished

    made(tmp_path, section(many(tmp_path)))
    [run] = state.iterdir()
    with FileLock(run / "lock"):
        assert not list(remove_unfinished(state)) and run.exists()
    assert len(list(remove_unfinished(state))) == 1 and not run.exists()


def test_finished_tasks_are_skipped_and_a_changed_file_is_not(tmp_path, monkeypatch, state):
    folder = many(tmp_path)
    seen = []
    original = BaseFilter.run

    def fails_once(self, data, rank=0, world_size=1):
        if isinstance(self, HasText):
            yield from original(self, data, rank, world_size)
            return
        seen.append(rank)
        if rank == 3 and seen.count(3) == 1:
            raise ValueError("the machine is gone")
        yield from original(self, data, rank, world_size)

    monkeypatch.setattr(BaseFilter, "run", fails_once)
    wanted = section(folder, quality=["gopher_quality"])
    with pytest.raises(UserError, match=r"the machine is gone; finished tasks are kept"):
        made(tmp_path, wanted)
    assert len(made(tmp_path, wanted)) == 20
    assert seen == [0, 1, 2, 3, 3, 4]
    made(tmp_path, wanted)
    assert len(seen) == 6
    write_lines(folder / "0.jsonl", [{"text": prose(999)}])
    assert len(made(tmp_path, wanted)) == 17
    assert len(seen) == 11 and len(list(state.iterdir())) == 2


def test_what_is_wrong_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no file"):
        made(tmp_path, section(tmp_path / "in"))
    with pytest.raises(UserError, match=r"datatrove 0\.0\.1 is asked for"):
        made(tmp_path, section(tmp_path / "in", version="0.0.1"))
    write_lines(tmp_path / "in/0.jsonl", [{"text": "short"}])
    with pytest.raises(UserError, match="is left: 1 gopher_short_doc"):
        made(tmp_path, section(tmp_path / "in", quality=["gopher_quality"]))
    with pytest.raises(UserError, match="nowhere://"):
        made(tmp_path, section("nowhere://bucket"))


def test_the_stage_counts_what_was_filtered(tmp_path):
    """`download` and `tokenize` as DVC runs them."""
    write_lines(tmp_path / "in/0.jsonl", [{"text": prose(n, 60)} for n in range(30)])
    write_lines(tmp_path / "in/1.jsonl", [{"text": "too short"}])
    work = tmp_path / "project"
    work.mkdir()
    for name in ("params.yaml", "versions.yaml", "profiles", "own"):
        (work / name).symlink_to(Path(name).absolute())
    (work / "params.yaml").unlink()
    from ruamel.yaml import YAML

    values = YAML().load(Path("params.yaml"))
    values["download"]["corpus"] = OFF | {
        "path": str(tmp_path / "in"), "quality": ["gopher_quality"], "workers": 2,
    }  # fmt: skip
    values["tokenize"]["vocabulary_size"] = 300
    YAML().dump(values, work / "params.yaml")
    environment = os.environ | {"PYTHONPATH": f"{Path('src').absolute()}:{Path.cwd()}"}
    environment |= {"DVC_ROOT": str(work), "MLFLOW_TRACKING_URI": ""}
    for arguments in (
        "stages.download --dataset corpus --output raw",
        "stages.tokenize --corpus raw --output tokens --metrics tokenize.json",
    ):
        command = [sys.executable, "-m", *arguments.split()]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((work / "tokenize.json").read_text())
    assert metrics["filtered/gopher_short_doc"] == 1
    documents = sum(metrics[f"{split}/documents"] for split in ("train", "validation", "test"))
    assert 30 <= documents <= 32  # one may be cut
