"""A run and its mirror, with a real server that is killed, halted and restarted: each point is stored once."""

import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlflow
import program
import pytest
from filelock import FileLock
from mlflow_server import Server, free_port
from waiting import LIMIT, until

from kd import tracking
from kd.cli import main as kd
from kd.errors import ConfigError
from kd.run.folder import RunFolder
from kd.settings import Tracking
from kd.system.files import writing
from kd.tracking import Labels, NullRun
from kd.tracking import mirror as mirrors
from kd.tracking import store as stores

SMALL = (
    "backbone=tiny loss=hard_only data.image_size=[32,32] data.train=16 data.val=8 data.test=8 trainer.batch_size=8 "
    "trainer.epochs=3 trainer.device=cpu unfreeze.start_epoch=1 unfreeze.rate=1 pictures=false"
).split()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.go_on()
    server.kill()


class Patience:
    """How long calls wait for the server: no healthy one is given up because the machine is slow."""

    def __init__(self, patch):
        self.patch = patch
        patch.setattr(mirrors, "RETRY_DELAY", 0.1)
        for module in (mirrors, stores):
            patch.setattr(module, "OPENING_SECONDS", LIMIT)
        self.long()

    def long(self) -> None:
        self.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(LIMIT)))
        self.patch.setattr(mirrors, "PATIENCE", 2 * LIMIT)

    def short(self) -> None:
        """For a server that does not respond, so that the test is short."""
        self.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        self.patch.setattr(mirrors, "PATIENCE", 4.0)


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    return Patience(monkeypatch)


@pytest.fixture
def warnings(caplog):
    """The lines of this test that a person would see."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def asked(uri=None, **changes) -> Tracking:
    return Tracking(**{"enabled": True, "uri": uri, "experiment": "kd", "run_name": None, "tags": {}} | changes)


@dataclass
class Scene:
    """A run folder that is to be mirrored to an address."""

    root: Path
    uri: str

    def __post_init__(self):
        self.folder = RunFolder(self.root / "runs" / "one")

    def run(self, continued=False, **more):
        labels = Labels("a run", {"role": "student"}, **more)
        return tracking.run(asked(self.uri), self.root, self.folder, labels, continued)

    def epochs(self, mirror: NullRun, *epochs: int) -> None:
        for epoch in epochs:
            self.folder.append_metrics({"epoch": epoch, "val/miou": epoch / 8, "lr": 0.5, "time": 1000.5 + epoch})
            mirror.refresh()

    def sync(self):
        return tracking.sync(self.folder.path, self.root, self.uri)

    @property
    def client(self):
        return mlflow.MlflowClient(tracking_uri=self.uri)

    def runs(self):
        """The runs in the store that are this folder's."""
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        return self.client.search_runs(experiments, f"tags.`kd.run` = '{self.folder.identity()['id']}'")

    def check(self, epochs: int, status: str) -> None:
        """The store has this folder's run once, and each of its points once, at its time."""
        (run,) = self.runs()
        assert run.info.status == status
        for name, value in (("val/miou", lambda epoch: epoch / 8), ("lr", lambda epoch: 0.5)):
            history = self.client.get_metric_history(run.info.run_id, name)
            found = sorted((point.step, point.value, point.timestamp) for point in history)
            assert found == [(epoch, value(epoch), 1_000_500 + 1000 * epoch) for epoch in range(epochs)]
        assert self.folder.identity()["tracking"]["run_id"] == run.info.run_id


@pytest.fixture
def scene(server, tmp_path):
    return Scene(tmp_path, server.uri)


def refuse_to_write(monkeypatch, number: int) -> None:
    """Let the system refuse every write of run.json with this error number."""

    def refused(path, value):
        with writing(path):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("kd.run.folder.write_json", refused)


def arrived(scene: Scene, epochs: int) -> None:
    """Wait until the store has so many epochs."""
    until(lambda: any(run.data.metrics.get("val/miou") == (epochs - 1) / 8 for run in scene.runs()), "the delivery")


