"""MLflow's own server, on loopback and no bigger than one person needs."""

import os
import sys

from gptmill.errors import UserError
from gptmill.tracking.address import is_server, tracking_address, without_password
from gptmill.tracking.courier import replay


def ui_command(port: int) -> tuple[list[str], dict[str, str]]:
    """The command of `make ui` and what it adds to the environment.

    One worker and no job execution: two processes instead of thirteen.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_address()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return command, {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def serve_ui(port: int) -> None:
    """Send what waits, then become the MLflow server of the local database.

    Raises:
        UserError: `MLFLOW_TRACKING_URI` is a server already.
    """
    address = tracking_address()
    if is_server(address):
        raise UserError(
            f"MLFLOW_TRACKING_URI is a server already: open {without_password(address)}"
        )
    from gptmill.tracking.delivery import Delivery

    Delivery(address)  # the tables exist before the server's processes look for them
    if sent := replay():
        print(f"{sent} runs that waited were sent")
    command, environment = ui_command(port)
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    os.execve(command[0], command, {**os.environ, **environment})
