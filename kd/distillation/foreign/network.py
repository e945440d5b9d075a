"""A foreign network with the face that ours have: it takes the raw view, and answers in the classes of the data.

What it does around the network: its own normalisation; batches of the size that a file was made for; the first output;
logits at the size of the picture; and of its channels those that the data has.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import ModelError
from kd.networks.network import Segmenter
from kd.settings import Normalisation


@dataclass(frozen=True)
class Body:
    """How somebody's network is run.

    Attributes:
        run: float pixels B x 3 x H x W, normalised, to raw logits B x K x h x w, or a dict or tuple of which one is.
        parameters: how many numbers it has learnt.
        takes: the batch, height and width that it was made for; None where any will do.
        free_layout: whether channels-last pixels and weights are all the same to it.
    """

    run: nn.Module
    parameters: int
    takes: tuple[int | None, int | None, int | None] = (None, None, None)
    free_layout: bool = False


class Foreign(Segmenter):
    """A network that was trained elsewhere, and what stands around it."""

    channels: Tensor

    def __init__(self, body: Body, normalisation: Normalisation, classes: int, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.classes, self.class_names = classes, class_names
        self.body, self.takes, self._parameters_count = body.run, body.takes, body.parameters
        self.layout = torch.contiguous_format
        level = 255 / normalisation.scale
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1) * level, persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(1, 3, 1, 1) * level, persistent=False)
        self.register_buffer("channels", torch.arange(max(classes, 2)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.raw(images).float()
        if logits.shape[-2:] != images.shape[-2:]:
            logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return mapped(logits, self.channels, self.classes)

    def raw(self, images: Tensor) -> Tensor:
        """What the network itself says, B x K x h x w, at its own size and in its own classes."""
        pixels, batch = self.normalised(images), self.takes[0]
        if batch is None:
            return first(self.body(pixels))
        missing = -len(pixels) % batch
        filled = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]) if missing else pixels
        return torch.cat([first(self.body(part)) for part in torch.split(filled, batch)])[: len(pixels)]

    def choose(self, channels: tuple[int, ...]) -> None:
        """Have the labels of the data be these of the network's channels."""
        self.channels = torch.tensor(channels, device=self.mean.device)

    def count_parameters(self) -> int:
        return self._parameters_count


def first(output: object) -> Tensor:
    """The logits in what a network returns: itself; a tuple's first; of a dict "out" (torchvision's), or the first."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict) and output:
            output = output.get("out", next(iter(output.values())))
        elif isinstance(output, list | tuple) and output:
            output = output[0]
        else:
            raise ModelError(f"teacher.path: the network returns {type(output).__name__}, where a tensor is needed")
    return output


def mapped(logits: Tensor, channels: Tensor, classes: int) -> Tensor:
    """Logits B x K x H x W of a teacher's channels, as logits B x C x H x W of the data's classes.

    Channels that the data lacks are dropped before any softmax, which gives their probability to the others in
    proportion. K = 1 stands for (0, z). C = 1 takes z1 - z0, whose sigmoid is exactly the softmax over the two.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    kept = logits.index_select(1, channels)
    return kept[:, 1:] - kept[:, :1] if classes == 1 else kept


@torch.no_grad()
def probe(network: Foreign, image_size: tuple[int, int], source: str) -> int:
    """How many channels a network gives, seen by asking it once, of black pictures.

    Raises:
        ModelError: it was made for another size, or its answer is no raw logits; `source` is the option that named it.
    """
    _, height, width = network.takes
    wanted = [height or image_size[0], width or image_size[1]]
    if wanted != list(image_size):
        raise ModelError(
            f"{source}: made for pictures of {wanted[0]} x {wanted[1]}, and data.image_size={list(image_size)}; set "
            f"data.image_size={wanted}, or export it again with any height and width (dynamic_shapes)"
        )
    try:
        logits = network.raw(torch.zeros(1, 3, *image_size, dtype=torch.uint8, device=network.mean.device))
    except ModelError as error:
        raise ModelError(f"{source}: {str(error).removeprefix('teacher.path: ')}") from error
    except Exception as error:  # of whatever runs it
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{source}: fails on a picture of {image_size[0]} x {image_size[1]} ({said}); try another "
            "data.image_size, or save it again"
        ) from error
    _check_answer(logits, source)
    return logits.shape[1]


def _check_answer(logits: Tensor, source: str) -> None:
    """Refuse what is no raw logits."""
    if logits.ndim != 4 or len(logits) != 1 or not logits.is_floating_point():
        raise ModelError(
            f"{source}: answers a picture with {'x'.join(map(str, logits.shape))} numbers of {logits.dtype}, where raw "
            "logits 1 x channels x height x width are needed; export it without argmax"
        )
    total = logits.float().sum(1)
    if logits.shape[1] > 1 and logits.min() >= 0 and torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise ModelError(f"{source}: answers with probabilities; raw logits are needed, export it without softmax")
