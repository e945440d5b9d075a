"""`kd ui` serves the project's store to this machine only, or fails with one line."""

import io
import shutil
import socket
import sys

import mlflow
import pytest

from kd.cli import main as kd
from kd.system import watched
from kd.tracking import Store, ui


def say(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        kd(["ui", *arguments])
    return end.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """MLflow's database with an experiment in it; making one takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").create_experiment("kd-sweeper")
    return file


@pytest.fixture
def store(root, database):
    (root / "mlruns").mkdir()
    shutil.copyfile(database, root / "mlruns" / "mlflow.db")
    return Store(f"sqlite:///{root}/mlruns/mlflow.db", "kd-sweeper", root)


def test_it_listens_on_loopback_alone_and_hides_the_address_from_others(tmp_path):
    secret = Store("postgresql://me:s3cret@host/runs", "e", tmp_path)
    command, env = ui._server(secret, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "s3cret" not in " ".join(command)
    assert env["MLFLOW_BACKEND_STORE_URI"] == secret.uri


def test_it_starts_mlflow_on_the_projects_store_and_ends_with_it(store, capsys, monkeypatch):
    started = []

    class Server:
        def __init__(self, command, env, stdin):
            self.stdin = io.BytesIO()
            started.append((command[2:6], env["MLFLOW_BACKEND_STORE_URI"]))

        def wait(self):
            return 0

    monkeypatch.setattr(ui.subprocess, "Popen", Server)
    code, out, _ = say(capsys, "--port", "0")
    assert code == 0
    assert started == [([watched.__file__, sys.executable, "-m", "mlflow"], store.uri)]
    assert "/#/experiments/1/runs" in out


def test_without_a_run_it_fails_and_creates_nothing(root, capsys):
    code, _, err = say(capsys)
    assert code == 1
    assert err.startswith("error: there is no run yet")
    assert err.count("\n") == 1
    assert not (root / "mlruns").exists()


def test_a_port_in_use_is_refused(store, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = say(capsys, "--port", str(port))
    assert code == 2
    assert err.startswith(f"error: --port={port} cannot be used")


@pytest.mark.parametrize("port", ["-1", "99999999"])
def test_an_invalid_port_is_refused(store, capsys, port):
    code, _, err = say(capsys, "--port", port)
    assert code == 2
    assert err.count("\n") == 1


# the browser


@pytest.mark.parametrize(
    ("terminal", "env", "looks"),
    [
        (True, {"DISPLAY": ":0"}, True),
        (True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (True, {}, False),
        (False, {"DISPLAY": ":0"}, False),
        (True, {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, False),
    ],
)
def test_a_browser_is_opened_only_on_a_terminal_with_a_display(terminal, env, looks, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ui.sys, "platform", "linux")
    monkeypatch.setattr(ui.sys.stdout, "isatty", lambda: terminal, raising=False)
    assert ui._has_display() is looks


@pytest.mark.parametrize(("flag", "opened"), [("--open", True), ("--no-open", False)])
def test_the_page_is_opened_once_the_server_listens(flag, opened, store, capsys, monkeypatch):
    pages = []
    monkeypatch.setattr(ui.webbrowser, "open", pages.append)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listens = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); s.accept()"
    ends = "import time; time.sleep(0.1)"
    monkeypatch.setattr(ui, "_server", lambda *_: ([ui.sys.executable, "-c", listens if opened else ends], None))
    code, out, _ = say(capsys, "--port", str(port), flag)
    page = f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
    assert code == 0
    assert page in out
    assert pages == ([page] if opened else [])


def test_a_server_that_does_not_start_opens_nothing(store, capsys, monkeypatch):
    monkeypatch.setattr(ui.webbrowser, "open", lambda _: pytest.fail("nothing is there to be opened"))
    monkeypatch.setattr(ui, "_server", lambda *_: ([ui.sys.executable, "-c", "raise SystemExit(3)"], None))
    assert say(capsys, "--port", "0", "--open")[0] == 3
