"""Checkpoints: a training that was killed goes on from here and ends as if it had not been.

One safetensors file holds every tensor (weights, optimiser moments, the best weights so far) and, in its header, the
rest as JSON, with a digest over both. It is written beside its place, flushed and renamed, and the one before is kept,
so that at every moment a whole one is there. Nothing in it is ever unpickled.
"""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from kd.errors import RunError
from kd.system import tensor_file
from kd.system.files import write_atomically
from kd.training.snapshot import Snapshot

NAME, BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"

log = logging.getLogger(__name__)


def save(folder: Path, state: Snapshot) -> None:
    """Write a checkpoint into a folder, and keep the one that was there as the one before."""

    def write(path: Path) -> None:
        tensor_file.write(path, state.tensors, state.facts)
        if (folder / NAME).exists():
            _keep_as(folder / NAME, folder / BEFORE)

    write_atomically(folder / NAME, write)


def load(folder: Path) -> Snapshot | None:
    """The newest whole checkpoint of a folder; None where there is none.

    A damaged one is passed over for the one before, with a warning.

    Raises:
        RunError: there are checkpoints, and none of them is whole.
    """
    found = [folder / name for name in (NAME, BEFORE) if (folder / name).exists()]
    for path in found:
        try:
            return _read(path)
        except tensor_file.DAMAGES as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning(
                "%s is damaged (%s)%s", path, reason, "; going on from the one before" if len(found) > 1 else ""
            )
    if found:
        raise RunError(
            f"{folder}: {' and '.join(path.name for path in found)} cannot be read, so the training cannot go on from "
            "there; delete what is named to start it again"
        )
    return None


def spent(folder: Path) -> float:
    """Seconds that went into the training up to its newest checkpoint; 0 where there is none."""
    for name in (NAME, BEFORE):
        with suppress(*tensor_file.DAMAGES):
            return float(tensor_file.facts(folder / name)["spent"])
    return 0.0


def exists(folder: Path) -> bool:
    """Whether a folder has a checkpoint, whole or not."""
    return any((folder / name).exists() for name in (NAME, BEFORE))


def remove(folder: Path) -> None:
    """Delete a folder's checkpoints: its training is over."""
    for name in (NAME, BEFORE):
        (folder / name).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Give another folder the checkpoints of `source`, which may go on writing its own."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (BEFORE, NAME):
        if (source / name).exists():
            _keep_as(source / name, target / name)


def _read(path: Path) -> Snapshot:
    tensors, facts = tensor_file.read(path)
    if not (isinstance(facts.get("epoch"), int) and isinstance(facts.get("step"), int)):
        raise ValueError("it names no epoch and step")
    return Snapshot(tensors, facts)


def _keep_as(source: Path, target: Path) -> None:
    """Give a file a second name, whole or not at all; a copy, where the disk knows no second names."""
    temporary = target.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
