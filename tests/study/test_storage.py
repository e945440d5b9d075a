"""The database of studies as one sqlite file: its schema, and the lock that all its users share."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from kd.errors import StudyError
from kd.study import show, storage
from kd.study.storage import Database, Unreachable

HOLD = """
import sys
from kd.study.storage import Database
with Database(sys.argv[1]).lock("it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def sqlite(folder: Path, **options) -> Database:
    return Database(f"sqlite:///{folder}/studies.db", **options)


def complaint(database: Database) -> str:
    """What is said about a database that cannot be opened."""
    with pytest.raises(StudyError) as error:
        database.open()
    assert "\n" not in str(error.value)
    return str(error.value)


# opening


def test_a_database_is_created_with_its_folder(tmp_path):
    database = sqlite(tmp_path / "deep" / "down")
    database.open()
    assert database.exists()
    assert optuna.study.get_all_study_names(database.open()) == []


def test_a_database_is_opened_once(tmp_path):
    assert sqlite(tmp_path).open() is sqlite(tmp_path).open()


def test_opening_a_database_keeps_its_content(tmp_path):
    optuna.create_study(study_name="mine", storage=sqlite(tmp_path).open())
    again = sqlite(tmp_path, heartbeat=7, grace=9).open()
    assert optuna.study.get_all_study_names(again) == ["mine"]
    assert (again.get_heartbeat_interval(), again._backend.grace_period) == (7, 9)


def test_threads_may_open_a_database_together(tmp_path):
    """Each as a process would: with a pool of connections of its own."""
    opened, together = [], threading.Barrier(4)

    def run(grace: int) -> None:
        together.wait()
        opened.append(sqlite(tmp_path, grace=grace).open())

    threads = [threading.Thread(target=run, args=(grace,)) for grace in range(100, 104)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM version_info").fetchone() == (1,)


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used" in complaint(sqlite(tmp_path / "file" / "below"))


def test_a_folder_in_place_of_the_database_is_reported(tmp_path):
    (tmp_path / "studies.db").mkdir()
    assert "cannot be used" in complaint(sqlite(tmp_path))


def test_a_file_that_is_not_a_database_is_reported_and_kept(tmp_path):
    (tmp_path / "studies.db").write_text("a letter, longer than the header of a database would be" * 20)
    before = (tmp_path / "studies.db").read_bytes()
    assert "not a database" in complaint(sqlite(tmp_path))
    assert (tmp_path / "studies.db").read_bytes() == before


def test_a_database_of_another_optuna_version_is_reported(tmp_path):
    sqlite(tmp_path).open()
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        connection.execute("UPDATE version_info SET library_version = '0.9.0'")
    assert "0.9.0" in complaint(sqlite(tmp_path, grace=99))


# a server that is away


SERVER = Database("postgresql://learner@nowhere/studies")  # never asked


@pytest.fixture
def pauses(monkeypatch):
    """How long was waited, without waiting."""
    waited = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    monkeypatch.setattr(storage.time, "monotonic", lambda: sum(waited))
    return waited


def failing(error: Exception, times: int):
    """A call that goes wrong so many times, and then answers how often it was made."""
    made = []

    def call() -> int:
        made.append(1)
        if len(made) <= times:
            raise error
        return len(made)

    return call


@pytest.mark.parametrize(
    "error", [OperationalError("SELECT 1", {}, Exception("away")), StorageInternalError("away"), Unreachable("away")]
)
def test_an_unreachable_server_is_retried_with_growing_pauses(error, pauses):
    assert SERVER.with_retries(failing(error, times=6)) == 7
    assert pauses == sorted(pauses)
    assert len(pauses) == 6


def test_a_server_that_does_not_come_back_is_reported(pauses):
    error = OperationalError("SELECT 1", {}, Exception("connection refused\nby all"))
    with pytest.raises(StudyError, match="connection refused") as told:
        SERVER.with_retries(failing(error, times=10**6))
    assert "\n" not in str(told.value)
    assert sum(pauses) >= storage.OUTAGE_SECONDS


def test_a_file_that_fails_is_not_retried(tmp_path, pauses):
    with pytest.raises(StudyError, match="database or disk is full"):
        sqlite(tmp_path).with_retries(
            failing(OperationalError("x", {}, Exception("database or disk is full")), times=1)
        )
    assert pauses == []


@pytest.mark.parametrize("error", [StudyError("another question"), ValueError("x"), KeyboardInterrupt()])
def test_other_errors_are_not_retried(error, tmp_path, pauses):
    with pytest.raises(type(error)):
        sqlite(tmp_path).with_retries(failing(error, times=1))
    assert pauses == []


# the lock


def test_one_at_a_time_holds_a_lock(tmp_path):
    database, inside, most = sqlite(tmp_path), [], []

    def run() -> None:
        for _ in range(5):
            with database.lock("it"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


@pytest.mark.parametrize("what", ["study a", "study a/b", "../out", "folder of x"])
def test_a_lock_is_a_hidden_file_beside_the_database(what, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    with sqlite(folder).lock(what):
        (file,) = folder.iterdir()
        assert file.name.startswith(".studies.db.")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_locks_with_different_names_are_independent(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.1)
    with sqlite(tmp_path).lock("study a"), sqlite(tmp_path).lock("study b"), sqlite(tmp_path).lock("folder of a"):
        assert len(list(tmp_path.iterdir())) == 3


def test_a_lock_that_is_held_too_long_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.1)
    database = sqlite(tmp_path)
    with database.lock("it"), pytest.raises(StudyError, match=r"held by another process.*stop that process"):
        database.lock("it").__enter__()


def test_an_error_under_a_lock_releases_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LOCK_SECONDS", 1)
    database = sqlite(tmp_path)
    with pytest.raises(ZeroDivisionError), database.lock("it"):
        _ = 1 / 0
    with database.lock("it"):
        pass


def test_the_lock_of_a_killed_process_is_released(tmp_path, monkeypatch):
    database = sqlite(tmp_path)
    command = [sys.executable, "-c", HOLD, database.url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.2)
    with pytest.raises(StudyError):
        database.lock("it").__enter__()
    process.kill()
    process.communicate()
    with database.lock("it"):
        pass


# a database from elsewhere


def test_a_database_that_holds_no_studies_is_refused_and_not_changed(tmp_path):
    with sqlite3.connect(tmp_path / "studies.db") as other:
        other.execute("CREATE TABLE mine (x)")
    before = (tmp_path / "studies.db").read_bytes()
    with pytest.raises(StudyError, match="holds no studies"):
        sqlite(tmp_path).check()
    assert (tmp_path / "studies.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["studies.db"]


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir(), lambda path: path.touch()]
)
def test_what_is_no_database_is_refused_unread(tmp_path, make):
    make(tmp_path / "studies.db")
    with pytest.raises(StudyError) as error:
        sqlite(tmp_path).check()
    assert "studies.db" in str(error.value)


@pytest.mark.parametrize("seed", range(3))
def test_a_database_with_random_pages_is_one_line(tmp_path, monkeypatch, seed):
    database, page, dice = sqlite(tmp_path), 4096, random.Random(seed)
    for number in range(4):
        optuna.create_study(study_name=str(number), storage=database.open()).set_user_attr("space", "x" * 5000)
    data = bytearray((tmp_path / "studies.db").read_bytes())
    for start in range(page, len(data), page):
        if dice.random() < 0.5:
            data[start : start + page] = dice.randbytes(page)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "studies.db").write_bytes(data)
    with pytest.raises(StudyError) as error:
        show.show("0", None, sqlite(damaged).url)
    assert "\n" not in str(error.value)
