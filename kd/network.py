"""A segmentation network that holds its own input normalisation and knows its encoder's blocks.

Student and teacher are fed the same raw view, and a file of weights is all that a user needs to deploy. Which blocks
are open is state of the network: a closed block stays closed through every later call of `.train()`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kd.blocks import Partition, partition
from kd.errors import ModelError
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings


class Segmenter(nn.Module):
    """What every student and teacher is: raw view in, raw logits out.

    Shape:
        images B x 3 x H x W, RGB, 0..255 (uint8 or float) -> raw logits B x C x H x W; C = 1 is binary.

    Attributes:
        classes: C.
        class_names: one name per label; background and foreground where C = 1.
        layout: the memory format its pixels take.
    """

    classes: int
    class_names: tuple[str, ...]
    layout: torch.memory_format

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class Network(Segmenter):
    """A network of ours, with its normalisation inside.

    Attributes:
        settings: what was built.
        partition: the encoder's blocks, deepest first.
        open_blocks: how many of them train; all of them until `open` says otherwise.
        normalisation: mean and standard deviation of RGB in [0, 1].
    """

    def __init__(self, settings: NetworkSettings, body: nn.Module, classes: int, class_names: tuple[str, ...],
                 mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD,
                 parts: Partition | None = None) -> None:  # fmt: skip
        super().__init__()
        self.settings, self.classes, self.class_names = settings, classes, class_names
        self.body = body
        self.layout = torch.contiguous_format
        self.normalisation = tuple(mean), tuple(std)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.partition: Partition = parts or partition(body.encoder)
        self.open(len(self.partition.blocks))

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        try:
            return self.body(pixels.contiguous(memory_format=self.layout))
        except ValueError as error:  # torch's, where the deepest map of a training batch is a single number
            if "more than 1 value per channel" not in str(error):
                raise
            batch, _, height, width = images.shape
            raise ModelError(
                f"trainer.batch_size={batch} at data.image_size=[{height},{width}] leaves {self.settings.encoder} a "
                "single value per channel, which its batch norms cannot train on; raise one of the two"
            ) from error

    def open(self, count: int) -> None:
        """Open the `count` deepest encoder blocks and close the others, and what the encoder never runs.

        Closed parameters need no gradient and have none (so the optimiser passes them by, weight decay included), and
        their modules are in eval mode: batch-norm statistics and stochastic depth stand still.
        """
        self.open_blocks = count
        parameters = dict(self.body.encoder.named_parameters())
        for names, is_open in self._openness("parameters"):
            for name in names:
                parameters[name].requires_grad_(is_open)
                if not is_open:
                    parameters[name].grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        if mode:
            for names, is_open in self._openness("modules"):
                for name in () if is_open else names:
                    self.body.encoder.get_submodule(name).eval()
        return self

    def _openness(self, what: str) -> Iterator[tuple[tuple[str, ...], bool]]:
        for depth, block in enumerate(self.partition.blocks):
            yield getattr(block, what), depth < self.open_blocks
        yield getattr(self.partition.never_run, what), False

    def block_parameters(self, depth: int) -> list[nn.Parameter]:
        """The parameters of the encoder block `depth` steps above the deepest."""
        parameters = dict(self.body.encoder.named_parameters())
        return [parameters[name] for name in self.partition.blocks[depth].parameters]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Every parameter outside the encoder: decoder and head."""
        encoder = {id(parameter) for parameter in self.body.encoder.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in encoder]
