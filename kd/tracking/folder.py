"""A run folder and its run in MLflow: while it is written, and, with `kd sync`, afterwards."""

import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd.errors import without_credentials
from kd.run.folder import RunFolder
from kd.settings import Tracking
from kd.system.installation import INSTALLED
from kd.system.untrusted import UnreadableError, is_regular
from kd.tracking.delivery import Delivery
from kd.tracking.mirror import Mirror, NullRun
from kd.tracking.shown import FAILED, FINISHED, KILLED, RUNNING, of_folder
from kd.tracking.store import Store, TrackingError, brief, store_uri


@contextmanager
def run(
    settings: Tracking,
    root: Path,
    folder: RunFolder,
    name: str,
    tags: Mapping[str, str],
    choices: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    continued: bool = False,
) -> Iterator[NullRun]:
    """A run in the store for as long as the block lasts: FINISHED after it, KILLED on Ctrl-C, FAILED on an error.

    run.json says who it is; a run that is `continued` stays who it was. Call `refresh` whenever the folder has more.

    Raises:
        ConfigError: the address is of a kind that MLflow does not know.
    """
    store = Store(store_uri(settings, root), settings.experiment, root)
    if settings.enabled:
        store.check()
    goes_on = continued or not folder.metrics()
    before = folder.identity() if goes_on else {}
    folder.identify(
        id=before.get("id") or uuid.uuid4().hex,
        name=before.get("name", without_credentials(name)),
        begun=before.get("begun", time.time()),
        ended=None,
        status=RUNNING,
        tags={**_source(), **tags, **settings.tags, **before.get("tags", {})},
        choices=before.get("choices", choices or {}),
        parameters=before.get("parameters", parameters or {}),
        tracking={
            "experiment": settings.experiment,
            "uri": settings.uri and without_credentials(settings.uri),
            "root": str(root),
            **({"address": str(store), "run_id": known_run(before, store)} if settings.enabled else {}),
        },
    )
    mirror = _mirror(store, folder) if settings.enabled else NullRun()
    status = FAILED
    try:
        yield mirror
        status = FINISHED
    except BaseException as error:
        status = FAILED if isinstance(error, Exception) else KILLED
        raise
    finally:
        with suppress(OSError):  # a full disk: what ended the run matters more
            folder.identify(status=status, ended=time.time())
        mirror.finish(status)


def _mirror(store: Store, folder: RunFolder) -> Mirror:
    facts = folder.identity()
    return Mirror(
        lambda: of_folder(folder), store, facts["id"], f"`kd sync {folder.path}`",
        known=facts["tracking"]["run_id"], noted=lambda run_id: _note(folder, store, run_id),
    )  # fmt: skip


def known_run(facts: Mapping[str, Any], store: Store) -> str | None:
    """The id of a folder's run in a store, where it was noted."""
    tracking = facts.get("tracking", {})
    return tracking.get("run_id") if tracking.get("address") == str(store) else None


def _note(folder: RunFolder, store: Store, run_id: str) -> None:
    facts = folder.identity()
    where = {"address": str(store), "run_id": run_id}
    if facts["tracking"] | where != facts["tracking"]:
        with suppress(OSError):  # the run is found by its tag as well
            folder.identify(tracking=facts["tracking"] | where)


def _source() -> dict[str, str]:
    """What started the run, in MLflow's own tags: the script, and the commit where there is one.

    `git.dirty` says whether files that git knows differed from it.
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


def sync(path: Path, root: Path) -> Counter[str]:
    """Deliver what the store lacks of a run that is over; returns how much was sent, by kind.

    `root` has the local store, where the run's own root is not on this machine.

    Raises:
        TrackingError: not a run folder, a run that still goes on, or a store that does not take it.
        ConfigError: the address is of a kind that MLflow does not know.
    """
    folder = opened(path)
    store = store_of(folder, root)
    store.check()
    with _held(folder):
        shown, facts = of_folder(folder, is_gone=True), folder.identity()
        delivery = Delivery(
            facts["id"], store.open, known_run(facts, store), lambda run_id: _note(folder, store, run_id)
        )
        try:
            delivery.update(shown)
        except Exception as error:
            raise TrackingError(
                f"MLflow at {store} did not take everything of {path} ({brief(error)}); nothing is lost: give the same "
                "command again when it is back"
            ) from error
    return delivery.sent


def opened(path: Path) -> RunFolder:
    if not path.is_dir():
        raise TrackingError(f"{path}: there is no such folder; name run folders, as in runs/*/*")
    if not is_regular(path, "run.json"):
        raise TrackingError(f"{path}: not a run folder (it has no run.json); name run folders, as in runs/*/*")
    folder = RunFolder(path.absolute())
    try:
        of_folder(folder)
    except (UnreadableError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(f"{path}: one of its files is damaged ({brief(error)}); it cannot be delivered") from error
    return folder


def store_of(folder: RunFolder, root: Path) -> Store:
    """The store that a run was to be mirrored to."""
    wanted = folder.identity()["tracking"]
    own = Path(wanted["root"])
    root = own if own.is_dir() else root
    uri = os.environ.get("MLFLOW_TRACKING_URI") or wanted["uri"]
    if uri and "***" in uri:
        raise TrackingError(
            f"{folder.path}: its store is {uri}, whose password is not written down; give the whole address in the "
            "variable MLFLOW_TRACKING_URI"
        )
    settings = Tracking(enabled=True, uri=uri, experiment=wanted["experiment"], run_name=None, tags={}, register=None)
    return Store(store_uri(settings, root), settings.experiment, root)


@contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """The lock that a training holds, so that a run that goes on is not taken for one that was killed."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with suppress(PermissionError):  # somebody else's folder, which can be read
            lock.acquire()
    except Timeout:
        raise TrackingError(f"{folder.path}: this run still goes on, and delivers itself") from None
    try:
        yield
    finally:
        lock.release()
