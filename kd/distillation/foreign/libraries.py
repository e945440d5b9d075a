"""Networks of segmentation-models-pytorch and torchvision: code from the library, weights from a file."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torchvision
from torch import nn

from kd.distillation.foreign.files import MOST_CHANNELS, SmpConfig, smp_config
from kd.distillation.foreign.network import Body
from kd.errors import ModelError, nearest
from kd.networks.build import ARCHITECTURES, check_encoder
from kd.networks.spec import MOST_WIDTH
from kd.networks.weights import fill, opened

#: The last layer of torchvision's heads; its first dimension is the number of channels.
LAST = ("classifier.4.weight", "classifier.low_classifier.weight")
AUXILIARY = "aux_classifier."  # used in training only


def smp_network(weights: Path) -> Body:
    """Load a network written by smp's `save_pretrained`, without its activation.

    Raises:
        ModelError: config.json names something that smp does not have, or the weights are damaged or do not match.
    """
    config, source = smp_config(weights), weights.with_name("config.json")
    if config.model_class not in ARCHITECTURES.values():
        known = nearest(config.model_class, ARCHITECTURES.values())
        raise ModelError(f"{source}: _model_class={config.model_class} is not an architecture of smp; {known}")
    check_encoder(config.encoder_name, f"{source}: ")
    builder = getattr(smp, config.model_class)
    arguments = _arguments(config, builder, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # smp's advice on its own encoder names
            network: nn.Module = builder(**arguments)
    except Exception as error:  # depends on the values in config.json
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{source}: smp cannot build this {config.model_class} ({said}); save it again") from error
    return _filled(network, weights)


def _arguments(config: SmpConfig, builder: Any, source: Path) -> dict[str, Any]:
    """The constructor arguments in config.json; no activation, no downloaded weights.

    Raises:
        ModelError: an argument is unknown, or its value is not a short plain one.
    """
    parameters = inspect.signature(builder.__init__).parameters.values()
    known = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][1:]
    given = {name: value for name, value in (config.model_extra or {}).items() if not name.startswith("_")}
    for name, value in given.items():
        if name not in known:
            raise ModelError(f"{source}: {name} is not an argument of smp's {config.model_class}")
        if not _plain(value):
            raise ModelError(f"{source}: {name}: should be a short number, word or list of them")
    own = {"encoder_name": config.encoder_name, "in_channels": config.in_channels, "classes": config.classes}
    return given | own | {"encoder_weights": None, "activation": None, "aux_params": None}


def _plain(value: Any) -> bool:
    """Whether a value is small and plain, so that building a network with it cannot exhaust memory."""
    if isinstance(value, list):
        return len(value) <= 16 and all(_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, dict):  # decoder_use_norm: {type: groupnorm, num_groups: 8}
        return len(value) <= 8 and all(_plain(item) and not isinstance(item, list | dict) for item in value.values())
    if isinstance(value, str):
        return len(value) <= 100
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= MOST_WIDTH)


def torchvision_network(name: str, weights: Path) -> Body:
    """Load a torchvision segmentation network from a state dict, which also sets its number of channels.

    Raises:
        ModelError: torchvision has no such network, or the weights are damaged or do not match.
    """
    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in names:
        raise ModelError(f"teacher.model={name} is not a segmentation network of torchvision; {nearest(name, names)}")
    shapes = opened(weights).shapes
    channels = next((shapes[last][0] for last in LAST if last in shapes and len(shapes[last]) == 4), None)
    if channels is None or not 1 <= channels <= MOST_CHANNELS:
        raise ModelError(
            f"teacher.path={weights}: has no weights of {name} ({' or '.join(LAST)}); give its state dict: "
            "torch.save(network.state_dict(), 'teacher.pth')"
        )
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=channels)
    return _filled(network, weights)


def _filled(network: nn.Module, path: Path) -> Body:
    """Load all weights from a file, except those that only training uses."""
    weights = opened(path)
    fill(network, weights, {n: n for n in weights.shapes if not n.startswith(AUXILIARY)}, f"teacher.path={path}")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Body(network, parameters, free_layout=True)
