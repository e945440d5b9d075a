"""Everything that a training carries from step to step, taken at a moment and put back: weights, moments, sums.

Nothing else is carried (see `kd.training`), so that a training that goes on from a snapshot ends bit for bit as one
that was never stopped, on a CPU with the same number of threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd.networks.network import Network

WEIGHTS, MOMENTS = "network.", "optimizer."


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, on the CPU, and facts as plain JSON: epoch, step, the epoch's sums so far, the loss scale."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """The epoch to go on with; those below it are over."""
        return self.facts["epoch"]

    @property
    def step(self) -> int:
        """How many batches of that epoch are done."""
        return self.facts["step"]


def take(
    network: Network, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, facts: Mapping[str, Any]
) -> Snapshot:
    """A copy of the state; what trains on does not change it."""
    tensors = {WEIGHTS + name: value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{MOMENTS}{index}.{name}": value for name, value in state.items()}
    copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
    return Snapshot(copies, {**facts, "scaler": scaler.state_dict()})


def restore(
    snapshot: Snapshot, network: Network, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Put a snapshot back, on the device and in the memory layout that the network has.

    Raises:
        ValueError: the snapshot is of another network.
    """
    own = network.state_dict()
    weights = {
        name.removeprefix(WEIGHTS): value for name, value in snapshot.tensors.items() if name.startswith(WEIGHTS)
    }
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
        raise ValueError("it is of another network")
    network.load_state_dict(weights)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    for name, value in snapshot.tensors.items():
        if name.startswith(MOMENTS):
            index, moment = name.removeprefix(MOMENTS).split(".")
            parameter = parameters[int(index)]
            optimizer.state[parameter][moment] = _laid_out_like(parameter, value)
    scaler.load_state_dict(snapshot.facts["scaler"])


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in memory as its parameter is, which a fused step walks through together; step counts have no shape."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
