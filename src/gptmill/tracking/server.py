"""MLflow's own server, on loopback and no bigger than one person needs."""

import os
import subprocess
import sys

from gptmill.errors import UserError
from gptmill.tracking.address import is_server, require_whole_database, tracking_address
from gptmill.tracking.courier import repair, replay


def ui_command(port: int) -> tuple[list[str], dict[str, str]]:
    """The command of `make ui` and what it adds to the environment.

    One worker and no job execution: two processes instead of thirteen. The address, which may hold
    a password, is no argument: those are for every user of the machine to see.
    """
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return command, {
        "MLFLOW_BACKEND_STORE_URI": tracking_address(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def serve_ui(port: int) -> None:
    """Send what waits, then become the MLflow server of the local database.

    Raises:
        UserError: `MLFLOW_TRACKING_URI` is a server already, or the database is damaged.
    """
    address = tracking_address()
    if is_server(address):
        raise UserError(f"MLFLOW_TRACKING_URI is a server already: open {address}")
    require_whole_database(address)
    if sent := replay():
        print(f"{sent} runs that waited were sent")
    # This makes the tables too, before the server's processes look for them.
    for line in repair():
        print(line)
    command, environment = ui_command(port)
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    environment = {**os.environ, **environment}
    if os.name == "nt":  # where exec leaves the terminal to two programs at once
        sys.exit(subprocess.run(command, env=environment).returncode)
    os.execve(command[0], command, environment)
