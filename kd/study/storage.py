"""A study's database: how it is opened, locked and waited for.

All users of a study share one lock, held for milliseconds, under which trials are handed out: a file beside the sqlite
database, or an advisory lock of the PostgreSQL server. Both are released when the process that holds them is killed.
"""

import logging
import os
import re
import sqlite3
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from kd.errors import StudyError, one_line, without_credentials
from kd.study.address import HINT, Address
from kd.system.installation import install_command
from kd.system.untrusted import UnreadableError, regular

# Heartbeats are "experimental" since 2021, and "supposed to be used with Study.optimize", which our sweeper replaces.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")

LOCK_SECONDS = 300  # timeout for a lock that is normally held for milliseconds
OUTAGE_SECONDS = 300  # how long a running study waits for its server
LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE for a lock timeout
#: Exceptions that a damaged page, or a value of unexpected type or size, leads to.
DAMAGES = (
    StorageInternalError, SQLAlchemyError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError,
    AssertionError, RuntimeError,
)  # fmt: skip

log = logging.getLogger(__name__)
T = TypeVar("T")


class Storage(_CachedStorage):
    """Optuna's storage with its cache of finished trials.

    `optuna.load_study` would give a bare `RDBStorage` a new cache each time, and read all trials of the study again.
    """

    _backend: RDBStorage

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine."""
        return self._backend.engine

    def running(self, study_id: int) -> list[FrozenTrial]:
        """The running trials; reads no others."""
        return self._backend.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))


class Unreachable(StudyError):
    """The server of a study cannot be reached."""


@dataclass(frozen=True)
class Database(Address):
    """The database that stores studies.

    Attributes:
        heartbeat: seconds between two heartbeats of a running trial.
        grace: seconds without a heartbeat after which a running trial counts as dead.
    """

    heartbeat: int = 30
    grace: int = 120

    @classmethod
    def chosen(cls, url: str | None, default: str) -> "Database":
        """The database at an address that was typed, at that of the variable KD_STORAGE, or the default one."""
        return cls(url or os.environ.get("KD_STORAGE") or default)

    def check(self) -> None:
        """Check, without changing a sqlite file, that it holds studies; a server is not asked.

        Raises:
            StudyError: there is no such file, or it is not a database of studies.
        """
        if self.file is None:
            return
        try:
            with closing(sqlite3.connect(f"{regular(self.file).absolute().as_uri()}?mode=rw", uri=True)) as database:
                found = database.execute("SELECT name FROM sqlite_master WHERE name = 'studies'").fetchall()
        except UnreadableError as error:
            raise StudyError(f"the study database {self} {error.reason}; {HINT}") from error
        except sqlite3.Error as error:
            raise self.damaged(error) from error
        if not found:
            raise StudyError(f"the database {self} holds no studies; {HINT}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what optuna, or what reads its values, raises in the block for a damaged database into a StudyError."""
        try:
            yield
        except DAMAGES as error:
            raise self.damaged(error) from error

    def damaged(self, error: BaseException) -> StudyError:
        """What to raise for an error in reading the database."""
        reason = without_credentials(one_line(str(error) or type(error).__name__))[:300]
        return StudyError(f"the study database {self} is damaged ({reason}); restore it from a copy")

    def open(self) -> Storage:
        """Optuna's storage for the database. Its tables are created once, even by several processes at a time.

        Raises:
            StudyError: no server, no permission, no driver, or a schema of another Optuna version.
        """
        return _open(self)

    @contextmanager
    def lock(self, what: str) -> Iterator[None]:
        """Hold the lock named `what` for the block.

        Raises:
            StudyError: another process has held it for LOCK_SECONDS, or the server cannot be reached.
        """
        if self.file is None:
            with self._advisory_lock(what):
                yield
            return
        try:
            with FileLock(self.file.parent / f".{self.file.name}.{_plain(what)}.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise _held(error.lock_file) from error

    def with_retries(self, call: Callable[[], T]) -> T:
        """Return `call()`, an idempotent call, retrying for up to OUTAGE_SECONDS while the server cannot be reached.

        Raises:
            StudyError: the server did not come back.
        """
        deadline, pause, warned = time.monotonic() + OUTAGE_SECONDS, 1.0, False
        while True:
            try:
                return call()
            except (Unreachable, StorageInternalError, OperationalError) as error:
                if self.file is not None or time.monotonic() > deadline:  # retrying does not repair a file
                    raise self._unreachable(error) from error
                if not warned:
                    log.warning("the study database %s does not respond; retrying", self)
                warned = True
                time.sleep(pause)
                pause = min(2 * pause, 10.0)

    @contextmanager
    def _advisory_lock(self, what: str) -> Iterator[None]:
        key = {"key": zlib.crc32(f"kd-sweeper {what}".encode())}
        with self._connect() as connection:
            try:
                connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
                connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
            except SQLAlchemyError as error:
                if getattr(getattr(error, "orig", None), "sqlstate", None) == LOCK_NOT_AVAILABLE:
                    raise _held(f"the lock of {what} in {self}") from error
                raise self._unreachable(error) from error
            yield  # if this raises, closing the connection releases the lock
            try:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
            except SQLAlchemyError as error:  # the lock was lost with the connection; another process may hold it
                raise self._unreachable(error) from error

    def _connect(self) -> Connection:
        try:
            engine = create_engine(
                self.address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=self.connection
            )
            return engine.connect()
        except (SQLAlchemyError, ImportError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> StudyError:
        if isinstance(error, StudyError):
            return error
        if isinstance(error, ImportError):
            return StudyError(f"the driver for {self} is missing ({error}); {install_command('postgres')}")
        first = getattr(error, "orig", None) or error.__cause__ or error
        reason = without_credentials(str(first).strip().splitlines()[0])
        return Unreachable(f"the study database {self} cannot be used ({reason}); {HINT}")


@cache  # one connection pool and one cache of trials per process and database
def _open(database: Database) -> Storage:
    if database.file is not None:
        try:
            database.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise database._unreachable(error) from error
    engine: dict[str, Any] = {"connect_args": database.connection}
    if database.file is None:  # a process keeps one connection of the server's few, and gives others back after use
        engine |= {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 15}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with database.lock("schema"):
        try:
            return Storage(
                RDBStorage(
                    database.address.render_as_string(hide_password=False),
                    engine_kwargs=engine,
                    heartbeat_interval=database.heartbeat,
                    grace_period=database.grace,
                )
            )
        except (SQLAlchemyError, ImportError, RuntimeError, OSError) as error:
            raise database._unreachable(error) from error


def _held(what: str) -> StudyError:
    return StudyError(f"{what} was held by another process for {LOCK_SECONDS} s; stop that process or let it continue")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
