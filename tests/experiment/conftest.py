"""A teacher that is a file, for the tests of a module."""

from pathlib import Path

import pytest
import torch

from kd.networks import build, saved
from kd.settings import NetworkSettings


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A teacher with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    unet = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    saved.save(build.build(unet, 1, ("background", "foreground"), "backbone.teacher"), path)
    return path
