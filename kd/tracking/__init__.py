"""MLflow, and nothing else of the project knows it: a mirror of what the run folder already holds.

The folder is written first, and MLflow is made to match it by a thread of its own (`mirror`), point by point
(`delivery`), from what the folder shows (`shown`), in the store of the configuration (`store`). A store that is down,
slow or dead costs the run nothing but a line; `kd sync <run folder>` delivers what is missing (`folder`). There is no
process-global "active run", so that several runs can live in one process.
"""

from kd.errors import without_credentials
from kd.tracking.folder import run, sync
from kd.tracking.mirror import Mirror, NullRun
from kd.tracking.registry import register, wanted_name
from kd.tracking.shown import Shown, files
from kd.tracking.store import Store, TrackingError, store_uri
from kd.tracking.ui import serve

__all__ = [
    "Mirror", "NullRun", "Shown", "Store", "TrackingError", "files", "register", "run", "serve", "store_uri",
    "sync", "wanted_name", "without_credentials",
]  # fmt: skip
