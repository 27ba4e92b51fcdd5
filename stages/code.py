"""List the code that each stage can import, so that an edit reruns the stages it concerns."""

from pathlib import Path

from gptmill.closure import write_listings
from stages import run


def main(output: Path) -> None:
    write_listings(output)


if __name__ == "__main__":
    run(main)
