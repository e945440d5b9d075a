"""TensorFlow's "same" padding as a constant, while a network is exported.

timm's networks that use it (the default student, `tf_efficientnet_lite0`, is one) compute the padding of a strided
convolution from the size of its input. With a free size that is symbolic arithmetic: torch.export cannot save its
`math.ceil`, and an ONNX file gets chains of Shape, Ceil and Pad, which are slow and which converters for phones reject.
At the sizes that an exported file takes, multiples of SIDE, every feature map is a multiple of the stride that halves
it, and the padding is the same for all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from timm.layers import padding


def constant_same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """timm's `get_same_padding` (pixels, both sides together) for a `size` that is a multiple of `stride`."""
    return max((kernel_size - 1) * dilation + 1 - stride, 0)


@contextmanager
def constant_padding() -> Iterator[None]:
    """Make timm's layers pad by a constant; `Check` tells whether the exported file gives the network's logits."""
    with mock.patch.object(padding, "get_same_padding", constant_same_padding):
        yield
