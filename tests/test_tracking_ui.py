"""`kd ui` shows the project's store to this machine and to nobody else, or says in one line why it does not."""

import socket

import mlflow
import pytest

from kd.cli import main as kd
from kd.tracking import Store, ui


def say(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        kd(["ui", *arguments])
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def store(root):
    (root / "mlruns").mkdir()
    uri = f"sqlite:///{root}/mlruns/mlflow.db"
    mlflow.MlflowClient(uri).create_experiment("kd-sweeper")
    return Store(uri, "kd-sweeper", root)


def test_it_listens_on_loopback_alone_and_hides_the_address_from_others(tmp_path):
    secret = Store("postgresql://me:s3cret@host/runs", "e", tmp_path)
    command, env = ui._server(secret, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "s3cret" not in " ".join(command)
    assert env["MLFLOW_BACKEND_STORE_URI"] == secret.uri


def test_it_starts_mlflow_on_the_projects_store_and_ends_with_it(store, capsys, monkeypatch):
    started = []

    class Server:
        def __init__(self, command, env):
            started.append((command[1:4], env["MLFLOW_BACKEND_STORE_URI"]))

        def wait(self):
            return 0

    monkeypatch.setattr(ui.subprocess, "Popen", Server)
    code, out, _ = say(capsys, "--port", "0")
    assert code == 0
    assert started == [(["-m", "mlflow", "ui"], store.uri)]
    assert "/#/experiments/1/runs" in out


def test_without_a_run_it_says_so_and_makes_nothing(root, capsys):
    code, _, err = say(capsys)
    assert code == 1
    assert err.startswith("error: there is no run yet")
    assert err.count("\n") == 1
    assert not (root / "mlruns").exists()


def test_a_port_that_is_taken_is_told(store, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = say(capsys, "--port", str(port))
    assert code == 2
    assert err.startswith(f"error: --port={port} cannot be had")


@pytest.mark.parametrize("port", ["-1", "99999999"])
def test_a_port_that_is_none_is_told(store, capsys, port):
    code, _, err = say(capsys, "--port", port)
    assert code == 2
    assert err.count("\n") == 1
