"""Run, measure and draw the course's ideas on the pretrained model and its text.

In one process whatever `launch` says: its models take seconds, and its timings are of one thread.
"""

from pathlib import Path

from gptmill.data.tokens import TokenSplit
from gptmill.engine.runtime import open_runtime
from gptmill.files import atomic_folder, write_json
from gptmill.params import load
from gptmill.study import Subject, study
from gptmill.study.draw import save
from gptmill.study.finding import Finding
from gptmill.tokenizer import load_tokenizer
from gptmill.tracking import Stage
from gptmill.weights.folder import load_language_model
from gptmill.weights.foundation import starting_model
from stages import run, write_rows


def main(pretrained: Path, tokens: Path, metrics: Path, plots: Path) -> None:
    parameters = load()
    section, seed = parameters.study, parameters.runtime.seed
    open_runtime(**dict(parameters.runtime))
    tokenizer = load_tokenizer(pretrained)
    # Right after seeding, as the stage `pretrain` does it: the very weights that it began with.
    began, _ = starting_model(parameters.pretrain, tokenizer)
    subject = Subject(
        trained=load_language_model(pretrained),
        began=began.eval(),
        tokenizer=tokenizer,
        training=TokenSplit(tokens, "train"),
        validation=TokenSplit(tokens, "validation"),
    )
    inputs = {"pretrained": pretrained, "tokens": tokens}
    with Stage("study", section.model_dump(), inputs) as stage:
        findings = study(subject, section, seed)
        write_findings(plots, findings)
        results = {f"{f.name}/{n}": value for f in findings for n, value in f.metrics.items()}
        stage.write_metrics(metrics, results)
        stage.artifact(plots)
        stage.timing({name: value for f in findings for name, value in f.timings.items()})


def write_findings(folder: Path, findings: list[Finding]) -> None:
    """Each picture, the numbers behind it, and one list of what they show for report and docs."""
    with atomic_folder(folder) as beside:
        for finding in findings:
            save(finding.figure, beside / f"{finding.name}.png")
            write_rows(beside / f"{finding.name}.csv", finding.rows)
        about = ("name", "chapter", "title", "caption")
        write_json(
            beside / "findings.json",
            [{name: getattr(finding, name) for name in about} for finding in findings],
        )


if __name__ == "__main__":
    run(main)
