"""The mirror of run folders in MLflow. No other part of kd imports MLflow.

The folder is written first. A background thread (`mirror`) sends what the store lacks (`delivery`) of what the folder
shows (`shown`) to the configured store (`store`). A store that is slow or unreachable costs the run one warning;
`kd sync <run folder>` delivers what is missing (`folder`). There is no process-global "active run", so several runs
can share a process.
"""

from kd.tracking.delivery import Target
from kd.tracking.folder import Labels, run, sync, sync_command
from kd.tracking.mirror import Mirror, NullRun
from kd.tracking.registry import register, wanted_name
from kd.tracking.shown import Shown, files
from kd.tracking.store import Store, TrackingError
from kd.tracking.ui import serve

__all__ = [
    "Labels", "Mirror", "NullRun", "Shown", "Store", "Target", "TrackingError", "files", "register", "run", "serve",
    "sync", "sync_command", "wanted_name",
]  # fmt: skip
