"""The tracking store: its address, the address without credentials, and its creation by one of several processes."""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from program import forked, forks
from waiting import LIMIT

from kd.errors import ConfigError, without_credentials
from kd.settings import Tracking
from kd.tracking import store as stores
from kd.tracking.store import Store, brief, store_uri


def asked(**changes) -> Tracking:
    return Tracking(**{"enabled": True, "uri": None, "experiment": "kd", "run_name": None, "tags": {}} | changes)


def local(root: Path, experiment: str = "kd") -> Store:
    return Store(store_uri(asked(), root), experiment, root)


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


# what may be shown


@pytest.mark.parametrize("secret", ["user:s3cret", "user:s3@cret", "s3cret", ":s3cret"])
def test_an_address_is_shown_without_its_credentials(secret):
    assert without_credentials(f"at http://{secret}@host:5000/x: no") == "at http://***@host:5000/x: no"


def test_a_password_after_the_question_mark_is_not_shown_either():
    shown = without_credentials("postgresql://host/db?user=me&password=s3cret&sslmode=require")
    assert shown == "postgresql://host/db?user=me&password=***&sslmode=require"


@given(st.text("ab:/@?=& ", max_size=30))
def test_what_was_shown_is_shown_the_same_again(text):
    assert without_credentials(without_credentials(text)) == without_credentials(text)


def test_an_address_without_credentials_is_shown_as_it_is():
    plain = "at http://host:5000/x and http://host/x@y: no"
    assert without_credentials(plain) == plain


SIGNS = st.characters(min_codepoint=33, max_codepoint=126)
FORMS = ["postgresql://me:{}@host/db", "http://:{}@host/x?a=b", "http://{}@host:5000"]
NAMES = ["?password=", "?a=1&PASSWD=", "?api_key=", "?auth=", "#token=", "?x-amz-signature=", "?client_secret="]


@given(st.text(SIGNS, min_size=6), st.sampled_from(FORMS))
def test_no_password_of_a_url_is_shown_whatever_its_signs(password, form):
    if ":{}" not in form:
        password = password.replace("/", "_")  # a user's name ends there (RFC 3986)
    assert password not in without_credentials(f"cannot open {form.format(password)}, sorry")


@given(st.text(SIGNS.filter(lambda sign: sign != "&"), min_size=6), st.sampled_from(NAMES))
def test_no_secret_parameter_is_shown_whatever_its_signs(value, name):
    assert value not in without_credentials(f"cannot open https://host/db{name}{value} now")


def test_an_error_is_shown_in_one_line_without_credentials():
    assert brief(ValueError("no http://me:s3cret@host\nmore")) == "ValueError: no http://***@host"
    assert brief(ValueError()) == "ValueError: "


def test_an_error_is_shown_by_its_root_cause(tmp_path):
    with pytest.raises(mlflow.MlflowException) as caught:
        Store("http://127.0.0.1:9", "kd", tmp_path).open()
    assert brief(caught.value) == "ConnectionRefusedError: [Errno 111] Connection refused"


# of which kind


@pytest.mark.parametrize(
    "uri",
    ["nonsense://x", "postgres://me:s3cret@host/db", "postgresql+nonsense://host/db", "mssql://me:::@x::@@h:9/db"],
)
def test_an_unsupported_kind_of_address_is_a_configuration_error(uri, tmp_path):
    with pytest.raises(ConfigError) as caught:
        Store(uri, "kd", tmp_path).check()
    assert str(caught.value).startswith(f"tracking.uri={without_credentials(uri)}: ")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket/x", "ftp://me@127.0.0.1:9/x"])
def test_a_kind_of_address_that_mlflow_has_no_store_for_is_answered_by_those_it_has(uri, tmp_path):
    with pytest.raises(ConfigError, match=r"not a kind that MLflow stores in; give .*postgresql://"):
        Store(uri, "kd", tmp_path).check()


def test_a_database_that_is_a_loop_of_links_has_an_address_all_the_same(tmp_path):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").symlink_to("mlflow.db")
    assert store_uri(asked(), tmp_path) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "https://host", "sqlite:////nowhere/x.db", "postgresql://host/db"]
)
def test_a_valid_address_is_not_contacted_before_the_training(uri, tmp_path):
    Store(uri, "kd", tmp_path).check()


# how it is made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project root with a store in it, as `Store.open` left it, and what that returned."""
    root = tmp_path_factory.mktemp("made")
    return root, local(root).open()


