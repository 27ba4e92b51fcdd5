"""One reader under atheris, which keeps the inputs that reach new lines of gptmill.

    python -m tests.fuzz.guided NAME [-runs=20000]

The bytes that atheris makes are the choices from which Hypothesis builds a damaged file.
"""

import sys

import atheris

with atheris.instrument_imports(include=["gptmill"]):
    from tests.fuzz.readers import READERS


def main() -> None:
    from tests.fuzz.__main__ import Trial

    name, *flags = sys.argv[1:]
    trial = Trial(next(reader for reader in READERS if reader.name == name))
    fuzz = trial.property(1).hypothesis.fuzz_one_input

    def once(data: bytes) -> None:
        fuzz(data)
        if trial.faults:
            raise AssertionError(trial.faults)

    atheris.Setup([sys.argv[0], *flags], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
