"""Whether an exported file answers as the network does: on real images where there are some, at several shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd.errors import UserError
from kd.networks.network import Network

TOLERANCE = 1e-3  # of the largest logit: float32 in another order of operations stays far below
HALF = 20  # times the tolerance for half precision, which keeps 11 bits of 24


class ExportError(UserError):
    """A network cannot be exported, or the file that came of it answers differently."""


@dataclass(frozen=True)
class Difference:
    """Between the logits of a file and the network's: the largest, and its share of the largest logit."""

    largest: float
    relative: float


@dataclass(frozen=True)
class Check:
    """Images with the network's own logits, in batches of several shapes.

    Attributes:
        origin: where the images come from, for people: "8 images of val".
        batches: each N x 3 x H x W uint8.
        logits: the network's answer to each, N x C x H x W float32.
        tolerance: how far the largest difference may go, as a share of the largest logit.
    """

    origin: str
    batches: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, network: Network, images: Tensor, origin: str, tolerance: float = TOLERANCE) -> "Check":
        """Ask the network: all images (N x 3 x H x W uint8) at once, one alone, and a larger one."""
        larger = torch.cat([images[:1], images[:1, :, :32]], dim=2)
        batches = (images, images[-1:], torch.cat([larger, larger], dim=3))
        with torch.inference_mode():
            return cls(origin, batches, tuple(network(batch) for batch in batches), tolerance)

    def difference(self, answer: Callable[[Tensor], Tensor]) -> Difference:
        """How far `answer`, a function from images to logits, is from the network; infinite where it gives no number.

        Raises:
            ExportError: it gives another number of logits.
        """
        largest = scale = 0.0
        for images, expected in zip(self.batches, self.logits, strict=True):
            given = answer(images)
            if given.shape != expected.shape:
                raise ExportError(f"it gives logits of {tuple(given.shape)} where {tuple(expected.shape)} are due")
            apart = (given.float() - expected).abs().nan_to_num(torch.inf)
            largest, scale = max(largest, apart.max().item()), max(scale, expected.abs().max().item())
        return Difference(largest, largest / scale if scale else largest)

    def passed(self, path: Path, answer: Callable[[Tensor], Tensor], leniency: float = 1) -> Difference:
        """The same, within the tolerance.

        Raises:
            ExportError: it is beyond.
        """
        found, allowed = self.difference(answer), self.tolerance * leniency
        if not found.relative <= allowed:
            raise ExportError(
                f"{path}: its logits differ from the network's by {found.largest:.3g}, {found.relative:.2g} of the "
                f"largest, where {allowed:.2g} is allowed (on {self.origin}); it is not written: leave it out, "
                "or raise --tolerance if that is good enough"
            )
        return found
