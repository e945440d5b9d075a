"""Compare an exported file with its network, at several image shapes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd.data.source import SIDE
from kd.errors import UserError
from kd.networks.network import Network
from kd.networks.sizes import takes_other_sizes

TOLERANCE = 1e-3  # of the largest logit; float32 with reordered operations stays far below
HALF = 20  # factor on the tolerance for half precision, which has 11 significant bits instead of 24


class ExportError(UserError):
    """A network cannot be exported, or the exported file gives other logits."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference between two networks' logits, and its ratio to the largest logit."""

    largest: float
    relative: float


@dataclass(frozen=True)
class Check:
    """Images and the network's logits for them, in batches of several shapes.

    Attributes:
        origin: where the images come from, in words: "8 images of val".
        batches: each N x channels x H x W.
        logits: of each batch, N x C x H x W float32.
        tolerance: the largest relative difference allowed.
    """

    origin: str
    batches: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, network: Network, images: Tensor, origin: str, tolerance: float = TOLERANCE) -> "Check":
        """Run the network on all images (N x channels x H x W) at once, on one alone, and on a larger one if it can."""
        batches: tuple[Tensor, ...] = (images, images[-1:])
        if takes_other_sizes(network, (images.shape[2], images.shape[3])):
            larger = torch.cat([images[:1], images[:1, :, :SIDE]], dim=2)
            batches += (torch.cat([larger, larger], dim=3),)
        with torch.inference_mode():
            return cls(origin, batches, tuple(network(batch) for batch in batches), tolerance)

    def difference(self, predict: Callable[[Tensor], Tensor]) -> Difference:
        """Difference of `predict`, a function from images to logits, from the network; infinite if it gives a NaN.

        Raises:
            ExportError: its logits have another shape.
        """
        largest = scale = 0.0
        for images, expected in zip(self.batches, self.logits, strict=True):
            given = predict(images)
            if given.shape != expected.shape:
                raise ExportError(f"logits have shape {tuple(given.shape)} and should have {tuple(expected.shape)}")
            apart = (given.float() - expected).abs().nan_to_num(torch.inf, torch.inf)
            largest, scale = max(largest, apart.max().item()), max(scale, expected.abs().max().item())
        return Difference(largest, largest / scale if scale else largest)

    def passed(self, path: Path, predict: Callable[[Tensor], Tensor], half: bool = False) -> Difference:
        """The difference, if it is within the tolerance, or `HALF` times that in half precision.

        Raises:
            ExportError: it is not; the message names `path`.
        """
        found, factor = self.difference(predict), HALF if half else 1
        allowed = self.tolerance * factor
        if not math.isfinite(found.relative):  # no tolerance allows that
            raise ExportError(
                f"{path}: the network's values do not fit half precision, whose largest is 65504 (on {self.origin}), "
                "so it is not written; leave --fp16 out"
                if half
                else f"{path}: its logits are not finite (on {self.origin}), so it is not written; leave it out"
            )
        if found.relative > allowed:
            raise ExportError(
                f"{path}: its logits differ from the network's by {found.largest:.3g}, {found.relative:.2g} of the "
                f"largest, and {allowed:.2g} is allowed (on {self.origin}), so it is not written; leave it out, "
                f"or set --tolerance {1.1 * found.relative / factor:.1e} if that is good enough"
            )
        return found
