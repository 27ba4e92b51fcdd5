"""Several processes for one stage, by torchrun's elastic agent, one on each machine.

Each process runs the stage's own command and finds the others by its environment. A process that is
lost takes its companions down, and all start again from the last checkpoint. In an allocation of
Slurm's, `srun` starts the agents; elsewhere the same command is given on every machine.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from gptmill.errors import UserError
from gptmill.params import Launch
from gptmill.process.ranks import STOP_FILE

AGENT = "GPTMILL_AGENT"  # set for what `srun` starts: this process is one machine's agent
PORTS = range(20_000, 30_000)  # of the rendezvous in Slurm's allocations, by the job's number


def launch(section: Launch, module: str, arguments: list[str]) -> int:
    """Run `python -m module arguments` in `section.processes` processes on each of `section.nodes`
    machines, and wait for them.

    Returns:
        The exit status: 0, that of the process which failed, or 128 and the signal's number.

    Raises:
        UserError: several machines, and nothing says where they meet.
    """
    in_slurm = section.nodes > 1 and "SLURM_JOB_ID" in os.environ
    if in_slurm and AGENT not in os.environ:
        return _on_allocated_nodes(section, module, arguments)
    rendezvous = section.rendezvous or (_first_allocated() if in_slurm else "")
    if section.nodes > 1 and not rendezvous:
        raise UserError(
            f"launch.nodes is {section.nodes}: launch.rendezvous has to be HOST:PORT of the first "
            "machine (an allocation of Slurm's needs none)"
        )
    return _agent(section, rendezvous, module, arguments)


def _agent(section: Launch, rendezvous: str, module: str, arguments: list[str]) -> int:
    """Start this machine's processes, together with the other machines' agents."""
    # A store for each attempt: in a shared one restarted processes read the addresses of lost ones.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    address, is_host = _own_address(rendezvous) if rendezvous else (None, True)
    config = LaunchConfig(
        min_nodes=section.minimum_nodes,
        max_nodes=section.nodes,
        nproc_per_node=section.processes,
        run_id=module,
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous or "localhost:0",
        rdzv_configs={"is_host": is_host} if rendezvous else {},
        local_addr=address,
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


def _own_address(rendezvous: str) -> tuple[str, bool]:
    """This machine's address on the way to the rendezvous, and whether the rendezvous is here.

    A host name often resolves to loopback, or not at all on the other machines; the interface that
    has the address is what gloo has to use.

    Raises:
        UserError: no HOST:PORT, or the host is not known.
    """
    host, _, port = rendezvous.rpartition(":")
    try:
        family, _, _, _, there = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)  # sends nothing
            own = probe.getsockname()[0]
    except (OSError, ValueError) as error:
        raise UserError(f"launch.rendezvous {rendezvous!r} cannot be reached: {error}") from None
    for name, addresses in psutil.net_if_addrs().items():
        if own in [address.address for address in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return own, own == there[0]


def _on_allocated_nodes(section: Launch, module: str, arguments: list[str]) -> int:
    """An agent on each node of Slurm's allocation. Where all are needed, one that is lost ends the
    others, so that the job can be queued again."""
    nodes = ["--nodes", str(section.nodes), "--ntasks-per-node", "1"]
    together = f"--kill-on-bad-exit={int(section.minimum_nodes == section.nodes)}"
    command = ["srun", *nodes, together, sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=os.environ | {AGENT: "1"}).returncode


def _first_allocated() -> str:
    """HOST:PORT of the allocation's first node, by the address that Slurm itself uses."""
    first = _output("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()[0]
    shown = _output("scontrol", "show", "node", first, "--oneliner").split()
    values = dict(word.split("=", 1) for word in shown if "=" in word)
    return f"{values['NodeAddr']}:{PORTS[int(os.environ['SLURM_JOB_ID']) % len(PORTS)]}"


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
