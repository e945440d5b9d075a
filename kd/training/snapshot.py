"""Snapshots of all state that a training carries from step to step: weights, their average if there is one, optimiser
moments, the epoch's sums.

Nothing else is carried (see `kd.training.loop`), so a training resumed from a snapshot ends bit for bit as one that was
never interrupted, on a CPU with the same number of threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WEIGHTS, MOMENTS = "network.", "optimizer."


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, on the CPU, and facts as plain JSON: epoch, step, the epoch's sums so far, the loss scaler."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """The epoch to resume in; all before it are complete."""
        return self.facts["epoch"]

    @property
    def step(self) -> int:
        """The number of batches of that epoch that are done."""
        return self.facts["step"]


def take(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    facts: Mapping[str, Any],
    more: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy the state, and `more` tensors with it; further training does not change the copy."""
    tensors = {**(more or {})} | {WEIGHTS + name: value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{MOMENTS}{index}.{name}": value for name, value in state.items()}
    copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
    return Snapshot(copies, {**facts, "scaler": scaler.state_dict()})


def restore(
    snapshot: Snapshot, network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Load a snapshot, onto the network's device and in its memory layout.

    Raises:
        ValueError: the snapshot belongs to another network.
    """
    if not fits(snapshot, network):
        raise ValueError("the snapshot belongs to another network")
    network.load_state_dict(_weights(snapshot))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    for name, value in snapshot.tensors.items():
        if name.startswith(MOMENTS):
            index, moment = name.removeprefix(MOMENTS).split(".")
            parameter = parameters[int(index)]
            optimizer.state[parameter][moment] = _like_parameter(parameter, value)
    scaler.load_state_dict(snapshot.facts["scaler"])


def fits(snapshot: Snapshot, network: nn.Module) -> bool:
    """Whether a snapshot has exactly a network's tensors, by name and shape."""
    found, own = _weights(snapshot), network.state_dict()
    return {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}


def _weights(snapshot: Snapshot) -> dict[str, Tensor]:
    return {name.removeprefix(WEIGHTS): value for name, value in snapshot.tensors.items() if name.startswith(WEIGHTS)}


def _like_parameter(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of a moment in its parameter's memory layout, as fused steps require; step counts are scalars."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
