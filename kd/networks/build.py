"""Build students and teachers: segmentation-models-pytorch networks from plain strings.

Names are only looked up in the lists of smp and timm; nothing is imported by name.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import nn

from kd.data.files.pixels import USUAL, Pixels
from kd.data.statistics import Statistics
from kd.errors import ConfigError, ModelError, nearest
from kd.networks.network import Network, Numbers
from kd.networks.packaged_weights import MEAN, STD, is_packaged, load_packaged, timm_name
from kd.networks.partition import Partition, partition
from kd.networks.spec import is_file, read_spec
from kd.networks.weights import fill, opened
from kd.settings import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings

ARCHITECTURES = {name.lower(): name for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN",
                 "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT")}  # fmt: skip


def build(
    settings: NetworkSettings, classes: int, class_names: tuple[str, ...], key: str, pixels: Pixels = USUAL,
    statistics: Statistics | None = None,
) -> Network:  # fmt: skip
    """Build a network; random weights are drawn from torch's global generator.

    Args:
        key: the configuration key of the settings, for error messages.
        pixels: what the pixels of its images are: weights of other channels are adapted.
        statistics: those of the data, which normalise the input unless the settings say how.

    Raises:
        ModelError: unknown architecture or encoder, or weights that are unavailable or do not match.
    """
    weights = settings.weights
    from_file = weights is not None and (Path(weights).suffix != "" or "/" in weights or os.sep in weights)
    packaged = weights == "imagenet" and is_packaged(settings.encoder)
    body = create(settings, classes, f"{key}.", None if from_file or packaged else weights, pixels.channels)
    encoder = body.get_submodule("encoder")
    if weights is None:
        _raise_batch_norm_momentum(body)
    elif from_file:
        _load_encoder(encoder, Path(weights), f"{key}.weights={weights}")
    elif packaged:
        load_packaged(encoder, settings.encoder)
    file = Path(weights) if weights is not None and from_file else None
    normalisation = _normalisation(settings, key, file, pixels, statistics)
    return Network(settings, body, classes, class_names, normalisation, parts(settings, body), pixels)


def create(
    settings: NetworkSettings, classes: int, where: str, weights: str | None, channels: int = USUAL.channels
) -> nn.Module:
    """The smp network with named or random weights; only names that the libraries list are accepted.

    smp and timm adapt named weights to other `channels` than RGB (`kd.networks.weights.adapted`).

    `where` precedes arch, encoder and weights in error messages.
    """
    if settings.arch.lower() not in ARCHITECTURES:
        raise ModelError(
            f"{where}arch={settings.arch} is not an architecture; {nearest(settings.arch.lower(), ARCHITECTURES)}"
        )
    check_encoder(settings.encoder, where)
    if weights is not None and settings.encoder.startswith("tu-") and weights != "imagenet":
        raise ModelError(
            f"{where}weights={weights}: timm's encoders take imagenet or null; for other weights use a tag in the "
            "encoder's name, as in tu-resnet18.a1_in1k"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # smp's deprecations of its own encoder names
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what fails in the end is raised
            return smp.create_model(
                settings.arch, settings.encoder, weights, channels, classes, **_decoder(settings, where)
            )
    except Exception as error:  # errors of the hub's client, its transport and the system
        raise _cannot_build(error, settings, where) from error


_partitions: dict[tuple[str, str], Partition] = {}  # partitioning is slow, and a study builds similar networks


def parts(settings: NetworkSettings, body: nn.Module) -> Partition:
    """The blocks of a network's encoder, cached by the names of architecture and encoder."""
    name = settings.arch.lower(), settings.encoder
    if name not in _partitions:
        _partitions[name] = partition(body.get_submodule("encoder"))
    return _partitions[name]