# a healthy server


def test_points_arrive_during_the_run_and_the_rest_at_its_end(scene, warnings):
    with scene.run(choices={"loss": "hinton"}, parameters={"lr": 1e-3}) as mirror:
        scene.folder.write_config({"trainer": {"epochs": 2}})
        scene.epochs(mirror, 0, 1)
        arrived(scene, 2)
        scene.folder.write_summary({"objective": {"val/miou": 0.125}, "state": "complete", "student": {"size": 7}})
        assert scene.runs()[0].info.status == "RUNNING"
    scene.check(2, "FINISHED")
    (run,) = scene.runs()
    assert run.info.run_id == mirror.run_id
    assert run.info.run_name == "a run"
    assert run.data.params == {"loss": "hinton", "trainer.epochs": "2", "lr": "0.001"}
    assert {name: run.data.tags[name] for name in ("role", "state")} == {"role": "student", "state": "complete"}
    assert (run.data.metrics["best/val/miou"], run.data.metrics["student/size"]) == (0.125, 7)
    kept = {file.path for file in scene.client.list_artifacts(mirror.run_id)}
    assert kept == {"run.json", "config.yaml", "metrics.jsonl", "summary.json"}
    assert warnings() == []
    assert scene.sync() == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (ConfigError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_that_ends_early_has_that_status_and_raises_its_error(error, status, scene):
    with pytest.raises(error), scene.run() as mirror:  # noqa: PT012 (what is raised comes out of the run)
        scene.epochs(mirror, 0)
        raise error("stop")
    scene.check(1, status)
    assert scene.folder.identity()["status"] == status


def test_a_run_resumed_after_a_kill_resumes_in_mlflow(scene):
    """The process dies without a word: run.json still says RUNNING."""
    with scene.run() as mirror:
        scene.epochs(mirror, 0, 1)
        arrived(scene, 2)
        before = scene.folder.identity()
    scene.folder.identify(**before)
    assert scene.folder.keep_metrics(1) == [{"epoch": 0, "val/miou": 0, "lr": 0.5, "time": 1000.5}]
    with scene.run(continued=True) as again:
        scene.epochs(again, 1, 2)
        assert scene.folder.identity()["id"] == before["id"]
    assert again.run_id == before["tracking"]["run_id"]
    scene.check(3, "FINISHED")


def test_a_run_whose_id_was_never_saved_is_found_again(scene):
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
    facts = scene.folder.identity()
    scene.folder.identify(tracking=facts["tracking"] | {"run_id": None})
    assert scene.sync() == {}
    assert scene.folder.identity()["tracking"]["run_id"] == mirror.run_id
    scene.check(1, "FINISHED")


def test_another_run_in_the_same_folder_is_another_run_in_mlflow(scene):
    with scene.run() as first:
        scene.epochs(first, 0)
    with scene.run() as second:
        scene.folder.keep_metrics(0)
        scene.epochs(second, 0)
    assert first.run_id != second.run_id
    scene.check(1, "FINISHED")


def test_a_sync_restores_a_run_that_was_deleted_in_mlflow(scene):
    with scene.run() as mirror:
        scene.epochs(mirror, 0, 1)
    scene.client.delete_run(mirror.run_id)
    scene.sync()
    scene.check(2, "FINISHED")


def test_a_full_disk_does_not_hide_what_ended_a_run(scene, monkeypatch):
    with pytest.raises(ValueError, match="ours"), scene.run() as mirror:  # noqa: PT012 (what is raised comes out of it)
        scene.epochs(mirror, 0)
        arrived(scene, 1)
        refuse_to_write(monkeypatch, errno.ENOSPC)
        raise ValueError("ours")
    scene.check(1, "FAILED")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS], ids=["of another user", "on a read-only disk"])
