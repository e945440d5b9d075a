"""The tracking store: its address, what of it may be shown, and a client for it.

The client's own patience (minutes of retries) is cut to seconds, unless the environment asks for it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.errors import ConfigError, UserError, without_credentials
from kd.settings import Tracking

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it may hold a password

TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens it as training, not as GenAI traces
OPENING_SECONDS = 20.0  # for a local store that many processes make together, one after the other
CONNECT_SECONDS = 5


class TrackingError(UserError):
    """A run cannot be delivered to the tracking store."""

    page = "mlflow"


def store_uri(settings: Tracking, root: Path) -> str:
    """The tracking store: MLFLOW_TRACKING_URI, else the setting, else an absolute sqlite address under `root`."""
    default = f"sqlite:///{(root / 'mlruns' / 'mlflow.db').resolve().as_posix()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.uri or default


def brief(error: BaseException) -> str:
    """The first line of what an error came of, without the credentials that an address may hold."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return without_credentials(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")[:200]


@dataclass(frozen=True)
class Store:
    """A tracking store by its address, and the experiment in it; `root` is where a local one keeps its artifacts."""

    uri: str
    experiment: str
    root: Path

    def __str__(self) -> str:
        return without_credentials(self.uri)

    @property
    def is_local(self) -> bool:
        return self.uri.startswith("sqlite:")

    def check(self) -> None:
        """Look at the address, not at what is there.

        Raises:
            ConfigError: it is of a kind that MLflow does not know.
        """
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            if self.uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
                make_url(self.uri).get_dialect()
            else:  # nothing is asked of a server until it is needed
                mlflow.MlflowClient(tracking_uri=self.uri)
        except (MlflowException, ArgumentError) as error:
            raise ConfigError(f"tracking.uri={self}: {brief(error)}", page="mlflow") from error

    def open(self) -> tuple[Any, str]:
        """A client, and the id of the experiment; store and experiment are made where they are missing.

        Raises:
            Exception: whatever the network, the disk or the store has to say against it.
        """
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line per migration of a fresh store
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is raised anyway
        self._knock()
        with self._alone():
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            return client, self._experiment_id(client)

    def _knock(self) -> None:
        """Fail now where a database server is away: MLflow would try ten times, for 100 s."""
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
    def _alone(self) -> Iterator[None]:
        """Processes that make one local database together break it."""
        if self.is_local:
            (self.root / "mlruns").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "mlruns" / ".create.lock", timeout=OPENING_SECONDS)
        with lock if self.is_local else nullcontext():
            yield

    def _experiment_id(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        location = (self.root / "mlruns" / "artifacts").resolve().as_uri() if self.is_local else None
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            try:
                return client.create_experiment(self.experiment, location, tags=TRAINING)
            except MlflowException:  # another machine was faster, or there is more to it
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        return experiment.experiment_id
