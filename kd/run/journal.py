"""What one training writes to disk after each epoch: the best weights, if these are, the metrics line, a checkpoint.

A training in a folder with a checkpoint resumes from it: lines of later epochs are dropped, since these epochs are
trained again, and the best weights are those in the checkpoint, whatever was written after it.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import RunError
from kd.networks import saved
from kd.networks.network import Network
from kd.run import checkpoint
from kd.run.folder import RunFolder
from kd.run.restoring import IDENTITY, RECORDS, records_as_tensor
from kd.system.files import clear_leftovers
from kd.system.untrusted import UnreadableError, mapping_at
from kd.training.loop import EpochResult
from kd.training.quality import improves
from kd.training.snapshot import Snapshot, fits

BEST = "best."
AVERAGED = "val/averaged"  # in a record: whether the weights that were measured and saved are an average (1) or not (0)

log = logging.getLogger(__name__)


class Journal:
    """Progress of a training and its files in a run folder.

    `trained` is the network with its projections, if it has any; only checkpoints contain these.

    Attributes:
        records: one per finished epoch.
        best: the record with the best objective; None before the first.
        start: the state to resume from; None for a new training.
    """

    def __init__(self, who: str, network: Network, folder: RunFolder, objective: str, facts: Mapping[str, Any],
                 minutes: float | None, trained: nn.Module | None = None) -> None:  # fmt: skip
        self.network, self.trained = network, network if trained is None else trained
        self.folder, self.objective, self.facts = folder, objective, facts
        self.file = folder / f"{who}.safetensors"
        self._seconds, self._saved = math.inf if minutes is None else minutes * 60, time.monotonic()
        self._weights: dict[str, Tensor] = {}
        self._known: dict[str, Any] = {}
        self._begun, self._spent = time.monotonic(), checkpoint.spent(folder.path)
        for place in (folder.path, folder / ".hydra"):
            clear_leftovers(place)
        self.start = checkpoint.load(folder.path)
        self.records = folder.keep_metrics(self.start.epoch if self.start else 0)
        self.best = best_of(self.records, objective)
        if self.start:
            self._resume(self.start)

    def _resume(self, start: Snapshot) -> None:
        if [record["epoch"] for record in self.records] != list(range(start.epoch)):
            raise RunError(
                f"{self.folder / 'metrics.jsonl'} lacks an epoch before {start.epoch}, the checkpoint's; delete the "
                "folder's checkpoints to restart the training"
            )
        self._warn_of_changes(mapping_at(start.facts, "environment"))
        if not fits(start, self.trained):
            raise RunError(
                f"{self.folder.path}: the checkpoint is of another network; restore it, or delete the folder's "
                "checkpoints to restart the training"
            )
        self._weights = {name: value for name, value in start.tensors.items() if name.startswith(BEST)}
        if self._weights and self.best and saved.saved_facts(self.file).get("epoch") != self.best["epoch"]:
            self.network.load_state_dict({name.removeprefix(BEST): value for name, value in self._weights.items()})
            self._save_best(self.best)

    def _warn_of_changes(self, then: Mapping[str, Any]) -> None:
        """Warn if torch, device or threads differ from those that the checkpoint was written with."""
        now = _environment(self.network)
        other = [f"{name} {then.get(name)} (now {now[name]})" for name in now if then and then.get(name) != now[name]]
        if other:
            log.warning("the run was started with %s; its figures may differ in their last digits", ", ".join(other))

    def add(self, result: EpochResult) -> dict[str, Any]:
        """Write a finished epoch to disk; returns its record."""
        record: dict[str, Any] = {**result.metrics(), "time": time.time()}
        if self.best is None or improves(record, self.best, self.objective):
            self.best = record
            with result.measured():
                self._weights = {BEST + name: value for name, value in _copy(self.network).items()}
                self._save_best(record)
        self.folder.append_metrics(record)
        self.records.append(record)
        if skipped := record.get("train/skipped_steps"):
            log.warning("epoch %d: %d steps skipped, since loss or gradient was not finite", record["epoch"], skipped)
        self.save(result.snapshot())
        return record

    def save(self, state: Snapshot) -> None:
        """Write a checkpoint."""
        spent = self._spent + time.monotonic() - self._begun
        own = {"environment": _environment(self.network), "spent": spent, IDENTITY: self._identity()}
        tensors = {**state.tensors, **self._weights, RECORDS: records_as_tensor(self.records)}
        checkpoint.save(self.folder.path, Snapshot(tensors, {**state.facts, **own}))
        self._saved = time.monotonic()

    def _identity(self) -> dict[str, Any]:
        """Content of run.json, as it last could be read."""
        with suppress(UnreadableError):
            self._known = self.folder.identity()
        return self._known

    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return time.monotonic() - self._saved >= self._seconds

    def _save_best(self, record: Mapping[str, Any]) -> None:
        averaged = {"averaged": True} if record.get(AVERAGED) else {}
        saved.save(self.network, self.file, epoch=record["epoch"], **averaged, **self.facts)


class NullJournal:
    """The journal of ranks other than 0: it writes nothing."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.start: Snapshot | None = None

    def due(self) -> bool:
        return False


def best_of(records: Sequence[dict[str, Any]], objective: str) -> dict[str, Any] | None:
    """The record with the best objective, first on ties; None if empty."""
    best = None
    for record in records:
        if best is None or improves(record, best, objective):
            best = record
    return best


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}


def _environment(network: Network) -> dict[str, Any]:
    """What the last digits of a training depend on in addition to its configuration."""
    device = next(network.parameters()).device.type
    return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads() if device == "cpu" else 1}
