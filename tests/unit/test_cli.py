"""The command line: what a person sees, for models that PyTorch and ONNX Runtime open."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import torch

from gptmill.cli import build_parser, main
from gptmill.cli.label import write_rows
from gptmill.data.tables import read_rows
from gptmill.evaluate import fewshot
from gptmill.export.onnx import export_classifier, export_language_model
from gptmill.files import read_json, sha256
from gptmill.generate.loop import generate
from gptmill.generate.sampling import SamplingOptions
from gptmill.generate.torch_decoder import TorchDecoder
from gptmill.model.classifier import GPT2Classifier
from gptmill.model.config import GPT2Config
from gptmill.model.gpt2 import GPT2
from gptmill.prompt import chat_template
from gptmill.reading import Reading
from gptmill.serve.prompts import Message, conversation_ids
from gptmill.tokenizer import byte_pairs_from_merges
from gptmill.weights.folder import load_language_model, save_model

TOKENIZER = byte_pairs_from_merges([("t", "h"), ("th", "e")])
CONFIG = GPT2Config(TOKENIZER.vocabulary_size, 64, layers=2, heads=2, width=16)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models: torch and onnx, language and instructions, and a classifier."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = GPT2(CONFIG, deviation=0.5)
    save_model(root / "torch", model, TOKENIZER, provenance={}, prompt_style="phi3")
    save_model(root / "plain", model, TOKENIZER, provenance={})
    export_language_model(root / "torch", root / "onnx", opset=20)
    save_model(
        root / "labels",
        GPT2Classifier(CONFIG, 2),
        TOKENIZER,
        provenance={},
        reading=Reading(("ham", "spam"), 20),
    )
    export_classifier(root / "labels", root / "classifier", opset=20)
    return root


def test_both_runtimes_generate_the_same(models: Path, capsys: pytest.CaptureFixture) -> None:
    texts = []
    for folder in ("torch", "onnx"):
        for temperature in ("0", "1.0"):
            sampling = ["--max-new-tokens", "12", "--temperature", temperature, "--seed", "3"]
            main(["generate", "--model", str(models / folder), "--prompt", "the", *sampling])
            texts.append(capsys.readouterr().out)
    assert texts[0].startswith("the")
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


def test_an_instruction_takes_the_models_own_prompt(
    models: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["generate", "--model", str(models / "onnx"), "--instruction", "say", "--input", "the",
          "--max-new-tokens", "5"])  # fmt: skip
    answer = capsys.readouterr().out
    main(["generate", "--model", str(models / "onnx"),
          "--prompt", "<|user|>\nsay\nthe\n<|assistant|>\n", "--max-new-tokens", "5"])  # fmt: skip
    assert capsys.readouterr().out == f"<|user|>\nsay\nthe\n<|assistant|>\n{answer}"


def test_a_models_own_stop_tokens_end_its_text(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = load_language_model(models / "plain")
    options = SamplingOptions(max_new_tokens=9, temperature=1.0, seed=5)
    ids = generate(TorchDecoder(model), TOKENIZER, ["the"], options)[0].ids
    end = next(at for at in range(1, 9) if ids[at] not in ids[:at])
    stops = [TOKENIZER.end_of_text, ids[end]]
    save_model(tmp_path / "model", model, TOKENIZER, provenance={}, stop_tokens=stops)
    command = ["generate", "--prompt", "the", "--max-new-tokens", "9", "--temperature", "1"]
    main([*command, "--seed", "5", "--model", str(tmp_path / "model")])
    assert capsys.readouterr().out == f"the{TOKENIZER.decode(ids[:end])}\n"


def test_every_sampling_option_reaches_the_sampler(
    models: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["generate", "--model", str(models / "plain"), "--prompt", "the"]
    command += ["--max-new-tokens", "30", "--temperature", "0.05", "--seed", "2"]
    changes = (["--top-k", "3"], ["--top-p", "0.5"], ["--min-p", "0.5"], ["--stop", "h"],
               ["--repetition-penalty", "5"], ["--seed", "3"], [])  # fmt: skip
    texts = set()
    for change in changes:
        main([*command, *change])
        texts.add(capsys.readouterr().out)
    assert len(texts) == len(changes)


def test_a_model_without_a_style_refuses_instructions(models: Path) -> None:
    with pytest.raises(SystemExit, match="not trained on instructions"):
        main(["generate", "--model", str(models / "plain"), "--instruction", "say"])


def test_chat_remembers_and_resets(
    models: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for typed in ("a\n", "b\n/reset\na\n", "b\na\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        main(["chat", "--model", str(models / "torch"), "--max-new-tokens", "4"])
        answers.append(capsys.readouterr().out.split("> ")[-2])
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_chat_has_a_turn_forgotten_when_the_context_is_full(
    models: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 positions of bytes hold two of these turns beside the answer, not three."""
    lasts = []
    for typed in ("x\nb\na\n", "b\na\n", "a\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        main(["chat", "--model", str(models / "torch"), "--max-new-tokens", "1"])
        lasts.append(capsys.readouterr().out.split("> ")[-2])
    assert lasts[0] == lasts[1]


def test_a_conversation_is_what_the_chat_template_renders() -> None:
    turns = [("system", "Be brief."), ("user", "the"), ("assistant", "then"), ("user", "go")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = jinja2.Template(chat_template("phi3")).render(
        messages=messages, eos_token="<|endoftext|>", add_generation_prompt=True
    )
    ids = conversation_ids([Message(*turn) for turn in turns], "phi3", TOKENIZER, 999)
    assert TOKENIZER.decode(ids) == rendered
    assert ids.count(TOKENIZER.end_of_text) == 1


def test_classify_reads_arguments_files_and_pipes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["classify", "--model", str(models / "classifier")]
    main([*command, "win the prize", "see the dog"])
    expected = capsys.readouterr().out
    assert [line.split("\t")[2] for line in expected.splitlines()] == [
        "win the prize",
        "see the dog",
    ]
    (tmp_path / "texts").write_text("win the prize\nsee the dog\n")
    main([*command, "--file", str(tmp_path / "texts")])
    assert capsys.readouterr().out == expected
    typed = io.TextIOWrapper(io.BytesIO(b"win the prize\r\nsee the dog\n"))
    monkeypatch.setattr(sys, "stdin", typed)
    main(command)
    assert capsys.readouterr().out == expected
    for line in expected.splitlines():
        label, probability, _ = line.split("\t")
        assert label in ("ham", "spam")
        assert 0.5 <= float(probability) <= 1


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_classify_labels_a_table(
    kind: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = ["win the prize", "", "see\rthe dog", 'a "b", c\td']
    table = [{"id": str(i), "message": text} for i, text in enumerate(texts)]
    write_rows(tmp_path / f"in.{kind}", table)
    output = tmp_path / f"labeled.{kind}"
    command = ["classify", "--model", str(models / "classifier")]
    main([*command, "--file", str(tmp_path / f"in.{kind}"), "--output", str(output)])
    assert "1 of 4 rows have no text" in capsys.readouterr().err
    found = read_rows(output)
    assert [row["message"] for row in found] == texts
    assert [row["id"] for row in found] == ["0", "1", "2", "3"]
    main([*command, texts[0], texts[2], texts[3]])
    lines = capsys.readouterr().out.split("\n")
    for row, line in zip([found[0], found[2], found[3]], lines):
        label, probability, _ = line.split("\t", 2)
        assert row["predicted"] == label
        assert float(row["probability"]) == pytest.approx(float(probability), abs=1e-4)
    assert not found[1]["predicted"]


def test_classify_writes_half_pairs_and_numbers_and_loses_no_column(
    models: Path, tmp_path: Path
) -> None:
    lines = ['{"text": "where is my \\ud83d card", "more": ["\\ud83d"]}', '{"text": 12}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    command = ["classify", "--model", str(models / "classifier"), "--file"]
    main([*command, str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")])
    first, second = read_rows(tmp_path / "out.jsonl")
    assert (first["text"], first["more"]) == ("where is my \ufffd card", ["\ufffd"])
    assert second["predicted"] in ("ham", "spam")
    for file, output, told in (
        ("out.jsonl", "again.jsonl", "has a column 'predicted' already"),
        ("in.jsonl", "out.parquet", "Parquet has one type a column"),
    ):
        with pytest.raises(SystemExit, match=told):
            main([*command, str(tmp_path / file), "--output", str(tmp_path / output)])


def test_classify_says_what_is_wrong_with_a_table(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one,two\nx,y\n")
    command = ["classify", "--model", str(models / "classifier"), "--file", str(tmp_path / "a.csv")]
    for arguments, told in (
        ([], r"name the column in --column: none of a usual name; there are \['one', 'two'\]"),
        (["--column", "three"], "no column 'three'"),
        (["--column", "one", "--output", "a.xlsx"], "a.xlsx: write one of .csv"),
    ):
        with pytest.raises(SystemExit, match=told):
            main([*command, *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model", "nowhere"], "nowhere does not exist: run `make repro`"),
        (["classify", ""], "text 1 is empty"),
        (["perplexity", "--model", "MODEL", "--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["perplexity", "--model", "MODEL", "--text", "TEXT", "--window", "65"], "context, 64"),
        (["perplexity", "--model", "MODEL", "--text", "TEXT", "--window", "0"], "must be 2 to"),
        (["perplexity", "--model", "MODEL", "--text", "TEXT", "--stride", "64"], "must be 1 to 63"),
        (["perplexity", "--model", "MODEL", "--text", "TEXT", "--stride", "0"], "must be 1 to 63"),
        (["perplexity", "--model", "MODEL", "--text", "EMPTY"], "0 tokens, and nothing"),
        (["generate", "--model", "MODEL", "--task", "TEXT"], "needs a text in --prompt"),
        (
            ["evaluate", "fewshot", "--model", "MODEL", "--task", "no.jsonl"],
            "no.jsonl does not",
        ),
        (["evaluate", "fewshot", "--model", "MODEL", "--task", "TEXT"], "text:1: not JSON"),
        (["evaluate", "fewshot", "--model", "MODEL", "--task", "TEXT", "--shots", "-1"], "least 0"),
        (["evaluate", "fewshot", "--model", "MODEL", "--task", "TEXT", "--limit", "0"], "--limit"),
        (
            ["evaluate", "fewshot", "--model", "MODEL", "--task", "TEXT", "--output", "a.txt"],
            "ends in .png",
        ),
        (["profile", "calibratoin"], "did you mean 'calibration'"),
        (["params", "no_such"], "no parameter's name contains 'no_such'"),
    ],
)
def test_mistakes_get_one_line(
    models: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text").write_text("the dog")
    (tmp_path / "empty").write_text("")
    places = {"MODEL": str(models / "torch"), "TEXT": str(tmp_path / "text")}
    places["EMPTY"] = str(tmp_path / "empty")
    with pytest.raises(SystemExit) as caught:
        main([places.get(argument, argument) for argument in arguments])
    assert str(caught.value.code).startswith("error: ")
    assert message in str(caught.value.code)


def test_perplexity_states_its_method(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text").write_text("the dog and the cat " * 20)
    main(["perplexity", "--model", str(models / "torch"), "--text", str(tmp_path / "text")])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:16].strip(): line[17:] for line in lines}
    assert (rows["window"], rows["stride"], rows["BOS"]) == ("64", "32", "no")
    assert rows["normalization"] == "by tokens scored, UTF-8 bytes, words between white space"
    assert float(rows["bits per byte"]) == pytest.approx(
        float(rows["bits per token"]) * int(rows["tokens scored"]) / int(rows["bytes"]), rel=1e-4
    )


def test_every_command_has_help(capsys: pytest.CaptureFixture) -> None:
    commands = next(a for a in build_parser()._actions if a.choices).choices
    for name in [*([name] for name in commands), ["evaluate", "fewshot"]]:
        with pytest.raises(SystemExit) as caught:
            main([*name, "--help"])
        assert caught.value.code == 0
        assert "usage: gptmill" in capsys.readouterr().out


def test_params_shows_value_and_meaning(capsys: pytest.CaptureFixture) -> None:
    main(["params", "learning_rate"])
    text = capsys.readouterr().out
    assert "pretrain.optimizer.learning_rate" in text
    assert "peak learning rate (float)" in text
    main(["params", "download.corpus"])
    rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert rows["download.corpus[embedded].count"] == "8000"
    assert rows["download.corpus[files].path"] == rows["download.corpus[files].instead.seed"] == "-"


def test_inference_imports_no_torch(models: Path) -> None:
    code = (
        "import sys; from gptmill.cli import main\n"
        f"main(['generate', '--model', r'{models / 'onnx'}', '--prompt', 'the', "
        "'--max-new-tokens', '3'])\n"
        f"main(['classify', '--model', r'{models / 'classifier'}', 'the dog'])\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    rows = [{"text": f"{i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_fewshot_prints_writes_and_plots(
    models: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tables = []
    for folder in ("torch", "onnx"):
        output = tmp_path / folder / "fewshot.png"
        main(["evaluate", "fewshot", "--model", str(models / folder), "--task", str(task),
              "--shots", "4", "0", "1", "--output", str(output)])  # fmt: skip
        *table, last = capsys.readouterr().out.splitlines()
        tables.append(table)
        assert last == str(output)
        assert output.read_bytes().startswith(b"\x89PNG")
        found = read_json(output.with_suffix(".json"))
        assert found["majority"] == 0.5
        assert found["task_sha256"] == sha256(task)
    assert tables[0] == tables[1]
    assert tables[0][-1] == "8 texts; always the commonest label: 0.500"
    rows = [line.split() for line in tables[0][1:-1]]
    assert [row[0] for row in rows] == ["0", "1", "4"]
    for row, result in zip(rows, found["results"]):
        # 64 positions have room for two of these examples and the text.
        assert float(row[1]) == pytest.approx(result["shown"], abs=0.05)
        assert float(row[2]) == pytest.approx(result["accuracy"], abs=5e-4)
        p = result["accuracy"]
        assert float(row[3]) == pytest.approx((p * (1 - p) / 8) ** 0.5, abs=5e-4)
    assert 0 < found["results"][2]["shown"] < 4


def test_fewshot_labels_so_many_texts(
    models: Path, task: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["evaluate", "fewshot", "--model", str(models / "torch"), "--task", str(task),
          "--shots", "1", "--limit", "3"])  # fmt: skip
    assert "3 texts; always the commonest label: 0.667" in capsys.readouterr().out


def test_fewshot_draws_by_its_seed(
    models: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = fewshot.evaluate
    monkeypatch.setattr(fewshot, "evaluate", lambda *a, **k: asked.append(a[-2:]) or real(*a, **k))
    main(["evaluate", "fewshot", "--model", str(models / "torch"), "--task", str(task),
          "--shots", "1", "--seed", "7", "--batch-size", "3"])  # fmt: skip
    assert asked == [(7, 3)]


def test_a_label_ends_with_its_line(
    models: Path, task: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a thousand tokens drawn almost evenly from 259 some are line breaks."""
    command = ["generate", "--model", str(models / "torch"), "--task", str(task)]
    command += ["--prompt", "3", "--shots", "0", "--temperature", "1", "--max-new-tokens", "40"]
    for seed in range(25):
        main([*command, "--seed", str(seed)])
        assert capsys.readouterr().out.removeprefix("Text: 3\nLabel:").count("\n") == 1


def test_generate_shows_examples_of_a_task(
    models: Path, task: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["generate", "--model", str(models / "torch"), "--task", str(task)]
    draws = []
    for seed in "123":
        main([*command, "--prompt", "3", "--shots", "2", "--max-new-tokens", "3", "--seed", seed])
        draws.append(capsys.readouterr().out.split("\n\n"))
    assert len({tuple(draw[:-1]) for draw in draws}) > 1
    *shown, last = draws[0]
    texts = [block.split("\n")[0] for block in shown]
    assert len(set(texts)) == 2
    for block in shown:
        number = int(block.split()[1])
        assert number != 3, "the text itself is no example"
        assert block == f"Text: {number}\nLabel: {'odd' if number % 2 else 'even'}"
    assert last.startswith("Text: 3\nLabel:")
    assert last.endswith("\n")
    main([*command, "--prompt", "3", "--shots", "0", "--max-new-tokens", "3"])
    assert capsys.readouterr().out.startswith("Text: 3\nLabel:")


def test_export_writes_gguf_and_modelfile(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(models / "torch", tmp_path / "model")
    main(["export", "gguf", str(tmp_path / "model")])
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"model", "model-f16.gguf", "model-f16.Modelfile"}
    output = capsys.readouterr().out
    assert str(tmp_path / "model-f16.gguf") in output
    assert f"ollama create NAME -f {tmp_path / 'model-f16.Modelfile'}" in output
    for kind in ("f32", "q8_0"):
        path = tmp_path / f"{kind}.gguf"
        main(["export", "gguf", str(tmp_path / "model"), "--type", kind, "--output", str(path)])
        assert path.read_bytes().startswith(b"GGUF")
        assert (tmp_path / f"{kind}.Modelfile").read_text().startswith(f"FROM ./{kind}.gguf")
    sizes = {kind: (tmp_path / f"{kind}.gguf").stat().st_size for kind in ("f32", "q8_0")}
    assert sizes["q8_0"] < sizes["f32"]
