"""Sending to the store what a run shows and the store lacks.

Sending is idempotent: the run is read before anything is added, and a point always carries the same time, so that
MLflow's own key (run, metric, step, time, value) stores it once even if two processes send it at the same time. After
a failed call the run is read again, since the call may have arrived.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.system.untrusted import UnreadableError, open_regular
from kd.tracking.shown import RUNNING, Shown

IDENTITY, DIGESTS = "kd.run", "kd.files"  # tags: our own id of the run, and the digests of its artifacts
NOTE = "mlflow.note.content"  # MLflow's tag of a run's description
UPLOAD = 1_000_000  # bytes per second that any connection is assumed to have
PARAMETERS, POINTS = 100, 1000  # most of them in one call of MLflow


@dataclass(frozen=True)
class Target:
    """The run in the store that a delivery sends to.

    Attributes:
        identity: our own id of the run, stored as a tag.
        run_id: MLflow's id of the run, if known.
        on_found: called with MLflow's id once the run is found or created.
        lock: held while the run is looked up and created.
        shared: whether other processes send to the same run.
    """

    identity: str
    run_id: str | None = None
    on_found: Callable[[str], None] = lambda run_id: None
    lock: Callable[[], AbstractContextManager[Any]] = nullcontext
    shared: bool = False


@dataclass
class Stored:
    """What a run in the store has, as far as it was read or sent."""

    status: str = RUNNING
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int]] = field(default_factory=set)
    data: bool = False
    digests: dict[str, str] = field(default_factory=dict)


class Delivery:
    """Deliveries to one run in a store.

    `connect` returns a client and the id of an experiment. `on_response` is called after every successful call, with
    the number of seconds that the next one may take in addition to the usual.

    Attributes:
        run_id: MLflow's id of the run, once known.
        sent: how many points, parameters, tags and files were sent.
    """

    def __init__(
        self,
        target: Target,
        connect: Callable[[], tuple[Any, str]],
        on_response: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.target, self.run_id = target, target.run_id
        self.sent: Counter[str] = Counter()
        self._connect, self._on_response = connect, on_response
        self._client, self._experiment = None, ""
        self._stored: Stored | None = None
        self._maybe_duplicated = True  # whether the store may have a run of ours under an id that we do not know
        self._terminated: set[str] = set()

    def update(self, shown: Shown) -> None:
        """Send what the store lacks.

        Raises:
            Exception: any error of the network or the store; the next call resumes from there.
        """
        try:
            if self._client is None:
                self._client, self._experiment = self._connect()
                self._on_response(0)
            if self._stored is None or self.target.shared:
                self._stored = self._read(shown)
            self._send(shown, self._stored)
        except BaseException:
            self._stored = None
            raise

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        result = getattr(self._client, name)(*args, **options)
        self._on_response(0)
        return result

    # reading

    def _read(self, shown: Shown) -> Stored:
        """Find or create the run, and read what it has."""
        run = None if self.run_id is None else self._ours(self.run_id)
        if run is None or self._maybe_duplicated:
            with self.target.lock():
                found = self._deduplicate(None if run is None else self.run_id)
                run = run or (self._call("get_run", found) if found else self._create(shown))
        self.run_id = run.info.run_id
        self.target.on_found(self.run_id)
        data = run.data
        histories = {name: self._call("get_metric_history", self.run_id, name) for name in data.metrics}
        points = {(name, point.step) for name, history in histories.items() for point in history}
        inputs = bool(run.inputs and run.inputs.dataset_inputs)
        return Stored(run.info.status, set(data.params), dict(data.tags), points, inputs, _digests(data.tags))

    def _get(self, run_id: str) -> Any:
        """The run with MLflow's id; None if it is missing or deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._call("get_run", run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _ours(self, run_id: str) -> Any:
        """The run with MLflow's id; None if it is missing, deleted or not ours."""
        run = self._get(run_id)
        return run if run and run.data.tags.get(IDENTITY) == self.target.identity else None

    def _deduplicate(self, known: str | None) -> str | None:
        """Find our run by its tag; delete any second one, which came from a creation that only seemed to fail."""
        found = self._call("search_runs", [self._experiment], f"tags.`{IDENTITY}` = '{self.target.identity}'")
        ids = sorted(run.info.run_id for run in found)
        keep = known or min(ids, default=None)
        for run_id in ids:
            if run_id != keep:
                self._call("delete_run", run_id)
        self._maybe_duplicated = False
        return keep

    def _create(self, shown: Shown) -> Any:
        tags = {IDENTITY: self.target.identity, **{_key(name): value for name, value in shown.tags.items()}}
        try:
            return self._call("create_run", self._experiment, start_time=shown.begun, tags=tags, run_name=shown.name)
        except BaseException:  # the run may exist now, or appear later
            self._maybe_duplicated = True
            raise

    # sending

    def _send(self, shown: Shown, stored: Stored) -> None:
        """Send part by part: a value that the store rejects does not hold back the other parts."""
        from mlflow.exceptions import MlflowException

        rejected = None
        parts = (self._parameters, self._tags, self._data, self._points, self._artifacts, self._lost, self._status)
        for part in parts:
            try:
                part(shown, stored)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                rejected = rejected or error
        if rejected:
            raise rejected

    def _parameters(self, shown: Shown, stored: Stored) -> None:
        """Send new parameters only: MLflow's cannot change."""
        from mlflow.entities import Param

        wanted = {_key(name): str(value)[:6000] for name, value in shown.parameters.items()}
        missing = [Param(name, value) for name, value in wanted.items() if name not in stored.params]
        for batch in _batches(missing, PARAMETERS):
            self._log(params=batch)
            stored.params |= {param.key for param in batch}

    def _tags(self, shown: Shown, stored: Stored) -> None:
        from mlflow.entities import RunTag

        wanted = {_key(name): value for name, value in shown.tags.items()}
        if shown.note and NOTE not in stored.tags:
            wanted[NOTE] = shown.note
        changed = [RunTag(name, value) for name, value in wanted.items() if stored.tags.get(name) != value]
        for batch in _batches(changed, PARAMETERS):
            self._log(tags=batch)
            stored.tags |= {tag.key: tag.value for tag in batch}

    def _points(self, shown: Shown, stored: Stored) -> None:
        from mlflow.entities import Metric

        wanted = {(_key(name), step): found for (name, step), found in shown.points.items()}
        missing = [
            Metric(name, value, when, step)
            for (name, step), (value, when) in wanted.items()
            if (name, step) not in stored.points
        ]
        for batch in _batches(missing, POINTS):
            self._log(metrics=batch)
            stored.points |= {(point.key, point.step) for point in batch}

    def _data(self, shown: Shown, stored: Stored) -> None:
        """Send what the run learned from, once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if shown.data is None or stored.data:
            return
        source = json.dumps({"uri": shown.data.folder})
        profile = json.dumps({split: count for split, count in shown.data.sizes.items() if count})
        dataset = Dataset(_key(shown.data.name), shown.data.digest, "local", source, profile=profile)
        tag = InputTag("mlflow.data.context", "training")
        self._call("log_inputs", self.run_id, [DatasetInput(dataset, [tag])])
        self.sent["data"] += 1
        stored.data = True

    def _log(self, **entities: list[Any]) -> None:
        self._call("log_batch", self.run_id, **entities)
        self.sent.update({{"metrics": "points"}.get(kind, kind): len(each) for kind, each in entities.items()})

    def _artifacts(self, shown: Shown, stored: Stored) -> None:
        """Send files that are missing or have changed, by the digests that a tag of the run holds."""
        before = dict(stored.digests)
        for path, folder in shown.artifacts:
            name = f"{folder}/{path.name}" if folder else path.name
            with suppress(UnreadableError, FileNotFoundError):  # deleted or replaced since the folder was listed
                digest = _digest(path)
                if stored.digests.get(name) != digest:
                    self._on_response(path.stat().st_size / UPLOAD)
                    self._call("log_artifact", self.run_id, path, folder)
                    self.sent["files"] += 1
                    stored.digests[name] = digest
        if stored.digests != before:
            self._call("set_tag", self.run_id, DIGESTS, json.dumps(stored.digests, sort_keys=True))

    def _lost(self, shown: Shown, stored: Stored) -> None:
        for run_id in sorted(shown.lost - self._terminated):
            if (run := self._get(run_id)) and run.info.status == RUNNING:
                self._call("set_terminated", run_id, "KILLED")
            self._terminated.add(run_id)

    def _status(self, shown: Shown, stored: Stored) -> None:
        if stored.status == shown.status:
            return
        if shown.status == RUNNING:
            self._call("update_run", self.run_id, status=RUNNING)
        else:
            self._deduplicate(self.run_id)  # a creation that timed out, even another process's, may have arrived late
            self._call("set_terminated", self.run_id, shown.status, shown.ended)
        stored.status = shown.status
        self.sent["status"] += 1


def _batches(entities: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(entities[start : start + size]) for start in range(0, len(entities), size))


def _key(name: str) -> str:
    """A name that MLflow accepts: only letters, digits and _ - . space : /, no . or .. in paths, 250 at most."""
    plain = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)
    return "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))[:250]


def _digest(path: Path) -> str:
    with open_regular(path.parent, path.name) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _digests(tags: dict[str, str]) -> dict[str, str]:
    try:
        found = json.loads(tags.get(DIGESTS, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
