"""`kd ui`: MLflow's web UI on the configured store, for this machine only."""

import os
import socket
import subprocess
import sys
import time
import webbrowser

from kd.errors import ConfigError
from kd.system import signals, watched
from kd.system.files import real
from kd.system.installation import train_command
from kd.tracking.store import Store, TrackingError, brief

HOST = "127.0.0.1"  # MLflow's UI has no authentication
TRAINING = "workflowType=machine_learning"  # else MLflow's page has the menu of GenAI: traces, sessions, judges
START_SECONDS = 60  # how long to wait for the server before opening a browser

COMPARE = """\
compare  runs: select some in the list, then Compare: parallel coordinates, scatter, and their settings side by side
         epochs: the chart symbol left of the search field draws val/miou, train/kl, temperature, ... of all runs
         studies: the + beside a study lists its trials; its own charts have one point per trial
Ctrl-C   stops it"""


def serve(store: Store, port: int, show: bool | None = None) -> int:
    """Show the store's experiment until Ctrl-C; returns MLflow's exit code. A tracking server already has a UI.

    `show` opens a browser; None opens one if this is a terminal on a machine with a display.

    Raises:
        ConfigError: the port is in use.
        TrackingError: there is no run yet, or the store cannot be reached.
    """
    experiment = _experiment(store)
    show = _has_display() if show is None else show
    if store.uri.startswith(("http:", "https:")):
        page = f"{store}/#/experiments/{experiment}/runs?{TRAINING}"
        print(f"ui       {page}")
        if show:
            webbrowser.open(page)
        return 0
    _check_free(port)
    page = f"http://{HOST}:{port}/#/experiments/{experiment}/runs?{TRAINING}"
    print(f"ui       {page}\n{COMPARE}", flush=True)
    return _run_server(store, port, page if show else None)


def _experiment(store: Store) -> str:
    """The id of the store's experiment."""
    store.check()
    database = store.root / "mlruns" / "mlflow.db"
    if store.is_local and str(real(database)) in store.uri and not database.exists():
        raise TrackingError(f"there is no run yet in {store}; {train_command()} creates one")
    try:
        return store.open()[1]
    except Exception as error:  # each transport and store raises its own kinds
        raise TrackingError(f"MLflow at {store} cannot be reached ({brief(error, store.uri)})") from error


def _run_server(store: Store, port: int, page: str | None) -> int:
    """Run MLflow's server until it or this process ends; `page` is opened in a browser once it responds."""
    command, env = _server(store, port)
    with signals.listen():
        watching = [sys.executable, "-P", watched.__file__, *command]
        process = subprocess.Popen(watching, env=env, stdin=subprocess.PIPE)
        try:
            if page and _responds(port, process):
                webbrowser.open(page)
            return process.wait()
        except signals.Interrupted:
            return 0
        finally:
            if process.stdin:
                process.stdin.close()
            process.wait()


def _server(store: Store, port: int) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment. The address is in the environment, which `ps` hides from other users."""
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    return command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri}


def _has_display() -> bool:
    """Whether a browser would be visible: on a terminal, on a machine with a display."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _responds(port: int, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the server listens; returns False if it ends or takes longer than START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
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
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"--port={port} cannot be used ({reason}); choose another, from 1024 to 65535") from error
