"""Restores run.json and metrics.jsonl, where they are missing or damaged, from the checkpoint beside them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.run import checkpoint
from kd.run.folder import RunFolder, as_lines, record
from kd.system.files import write_json
from kd.system.untrusted import UnreadableError, mapping_at
from kd.training.snapshot import Snapshot

RECORDS = "records"  # the tensor in a checkpoint that holds the lines of metrics.jsonl
IDENTITY = "identity"  # the fact in a checkpoint that holds run.json


def records_as_tensor(records: Sequence[dict[str, Any]]) -> Tensor:
    """The lines of metrics.jsonl as bytes, for a checkpoint; N uint8."""
    return torch.from_numpy(np.frombuffer(as_lines(records).encode(), np.uint8).copy())


def records_of(state: Snapshot) -> list[dict[str, Any]] | None:
    """The records in a checkpoint; None if it does not have one for each epoch before its own."""
    if RECORDS not in state.tensors:
        return None
    try:
        found = [record(line) for line in bytes(state.tensors[RECORDS].numpy()).splitlines()]
    except ValueError:
        return None
    return found if _are_complete(found, state.epoch) else None


def restore(folder: RunFolder) -> list[str]:
    """Restore what the newest complete checkpoint holds of run.json and metrics.jsonl; returns a line for each file.

    Files that cannot be restored are left as they are.

    Raises:
        RunError: all checkpoints are damaged.
        DiskError: a file cannot be written.
    """
    epoch = checkpoint.header(folder.path).get("epoch")
    if epoch is None:
        return []
    problems = {"run.json": _identity_problem(folder), "metrics.jsonl": _metrics_problem(folder, epoch)}
    state = checkpoint.load(folder.path) if any(problems.values()) else None
    if state is None:
        return []
    restored = []
    identity, records = mapping_at(state.facts, IDENTITY), records_of(state)
    if problems["run.json"] and identity:
        write_json(folder / "run.json", identity)
        restored.append("run.json")
    if problems["metrics.jsonl"] and records is not None:
        folder.write_metrics(records)
        restored.append("metrics.jsonl")
    return [f"{name} {problems[name]}; it is restored from the checkpoint" for name in restored]


def _identity_problem(folder: RunFolder) -> str | None:
    try:
        return None if folder.identity() else "is missing"
    except UnreadableError as error:
        return error.reason


def _metrics_problem(folder: RunFolder, epoch: int) -> str | None:
    damaged: list[UnreadableError] = []
    try:
        found = folder.metrics(damaged)
    except UnreadableError as error:
        return error.reason
    if damaged:
        return damaged[0].reason
    kept = [each for each in found if each["epoch"] < epoch]
    return None if _are_complete(kept, epoch) else "lacks an epoch"


def _are_complete(records: Sequence[dict[str, Any]], epoch: int) -> bool:
    return [each["epoch"] for each in records] == list(range(epoch))
