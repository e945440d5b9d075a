"""A real MLflow server on loopback, in a process of its own that can be killed, halted and started again.

It is the application that `mlflow server` serves, without its job runners, forked from a process that has imported the
libraries, as `program.Program` is.
"""

import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

from program import forked
from waiting import until


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A server that keeps everything in `folder`, or has its runs in the store `store`."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder}/server.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self) -> "Server":
        self._process = forked(_serve, self.folder, self.port, self.store)
        until(self._responds, "the server's start")
        return self

    def _responds(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default").close()
        except OSError:
            return False
        return True

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill -9; connections are refused."""
        self._signal(signal.SIGKILL)
        self._process.join()

    def halt(self) -> None:
        """SIGSTOP; it takes connections and never answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)


def _serve(folder: Path, port: int, store: str) -> None:
    import mlflow.server
    from werkzeug.serving import make_server

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    os.environ[mlflow.server.BACKEND_STORE_URI_ENV_VAR] = store
    os.environ[mlflow.server.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[mlflow.server.ARTIFACTS_DESTINATION_ENV_VAR] = str(folder / "artifacts")
    os.environ[mlflow.server.SERVE_ARTIFACTS_ENV_VAR] = "true"
    make_server("127.0.0.1", port, mlflow.server.app, threaded=True).serve_forever()
