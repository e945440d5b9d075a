"""The tracking store: its address, the address without credentials, and a client.

MLflow's retries, which take minutes, are reduced to seconds, unless the environment sets them.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.errors import ConfigError, UserError, check_address, without_credentials
from kd.settings import Tracking
from kd.system.files import clear_leftovers, real, write_atomically

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it may contain a password

TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens it as training, not as GenAI traces
KINDS = "give http(s)://, postgresql://, mysql://, mssql:// or sqlite:///, or leave it null for mlruns/"
OPENING_SECONDS = 20.0  # for a local store that many processes create one after the other
CONNECT_SECONDS = 5

log = logging.getLogger(__name__)


class TrackingError(UserError):
    """The tracking store, or what was to be delivered to it, is not usable."""

    page = "mlflow"


def store_uri(settings: Tracking, root: Path) -> str:
    """The store's address: MLFLOW_TRACKING_URI, else the setting, else an absolute sqlite address under `root`."""
    default = f"sqlite:///{real(root / 'mlruns' / 'mlflow.db').as_posix()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.uri or default


def brief(error: BaseException, address: str = "") -> str:
    """The first line of an error's root cause, without the credentials that an address may contain.

    If `address` has some, it is the error's kind alone: a library may quote any part of an address.
    """
    while cause := error.__cause__ or error.__context__:
        error = cause
    if without_credentials(address) != address:
        return type(error).__name__
    return without_credentials(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")[:200]


@dataclass(frozen=True)
class Store:
    """A tracking store and an experiment in it. A local store keeps its artifacts under `root`."""

    uri: str
    experiment: str
    root: Path

    @classmethod
    def of(cls, settings: Tracking, root: Path) -> "Store":
        """The store and the experiment that settings ask for."""
        return cls(store_uri(settings, root), settings.experiment, root)

    def __str__(self) -> str:
        return without_credentials(self.uri)

    @property
    def is_local(self) -> bool:
        return self.uri.startswith("sqlite:")

    def check(self) -> None:
        """Validate the address without contacting the store.

        Raises:
            ConfigError: MLflow does not support this kind of address, or the text is not an address.
        """
        check_address("MLFLOW_TRACKING_URI, or --uri,", self.uri)
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            if self.uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
                make_url(self.uri).get_dialect()
            else:  # this sends no request
                mlflow.MlflowClient(tracking_uri=self.uri)
        except UnsupportedModelRegistryStoreURIException as error:
            raise ConfigError(
                f"tracking.uri={self}: not a kind that MLflow stores in; {KINDS}", page="mlflow"
            ) from error
        except (MlflowException, ArgumentError, ValueError) as error:  # ValueError: a port that is not a number
            raise ConfigError(f"tracking.uri={self}: {brief(error, self.uri)}", page="mlflow") from error

    def open(self) -> tuple[Any, str]:
        """A client, and the id of the experiment; a missing store or experiment is created.

        Raises:
            Exception: any error of the network, the disk or the store.
        """
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # else a line per migration of a new store
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # else tracebacks of raised errors
        self._probe()
        with self._creation_lock():
            self._make_database()
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            return client, self._experiment_id(client)

    def _make_database(self) -> None:
        """Create the database file of a local store under a temporary name, as a kill in its migrations breaks it.

        One that such a kill has left behind before is moved aside.
        """
        from sqlalchemy import URL, make_url

        name = make_url(self.uri).database if self.is_local else None
        if not name or name == ":memory:":
            return
        file = Path(name)
        if file.exists() and _is_half_made(file):
            aside = next(p for n in count(1) if not (p := file.with_name(f"{file.name}.incomplete-{n}")).exists())
            file.rename(aside)
            log.warning("%s was left incomplete by a killed process and held no run; it is now %s", file, aside.name)
        if file.exists():
            return

        def write(temporary: Path) -> None:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            address = URL.create("sqlite", database=str(temporary)).render_as_string()
            SqlAlchemyStore(address, "mlruns").engine.dispose()

        clear_leftovers(file.parent)
        write_atomically(file, write)

    def _probe(self) -> None:
        """Fail at once if a database server cannot be reached: MLflow would retry for 100 s."""
        if self.is_local or self.uri.startswith(("http:", "https:")):
            return
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from sqlalchemy import create_engine, make_url
        from sqlalchemy.pool import NullPool

        kind = self.uri.partition(":")[0].partition("+")[0]
        if kind in DATABASE_ENGINES:
            options = {"connect_timeout": CONNECT_SECONDS} if kind in ("postgresql", "mysql") else {}
            create_engine(make_url(self.uri), poolclass=NullPool, connect_args=options).connect().close()

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        """A lock for a local store: processes that create the same database together break it."""
        if self.is_local:
            (self.root / "mlruns").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "mlruns" / ".create.lock", timeout=OPENING_SECONDS)
        with lock if self.is_local else nullcontext():
            yield

    def _experiment_id(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        location = real(self.root / "mlruns" / "artifacts").as_uri() if self.is_local else None
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            try:
                return client.create_experiment(self.experiment, location, tags=TRAINING)
            except MlflowException:  # another machine may have created it in between
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        return experiment.experiment_id


def _is_half_made(file: Path) -> bool:
    """Whether a sqlite database holds no run and its schema is unfinished, or an older version's.

    False for a file that is not a database: what it held is not known.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision

    try:
        with closing(sqlite3.connect(file)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "runs" in tables and database.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                return False
            if "alembic_version" not in tables or any(name.startswith("_alembic_tmp") for name in tables):
                return True
            found = database.execute("SELECT version_num FROM alembic_version").fetchone()
            return found != (_get_latest_schema_revision(),)
    except sqlite3.Error:
        return False
