"""Load a foreign teacher from its file as a `Segmenter`."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kd.data.files.pixels import USUAL, Pixels
from kd.distillation.foreign.files import channels, check_inputs, smp_config
from kd.distillation.foreign.libraries import smp_network, torchvision_network
from kd.distillation.foreign.network import Body, Foreign, probe
from kd.networks.precision import Precision
from kd.settings import Cached, ForeignTeacher
from kd.system.files import digest

#: The library that computes the logits, besides torch.
LIBRARIES = {"smp": "segmentation-models-pytorch", "torchvision": "torchvision", ".onnx": "onnxruntime"}


def load(
    teacher: ForeignTeacher, file: Path, classes: int, class_names: tuple[str, ...], image_size: tuple[int, int],
    precision: Precision, pixels: Pixels = USUAL,
) -> Foreign:  # fmt: skip
    """Load the network onto the device, map its channels to the data's classes and run it once to check its output.

    Raises:
        ModelError: the file is damaged, or is not a network that maps images to raw logits.
        ConfigError: its channels do not match the data's classes, and `teacher.class_map` does not map them.
    """
    body = _body(teacher, file, precision.device, pixels.channels)
    network = Foreign(body, teacher.normalisation, classes, class_names, pixels)
    network = network.to(precision.device) if not body.free_layout else precision.place(network)
    network.eval()
    given = probe(network, image_size, f"teacher.path={teacher.path}")
    network.choose(channels(teacher, given, class_names))
    return network.requires_grad_(False)


def follows_from(teacher: ForeignTeacher, file: Path) -> dict[str, Any]:
    """Everything a foreign teacher's logits depend on, besides the data, the device and torch."""
    library = LIBRARIES.get(file.suffix if teacher.kind == "exported" else teacher.kind)
    return {
        "weights": [digest(part) for part in parts(teacher, file)],
        "network": teacher.model_dump(mode="json", exclude={"path", *Cached.model_fields}),
        "library": library and f"{library} {version(library)}",
    }


def parts(teacher: ForeignTeacher, file: Path) -> tuple[Path, ...]:
    """All files that a network is read from, the weights first."""
    if teacher.kind == "smp":
        return file, file.with_name("config.json")
    if file.suffix == ".onnx":
        from kd.distillation.foreign.onnx_file import external_files  # slow to import

        return file, *external_files(file)
    return (file,)


def _body(teacher: ForeignTeacher, file: Path, device: torch.device, inputs: int) -> Body:
    if teacher.kind == "smp":
        check_inputs(teacher, smp_config(file).in_channels, inputs)
        return smp_network(file)
    if teacher.kind == "torchvision":
        check_inputs(teacher, 3, inputs)
        return torchvision_network(teacher.model, file)
    from kd.distillation.foreign.onnx_file import onnx_network  # slow to import

    return onnx_network(file, device, inputs)