def test_a_store_is_created_once_with_its_experiment(made):
    root, (client, experiment) = made
    assert client.get_experiment(experiment).name == "kd"
    assert client.get_experiment(experiment).artifact_location == (root / "mlruns" / "artifacts").as_uri()
    assert local(root).open()[1] == experiment
    assert local(root, "other").open()[1] != experiment


def _open(root: Path, gate, found) -> None:
    stores.OPENING_SECONDS = LIMIT
    gate.wait()
    found.put(local(root).open()[1])


def test_processes_that_start_together_without_a_store_share_a_new_one(tmp_path):
    gate, found = forks.Barrier(4), forks.Queue()
    several = [forked(_open, tmp_path, gate, found) for _ in range(4)]
    experiments = {found.get(timeout=LIMIT) for _ in several}
    for process in several:
        process.join()
    assert len(experiments) == 1
    client = mlflow.MlflowClient(store_uri(asked(), tmp_path))
    assert [each.name for each in client.search_experiments()].count("kd") == 1


def _hold(lock: Path, held) -> None:
    with FileLock(lock):
        held.set()
        signal.pause()


def test_a_process_that_hangs_while_it_creates_the_store_does_not_block_others_forever(made, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "OPENING_SECONDS", 0.3)
    shutil.copytree(made[0] / "mlruns", tmp_path / "mlruns")
    held = forks.Event()
    holder = forked(_hold, tmp_path / "mlruns" / ".create.lock", held)
    assert held.wait(LIMIT)
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(Timeout):
        local(tmp_path).open()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    local(tmp_path).open()


@pytest.mark.parametrize("kind", ["postgresql+psycopg", "postgresql"])
def test_a_database_server_that_is_away_fails_before_mlflow_retries(kind, tmp_path, monkeypatch):
    pytest.importorskip("psycopg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("mlflow.MlflowClient", lambda **_: pytest.fail("MLflow retries a connection for 100 s"))
    with pytest.raises(Exception, match="refused"):
        Store(f"{kind}://me:s3cret@127.0.0.1:{port}/db", "kd", tmp_path).open()


def test_an_experiment_that_was_deleted_refuses_runs_and_says_so(made):
    client, experiment = local(made[0], "deleted").open()
    client.delete_experiment(experiment)
    assert local(made[0], "deleted").open()[1] == experiment
    with pytest.raises(mlflow.MlflowException, match=r"deleted|active"):
        client.create_run(experiment)


# a database whose creation was killed


def half_made(root: Path, how: str) -> Path:
    """What a kill in the middle of the first migrations leaves, of several kinds."""
    file = root / "mlruns" / "mlflow.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as database:
        if how == "a migration under way":
            database.execute("CREATE TABLE runs (id INTEGER)")
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("CREATE TABLE _alembic_tmp_tags (id INTEGER)")
        elif how == "between two migrations":
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            database.execute("INSERT INTO alembic_version VALUES ('451aebb31d03')")
        database.commit()
    return file


@pytest.mark.parametrize("how", ["a migration under way", "between two migrations", "nothing yet"])
def test_a_database_whose_creation_was_killed_is_moved_aside_and_made_anew(how, tmp_path, caplog):
    file = half_made(tmp_path, how)
    store = local(tmp_path)
    with caplog.at_level(logging.WARNING):
        client, experiment = store.open()
    run = client.create_run(experiment)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    (told,) = [record.getMessage() for record in caplog.records if record.name == "kd.tracking.store"]
    assert told == f"{file} was left incomplete by a killed process and held no run; it is now mlflow.db.incomplete-1"
    assert (file.parent / "mlflow.db.incomplete-1").exists()


def test_a_kill_while_the_database_is_made_leaves_nothing_under_its_name(tmp_path, monkeypatch):
    store = local(tmp_path)
    monkeypatch.setattr(SqlAlchemyStore, "_initialize_store_state", lambda self: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(target=store._make_database)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "mlruns").iterdir())
    assert "mlflow.db" not in left
    monkeypatch.undo()
    client, experiment = store.open()
    client.create_run(experiment)
    assert not [path for path in (tmp_path / "mlruns").iterdir() if path.name.startswith(".mlflow")]


def test_a_file_that_is_no_database_is_left_where_it_is(tmp_path):
    file = tmp_path / "mlruns" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(b"what was this" * 1000)
    with pytest.raises(Exception, match="not a database"):
        local(tmp_path).open()
    assert file.read_bytes() == b"what was this" * 1000
