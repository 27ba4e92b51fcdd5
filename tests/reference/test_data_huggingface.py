"""Data sets at a hub of this machine, by the library `huggingface_hub`: all three kinds."""

import json
from pathlib import Path

from tests.reference.test_weights_huggingface import COMMIT, in_a_process, serving

TURNS = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
REPOSITORIES = {
    "someone/texts": {"data/b.txt": b"second", "data/a.txt": "caf\xe9".encode("latin-1"),
                      "README.md": b"not data"},
    "someone/labeled": {
        "train.jsonl": b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
        "test.jsonl": b'{"text": "c", "label": 1}\n',
    },
    "someone/chats": {"chat.jsonl": json.dumps({"messages": TURNS}).encode()},
}  # fmt: skip
# What the readers say goes to standard error: standard output has one line of JSON a data set.
QUIET = """
import builtins, functools, sys
out = builtins.print
builtins.print = functools.partial(out, file=sys.stderr)
"""
SCRIPT = """
import json, sys, tempfile
from pathlib import Path
from gptmill.data.classification import read_labeled
from gptmill.data.corpus import documents
from gptmill.data.raw import make_raw
from gptmill.errors import UserError
from gptmill.sources import Hub, LabeledHub, TextHub

for name, repository, revision, path in json.loads(sys.argv[1]):
    kind, more = {"corpus": (TextHub, {"text": "", "separator": ""}),
                  "classification": (LabeledHub, {"text": "", "label": ""}),
                  "instructions": (Hub, {})}[name]
    section = kind(source="huggingface", repository=repository, revision=revision, path=path,
                   encoding="", **more)
    raw = Path(tempfile.mkdtemp()) / "raw"
    try:
        make_raw(name, section, raw)
    except UserError as error:
        out(json.dumps(str(error)))
        continue
    if name == "corpus":
        out(json.dumps([document.text for document in documents(raw)]))
    elif name == "classification":
        out(json.dumps(read_labeled(raw / "texts.csv").values.tolist()))
    else:
        out((raw / "instructions.json").read_text().replace("\\n", ""))
"""


def test_data_sets_of_a_hub(tmp_path: Path) -> None:
    wanted = [
        ("classification", "someone/labeled", COMMIT, "*.jsonl"),
        ("instructions", "someone/chats", COMMIT, "*.jsonl"),
        ("corpus", "someone/texts", COMMIT, "data/*.txt"),
        ("classification", "someone/labeled", COMMIT, "*.parquet"),
        ("classification", "someone/absent", COMMIT, "*"),
        ("classification", "someone/labeled", "v9", "*"),
    ]
    with serving(REPOSITORIES) as address:
        said = in_a_process(QUIET + SCRIPT, address, tmp_path, wanted)
    labeled, chats, texts, no_file, no_repository, no_revision = said
    assert labeled == [["1", "c", "test"], ["0", "a", "train"], ["1", "b", "train"]]
    assert chats == [{"instruction": "u", "input": "", "output": "a"}]
    assert "someone/labeled has no file *.parquet at revision" in no_file
    assert "someone/absent" in no_repository
    assert "has no revision v9" in no_revision
    assert texts == ["caf\xe9", "second"]