def test_a_folder_that_can_only_be_read_is_delivered(number, scene, monkeypatch):
    def not_locked(lock):
        raise OSError(number, os.strerror(number))

    with scene.run() as mirror:
        scene.epochs(mirror, 0)
    facts = scene.folder.identity()
    scene.client.delete_run(mirror.run_id)
    refuse_to_write(monkeypatch, number)
    monkeypatch.setattr(FileLock, "acquire", not_locked)
    assert scene.sync()["points"] == 2
    assert [run.info.status for run in scene.runs()] == ["FINISHED"]
    assert scene.folder.identity() == facts


# a server that is in trouble


def test_a_server_killed_and_started_again_has_every_point_once(scene, server, warnings):
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
        arrived(scene, 1)
        server.kill()
        scene.epochs(mirror, 1, 2)
        until(warnings)
        server.start()
        scene.epochs(mirror, 3)
    scene.check(4, "FINISHED")
    (warning,) = warnings()
    assert f"MLflow at {server.uri} " in warning
    assert f"`kd sync {scene.folder.path} --uri " in warning
    assert "\n" not in warning


def test_a_server_that_stops_responding_for_a_while_has_every_point_once(scene, server, warnings, patience):
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
        arrived(scene, 1)
        patience.short()
        server.halt()
        scene.epochs(mirror, 1, 2)
        until(warnings)
        patience.long()
        server.go_on()
        scene.epochs(mirror, 3)
    scene.check(4, "FINISHED")
    assert len(warnings()) == 1


def end_mirrors():
    """Wait for the thread that a run gave up on, which a program's end would kill: two would deliver at once."""
    for thread in threading.enumerate():
        if thread.name == "mlflow":
            thread.join(LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True], ids=["from the start", "from the middle"])
def test_a_server_that_stays_halted_lets_the_run_end_and_a_sync_delivers(begun, scene, server, warnings, patience):
    """Nothing lets the server go on before the run has ended."""
    started = time.monotonic()
    server.go_on() if begun else server.halt()
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
        if begun:
            arrived(scene, 1)
            server.halt()
        patience.short()
        scene.epochs(mirror, 1)
    assert time.monotonic() - started < LIMIT
    assert len(warnings()) == 1
    patience.long()
    server.go_on()
    end_mirrors()
    scene.sync()
    scene.sync()  # by now every call on its way has arrived
    scene.check(2, "FINISHED")
    assert scene.sync() == {}


