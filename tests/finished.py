"""Run folders of a finished training, made without training: weights with their description, and the configuration."""

from pathlib import Path

import numpy as np
import torch

from kd.config.compose import compose, plain, public
from kd.config.read import checked
from kd.data import Source
from kd.networks import build, saved
from kd.networks.network import Network
from kd.run.folder import RunFolder
from kd.settings import Settings

#: A configuration whose data does not exist.
GONE = ["data=folder", "data.root=/nowhere", "data.image_size=[32,32]", "data.mask_values=[0,255]", "backbone=tiny"]
TINY = ["backbone=tiny", "data.image_size=[32,32]", "data.train=8", "data.val=6", "data.test=4"]


def settings_of(*overrides: str) -> Settings:
    return checked(plain(compose([*TINY, *overrides])), look_at_data=False)


def images(source: Source, split: str = "val") -> torch.Tensor:
    """All images of a split, N x 3 x H x W uint8."""
    found = np.stack([source.read(split, index)[0] for index in range(source.size(split))])
    return torch.from_numpy(found).permute(0, 3, 1, 2).contiguous()


def balanced(network: Network, source: Source) -> Network:
    """The network with its last biases moved so that it gives every label to some pixels of the validation images."""
    network.eval().requires_grad_(False)
    found = network(images(source)).transpose(0, 1).flatten(1)
    network.body.segmentation_head[0].bias -= found.median(dim=1).values
    return network


def built(settings: Settings, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    data = settings.data
    network = build.build(settings.backbone.student, data.classes, data.class_names, "backbone.student")
    return balanced(network, data)


def finished(folder: Path, *overrides: str, seed: int = 0) -> Network:
    """Fill `folder` with a run; returns its student."""
    settings = settings_of(*overrides)
    network = built(settings, seed)
    run = RunFolder(folder)
    run.write_config(public(plain(compose([*TINY, *overrides]))))
    run.identify(id="0123456789abcdef")
    saved.save(network, run / "student.safetensors", image_size=list(settings.data.image_size),
               **settings.data.sizing.facts())  # fmt: skip
    return network
