"""What MLflow is told, read back with its own client; and that a run never depends on it.

One store is made for the whole file, as making one takes seconds; tests that need a store elsewhere copy it.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest

from kd import tracking
from kd.errors import ConfigError
from kd.settings import Tracking
from kd.tracking import MLflowRun, NullRun, store_uri


def asked(**changes) -> Tracking:
    return Tracking(**{"enabled": True, "uri": None, "experiment": "kd", "run_name": None, "tags": {}} | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A project root whose store has been made by a first run."""
    root = tmp_path_factory.mktemp("project")
    with tracking.run(asked(), root, "first", {}) as mirror:
        assert isinstance(mirror, MLflowRun)
    return root


def copied(store: Path, root: Path) -> Path:
    (root / "mlruns").mkdir(parents=True)
    shutil.copy(store / "mlruns" / "mlflow.db", root / "mlruns" / "mlflow.db")
    return root


def client(root: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=store_uri(asked(), root))


def recorded(root: Path, mirror: NullRun):
    return client(root).get_run(mirror.run_id)


@pytest.fixture
def warnings(caplog):
    """The lines of this test that a person would see."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# where


@pytest.mark.parametrize("name", ["project", "my project", "100%", "Straße"])
def test_the_store_is_an_absolute_address_under_the_root(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    expected = f"sqlite:///{tmp_path / name / 'mlruns' / 'mlflow.db'}"
    assert store_uri(asked(), tmp_path / name) == expected
    assert store_uri(asked(), Path(name)) == expected


def test_the_setting_beats_the_default_and_the_environment_beats_both(tmp_path, monkeypatch):
    assert store_uri(asked(uri="http://there:5000"), tmp_path) == "http://there:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert store_uri(asked(uri="http://there:5000"), tmp_path) == "http://elsewhere:5000"
    assert store_uri(asked(), tmp_path) == "http://elsewhere:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert store_uri(asked(), tmp_path) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def test_runs_land_in_the_store_of_the_environment(store, tmp_path, monkeypatch):
    elsewhere = copied(store, tmp_path / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlruns/mlflow.db")
    with tracking.run(asked(), tmp_path / "here", "r", {}) as mirror:
        pass
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert recorded(elsewhere, mirror).info.status == "FINISHED"
    assert not (tmp_path / "here" / "mlruns" / "mlflow.db").exists()


@pytest.mark.parametrize("name", ["my project", "100%", "a#b", "Straße"])
def test_a_project_may_live_in_a_folder_of_any_name(name, store, tmp_path, warnings):
    root = copied(store, tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "summary.json").write_text("{}")
    with tracking.run(asked(experiment=name), root, "r", {}) as mirror:
        mirror.epoch({"val/miou": 0.5}, 0)
        mirror.artifacts(tmp_path / "folder")
    assert warnings() == []
    assert recorded(root, mirror).data.metrics == {"val/miou": 0.5}
    assert [path.name for path in (root / "mlruns" / "artifacts").rglob("summary.json")] == ["summary.json"]


# what


def test_everything_that_is_told_can_be_read_back(store, tmp_path, warnings):
    (tmp_path / "summary.json").write_text('{"a": 1}')
    (tmp_path / "curves.png").write_bytes(b"\x89PNG")
    settings = asked(experiment="all of it", tags={"team": "b", "role": "mine"})
    with tracking.run(settings, store, "unfreeze.rate=3", {"role": "student", "group.loss": "hinton"}) as mirror:
        mirror.parameters({"optimizer.lr": 1e-3, "data.class_names": ["a", "b"], "data.ignore_index": None})
        mirror.tags({"later": "yes"})
        for epoch in range(3):
            mirror.epoch({"val/miou": epoch / 10, "train/loss": 3 - epoch, "val/loss": None}, epoch)
        mirror.summary({"student/parameters": 12, "teacher/val/miou": 0.75, "teacher/test/miou": None})
        mirror.artifacts(tmp_path)
        assert recorded(store, mirror).info.status == "RUNNING"
    run = recorded(store, mirror)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "unfreeze.rate=3"
    assert client(store).get_experiment(run.info.experiment_id).name == "all of it"
    assert run.data.params == {"optimizer.lr": "0.001", "data.class_names": "['a', 'b']", "data.ignore_index": "None"}
    expected = {"team": "b", "role": "mine", "group.loss": "hinton", "later": "yes"}
    assert {name: run.data.tags.get(name) for name in expected} == expected
    assert run.data.metrics == {
        "val/miou": 0.2, "train/loss": 1.0, "student/parameters": 12.0, "teacher/val/miou": 0.75
    }  # fmt: skip
    history = client(store).get_metric_history(mirror.run_id, "val/miou")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert {file.path for file in client(store).list_artifacts(mirror.run_id)} == {"summary.json", "curves.png"}
    assert warnings() == []


def test_artifacts_are_kept_under_the_root(store, tmp_path):
    (tmp_path / "summary.json").write_text('{"a": 1}')
    with tracking.run(asked(), store, "r", {}) as mirror:
        mirror.artifacts(tmp_path)
    (kept,) = (store / "mlruns" / "artifacts" / mirror.run_id).rglob("summary.json")
    assert kept.read_text() == '{"a": 1}'


def test_only_the_files_of_a_run_are_artifacts(store, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("")
    (tmp_path / ".lock").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    with tracking.run(asked(), store, "r", {}) as mirror:
        mirror.artifacts(tmp_path)
    assert [file.path for file in client(store).list_artifacts(mirror.run_id)] == ["metrics.jsonl"]


def test_hundreds_of_parameters_and_very_long_ones_are_taken(store, warnings):
    values = {f"p{number}": number for number in range(250)} | {"long": "x" * 20_000}
    with tracking.run(asked(), store, "r", {}) as mirror:
        mirror.parameters(values)
    found = recorded(store, mirror).data.params
    assert {name: found[name] for name in values if name != "long"} == {f"p{i}": str(i) for i in range(250)}
    assert set(found["long"]) == {"x"}
    assert len(found["long"]) >= 500
    assert warnings() == []


ODD = ["a@b", "a[0]", "x=y", "50%", "(none)", "Straße", "道路", "a\nb", "a,b;c", "n/a", "x" * 400, " ", "'", "\\", "²"]
PATHS = ["side/", "a//b", "..", ".", "/", "a/./b"]


@pytest.mark.parametrize("name", ODD + PATHS)
def test_a_class_of_any_name_is_taken(name, store, warnings):
    with tracking.run(asked(), store, "r", {}) as mirror:
        mirror.epoch({"val/miou": 0.5, f"val/iou/{name}": 0.25}, 0)
    found = recorded(store, mirror).data.metrics
    assert found.pop("val/miou") == 0.5
    assert list(found.values()) == [0.25]
    assert next(iter(found)).startswith("val/iou")
    assert warnings() == []


def test_ordinary_names_stay_as_they_are(store):
    names = ["val/miou", "lr/decoder", "val/iou/Sign Symbol", "a_b-c.d", "val/iou/class_0"]
    with tracking.run(asked(), store, "r", {}) as mirror:
        mirror.epoch(dict.fromkeys(names, 1.0), 0)
    assert sorted(recorded(store, mirror).data.metrics) == sorted(names)


def test_numbers_that_are_none_do_not_stop_the_others(store, warnings):
    with tracking.run(asked(), store, "r", {}) as mirror:
        mirror.epoch({"a": float("nan"), "b": float("inf"), "c": 0.5}, 0)
        mirror.epoch({"a": None}, 1)
    assert recorded(store, mirror).data.metrics["c"] == 0.5
    assert warnings() == []


# how it ends


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (ConfigError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_that_ends_early_says_so_and_the_error_goes_on(error, status, store):
    with pytest.raises(error), tracking.run(asked(), store, "r", {}) as mirror:
        raise error("stop")
    assert recorded(store, mirror).info.status == status


def test_several_runs_live_in_one_process(store):
    with tracking.run(asked(), store, "outer", {}) as outer:
        outer.epoch({"a": 1.0}, 0)
        with suppress(ValueError), tracking.run(asked(), store, "inner", {}) as inner:
            inner.epoch({"a": 2.0}, 0)
            raise ValueError
        outer.epoch({"a": 3.0}, 1)
        assert recorded(store, outer).info.status == "RUNNING"
    one, other = recorded(store, outer), recorded(store, inner)
    assert (one.info.status, one.data.metrics) == ("FINISHED", {"a": 3.0})
    assert (other.info.status, other.data.metrics) == ("FAILED", {"a": 2.0})
    assert one.info.experiment_id == other.info.experiment_id
    assert mlflow.active_run() is None


# when it is down


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def use(mirror: NullRun, folder: Path) -> None:
    mirror.parameters({"a": 1})
    mirror.tags({"a": "1"})
    mirror.epoch({"a": 1.0}, 0)
    mirror.summary({"b": 1.0})
    (folder / "summary.json").write_text("{}")
    mirror.artifacts(folder)


def test_a_store_that_is_down_costs_one_warning(tmp_path, warnings):
    """Invariant 11."""
    uri = f"http://127.0.0.1:{closed_port()}"
    with tracking.run(asked(uri=uri), tmp_path, "r", {}) as mirror:
        use(mirror, tmp_path)
    (warning,) = warnings()
    assert warning.startswith(f"MLflow at {uri} cannot be reached")
    assert "\n" not in warning


class Server(BaseHTTPRequestHandler):
    """As much of a tracking server as it takes to start a run."""

    def do_GET(self):
        self.answer({"experiment": {"experiment_id": "1", "name": "kd", "lifecycle_stage": "active"}})

    def do_POST(self):
        info = {
            "run_id": "r1",
            "run_uuid": "r1",
            "experiment_id": "1",
            "status": "RUNNING",
            "artifact_uri": "mlflow-artifacts:/1",
        }
        self.answer({"run": {"info": info, "data": {}}} if self.path.endswith("runs/create") else {})

    def answer(self, content):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_that_dies_costs_one_warning(tmp_path, warnings):
    """Invariant 11: whatever is told it afterwards, the end of the run included."""
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with tracking.run(asked(uri=f"http://127.0.0.1:{server.server_port}"), tmp_path, "r", {}) as mirror:
        mirror.epoch({"a": 1.0}, 0)
        assert warnings() == []
        server.shutdown()
        thread.join()
        server.server_close()
        for _ in range(3):
            use(mirror, tmp_path)
    (warning,) = warnings()
    assert "the run goes on" in warning
    assert "\n" not in warning


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_store(tmp_path):
    uri = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(ValueError, match="ours"), tracking.run(asked(uri=uri), tmp_path, "r", {}):
        raise ValueError("ours")


def test_a_store_that_cannot_be_written_costs_one_warning(store, tmp_path, warnings):
    (tmp_path / "mlruns").write_text("a file where the folder should be")
    with tracking.run(asked(), tmp_path, "r", {}) as mirror:
        use(mirror, tmp_path)
    assert len(warnings()) == 1


def test_a_store_that_breaks_in_mid_run_costs_one_warning(store, tmp_path, warnings):
    root = copied(store, tmp_path / "project")
    with tracking.run(asked(), root, "r", {}) as mirror:
        (root / "mlruns" / "mlflow.db").write_bytes(b"no database" * 1000)
        use(mirror, tmp_path)
        use(mirror, tmp_path)
    assert len(warnings()) == 1


@pytest.mark.parametrize(
    ("scheme", "where"),
    [("http", "setting"), ("postgresql", "setting"), ("nonsense", "setting"), ("http", "environment")],
)
def test_a_password_in_the_address_is_never_shown(scheme, where, tmp_path, warnings, monkeypatch):
    uri = f"{scheme}://user:s3cret@127.0.0.1:{closed_port()}/db"
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = []
    try:
        with tracking.run(asked(uri=uri if where == "setting" else None), tmp_path, "r", {}) as mirror:
            use(mirror, tmp_path)
    except ConfigError as error:
        said.append(str(error))
    said += warnings()
    assert said
    assert "127.0.0.1" in " ".join(said)
    assert "s3cret" not in " ".join(said)


@pytest.mark.parametrize("secret", ["user:s3cret", "user:s3@cret", "s3cret", ":s3cret"])
def test_an_address_is_shown_without_its_credentials(secret):
    assert tracking.without_credentials(f"at http://{secret}@host:5000/x: no") == "at http://***@host:5000/x: no"


def test_an_address_without_credentials_is_shown_as_it_is():
    assert tracking.without_credentials("at http://host:5000/x@y: no") == "at http://host:5000/x@y: no"


def test_a_metric_of_any_name_fits():
    assert len(tracking._key("/" * 300)) <= 250


def test_an_address_of_an_unknown_kind_is_a_mistake_in_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"^tracking\.uri=nonsense://x: ") as caught:
        tracking.run(asked(uri="nonsense://x"), tmp_path, "r", {}).__enter__()
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_costs_one_warning(store, warnings):
    with tracking.run(asked(experiment="to be deleted"), store, "r", {}) as mirror:
        pass
    client(store).delete_experiment(recorded(store, mirror).info.experiment_id)
    with tracking.run(asked(experiment="to be deleted"), store, "r", {}) as mirror:
        pass
    assert len(warnings()) == 1


# when it is not wanted


def test_without_tracking_nothing_is_told_and_nothing_is_made(tmp_path, warnings):
    with tracking.run(asked(enabled=False), tmp_path / "root", "r", {}) as mirror:
        assert type(mirror) is NullRun
        assert mirror.run_id is None
        use(mirror, tmp_path)
    assert not (tmp_path / "root").exists()
    assert warnings() == []


def test_mlflow_is_imported_when_it_is_wanted_and_sends_nothing_home():
    program = (
        "import sys, os, pathlib; from kd import tracking; from kd.settings import Tracking\n"
        "with tracking.run(Tracking(enabled=False, uri=None, experiment='e', run_name=None, tags={}), "
        "pathlib.Path('.'), 'r', {}): pass\n"
        "print('mlflow' in sys.modules, os.environ['MLFLOW_DISABLE_TELEMETRY'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "False true\n"
