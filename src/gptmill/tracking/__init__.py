"""What happened, when and from what: every stage's record in MLflow, journal first.

A stage writes events to `$DVC_ROOT/.state/journal/<run>.jsonl`, which costs microseconds and needs
nobody; they are delivered to MLflow in batches, by the stage itself or later by
`gptmill track replay`. This package alone imports mlflow, and only when it delivers.
"""

from gptmill.tracking.address import tracking_address
from gptmill.tracking.courier import repair, replay
from gptmill.tracking.journal import points_of
from gptmill.tracking.server import serve_ui, ui_command
from gptmill.tracking.stage import Stage, stage_of

__all__ = [
    "Stage",
    "points_of",
    "repair",
    "replay",
    "serve_ui",
    "stage_of",
    "tracking_address",
    "ui_command",
]
