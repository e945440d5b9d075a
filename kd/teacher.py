"""The teacher: batch in, raw logits out.

Whoever trains a student calls a teacher with a batch and gets B x C x H x W float logits at no temperature. The live
teacher computes them; any other that answers the same call (from a cache, from a file) can stand in for it.
"""

from typing import Protocol

import torch
from torch import Tensor

from kd.data.loading import Batch
from kd.network import Network
from kd.precision import Precision


class Teacher(Protocol):
    """Anything that answers a batch with raw logits, B x C x H x W."""

    def __call__(self, batch: Batch) -> Tensor: ...


class LiveTeacher:
    """Computes its answers; always in eval mode and without gradients, whatever happens to the student."""

    def __init__(self, network: Network, precision: Precision) -> None:
        self.network = network.requires_grad_(False).eval()
        self.precision = precision

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        if self.network.training:
            self.network.eval()
        with self.precision.autocast():
            return self.network(batch.images).float()
