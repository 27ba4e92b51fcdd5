"""The profile `book` from GPT-2's published small files, through a hub on this machine: the real
commands, with tiny random weights and the first entries of the data."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformers import AutoTokenizer, GPT2LMHeadModel

from gptmill.files import read_json
from gptmill.tokenizer import load_stop_tokens, load_tokenizer
from gptmill.weights.huggingface import PINNED
from tests.pipeline.conftest import Project, clone
from tests.reference.test_weights_huggingface import serving

MIRROR = Path("../shared/mirror").resolve()
GPT2, MEDIUM = "openai-community/gpt2", "openai-community/gpt2-medium"
PUBLISHED = MIRROR / "huggingface.co" / GPT2 / "resolve" / PINNED[GPT2]
SMALL = {
    "runtime.threads": 1,
    "pretrain.model.layers": 1,
    "pretrain.model.heads": 2,
    "pretrain.model.width": 16,
    "pretrain.model.context_length": 32,
    "pretrain.steps": 3,
    "pretrain.evaluation_stride": 32,
    "pretrain.sampling.max_new_tokens": 4,
    "load_gpt2.classifier.evaluation_tokens": 64,
    "load_gpt2.instructions.evaluation_tokens": 64,
    "finetune_classifier.epochs": 1,
    "finetune_classifier.maximum_length": 24,
    "finetune_instructions.epochs": 1,
    "finetune_instructions.allowed_max_length": 64,
    "respond.sampling.max_new_tokens": 4,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PUBLISHED.exists(), reason="needs ../shared/mirror: GPT-2's own files"),
]


def repository(layers: int, heads: int, width: int) -> dict[str, bytes]:
    """GPT-2's published files around random weights, by the names that it published."""
    files = {path.name: path.read_bytes() for path in PUBLISHED.iterdir()}
    config = json.loads(files["config.json"]) | {"n_positions": 64, "n_ctx": 64}
    config |= {"n_layer": layers, "n_head": heads, "n_embd": width}
    files["config.json"] = json.dumps(config).encode()
    torch.manual_seed(layers)
    names = {"wte.weight": (50257, width), "wpe.weight": (64, width)}
    names |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    for layer in range(layers):
        at = f"h.{layer}"
        names |= {f"{at}.{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in KINDS}
        for name, (rows, columns) in MATRICES.items():
            names[f"{at}.{name}.weight"] = (rows * width, columns * width)
            names[f"{at}.{name}.bias"] = (columns * width,)
    tensors = {name: 0.02 * torch.randn(shape) for name, shape in names.items()}
    for layer in range(layers):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    return files | {"model.safetensors": save(tensors, {"format": "pt"})}


KINDS = ("weight", "bias")
MATRICES = {
    "attn.c_attn": (1, 3),
    "attn.c_proj": (1, 1),
    "mlp.c_fc": (1, 4),
    "mlp.c_proj": (4, 1),
}


def first_entries(project: Project, mirror: Path) -> None:
    """Manifests of the first 40 instructions and 200 messages, in a mirror of their own."""
    manifests = project.root / "profiles/manifests"

    def put(name: str, content: bytes, **changes: object) -> None:
        entries = read_json(manifests / f"{name}.json")
        path = mirror / entries[0]["url"].removeprefix("https://")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entries[0] |= {"bytes": len(content), "sha256": digest, **changes}
        (manifests / f"{name}.json").write_text(json.dumps(entries))

    def published(name: str) -> Path:
        url = read_json(manifests / f"{name}.json")[0]["url"]
        return MIRROR / url.removeprefix("https://")

    put("instructions", json.dumps(read_json(published("instructions"))[:40]).encode())
    with zipfile.ZipFile(published("sms_spam")) as archive:
        lines = archive.read("SMSSpamCollection").splitlines(keepends=True)[:200]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("SMSSpamCollection", b"".join(lines))
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    put("sms_spam", packed.getvalue(), member_sha256=digest)
    for name in ("the_verdict", "gpt2_bpe"):
        for entry in read_json(manifests / f"{name}.json"):
            path = mirror / entry["url"].removeprefix("https://")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(MIRROR / path.relative_to(mirror), path)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("book")
    project = clone(folder / "project")
    first_entries(project, folder / "mirror")
    project.run("gptmill", "profile", "book")
    project.set_parameters(SMALL)
    repositories = {GPT2: repository(2, 2, 16), MEDIUM: repository(3, 4, 32)}
    with serving(repositories) as address:
        project.environment |= {
            "HF_ENDPOINT": address,
            "HF_HOME": str(folder / "hf"),
            "GPTMILL_MIRROR": str(folder / "mirror"),
        }
        project.run("dvc", "repro", "finetune_classifier", "respond")
        yield project


def test_both_sizes_are_what_the_hub_has(book: Project) -> None:
    for task, name, layers in (("classifier", GPT2, 2), ("instructions", MEDIUM, 3)):
        folder = book.root / "models/foundation" / task
        origin = read_json(folder / "provenance.json")["foundation"]
        assert origin == {"repository": name, "commit": PINNED[name]}
        assert read_json(folder / "config.json")["n_layer"] == layers
        assert load_stop_tokens(folder) == [50256]
        assert GPT2LMHeadModel.from_pretrained(folder).config.n_layer == layers


def test_every_model_has_gpt2_s_tokens(book: Project) -> None:
    text = "Every effort moves you, don't it?  2,000 cafés"
    expected = AutoTokenizer.from_pretrained(PUBLISHED)(text)["input_ids"]
    for name in ("pretrained", "foundation/classifier", "classifier", "instructions"):
        folder = book.root / "models" / name
        assert load_tokenizer(folder).encode(text) == expected
        assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == expected


def test_the_last_stage_answered(book: Project) -> None:
    assert len(read_json(book.root / "data/responses/responses.json")) == 4
