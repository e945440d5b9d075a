"""A network that a run has finished, ready to be used."""

import os
from pathlib import Path

import torch

from kd import models
from kd.network import Network
from kd.spec import find_weights


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Network:
    """The best student of a run folder, or any network that lies in a .safetensors with its .json beside it.

    It is in eval mode and holds its own normalisation.

    Args:
        path: a run folder, or a .safetensors file; `~` is the home folder.
        device: where it shall compute, in torch's words.

    Shape:
        of the network: images B x 3 x H x W, RGB, 0..255 (uint8 or float), H and W multiples of 32 -> raw logits
        B x C x H x W; C = 1 is binary.

    Raises:
        ModelError: there is no network, or a file is damaged. Nothing in it is unpickled or imported by name.

    >>> network = load("runs/2026-11-21/10-15-30-123456")  # doctest: +SKIP
    >>> with torch.inference_mode():  # doctest: +SKIP
    ...     labels = predict_labels(network(images))
    """
    file = find_weights(Path(path), "path", ("student.safetensors", "teacher.safetensors"))
    return models.load(file).to(device).eval()
