"""`kd ui`: MLflow's own pages on the store of the configuration, for this machine alone."""

import os
import socket
import subprocess
import sys

from kd import stopping
from kd.errors import ConfigError
from kd.tracking.store import Store, TrackingError, brief

HOST = "127.0.0.1"  # nobody else's: MLflow's pages know no passwords


def serve(store: Store, port: int) -> int:
    """Show the store's experiment until Ctrl-C; returns MLflow's exit code. A store that is a server shows itself.

    Raises:
        ConfigError: the port is taken.
        TrackingError: there is no run yet, or the store cannot be reached.
    """
    store.check()
    database = store.root / "mlruns" / "mlflow.db"
    if store.is_local and str(database.resolve()) in store.uri and not database.exists():
        raise TrackingError(f"there is no run yet in {store}; python train.py makes one")
    try:
        _, experiment = store.open()
    except Exception as error:  # every transport and store has errors of its own
        raise TrackingError(f"MLflow at {store} cannot be reached ({brief(error)})") from error
    if store.uri.startswith(("http:", "https:")):
        print(f"ui       {store}/#/experiments/{experiment}/runs")
        return 0
    _check_free(port)
    print(f"ui       http://{HOST}:{port}/#/experiments/{experiment}/runs  (Ctrl-C ends it)")
    print("compare  tick runs in the list, then Compare; a study's trials fold open under its run", flush=True)
    command, env = _server(store, port)
    with stopping.listen():
        process = subprocess.Popen(command, env=env)
        try:
            return process.wait()
        except stopping.Interrupted:
            process.terminate()
            process.wait()
            return 0


def _server(store: Store, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and its environment; the address goes by the latter, which `ps` does not show to others."""
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    return command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri}


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port={port} cannot be had ({error}); give another one, from 1024 to 65535") from error
