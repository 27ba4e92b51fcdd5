"""Several processes for one stage, by torchrun's elastic agent.

Each process runs the stage's own command and finds the others by its environment. A process that is
lost takes its companions down, and all start again from the last checkpoint.
"""

import os
import sys
import tempfile
from pathlib import Path

from gptmill.params import Launch
from gptmill.process.ranks import STOP_FILE


def launch(section: Launch, module: str, arguments: list[str]) -> int:
    """Run `python -m module arguments` in `section.processes` processes, and wait for them.

    On several machines the same command runs on each of them; they meet at `section.rendezvous`.

    Returns:
        The exit status: 0, that of the process which failed, or 128 and the signal's number.
    """
    # A store for each attempt: in a shared one restarted processes read the addresses of lost ones.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=section.minimum_nodes,
        max_nodes=section.nodes,
        nproc_per_node=section.processes,
        run_id=module,
        rdzv_backend="c10d",
        rdzv_endpoint=section.rendezvous or "localhost:0",
        max_restarts=section.restarts,
        monitor_interval=0.1,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[STOP_FILE] = str(Path(folder) / "stop")
            elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0
