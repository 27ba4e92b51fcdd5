"""Score the answers: by a language model through Ollama, or by the reference metrics alone."""

from pathlib import Path

from gptmill.files import atomic_folder, state_root, write_json
from gptmill.judge.answers import read_answers
from gptmill.judge.run import judge
from gptmill.params import load
from gptmill.tracking import Stage
from stages import run


def main(responses: Path, output: Path, metrics: Path) -> None:
    section = load().judge
    with Stage("judge", section.model_dump(), {"responses": responses}) as stage:
        results, scores = judge(read_answers(responses), section, state=state_root() / "judge")
        with atomic_folder(output) as folder:
            write_json(folder / "scores.json", scores)
        stage.write_metrics(metrics, results)


if __name__ == "__main__":
    run(main)