@pytest.mark.slow
def test_a_server_that_never_responds_lets_the_run_end(tmp_path, warnings, patience):
    patience.short()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        scene = Scene(tmp_path, f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        with scene.run() as mirror:
            scene.epochs(mirror, 0, 1)
            assert mirror.run_id is None
    assert time.monotonic() - started < LIMIT
    assert len(warnings()) == 1


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_store(tmp_path):
    scene = Scene(tmp_path, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match="ours"), scene.run():
        raise ValueError("ours")


@pytest.mark.parametrize(
    ("scheme", "where"),
    [("http", "setting"), ("postgresql", "setting"), ("nonsense", "setting"), ("http", "environment")],
)
def test_a_password_in_the_address_is_never_shown(scheme, where, tmp_path, warnings, monkeypatch):
    uri = f"{scheme}://user:s3cret@127.0.0.1:{free_port()}/db"
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    scene, said = Scene(tmp_path, uri if where == "setting" else None), []
    try:
        with scene.run() as mirror:
            scene.epochs(mirror, 0)
    except ConfigError as error:
        said.append(str(error))
    said += warnings()
    assert len(said) == 1
    assert "127.0.0.1" in said[0]
    for text in (*said, *(path.read_text() for path in scene.folder.path.iterdir())):
        assert "s3cret" not in text


def test_a_password_is_not_shown_without_an_error_either(server, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    scene = Scene(tmp_path, server.uri.replace("//", "//me:s3cret@"))
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
    out, err = capfd.readouterr()
    run = scene.client.get_run(mirror.run_id)
    for text in (out, err, caplog.text, str(run.to_dictionary()), (scene.folder / "run.json").read_text()):
        assert "s3cret" not in text
    assert run.info.status == "FINISHED"


# a store in a file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project root with the store that the first run has made."""
    scene = Scene(tmp_path_factory.mktemp("made"), None)
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
    return scene, mirror


def test_the_store_under_the_root_is_created_and_keeps_the_artifacts_there(made, warnings):
    scene, mirror = made
    (kept,) = (scene.root / "mlruns" / "artifacts" / mirror.run_id).rglob("metrics.jsonl")
    assert kept.read_bytes() == (scene.folder / "metrics.jsonl").read_bytes()
    assert warnings() == []
    assert scene.sync() == {}


def test_a_database_damaged_during_a_run_costs_one_warning_and_a_sync_fills_another(made, tmp_path, warnings):
    scene, store = Scene(tmp_path, None), tmp_path / "mlruns" / "mlflow.db"
    store.parent.mkdir()
    for copy in (store, tmp_path / "other.db"):
        shutil.copy(made[0].root / "mlruns" / "mlflow.db", copy)
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
        assert mirror.run_id
        store.write_bytes(b"no database" * 1000)
        scene.epochs(mirror, 1)
    assert len(warnings()) == 1
    elsewhere = Scene(tmp_path, f"sqlite:///{tmp_path}/other.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", elsewhere.uri)
        elsewhere.sync()
        assert elsewhere.sync() == {}
    elsewhere.check(2, "FINISHED")


def test_a_store_that_cannot_be_written_costs_one_warning(tmp_path, warnings):
    (tmp_path / "mlruns").write_text("a file where the folder should be")
    scene = Scene(tmp_path, None)
    with scene.run() as mirror:
        scene.epochs(mirror, 0)
    assert len(warnings()) == 1


# kd sync


def synced(capsys, *typed: Path | str) -> SimpleNamespace:
    code = 0
    try:
        kd(["sync", *map(str, typed)])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return SimpleNamespace(code=code, out=out, err=err)


def test_a_sync_delivers_a_run_whose_server_was_down(tmp_path, server, capsys):
    server.kill()
    address = f"tracking.uri={server.uri}"
    done = program.train(tmp_path, *SMALL, address)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("kd sync") == 1
    (folder,) = tmp_path.glob("runs/*/*")
    assert f"`kd sync {folder} --uri {server.uri}`" in (done.stdout + done.stderr).replace("\n", " ")
    refused = synced(capsys, folder, "--uri", server.uri)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"error: MLflow at {server.uri} ")
    assert refused.err.count("\n") == 1
    server.start()
    not_ours = synced(capsys, folder)
    assert (not_ours.code, not_ours.err.count("\n")) == (1, 1)
    assert f"to send it there, type --uri {server.uri}" in not_ours.err
    assert " points" in synced(capsys, folder, "--uri", server.uri).out
    assert "nothing was missing" in synced(capsys, folder, "--uri", server.uri).out
    client, run_id = mlflow.MlflowClient(server.uri), RunFolder(folder).identity()["tracking"]["run_id"]
    for name, value in RunFolder(folder).metrics()[0].items():
        if name not in ("epoch", "time") and value is not None:
            history = sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
            assert history == [(record["epoch"], record[name]) for record in RunFolder(folder).metrics()]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "complete")
    assert run.data.params["trainer.epochs"] == "3"
    files = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert {file.path for file in client.list_artifacts(run_id)} == files


