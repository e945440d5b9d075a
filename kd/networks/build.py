"""Student and teacher: segmentation-models-pytorch networks built from plain strings.

A saved network is two files: `<name>.safetensors` (weights) and `<name>.json` (plain strings: what to build). Nothing
in them is unpickled or imported by name.
"""

import os
import warnings
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
from torch import nn

from kd.errors import ModelError, nearest
from kd.networks.network import RGB, Network
from kd.networks.partition import Partition, partition
from kd.networks.weights import fill, opened
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings

ARCHITECTURES = {name.lower(): name for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN",
                 "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT")}  # fmt: skip


def build(settings: NetworkSettings, classes: int, class_names: tuple[str, ...], key: str) -> Network:
    """Build a network; its random parts are drawn from torch's global generator.

    `key` is where the settings stand in the configuration, for messages.

    Raises:
        ModelError: unknown architecture or encoder, weights that cannot be had or do not fit.
    """
    weights = settings.weights
    from_file = weights is not None and (Path(weights).suffix != "" or "/" in weights or os.sep in weights)
    named_weights = None if from_file else weights
    body = create(settings, classes, f"{key}.", named_weights)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if weights is not None and from_file:
        _load_encoder(body.get_submodule("encoder"), Path(weights), f"{key}.weights={weights}")
    elif weights is not None:
        mean, std = _normalisation(settings, key)
    else:
        _quicken_batch_norm(body)
    return Network(settings, body, classes, class_names, mean, std, parts(settings, body))


def create(settings: NetworkSettings, classes: int, where: str, weights: str | None) -> nn.Module:
    """The smp network, with named weights or random ones; only names that the libraries list are looked up.

    `where` is what precedes arch, encoder and weights in a message.
    """
    if settings.arch.lower() not in ARCHITECTURES:
        raise ModelError(
            f"{where}arch={settings.arch} is not an architecture; {nearest(settings.arch.lower(), ARCHITECTURES)}"
        )
    check_encoder(settings.encoder, where)
    if weights is not None and settings.encoder.startswith("tu-") and weights != "imagenet":
        raise ModelError(
            f"{where}weights={weights}: timm's encoders take imagenet or null; another set of weights is part of the "
            "encoder's name, as in tu-resnet18.a1_in1k"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # smp's advice on its own encoder names
            return smp.create_model(settings.arch, settings.encoder, weights, in_channels=3, classes=classes)
    except Exception as error:  # the hub's client raises its own errors, its transport's and the system's
        raise _cannot_build(error, settings, where) from error


_known: dict[tuple[str, str], Partition] = {}  # finding the blocks takes a moment, and a study builds alike networks


def parts(settings: NetworkSettings, body: nn.Module) -> Partition:
    """The blocks of a network's encoder, which follow from the names of architecture and encoder."""
    name = settings.arch.lower(), settings.encoder
    if name not in _known:
        _known[name] = partition(body.get_submodule("encoder"))
    return _known[name]


def check_encoder(encoder: str, where: str) -> None:
    names = smp.encoders.get_encoder_names()
    if encoder.startswith("tu-"):
        known, names = timm.is_model(encoder.removeprefix("tu-")), [f"tu-{name}" for name in timm.list_models()]
    else:
        known = encoder in names
    if not known:
        raise ModelError(
            f"{where}encoder={encoder} is not an encoder of segmentation-models-pytorch; {nearest(encoder, names)}"
        )


def _cannot_build(error: Exception, settings: NetworkSettings, where: str) -> Exception:
    """What a failed construction means to a person; a defect of ours is handed back as it is."""
    if isinstance(error, KeyError | ValueError | NotImplementedError) and not isinstance(error, OSError):
        place = f"{where}weights={settings.weights}" if "weights" in str(error) else where.rstrip(".: ")
        return ModelError(f"{place}: cannot build {settings.arch} with {settings.encoder}: {error.args[0]}")
    if settings.weights is None:
        return error
    return ModelError(
        f"{where}weights={settings.weights}: the weights of {settings.encoder} could not be fetched "
        f"({type(error).__name__}); without a network set {where}weights=null or to a file of encoder weights"
    )


def _normalisation(settings: NetworkSettings, key: str) -> tuple[RGB, RGB]:
    """Mean and standard deviation that named weights were trained with, of RGB in [0, 1]."""
    try:
        params = smp.encoders.get_preprocessing_params(settings.encoder, pretrained=settings.weights)
    except Exception as error:  # from the hub, as above
        raise _cannot_build(error, settings, f"{key}.") from error
    scale = params["input_range"][1]
    mean, std = ((r / scale, g / scale, b / scale) for r, g, b in (params["mean"], params["std"]))
    return mean, std


def _quicken_batch_norm(body: nn.Module) -> None:
    """Give batch norms of random networks torch's default momentum of 0.1.

    EfficientNets ship with 0.01, which suits pretrained statistics; from random ones the running averages would lag
    for hundreds of steps behind the weights, and eval mode would show another network than the one that trains.
    """
    for module in body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1


def _load_encoder(encoder: nn.Module, path: Path, source: str) -> None:
    """Fill an encoder from a file of its own weights, or of a whole network of ours or of smp's."""
    weights = opened(path)
    names = weights.shapes
    prefixes = (prefix for prefix in ("body.encoder.", "encoder.") if any(n.startswith(prefix) for n in names))
    prefix = next(prefixes, "")
    fill(encoder, weights, {n.removeprefix(prefix): n for n in names if n.startswith(prefix)}, source)


def count_blocks(settings: NetworkSettings) -> int:
    """How many encoder blocks a network has; builds it, which takes a moment."""
    body = create(settings, 1, "backbone.student.", None)
    return len(partition(body.get_submodule("encoder")).blocks)
