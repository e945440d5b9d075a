"""Making the store match what a run shows, call by call.

Everything may be sent again: what is there is read before anything is added, and a point always has the same time, so
that MLflow's own key (run, metric, step, time, value) holds it once even where two processes send it at a time. After
a call that failed nothing is taken for granted: it may have arrived.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.tracking.shown import RUNNING, Shown

IDENTITY, DIGESTS = "kd.run", "kd.files"  # tags: the run's own id, and what its artifacts hold
UPLOAD = 1_000_000  # bytes per second that a link has at least


@dataclass
class There:
    """What a run in the store has, as far as it was read or sent."""

    status: str = RUNNING
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int]] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)


class Delivery:
    """One run in a store.

    Attributes:
        run_id: its id in the store, once it is known.
        sent: how many points, parameters, tags and files were sent.

    `connect` gives a client and an experiment's id; `alone` is held while the run is looked for and made; a `shared`
    run has other processes that send to it; `noted` is told the run's id, and `heard`, after every call that succeeded,
    how many seconds the next one may take beyond the usual.
    """

    def __init__(
        self,
        identity: str,
        connect: Callable[[], tuple[Any, str]],
        known: str | None = None,
        noted: Callable[[str], None] = lambda run_id: None,
        heard: Callable[[float], None] = lambda seconds: None,
        alone: Callable[[], AbstractContextManager[Any]] = nullcontext,
        shared: bool = False,
    ) -> None:
        self.identity, self.run_id = identity, known
        self.sent: Counter[str] = Counter()
        self._connect, self._noted, self._heard, self._alone, self._shared = connect, noted, heard, alone, shared
        self._client, self._experiment = None, ""
        self._there: There | None = None
        self._unsure = True  # whether a run of ours may be there under an id that we do not know
        self._closed: set[str] = set()

    def update(self, shown: Shown) -> None:
        """Send what is missing.

        Raises:
            Exception: whatever the network or the store has to say; another call goes on from there.
        """
        try:
            if self._client is None:
                self._client, self._experiment = self._connect()
                self._heard(0)
            if self._there is None or self._shared:
                self._there = self._look(shown)
            self._send(shown, self._there)
        except BaseException:
            self._there = None
            raise

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        result = getattr(self._client, name)(*args, **options)
        self._heard(0)
        return result

    # what is there

    def _look(self, shown: Shown) -> There:
        run = None if self.run_id is None else self._get(self.run_id)
        if run is None or self._unsure:
            with self._alone():
                found = self._only(None if run is None else self.run_id)
                run = run or (self._call("get_run", found) if found else self._create(shown))
        self.run_id = run.info.run_id
        self._noted(self.run_id)
        data = run.data
        histories = {name: self._call("get_metric_history", self.run_id, name) for name in data.metrics}
        points = {(name, point.step) for name, history in histories.items() for point in history}
        return There(run.info.status, set(data.params), dict(data.tags), points, _digests(data.tags))

    def _get(self, run_id: str) -> Any:
        """A run that is ours and not deleted; None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._call("get_run", run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        ours = run.data.tags.get(IDENTITY) == self.identity
        return run if ours and run.info.lifecycle_stage == "active" else None

    def _only(self, known: str | None) -> str | None:
        """Our run by its tag; any beside it came of a call that seemed to have failed, and is deleted."""
        found = self._call("search_runs", [self._experiment], f"tags.`{IDENTITY}` = '{self.identity}'")
        ids = sorted(run.info.run_id for run in found)
        keep = known or min(ids, default=None)
        for run_id in ids:
            if run_id != keep:
                self._call("delete_run", run_id)
        self._unsure = False
        return keep

    def _create(self, shown: Shown) -> Any:
        tags = {IDENTITY: self.identity, **{_key(name): value for name, value in shown.tags.items()}}
        try:
            return self._call("create_run", self._experiment, start_time=shown.begun, tags=tags, run_name=shown.name)
        except BaseException:  # it may be there, or come yet
            self._unsure = True
            raise

    # what is missing

    def _send(self, shown: Shown, there: There) -> None:
        """Part by part: what the store refuses (a name that it does not take) does not keep the rest from it."""
        from mlflow.exceptions import MlflowException

        refused = None
        for part in (self._parameters, self._tags, self._points, self._artifacts, self._lost, self._status):
            try:
                part(shown, there)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                refused = refused or error
        if refused:
            raise refused

    def _parameters(self, shown: Shown, there: There) -> None:
        """MLflow lets no parameter change: one that is there stays."""
        from mlflow.entities import Param

        wanted = {_key(name): str(value)[:6000] for name, value in shown.parameters.items()}
        missing = [Param(name, value) for name, value in wanted.items() if name not in there.params]
        for start in range(0, len(missing), 100):
            self._batch(params=missing[start : start + 100])
            there.params |= {param.key for param in missing[start : start + 100]}

    def _tags(self, shown: Shown, there: There) -> None:
        from mlflow.entities import RunTag

        wanted = {_key(name): value for name, value in shown.tags.items()}
        other = [RunTag(name, value) for name, value in wanted.items() if there.tags.get(name) != value]
        for start in range(0, len(other), 100):
            self._batch(tags=other[start : start + 100])
            there.tags |= {tag.key: tag.value for tag in other[start : start + 100]}

    def _points(self, shown: Shown, there: There) -> None:
        from mlflow.entities import Metric

        wanted = {(_key(name), step): found for (name, step), found in shown.points.items()}
        missing = [
            Metric(name, value, when, step)
            for (name, step), (value, when) in wanted.items()
            if (name, step) not in there.points
        ]
        for start in range(0, len(missing), 1000):
            self._batch(metrics=missing[start : start + 1000])
            there.points |= {(point.key, point.step) for point in missing[start : start + 1000]}

    def _batch(self, **entities: list[Any]) -> None:
        self._call("log_batch", self.run_id, **entities)
        self.sent.update({{"metrics": "points"}.get(kind, kind): len(each) for kind, each in entities.items()})

    def _artifacts(self, shown: Shown, there: There) -> None:
        """Files that are not there, or hold something else; a tag says what each of those that are there holds."""
        before = dict(there.digests)
        for path, folder in shown.artifacts:
            name = f"{folder}/{path.name}" if folder else path.name
            with suppress(FileNotFoundError):  # gone since the folder was read
                digest = _digest(path)
                if there.digests.get(name) != digest:
                    self._heard(path.stat().st_size / UPLOAD)
                    self._call("log_artifact", self.run_id, path, folder)
                    self.sent["files"] += 1
                    there.digests[name] = digest
        if there.digests != before:
            self._call("set_tag", self.run_id, DIGESTS, json.dumps(there.digests, sort_keys=True))

    def _lost(self, shown: Shown, there: There) -> None:
        for run_id in sorted(shown.lost - self._closed):
            if self._call("get_run", run_id).info.status == RUNNING:
                self._call("set_terminated", run_id, "KILLED")
            self._closed.add(run_id)

    def _status(self, shown: Shown, there: There) -> None:
        if there.status == shown.status:
            return
        if shown.status == RUNNING:
            self._call("update_run", self.run_id, status=RUNNING)
        else:
            self._only(self.run_id)  # also where a creation was given up, by another process even, and came late
            self._call("set_terminated", self.run_id, shown.status, shown.ended)
        there.status = shown.status
        self.sent["status"] += 1


def _key(name: str) -> str:
    """A name that MLflow takes: letters, digits, and _ - . space : / alone, and a path without detours."""
    plain = "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)
    return "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))[:250]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _digests(tags: dict[str, str]) -> dict[str, str]:
    try:
        found = json.loads(tags.get(DIGESTS, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