def test_a_strangers_folder_sends_nothing_to_its_own_address_and_creates_no_file(made, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(made[0].folder.path, tmp_path / "received" / "run")
    elsewhere = tmp_path / "elsewhere"
    for uri, root in ((f"sqlite:///{elsewhere}/mlflow.db", made[0].root), (None, elsewhere)):
        facts = RunFolder(copy).identity()
        RunFolder(copy).identify(tracking=facts["tracking"] | {"uri": uri, "root": str(root), "address": "x"})
        done = synced(capsys, copy)
        assert done.code == (1 if uri else 0)
        assert not elsewhere.exists()
    assert (tmp_path / "mlruns" / "mlflow.db").exists()  # the caller's own


def test_a_run_without_tracking_can_be_delivered_afterwards(tmp_path, server, monkeypatch):
    scene = Scene(tmp_path, server.uri)
    with tracking.run(asked(enabled=False), tmp_path, scene.folder, Labels("quiet", {})) as mirror:
        assert type(mirror) is NullRun
        scene.epochs(mirror, 0, 1)
    assert not (tmp_path / "mlruns").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert scene.sync()["points"] == 4
    assert scene.sync() == {}
    scene.check(2, "FINISHED")


def test_a_killed_run_is_delivered_as_killed_and_a_running_one_is_refused(scene):
    with tracking.run(asked(scene.uri, enabled=False), scene.root, scene.folder, Labels("r", {})) as mirror:
        scene.epochs(mirror, 0)
        with FileLock(scene.folder / ".lock"), pytest.raises(tracking.TrackingError, match="still running"):
            scene.sync()
        scene.sync()
        scene.check(1, "KILLED")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "there is no such folder"),
        ({}, "not a run folder"),
        ({"run.json": "{"}, "damaged"),
        ({"run.json": "[]"}, "damaged"),
        ({"run.json": '{"id": "1"}'}, "damaged"),
        ({"run.json": '{"begun": 1e300}'}, "begun should be a time"),
        ({"run.json": None}, "is a folder and should be a file"),
    ],
)
def test_a_folder_that_is_not_a_run_folder_is_refused_in_one_line(files, says, tmp_path, capsys):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
    for name, text in (files or {}).items():
        (folder / name).mkdir() if text is None else (folder / name).write_text(text)
    refused = synced(capsys, folder)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"error: {folder}")
    assert says in refused.err
    assert refused.err.count("\n") == 1


def test_a_saved_address_without_its_password_asks_for_the_whole_address(tmp_path, capsys):
    scene = Scene(tmp_path, f"http://me:s3cret@127.0.0.1:{free_port()}")
    with suppress(ValueError), scene.run():
        raise ValueError
    refused = synced(capsys, scene.folder.path)
    assert refused.code == 1
    assert "MLFLOW_TRACKING_URI" in refused.err


# who it is


def test_run_json_says_who_the_run_is(tmp_path):
    folder = RunFolder(tmp_path / "run")
    settings = asked("http://me:s3cret@host", enabled=False, tags={"team": "b"}, experiment="e")
    labels = Labels("x=http://a:s3cret@b", {"team": "a", "role": "r"}, {"loss": "l"})
    with tracking.run(settings, tmp_path, folder, labels):
        facts = json.loads((folder / "run.json").read_text())
        assert facts["status"] == "RUNNING"
    assert len(facts["id"]) == 32
    assert facts["name"] == "x=http://***@b"
    assert {name: facts["tags"][name] for name in ("team", "role")} == {"team": "b", "role": "r"}
    assert facts["choices"] == {"loss": "l"}
    assert facts["tracking"] == {"experiment": "e", "uri": "http://***@host", "root": str(tmp_path)}
    assert json.loads((folder / "run.json").read_text())["status"] == "FINISHED"


def test_mlflow_is_imported_only_when_used_and_sends_no_telemetry(tmp_path):
    code = (
        "import sys, os, pathlib; from kd import tracking; from kd.run.folder import RunFolder\n"
        "from kd.settings import Tracking; here = pathlib.Path(sys.argv[1])\n"
        "settings = Tracking(enabled=False, uri=None, experiment='e', run_name=None, tags={})\n"
        "with tracking.run(settings, here, RunFolder(here), tracking.Labels('r', {})): pass\n"
        "print('mlflow' in sys.modules, 'torch' in sys.modules, os.environ['MLFLOW_DISABLE_TELEMETRY'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout == (
        "False False true\n"
    )
