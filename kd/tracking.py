"""MLflow, and nothing else of the project knows it: a mirror of what the run folder already holds.

One batch of metrics per epoch, since calls cost more than values; no process-global "active run", so that several runs
can live in one process. The mirror may be down: the first failure is said once, and the run goes on without it. The
client's own patience (minutes of retries) is cut to seconds, unless the environment asks for it.
"""

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.errors import ConfigError
from kd.settings import Tracking

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens it as training, not as GenAI traces

log = logging.getLogger(__name__)


def store_uri(settings: Tracking, root: Path) -> str:
    """The tracking store: MLFLOW_TRACKING_URI, else the setting, else an absolute sqlite address under `root`."""
    default = f"sqlite:///{(root / 'mlruns' / 'mlflow.db').resolve().as_posix()}"
    return os.environ.get("MLFLOW_TRACKING_URI") or settings.uri or default


class NullRun:
    """A mirror that shows nothing."""

    run_id: str | None = None

    def parameters(self, values: Mapping[str, Any]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def epoch(self, metrics: Mapping[str, float | None], step: int) -> None: ...
    def summary(self, metrics: Mapping[str, float | None]) -> None: ...
    def artifacts(self, folder: Path) -> None: ...
    def pictures(self, folder: Path) -> None: ...
    def points(self, values: Mapping[int, Mapping[str, float]]) -> None: ...
    def close_other(self, run_id: str) -> None: ...
    def finish(self, status: str) -> None: ...


class MLflowRun(NullRun):
    """One MLflow run, mirrored until the first failure."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.run_id, self._lost = client, run_id, False

    def _try(self, what: str, call: Any, *args: Any) -> None:
        if self._lost:
            return
        try:
            call(self.run_id, *args)
        except Exception as error:  # every transport and store has errors of its own
            self._lost = True
            log.warning(
                "MLflow did not take %s (%s); the run goes on, its folder holds everything", what, _brief(error)
            )

    def parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:6000]) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self._try(
                "parameters",
                lambda run_id, part: self._client.log_batch(run_id, params=part),
                params[start : start + 100],
            )

    def tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in values.items()]
        self._try("tags", lambda run_id: self._client.log_batch(run_id, tags=tags))

    def epoch(self, metrics: Mapping[str, float | None], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(_key(name), value, now, step) for name, value in metrics.items() if value is not None]
        self._try("metrics", lambda run_id: self._client.log_batch(run_id, metrics=batch))

    def summary(self, metrics: Mapping[str, float | None]) -> None:
        self.epoch(metrics, 0)

    def artifacts(self, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                self._try(path.name, self._client.log_artifact, path)

    def pictures(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.png")):
            self._try(path.name, self._client.log_artifact, path, "plots")

    def points(self, values: Mapping[int, Mapping[str, float]]) -> None:
        """Add metrics by step, {step: {name: value}}, as far as the run does not have them yet."""
        self._try("the trials of a study", self._add_missing, values)

    def _add_missing(self, run_id: str, values: Mapping[int, Mapping[str, float]]) -> None:
        from mlflow.entities import Metric

        names = {name for metrics in values.values() for name in metrics}
        known = {name: {point.step for point in self._client.get_metric_history(run_id, _key(name))} for name in names}
        now = int(time.time() * 1000)
        missing = [
            Metric(_key(name), value, now, step)
            for step, metrics in sorted(values.items())
            for name, value in metrics.items()
            if step not in known[name]
        ]
        for start in range(0, len(missing), 1000):
            self._client.log_batch(run_id, metrics=missing[start : start + 1000])

    def close_other(self, run_id: str) -> None:
        """Mark a run KILLED whose process died before it could say so."""
        self._try("the end of a lost run", lambda _: self._close(run_id))

    def _close(self, run_id: str) -> None:
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, "KILLED")

    def finish(self, status: str) -> None:
        self._try("the end of the run", self._client.set_terminated, status)


def _key(name: str) -> str:
    """A metric name that MLflow takes: letters, digits, and _ - . space : / alone, and a path without detours."""
    plain = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)
    return "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))[:250]


def _brief(error: Exception) -> str:
    """The first line of an error, without the credentials that an address may hold."""
    return without_credentials(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")[:200]


def without_credentials(text: str) -> str:
    """`text` with the user and password of every address in it replaced by ***."""
    return re.sub(r"//[^/\s]*@", "//***@", text)


def start(settings: Tracking, root: Path, name: str, tags: Mapping[str, str], continued: str | None = None) -> NullRun:
    """Open a run in the store, creating store and experiment where they are missing; or go on with the run `continued`.

    A store that cannot be reached costs a warning, not the run.

    Raises:
        ConfigError: the address is of a kind that MLflow does not know.
    """
    if not settings.enabled:
        return NullRun()
    import mlflow
    from mlflow.exceptions import MlflowException

    for noisy in ("alembic", "mlflow.store.db.utils"):  # a line per migration of a fresh store
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = store_uri(settings, root)
    folder = root / "mlruns"
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".create.lock"):  # processes that create one database together break it
            experiment = client.get_experiment_by_name(settings.experiment)
            location = (folder / "artifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
            experiment_id = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(settings.experiment, location, tags=TRAINING)
            )
        if continued and _reopen(client, continued):
            return MLflowRun(client, continued)
        run = client.create_run(experiment_id, run_name=name, tags={**_source(), **tags, **settings.tags})
        return MLflowRun(client, run.info.run_id)
    except Exception as error:  # no network, a locked or read-only store, an address that MLflow does not know, ...
        unknown = "is not a valid" in str(error) or "unsupported" in str(error).lower()
        if isinstance(error, MlflowException) and unknown:
            raise ConfigError(f"tracking.uri={without_credentials(uri)}: {_brief(error)}") from error
        log.warning(
            "MLflow at %s cannot be reached (%s); the run goes on without it", without_credentials(uri), _brief(error)
        )
        return NullRun()


def _reopen(client: Any, run_id: str) -> bool:
    """Whether the store still knows a run, which then counts as running again."""
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _source() -> dict[str, str]:
    """What started the run, in MLflow's own tags: the script, and the commit where there is one."""
    tags = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
    try:
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return tags
    return tags | {"mlflow.source.git.commit": commit.stdout.strip()}


@contextmanager
def run(settings: Tracking, root: Path, name: str, tags: Mapping[str, str]) -> Iterator[NullRun]:
    """A run in the store for as long as the block lasts: FINISHED after it, KILLED on Ctrl-C, FAILED on an error."""
    mirror = start(settings, root, name, tags)
    try:
        yield mirror
    except BaseException as error:
        mirror.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mirror.finish("FINISHED")
