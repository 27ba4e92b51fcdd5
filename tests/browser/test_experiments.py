"""Two real executions with different learning rates, side by side in MLflow, DVC and our page."""

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, OpenPage, assert_fits, picture
from tests.pipeline.conftest import Project, clone

pytestmark = pytest.mark.slow
RATES = (0.001, 0.01)
SLOW = 120_000  # ms: MLflow's first page on a busy machine
# What keeps MLflow's introductions from covering the page.
SEEN = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}

# What the stage export_onnx does for a model, without the minutes it takes to make one.
REGISTER = """
from pathlib import Path
from gptmill.tracking import Stage
reference = {"task": "classify", "path": "models/pretrained", "files": {"config.json": "0" * 32}}
with Stage("export_onnx", {}) as stage:
    stage.model("gptmill-classifier", reference, ("accuracy", 0.9, True), Path("params.yaml"))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone that has pretrained twice, each time committed."""
    project = clone(tmp_path_factory.mktemp("experiments"))
    for rate in RATES:
        project.set_parameters({"pretrain.optimizer.learning_rate": rate})
        project.run("dvc", "repro", "pretrain")
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", f"learning rate {rate}")
    return project


@pytest.fixture(scope="module", autouse=True)
def compared(project: Project) -> Path:
    """Our page of both, made before a test adds an execution of its own."""
    project.run("gptmill", "compare", "latest~1", "latest", "--output", "report/compare.html")
    return project.root / "report/compare.html"


@pytest.fixture(scope="module")
def mlflow(project: Project) -> Iterator[str]:
    """The address of `gptmill track ui`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = project.start("gptmill", "track", "ui", "--port", str(port))
    address = f"http://127.0.0.1:{port}"
    try:
        until_healthy(address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def until_healthy(address: str) -> None:
    deadline = time.monotonic() + SLOW / 1000
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "MLflow did not start"
            time.sleep(0.2)


def api(address: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def pretraining_runs(address: str) -> tuple[str, list[str]]:
    """The experiment, and the ids of both executions' runs of the stage, the first one first."""
    (experiment,) = api(
        address, "experiments/search", {"max_results": 9, "filter": "name='gptmill'"}
    )["experiments"]
    number = experiment["experiment_id"]
    found = api(address, "runs/search", {
        "experiment_ids": [number], "filter": "tags.stage = 'pretrain'",
        "order_by": ["attributes.start_time ASC"],
    })["runs"]  # fmt: skip
    return number, [run["info"]["run_id"] for run in found]


def test_mlflow_shows_both_curves_and_what_differs(mlflow: str, open_page: OpenPage) -> None:
    experiment, runs = pretraining_runs(mlflow)
    assert len(runs) == 2
    asked = {"runs": json.dumps(runs), "experiments": json.dumps([experiment])}
    page = open_page(f"{mlflow}/#/compare-runs?{urlencode(asked)}", storage=SEEN)
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible(timeout=SLOW)
    row = page.get_by_role("row").filter(has_text="optimizer.learning_rate")
    expect(row.get_by_role("cell")).to_have_text([str(rate) for rate in RATES], timeout=SLOW)
    # The only parameter that differs is the one drawn, with both its values.
    drawn = page.locator(".parcoords .axis-title")  # and the first metric by name
    expect(drawn).to_have_count(2, timeout=SLOW)
    expect(drawn.first).to_have_text("optimizer.learning_rate")
    picture(page, "mlflow-compare")

    asked |= {"metric": '"train/loss"', "plot_metric_keys": '["train/loss"]', "x_axis": "step"}
    layout = {"plot_layout": '{"autosize":true}', "y_axis_scale": "linear", "show_point": "true"}
    page.goto(f"{mlflow}/#/metric?{urlencode({**asked, **layout, 'line_smoothness': 1})}")
    # Each is drawn twice, smoothed and as it is.
    lines = page.locator(".scatterlayer .trace path.js-line")
    lines.nth(3).wait_for(state="attached", timeout=SLOW)
    curves = set(lines.evaluate_all("paths => paths.map(path => path.getAttribute('d'))"))
    assert len(curves) == 2 and all(curve.count("L") == 2 for curve in curves)
    picture(page, "mlflow-curves")


def opened(page: Page, mlflow: str, place: str) -> Page:
    """A page of MLflow's single one, loaded anew."""
    page.goto("about:blank")
    page.goto(f"{mlflow}/#/{place}")
    return page


