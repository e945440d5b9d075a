"""Checkpoints: a training resumed from one ends exactly as if it had never been killed.

One safetensors file holds every tensor (weights, optimiser moments, the best weights so far) and, in its header, the
rest as JSON, with a digest over both. It is written to a temporary file, flushed and renamed, and the previous one is
kept, so that a complete checkpoint exists at any moment. Nothing in it is ever unpickled.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kd.errors import RunError
from kd.system import tensor_file
from kd.system.files import clear_leftovers, write_atomically
from kd.training.snapshot import Snapshot

NAME, BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"
NEW = ".new"  # the suffix of one that is about to be renamed

log = logging.getLogger(__name__)


def save(folder: Path, state: Snapshot) -> None:
    """Write a checkpoint into a folder and keep its current one as the previous one."""

    def write(path: Path) -> None:
        tensor_file.write(path, state.tensors, state.facts)
        if (folder / NAME).exists():
            _keep_as(folder / NAME, folder / BEFORE)

    write_atomically(folder / NAME, write)


def load(folder: Path) -> Snapshot | None:
    """The newest complete checkpoint in a folder; None if it has no checkpoints.

    A damaged one is skipped with a warning.

    Raises:
        RunError: all checkpoints are damaged.
    """
    found = [folder / name for name in (NAME, BEFORE) if (folder / name).exists()]
    for path in found:
        try:
            return _read(path)
        except tensor_file.DAMAGES as error:
            more = "; resuming from the previous one" if path != found[-1] else ""
            log.warning("%s is damaged (%s)%s", path, tensor_file.reason(error), more)
    if found:
        raise RunError(
            f"{folder}: {' and '.join(path.name for path in found)} cannot be read, so the training cannot be resumed; "
            "delete them to restart it"
        )
    return None


def header(folder: Path) -> Mapping[str, Any]:
    """The facts of the newest checkpoint whose header can be read, without verifying the rest; empty if none."""
    for name in (NAME, BEFORE):
        with suppress(*tensor_file.DAMAGES):
            return _checked(tensor_file.facts(folder / name))
    return {}


def spent(folder: Path) -> float:
    """Seconds of training up to the newest checkpoint; 0 without one."""
    return float(header(folder).get("spent", 0.0))


def exists(folder: Path) -> bool:
    """Whether a folder has a checkpoint, complete or not."""
    return any((folder / name).exists() for name in (NAME, BEFORE))


def remove(folder: Path) -> None:
    """Delete the checkpoints of a folder whose training is over, and what a killed process left of one."""
    for name in (NAME, BEFORE):
        (folder / name).unlink(missing_ok=True)
        (folder / name).with_suffix(NEW).unlink(missing_ok=True)
    clear_leftovers(folder)


def copy(source: Path, target: Path) -> None:
    """Copy the checkpoints of `source`; later checkpoints there do not change the copies."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (BEFORE, NAME):
        if (source / name).exists():
            _keep_as(source / name, target / name)


def _read(path: Path) -> Snapshot:
    tensors, facts = tensor_file.read(path)
    return Snapshot(tensors, _checked(facts))


def _checked(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Facts of a checkpoint; raises ValueError unless they say where in a training it was saved."""
    if not (isinstance(facts.get("epoch"), int) and isinstance(facts.get("step"), int)):
        raise ValueError("it has no epoch and step")
    return facts


def _keep_as(source: Path, target: Path) -> None:
    """Hard-link a file to `target` atomically, or copy it if the file system has no hard links."""
    temporary = target.with_suffix(NEW)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
