"""Adapts a foreign network to `Segmenter`: raw images in, logits in the classes of the data out.

Around the network it applies the network's own normalisation, splits batches into the size that a file was exported
for, takes the first output, resizes logits to the image and selects the channels of the data's classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.data.files.pixels import USUAL, Pixels
from kd.errors import ConfigError, ModelError
from kd.networks.network import Segmenter
from kd.settings import Normalisation


@dataclass(frozen=True)
class Body:
    """A foreign network as loaded from its file.

    Attributes:
        run: maps normalised float pixels B x channels x H x W to raw logits B x K x h x w, or to a dict or tuple of
            them.
        parameters: the number of its parameters.
        takes: the batch, height and width that it was exported for; None where any works.
        free_layout: whether it accepts channels-last pixels and weights.
    """

    run: nn.Module
    parameters: int
    takes: tuple[int | None, int | None, int | None] = (None, None, None)
    free_layout: bool = False


class Foreign(Segmenter):
    """A network trained elsewhere, with its pre- and postprocessing."""

    channels: Tensor

    def __init__(
        self, body: Body, normalisation: Normalisation, classes: int, class_names: tuple[str, ...],
        pixels: Pixels = USUAL,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.class_names = classes, class_names
        self.body, self.takes, self._parameters_count = body.run, body.takes, body.parameters
        self.layout = torch.contiguous_format
        self.pixels = pixels
        level, (mean, std) = pixels.level / normalisation.scale, _numbers(normalisation, pixels.channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * level, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * level, persistent=False)
        self.register_buffer("channels", torch.arange(max(classes, 2)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.raw(images).float()
        if logits.shape[-2:] != images.shape[-2:]:
            logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return mapped(logits, self.channels, self.classes)

    def raw(self, images: Tensor) -> Tensor:
        """The network's own logits, B x K x h x w, at its own size and in its own classes."""
        pixels, batch = self.normalised(images), self.takes[0]
        if batch is None:
            return first(self.body(pixels))
        missing = -len(pixels) % batch
        padded = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
        return torch.cat([first(self.body(part)) for part in torch.split(padded, batch)])[: len(pixels)]

    def choose(self, channels: tuple[int, ...]) -> None:
        """Set the network's channel for each class of the data."""
        self.channels = torch.tensor(channels, device=self.mean.device)

    def count_parameters(self) -> int:
        return self._parameters_count


def _numbers(normalisation: Normalisation, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, before `scale`, of each channel; raises ConfigError."""
    try:
        return normalisation.model_copy(update={"scale": 1.0}).unscaled(channels)
    except ValueError as error:
        raise ConfigError(f"teacher.normalisation {error}") from error


def first(output: object) -> Tensor:
    """The logits in a network's output: itself, a tuple's first, a dict's "out" (torchvision) or first."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict) and output:
            output = output.get("out", next(iter(output.values())))
        elif isinstance(output, list | tuple) and output:
            output = output[0]
        else:
            raise ModelError(f"teacher.path: the network returns {type(output).__name__}, but a tensor is needed")
    return output


def mapped(logits: Tensor, channels: Tensor, classes: int) -> Tensor:
    """Map logits B x K x H x W of a teacher's channels to logits B x C x H x W of the data's classes.

    Other channels are dropped before any softmax, which distributes their probability over the rest in proportion.
    K = 1 stands for (0, z). C = 1 takes z1 - z0, whose sigmoid is exactly the softmax over the two.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    kept = logits.index_select(1, channels)
    return kept[:, 1:] - kept[:, :1] if classes == 1 else kept


@torch.no_grad()
def probe(network: Foreign, image_size: tuple[int, int], source: str) -> int:
    """Run a network once, on a black image, and return its number of channels.

    Raises:
        ModelError: it was exported for another size or does not return raw logits; `source` is the option naming it.
    """
    _, height, width = network.takes
    wanted = [height or image_size[0], width or image_size[1]]
    if wanted != list(image_size):
        raise ModelError(
            f"{source}: exported for images of {wanted[0]} x {wanted[1]}, but data.image_size={list(image_size)}; set "
            f"'data.image_size=[{wanted[0]},{wanted[1]}]', or export it again with dynamic height and width"
        )
    try:
        logits = network.raw(network.black(1, image_size, network.mean.device))
    except ModelError as error:
        raise ModelError(f"{source}: {str(error).removeprefix('teacher.path: ')}") from error
    except Exception as error:  # from whichever library runs it
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{source}: fails on an image of {image_size[0]} x {image_size[1]} ({said}); try another "
            "data.image_size, or export it again"
        ) from error
    _check_logits(logits, source)
    return logits.shape[1]


def _check_logits(logits: Tensor, source: str) -> None:
    """Refuse output that is not raw logits."""
    if logits.ndim != 4 or len(logits) != 1 or not logits.is_floating_point():
        raise ModelError(
            f"{source}: returns {'x'.join(map(str, logits.shape))} {logits.dtype} for one image, but raw logits "
            "1 x channels x height x width are needed; export it without argmax"
        )
    total = logits.float().sum(1)
    if logits.shape[1] > 1 and logits.min() >= 0 and torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise ModelError(f"{source}: returns probabilities, but raw logits are needed; export it without softmax")
