"""Segmentation networks with their own input normalisation, whose encoder blocks can be frozen.

Student and teacher get the same raw view, and the weights file is all that deployment needs. Which blocks are unfrozen
is state of the network: a frozen block stays frozen through every call of `.train()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd.data.files.pixels import USUAL, Pixels
from kd.errors import ModelError
from kd.networks.encoder_blocks import EncoderBlocks
from kd.networks.partition import Partition
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings

Numbers = tuple[float, ...]  # one per channel


def black(pixels: Pixels, count: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """So many black images of (height, width): uint8, or float32 where pictures are deeper than 8 bits."""
    dtype = torch.float32 if pixels.deep else torch.uint8
    return torch.zeros(count, pixels.channels, *size, dtype=dtype, device=device)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and back into its previous mode after the block."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


class Segmenter(nn.Module):
    """Base class of students and teachers: raw view in, raw logits out.

    Shape:
        images B x channels x H x W, stored values (RGB from 0 to 255 unless `pixels` are others; uint8 or float)
        -> raw logits B x C x H x W; C = 1 is binary.

    Attributes:
        classes: C.
        class_names: one name per label; background and foreground if C = 1.
        layout: the memory format of its input.
        pixels: what the pixels of its images are.
        mean, std: of stored values, 1 x channels x 1 x 1.
    """

    classes: int
    class_names: tuple[str, ...]
    layout: torch.memory_format
    pixels: Pixels = USUAL
    mean: Tensor
    std: Tensor

    def normalised(self, images: Tensor) -> Tensor:
        """Normalised pixels, in the network's memory format."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        return pixels.contiguous(memory_format=self.layout)

    def black(self, count: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """So many black images of (height, width), in the type that the network's files take."""
        return black(self.pixels, count, size, device)

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class Network(Segmenter):
    """A network built by this project, including its normalisation.

    Attributes:
        settings: the architecture and the encoder.
        blocks: the encoder's blocks.
        normalisation: mean and standard deviation of each channel in [0, 1].
    """

    def __init__(self, settings: NetworkSettings, body: nn.Module, classes: int, class_names: tuple[str, ...],
                 normalisation: tuple[Numbers, Numbers] = (IMAGENET_MEAN, IMAGENET_STD),
                 parts: Partition | None = None, pixels: Pixels = USUAL) -> None:  # fmt: skip
        super().__init__()
        mean, std = normalisation
        self.settings, self.classes, self.class_names = settings, classes, class_names
        self.body = body
        self.layout = torch.contiguous_format
        self.normalisation, self.pixels = normalisation, pixels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * pixels.level, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * pixels.level, persistent=False)
        # No hook: `train` settles frozen blocks itself, and a hook would have to be compiled and exported.
        self.blocks = EncoderBlocks(body.get_submodule("encoder"), parts, watch=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.normalised(images)
        try:
            return self.body(pixels)
        except ValueError as error:  # torch's, if the deepest feature map of a training batch has a single value
            if "more than 1 value per channel" not in str(error):
                raise
            batch, _, height, width = images.shape
            raise ModelError(
                f"trainer.batch_size={batch} at data.image_size=[{height},{width}] leaves {self.settings.encoder} a "
                "single value per channel, which its batch norms cannot train on; raise one of the two",
                page="remedies",
            ) from error

    def unfreeze(self, count: int) -> None:
        """Unfreeze the `count` deepest encoder blocks and freeze the others, as `EncoderBlocks.unfreeze` does."""
        self.blocks.unfreeze(count)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        if mode:
            self.blocks.settle()
        return self

    @property
    def partition(self) -> Partition:
        """The encoder's blocks, deepest first."""
        return self.blocks.partition

    @property
    def unfrozen_blocks(self) -> int:
        """The number of unfrozen blocks; initially all."""
        return self.blocks.unfrozen
