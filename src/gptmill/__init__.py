"""gptmill: raw text to a served language model in one reproducible pipeline.

The front door, which needs no PyTorch:

    from gptmill import Classifier, Generator, SamplingOptions

    generator = Generator("models/onnx/instructions")
    print(generator.generate(["One day"], SamplingOptions(max_new_tokens=40))[0].text)
    print(Classifier("models/onnx/classifier").classify(["you have won the cup!"])[0].label)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptmill.generate.sampling import SamplingOptions
    from gptmill.runtime.session import Classifier, Generator

__all__ = ["Classifier", "Generator", "SamplingOptions"]
_HOMES = {
    "Classifier": "gptmill.runtime.session",
    "Generator": "gptmill.runtime.session",
    "SamplingOptions": "gptmill.generate.sampling",
}

# PyTorch's threads wait for each other at full speed, up to 15 ms at every small kernel: a busy
# neighbor on the same cores then costs a factor of ten and more. Here they wait half a millisecond
# that way and sleep after it, which costs nothing on a quiet machine (`benchmarks/neighbor.py`).
# OpenMP reads this when it is loaded, so it stands before any import of PyTorch.
if "OMP_WAIT_POLICY" not in os.environ:  # a user's own choice
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # PyTorch's libgomp on Linux
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # LLVM's and Intel's elsewhere, milliseconds


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: `import gptmill` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
