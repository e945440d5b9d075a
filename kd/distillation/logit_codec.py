"""How a teacher's logits are stored (`teacher.stored`): exact, or in 8 bits.

Logits are encoded once, where they are computed, and decoded where they are used, on the device, also if nothing is
stored: so a run that reads them and one that computes them see the same bits. A batch carries them encoded, since
fewer bytes are then read, pinned and copied.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, int, int]
Record = tuple[tuple[int, ...], torch.dtype]  # the shape and type of what is stored of a picture
HALF = torch.finfo(torch.float16).max
LEVELS = 255  # steps from the lowest to the highest of 8 bits
ENDS = 8  # bytes of two float32


def clamped(logits: Tensor) -> Tensor:
    """Float logits in half precision's range, so that infinite ones are large."""
    return logits.float().clamp(-HALF, HALF)


class Codec(Protocol):
    """Between float logits, B x C x H x W, and what is stored of them: a record for each picture."""

    def record(self, shape: Shape) -> Record:
        """What is stored of a picture whose logits have a shape C x H x W."""

    def encode(self, logits: Tensor) -> Tensor:
        """Records, B of them; each depends on its own picture alone."""

    def decode(self, records: Tensor, size: tuple[int, int]) -> Tensor:
        """Float32 logits of a size H x W."""


class Exact:
    """Each logit in half precision."""

    def record(self, shape: Shape) -> Record:
        return shape, torch.float16

    def encode(self, logits: Tensor) -> Tensor:
        return clamped(logits).half().contiguous()

    def decode(self, records: Tensor, size: tuple[int, int]) -> Tensor:
        return records.float()


class Int8:
    """Each logit as one of 256 evenly spaced values, from the lowest to the highest of its picture and class.

    A record is C x (8 + H W) bytes: both ends in float32, then the numbers of the values. Both ends are decoded
    exactly, so encoding is idempotent. A class with a NaN is NaN everywhere.
    """

    def record(self, shape: Shape) -> Record:
        classes, height, width = shape
        return (classes, ENDS + height * width), torch.uint8

    def encode(self, logits: Tensor) -> Tensor:
        values = clamped(logits).flatten(2) + 0.0  # -0 becomes 0, as it is when decoded
        low, high = values.aminmax(dim=2, keepdim=True)
        numbers = ((values - low) / (high - low) * LEVELS).round().nan_to_num(0)  # 0 / 0 if all are the same
        return torch.cat([torch.cat([low, high], 2).view(torch.uint8), numbers.byte()], 2)

    def decode(self, records: Tensor, size: tuple[int, int]) -> Tensor:
        ends = records[..., :ENDS].clone(memory_format=torch.contiguous_format).view(torch.float32)
        values = torch.lerp(ends[..., :1], ends[..., 1:], records[..., ENDS:].float().div_(LEVELS))
        return values.view(*records.shape[:2], *size)


EXACT = Exact()
#: By the value of `teacher.stored`.
CODECS: Mapping[str, Codec] = {"exact": EXACT, "int8": Int8()}
