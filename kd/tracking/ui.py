"""`kd ui`: MLflow's own pages on the store of the configuration, for this machine alone."""

import os
import socket
import subprocess
import sys
import time
import webbrowser

from kd.errors import ConfigError
from kd.system import signals
from kd.system.installation import train_command
from kd.tracking.store import Store, TrackingError, brief

HOST = "127.0.0.1"  # nobody else's: MLflow's pages know no passwords


COMPARE = """\
compare  runs: tick some in the list, then Compare: parallel coordinates, scatter, and their settings side by side
         epochs: the chart symbol left of the search field draws val/miou, train/kl, temperature, ... of all runs
         studies: the + beside a study unfolds its trials; its own charts have a point per trial
Ctrl-C   ends it"""


def serve(store: Store, port: int, show: bool | None = None) -> int:
    """Show the store's experiment until Ctrl-C; returns MLflow's exit code. A store that is a server shows itself.

    `show` opens a browser; None does where a person sits at a display.

    Raises:
        ConfigError: the port is taken.
        TrackingError: there is no run yet, or the store cannot be reached.
    """
    store.check()
    database = store.root / "mlruns" / "mlflow.db"
    if store.is_local and str(database.resolve()) in store.uri and not database.exists():
        raise TrackingError(f"there is no run yet in {store}; {train_command()} makes one")
    try:
        _, experiment = store.open()
    except Exception as error:  # every transport and store has errors of its own
        raise TrackingError(f"MLflow at {store} cannot be reached ({brief(error)})") from error
    show = _somebody_looks() if show is None else show
    if store.uri.startswith(("http:", "https:")):
        page = f"{store}/#/experiments/{experiment}/runs"
        print(f"ui       {page}")
        if show:
            webbrowser.open(page)
        return 0
    _check_free(port)
    page = f"http://{HOST}:{port}/#/experiments/{experiment}/runs"
    print(f"ui       {page}\n{COMPARE}", flush=True)
    command, env = _server(store, port)
    with signals.listen():
        process = subprocess.Popen(command, env=env)
        try:
            if show and _answers(port, process):
                webbrowser.open(page)
            return process.wait()
        except signals.Interrupted:
            process.terminate()
            process.wait()
            return 0


def _server(store: Store, port: int) -> tuple[list[str], dict[str, str]]:
    """The command and its environment; the address goes by the latter, which `ps` does not show to others."""
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    return command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri}


def _somebody_looks() -> bool:
    """Whether a page that is opened would be seen: a terminal, on a machine with a display."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _answers(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the server listens; False where it ended, or takes longer than a minute."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return True
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return False


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port={port} cannot be had ({error}); give another one, from 1024 to 65535") from error
