"""Student and teacher: segmentation-models-pytorch networks built from plain strings.

A saved network is two files: `<name>.safetensors` (weights) and `<name>.json` (plain strings: what to build). Nothing
in them is unpickled or imported by name.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd.blocks import partition
from kd.errors import ModelError, nearest
from kd.files import write_atomically, write_json
from kd.network import IMAGENET_MEAN, IMAGENET_STD, Network
from kd.settings import NetworkSettings
from kd.spec import NetworkSpec, read_spec

ARCHITECTURES = {name.lower(): name for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN",
                 "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT")}  # fmt: skip


def build(settings: NetworkSettings, classes: int, class_names: tuple[str, ...], key: str) -> Network:
    """Build a network; its random parts are drawn from torch's global generator.

    `key` is where the settings stand in the configuration, for messages.

    Raises:
        ModelError: unknown architecture or encoder, weights that cannot be had or do not fit.
    """
    if settings.arch.lower() not in ARCHITECTURES:
        raise ModelError(
            f"{key}.arch={settings.arch} is not an architecture; {nearest(settings.arch.lower(), ARCHITECTURES)}"
        )
    weights = settings.weights
    from_file = weights is not None and (Path(weights).suffix != "" or os.sep in weights)
    named_weights = None if from_file else weights
    body = _create(settings, classes, key, named_weights)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if from_file:
        _load_encoder(body.encoder, Path(weights), key)
    elif weights is not None:
        mean, std = _normalisation(settings, key)
    else:
        _quicken_batch_norm(body)
    return Network(settings, body, classes, class_names, mean, std)


def _create(settings: NetworkSettings, classes: int, key: str, weights: str | None) -> nn.Module:
    """The smp network, with named weights or random ones; only names that the libraries list are looked up."""
    _check_encoder(settings.encoder, key)
    if weights is not None and settings.encoder.startswith("tu-") and weights != "imagenet":
        raise ModelError(
            f"{key}.weights={weights}: timm's encoders take imagenet or null; another set of weights is part of the "
            "encoder's name, as in tu-resnet18.a1_in1k"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # smp's advice on its own encoder names
            return smp.create_model(settings.arch, settings.encoder, weights, in_channels=3, classes=classes)
    except Exception as error:  # the hub's client raises its own errors, its transport's and the system's
        raise _cannot_build(error, settings, key) from error


def _check_encoder(encoder: str, key: str) -> None:
    names = smp.encoders.get_encoder_names()
    if encoder.startswith("tu-"):
        known, names = timm.is_model(encoder.removeprefix("tu-")), [f"tu-{name}" for name in timm.list_models()]
    else:
        known = encoder in names
    if not known:
        raise ModelError(
            f"{key}.encoder={encoder} is not an encoder of segmentation-models-pytorch; {nearest(encoder, names)}"
        )


def _cannot_build(error: Exception, settings: NetworkSettings, key: str) -> Exception:
    """What a failed construction means to a person; a defect of ours is handed back as it is."""
    if isinstance(error, KeyError | ValueError | NotImplementedError) and not isinstance(error, OSError):
        where = f"{key}.weights={settings.weights}" if "weights" in str(error) else key
        return ModelError(f"{where}: cannot build {settings.arch} with {settings.encoder}: {error.args[0]}")
    if settings.weights is None:
        return error
    return ModelError(
        f"{key}.weights={settings.weights}: the weights of {settings.encoder} could not be fetched "
        f"({type(error).__name__}); without a network set {key}.weights=null or to a file of encoder weights"
    )


def _normalisation(settings: NetworkSettings, key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that named weights were trained with, of RGB in [0, 1]."""
    try:
        params = smp.encoders.get_preprocessing_params(settings.encoder, pretrained=settings.weights)
    except Exception as error:  # from the hub, as above
        raise _cannot_build(error, settings, key) from error
    scale = params["input_range"][1]
    return tuple(m / scale for m in params["mean"]), tuple(s / scale for s in params["std"])


def _quicken_batch_norm(body: nn.Module) -> None:
    """Give batch norms of random networks torch's default momentum of 0.1.

    EfficientNets ship with 0.01, which suits pretrained statistics; from random ones the running averages would lag
    for hundreds of steps behind the weights, and eval mode would show another network than the one that trains.
    """
    for module in body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or a plain state dict; nothing else is ever unpickled."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    except Exception as error:  # torch.load raises pickle, zip and runtime errors alike
        raise ModelError(
            f"{path}: not a plain state dict of tensors ({type(error).__name__}); save it as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds {type(state).__name__}, where a dict of tensors by name is needed")
    return state


def _load_encoder(encoder: nn.Module, path: Path, key: str) -> None:
    """Fill an encoder from a file of its own weights, or of a whole network of ours or of smp's."""
    state = _read_weights(path)
    for prefix in ("body.encoder.", "encoder."):
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            break
    _load_state(encoder, state, f"{key}.weights={path}")


def _load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    own = module.state_dict()
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    misfits = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or unknown or misfits:
        example = sorted(missing | unknown | set(misfits))[0]
        raise ModelError(
            f"{source}: the weights do not fit the network ({len(missing)} missing, {len(unknown)} unknown, "
            f"{len(misfits)} of another shape, such as {example})"
        )
    module.load_state_dict(state)


def save(network: Network, path: Path, **facts: Any) -> None:
    """Write `path` (.safetensors) and the .json beside it; `facts` (plain JSON) are noted there too."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    spec = NetworkSpec(
        arch=network.settings.arch,
        encoder=network.settings.encoder,
        classes=network.classes,
        class_names=network.class_names,
        mean=network.normalisation[0],
        std=network.normalisation[1],
    )
    write_json(path.with_suffix(".json"), {**spec.model_dump(), **facts})


def load(path: Path) -> Network:
    """Build the network that `save` wrote.

    Raises:
        ModelError: a file is missing or damaged, or the two do not fit together.
    """
    spec = read_spec(path)
    settings = NetworkSettings(arch=spec.arch, encoder=spec.encoder)
    body = _create(settings, spec.classes, str(path.with_suffix(".json")), None)
    network = Network(settings, body, spec.classes, spec.class_names, spec.mean, spec.std)
    _load_state(network, _read_weights(path), str(path))
    return network


def count_blocks(settings: NetworkSettings) -> int:
    """How many encoder blocks a network has; builds it, which takes a moment."""
    return len(partition(_create(settings, 1, "backbone.student", None).encoder).blocks)