def check_encoder(encoder: str, where: str) -> None:
    names = smp.encoders.get_encoder_names()
    if encoder in names or (encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-"))):
        return
    if encoder.startswith("tu-"):
        names = [f"tu-{name}" for name in timm.list_models()]
    raise ModelError(
        f"{where}encoder={encoder} is not an encoder of segmentation-models-pytorch; {nearest(encoder, names)}"
    )


def _cannot_build(error: Exception, settings: NetworkSettings, where: str) -> Exception:
    """The user error for a failed construction; a bug of ours is returned unchanged."""
    if isinstance(error, KeyError | ValueError | NotImplementedError) and not isinstance(error, OSError):
        place = f"{where}weights={settings.weights}" if "weights" in str(error) else where.rstrip(".: ")
        return ModelError(f"{place}: cannot build {settings.arch} with {settings.encoder}: {error.args[0]}")
    if settings.weights is None:
        return error
    return ModelError(
        f"{where}weights={settings.weights}: the weights of {settings.encoder} could not be downloaded "
        f"({type(error).__name__}); without a network take backbone=lite0_from_lite2, whose weights are installed, or "
        f"set {where}weights=null or to a file of encoder weights"
    )


def _decoder(settings: NetworkSettings, where: str) -> dict[str, Any]:
    """The decoder's channels as smp takes them; empty where they are not given."""
    if settings.decoder_channels is None:
        return {}
    takes = {
        name for name, arch in ARCHITECTURES.items() if "decoder_channels" in signature(getattr(smp, arch)).parameters
    }
    if settings.arch.lower() not in takes:
        raise ModelError(
            f"{where}decoder_channels={settings.decoder_channels}: {settings.arch} has none; leave it null, or choose "
            f"arch from {', '.join(sorted(takes))}"
        )
    return {"decoder_channels": settings.decoder_channels}


def _normalisation(
    settings: NetworkSettings, key: str, file: Path | None, pixels: Pixels, statistics: Statistics | None
) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of each channel in [0, 1] that a network's pixels are normalised with.

    The configured ones, else the data's, else what the weights were trained with: the description beside `file`, or
    what smp and timm say of the encoder. Those are of RGB: for other pixels, as in a network that is only measured,
    nothing is known, and 0.5 is as good as any.
    """
    if settings.normalisation is not None:
        try:
            return settings.normalisation.unscaled(pixels.channels)
        except ValueError as error:
            raise ConfigError(f"{key}.normalisation {error}") from error
    if statistics is not None:
        mean, std = (tuple(value / pixels.level for value in each) for each in (statistics.mean, statistics.std))
        return mean, std
    if not pixels.usual:
        return (0.5,) * pixels.channels, (0.5,) * pixels.channels
    if file is not None and is_file(file.with_suffix(".json")):
        spec = read_spec(file)
        return spec.mean, spec.std
    if settings.weights is None or file is not None or is_packaged(settings.encoder):
        return usual_normalisation(settings.encoder)
    try:
        params = smp.encoders.get_preprocessing_params(settings.encoder, pretrained=settings.weights)
    except Exception as error:  # as above
        raise _cannot_build(error, settings, f"{key}.") from error
    return _unscaled(params)


def _unscaled(params: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
    """smp's preprocessing parameters as mean and standard deviation of RGB in [0, 1]."""
    scale = (params.get("input_range") or (0, 1))[1]
    mean, std = (tuple(value / scale for value in params[name]) for name in ("mean", "std"))
    return mean, std


def usual_normalisation(encoder: str) -> tuple[Numbers, Numbers]:
    """What an encoder's published weights were trained with; ImageNet's where nothing is published. No network."""
    if is_packaged(encoder):
        return MEAN, STD
    published = timm.get_pretrained_cfg(timm_name(encoder)) if encoder.startswith("tu-") else None
    return _unscaled({"mean": published.mean, "std": published.std}) if published else (IMAGENET_MEAN, IMAGENET_STD)


def _raise_batch_norm_momentum(body: nn.Module) -> None:
    """Set torch's default momentum of 0.1 in the batch norms of a random network.

    EfficientNets ship with 0.01, which suits pretrained statistics; from random initialisation the running averages
    would lag hundreds of steps behind the weights, and eval mode would differ from training mode.
    """
    for module in body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1


def _load_encoder(encoder: nn.Module, path: Path, source: str) -> None:
    """Load an encoder from a file of its own weights, or of a whole network of this project or smp."""
    weights = opened(path)
    names = weights.shapes
    prefixes = (prefix for prefix in ("body.encoder.", "encoder.") if any(n.startswith(prefix) for n in names))
    prefix = next(prefixes, "")
    fill(encoder, weights, {n.removeprefix(prefix): n for n in names if n.startswith(prefix)}, source, adapt=True)


def count_blocks(settings: NetworkSettings) -> int:
    """The number of encoder blocks of a network; builds it, which is slow."""
    return len(parts(settings, create(settings, 1, "backbone.student.", None)).blocks)
