"""A run folder and its run in MLflow: mirrored while the run trains, and with `kd sync` afterwards."""

import errno
import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd.errors import DiskError, without_credentials
from kd.run.folder import LOCK, RunFolder, SavedRun
from kd.settings import Tracking
from kd.system.installation import INSTALLED
from kd.system.untrusted import UnreadableError, open_regular
from kd.tracking.delivery import Delivery, Target
from kd.tracking.mirror import Mirror, NullRun
from kd.tracking.shown import FAILED, FINISHED, KILLED, RUNNING, of_folder
from kd.tracking.store import Store, TrackingError, brief

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # of a folder that we can only read, such as another user's


@dataclass(frozen=True)
class Labels:
    """What MLflow lists a run under: its name, tags, chosen options and extra parameters."""

    name: str
    tags: Mapping[str, str]
    choices: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def run(
    settings: Tracking, root: Path, folder: RunFolder, labels: Labels, continued: bool = False
) -> Iterator[NullRun]:
    """Mirror a run for the duration of the block: FINISHED at its end, KILLED on Ctrl-C, FAILED on an error.

    run.json stores the run's identity; a `continued` run keeps it. Call `refresh` whenever the folder has changed.

    Raises:
        ConfigError: MLflow does not support the kind of address.
    """
    store = Store.of(settings, root)
    if settings.enabled:
        store.check()
    _identify(folder, settings, store, labels, continued)
    mirror = _mirror(store, folder) if settings.enabled else NullRun()
    status = FAILED
    try:
        yield mirror
        status = FINISHED
    except BaseException as error:
        status = FAILED if isinstance(error, Exception) else KILLED
        raise
    finally:
        with suppress(DiskError):  # a full disk must not hide what ended the run
            folder.identify(status=status, ended=time.time())
        mirror.finish(status)


def _identify(folder: RunFolder, settings: Tracking, store: Store, labels: Labels, continued: bool) -> None:
    """Write run.json; a run that continues, or has not trained an epoch, keeps what is there."""
    before = folder.identity() if continued or not folder.metrics() else {}
    folder.identify(
        id=before.get("id") or uuid.uuid4().hex,
        name=before.get("name", without_credentials(labels.name)),
        begun=before.get("begun", time.time()),
        ended=None,
        status=RUNNING,
        tags={**_source(), **labels.tags, **settings.tags, **before.get("tags", {})},
        choices=before.get("choices", labels.choices),
        parameters=before.get("parameters", labels.parameters),
        tracking={
            "experiment": settings.experiment,
            "uri": settings.uri and without_credentials(settings.uri),
            "root": str(store.root),
            **({"address": str(store), "run_id": known_run(before, store)} if settings.enabled else {}),
        },
    )


def _mirror(store: Store, folder: RunFolder) -> Mirror:
    return Mirror(lambda: of_folder(folder), store, _target(folder, store), f"`{sync_command(folder)}`")


def sync_command(folder: SavedRun) -> str:
    """The command that delivers a run later; it names the store if that is not the project's own."""
    wanted = folder.identity().get("tracking", {}).get("uri")
    return f"kd sync {folder.path}" + (f" --uri {wanted}" if wanted and "***" not in wanted else "")


def _target(folder: RunFolder, store: Store) -> Target:
    facts = folder.identity()
    return Target(facts["id"], known_run(facts, store), lambda run_id: _save_run_id(folder, store, run_id))


def known_run(facts: Mapping[str, Any], store: Store) -> str | None:
    """MLflow's id of a run in a store, as saved in the facts of run.json."""
    tracking = facts.get("tracking", {})
    return tracking.get("run_id") if tracking.get("address") == str(store) else None


def _save_run_id(folder: RunFolder, store: Store, run_id: str) -> None:
    facts = folder.identity()
    where = {"address": str(store), "run_id": run_id}
    if facts["tracking"] | where != facts["tracking"]:
        with suppress(DiskError):  # the run can also be found by its tag
            folder.identify(tracking=facts["tracking"] | where)


def _source() -> dict[str, str]:
    """What started the run, in MLflow's own tags: the script, and the commit if there is one.

    `git.dirty` says whether tracked files differed from it.
    """
    tags = {"mlflow.source.name": "kd train" if INSTALLED else "train.py", "mlflow.source.type": "LOCAL"}
    if INSTALLED:  # a repository around it would be another one
        return tags
    try:
        describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        commit = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return tags
    found, _, dirty = commit.stdout.strip().partition("-")
    return tags | {"mlflow.source.git.commit": found, "git.dirty": str(bool(dirty)).lower()}


def sync(path: Path, root: Path, uri: str | None = None) -> Counter[str]:
    """Deliver what the store lacks of a finished run; returns how much was sent, by kind.

    The store is MLFLOW_TRACKING_URI, else `uri`, else the local one under the project's `root`. A run folder may be
    another person's: it never decides where anything is sent.

    Raises:
        TrackingError: not a run folder, the run is still running or belongs to another store, or the store does not
            accept it.
        ConfigError: MLflow does not support the kind of address.
    """
    folder = opened(path)
    store = store_of(folder, root, uri)
    store.check()
    with _locked(folder):
        delivery, shown = Delivery(_target(folder, store), store.open), of_folder(folder, ended=True)
        try:
            delivery.update(shown)
        except Exception as error:
            raise TrackingError(
                f"MLflow at {store} did not store everything of {path} ({brief(error, store.uri)}); nothing is lost: "
                "repeat the command when the store is back"
            ) from error
    return delivery.sent


def opened(path: Path) -> RunFolder:
    """The run folder at a path.

    Raises:
        TrackingError: it is not a run folder, or one of its files is damaged.
    """
    if not path.is_dir():
        raise TrackingError(f"{path}: there is no such folder; name run folders, as in runs/*/*")
    folder = RunFolder(path.absolute())
    try:
        open_regular(path, "run.json").close()
        of_folder(folder)
    except UnreadableError as error:
        if error.missing:
            raise TrackingError(
                f"{path}: not a run folder (it has no run.json); name run folders, as in runs/*/*"
            ) from error
        raise TrackingError(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise TrackingError(f"{path}: one of its files is damaged ({brief(error)}); it cannot be delivered") from error
    return folder


def store_of(folder: RunFolder, root: Path, uri: str | None) -> Store:
    """The store that a run is delivered to: the caller's, as for `sync`, and the experiment that the folder names.

    Raises:
        TrackingError: the run was mirrored to another store.
    """
    wanted, own = folder.identity()["tracking"], Path(folder.identity()["tracking"]["root"])
    chosen = os.environ.get("MLFLOW_TRACKING_URI") or uri
    if wanted["uri"] and not chosen:
        raise TrackingError(
            f"{folder.path}: its store is {wanted['uri']}, whose password was not saved; set the whole address in the "
            "variable MLFLOW_TRACKING_URI"
            if "***" in wanted["uri"]
            else f"{folder.path}: its store is {wanted['uri']}, which is not this project's; to send it there, type "
            f"--uri {wanted['uri']}"
        )
    if folder.path.is_relative_to(own):  # a project of its own, elsewhere on this machine
        root = own
    settings = Tracking(
        enabled=True, uri=chosen, experiment=wanted["experiment"], run_name=None, tags={}, register=None
    )
    return Store.of(settings, root)


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Hold the lock that a training holds, so that a running run is not taken for a killed one."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(f"{folder.path}: this run is still running, and delivers itself") from None
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise TrackingError(
                f"{folder / LOCK} cannot be locked ({error.strerror}); delete it, and repeat"
            ) from error
    try:
        yield
    finally:
        lock.release()
