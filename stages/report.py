"""Draw the report: one HTML page of all that the pipeline measured, and its figures as Markdown."""

from pathlib import Path

from gptmill.report import build_report
from gptmill.report.summary import write_summary
from gptmill.tracking import Stage
from stages import run


def main(page: Path, summary: Path) -> None:
    with Stage("report", {}) as stage:
        stage.summarize(Path("metrics"), Path("dvc.lock"))
        stage.deliver()  # the page shows what the registry decided
        build_report(Path(), page)
        write_summary(Path(), summary)
        stage.artifact(page)
        if (page.parent / "data.html").exists():  # of `gptmill data check`
            stage.artifact(page.parent / "data.html")


if __name__ == "__main__":
    run(main)
