"""Which image sizes a network takes: mostly any multiple of 32, with some of timm's encoders one size alone.

A network is asked by a forward pass of a copy without data, so neither weights nor a teacher are needed.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from kd.data.source import SIDE
from kd.networks.block_counts import is_known, size_refusal
from kd.networks.build import create
from kd.networks.network import Network
from kd.networks.trace import IMAGE_SIZES, on_meta
from kd.settings import NetworkSettings


def check_size(settings: NetworkSettings, image_size: tuple[int, int], key: str) -> None:
    """Raise ConfigError, which names the sizes that it takes, if a network does not take images of (height, width).

    A network that does not run without data at any size passes.
    """
    if not settings.encoder.startswith("tu-"):
        return
    asked = settings.model_copy(update={"weights": None, "normalisation": None})
    if sides := sides_instead(asked, image_size):
        raise size_refusal(key, settings.encoder, image_size, sides)


def check_built(network: Network, image_size: tuple[int, int], key: str) -> None:
    """`check_size` of a network that is there already; nothing of it changes.

    What the table knows has been checked with the configuration, and passes.
    """
    settings, channels = network.settings, network.pixels.channels
    if not settings.encoder.startswith("tu-") or is_known(settings.arch, settings.encoder):
        return
    if sides := _sides_instead(network.body, image_size, channels):
        raise size_refusal(key, settings.encoder, image_size, sides)


@lru_cache
def sides_instead(settings: NetworkSettings, image_size: tuple[int, int]) -> tuple[int, ...]:
    """The sides of the squares that a network takes, if it does not take `image_size`; empty if it does."""
    return _sides_instead(create(settings, 1, "", None), image_size)


def _sides_instead(body: nn.Module, image_size: tuple[int, int], channels: int = 3) -> tuple[int, ...]:
    body = on_meta(body)

    def runs(size: tuple[int, int]) -> bool:
        return _runs(body, torch.zeros(1, channels, *size, device="meta"))

    return () if runs(image_size) else tuple(side for side in sorted(IMAGE_SIZES) if runs((side, side)))


def takes(network: Network, image_size: tuple[int, int]) -> bool:
    """Whether a finished network takes images of (height, width); on the network's device, in eval mode."""
    if not network.settings.encoder.startswith("tu-"):
        return True
    device = next(network.parameters()).device
    with torch.inference_mode():
        return _runs(network, network.black(1, image_size, device))


def takes_other_sizes(network: Network, image_size: tuple[int, int]) -> bool:
    """Whether a network takes larger images than those of (height, width) that it was trained on."""
    return takes(network, (image_size[0] + SIDE, image_size[1] + SIDE))


def _runs(network: nn.Module, images: Tensor) -> bool:
    try:
        network(images)
    except Exception:  # encoders refuse a size with any kind of exception
        return False
    return True
