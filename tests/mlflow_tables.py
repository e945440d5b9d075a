"""The tables of a new MLflow database, migrated once per test session instead of once per test.

MLflow creates the tables of its first release and then runs every migration since: 3 s for each of the many project
roots of these tests. Here the first process does so, and those after it write the tables that it ended with.
"""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow.store.db.utils as mlflow_databases
from filelock import FileLock

#: Names the folder of this session, for the processes that tests start too.
VARIABLE = "TESTS_MLFLOW_TABLES"  # not KD_...: tests remove the variables of this program
FILE = "tables.sql"


def share() -> tempfile.TemporaryDirectory | None:
    """Begin a session; the folder to be removed at its end. None where a parent process has begun it."""
    if VARIABLE in os.environ:
        return None
    folder = tempfile.TemporaryDirectory(prefix="kd-tests-")
    os.environ[VARIABLE] = folder.name
    return folder


def reuse() -> None:
    """From now on this process takes the tables of a new database from the session's first one."""
    migrate = mlflow_databases._initialize_tables
    folder = Path(os.environ[VARIABLE])

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not engine.url.database:
            return migrate(engine)
        with FileLock(folder / "lock"):
            if not (folder / FILE).exists():
                migrate(engine)
                with closing(sqlite3.connect(engine.url.database)) as made:
                    statements = "\n".join(made.iterdump())
                (folder / "new").write_text(statements)
                (folder / "new").rename(folder / FILE)
                return None
        with closing(sqlite3.connect(engine.url.database)) as database:
            database.executescript((folder / FILE).read_text())

    mlflow_databases._initialize_tables = initialize