def test_mlflow_shows_all_that_a_stage_logged(mlflow: str, open_page: OpenPage) -> None:
    """Data sets, curves, the machine, tables, files: tab by tab, as one looks through a run."""
    experiment, runs = pretraining_runs(mlflow)
    run = f"experiments/{experiment}/runs/{runs[-1]}"
    page = open_page(f"{mlflow}/#/{run}", storage=SEEN)
    page.get_by_text("data/tokens", exact=False).first.click(timeout=SLOW)
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_text("rows", exact=False).first).to_be_visible(timeout=SLOW)
    picture(page, "mlflow-dataset")

    for tab, title in (("model-metrics", "loss"), ("system-metrics", "cpu_utilization_percentage")):
        opened(page, mlflow, f"{run}/{tab}")
        expect(page.get_by_text(title, exact=True).first).to_be_visible(timeout=SLOW)
        # A curve, or the bar that MLflow draws of a single sample: a quick machine has no second.
        drawn = page.locator(".js-plotly-plot .trace").first
        drawn.wait_for(state="attached", timeout=SLOW)
        picture(page, f"mlflow-{tab}")

    opened(page, mlflow, f"{run}/artifacts")
    page.get_by_text("samples.json").first.click(timeout=SLOW)
    expect(page.get_by_role("columnheader", name="text")).to_be_visible(timeout=SLOW)
    picture(page, "mlflow-table")
    page.get_by_text("plots", exact=True).click()
    page.get_by_text("pretrain", exact=True).last.click(timeout=SLOW)
    expect(page.get_by_text("training.csv")).to_be_visible(timeout=SLOW)

    opened(page, mlflow, f"{run}/traces")
    expect(page.get_by_text("No traces", exact=False).first).to_be_visible(timeout=SLOW)


def test_mlflow_shows_the_champion_and_where_it_came_from(
    project: Project, mlflow: str, open_page: OpenPage
) -> None:
    project.run("python", "-c", REGISTER)
    page = open_page(f"{mlflow}/#/models/gptmill-classifier", storage=SEEN)
    expect(page.get_by_text("@ champion")).to_be_visible(timeout=SLOW)
    page.get_by_text("Version 1").click()
    expect(page.get_by_text("the first version: accuracy 0.9")).to_be_visible(timeout=SLOW)
    picture(page, "mlflow-version")
    experiment, _ = pretraining_runs(mlflow)
    opened(page, mlflow, f"experiments/{experiment}/models")
    version = page.get_by_role("grid").locator("a[href$='/models/gptmill-classifier/versions/1']")
    expect(version).to_be_visible(timeout=SLOW)
    picture(page, "mlflow-models")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_compare_shows_both_curves_and_what_differs(
    look: str, compared: Path, open_page: OpenPage, accessible: Callable[[Page], None]
) -> None:
    page = open_page(compared.as_uri(), **(PHONE if look == "phone" else {"color_scheme": look}))
    rate = page.locator("section[aria-label=Parameters] tr").filter(has_text="learning_rate")
    expect(rate.locator("td")).to_have_text([f"{rate:g}" for rate in RATES])
    loss = page.locator("figure").filter(has_text="pretrain: train/loss")
    expect(loss.locator("path.curve")).to_have_count(2)
    expect(loss.locator(".legend")).to_have_text("AB")
    assert_fits(page)
    picture(page, f"compare-{look}", whole=True)
    accessible(page)


def test_dvc_plots_draw_without_a_network(project: Project, open_page: OpenPage) -> None:
    project.run("gptmill", "plots")
    project.run("dvc", "plots", "diff", "HEAD~1", "HEAD")
    page = open_page((project.root / "dvc_plots/index.html").as_uri())
    for name, series in {"loss": 2, "learning_rate": 1, "gradient_norm": 1}.items():
        lines = page.locator(f"#Pretraining__{name} svg .mark-line.role-mark path")
        lines.first.wait_for(state="attached", timeout=SLOW)
        drawn = set(lines.evaluate_all("all => all.map(each => each.getAttribute('d'))"))
        assert len(drawn) == 2 * series, name  # each once for each revision
    picture(page, "dvc-plots", whole=True)
    assert project.run("git", "status", "--short", ".dvc", "dvc_plots").stdout == ""
