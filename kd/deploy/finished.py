"""The network of a finished run, with what its folder says of it."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from kd.config.read import source as read_source
from kd.data import OxfordPet, Source
from kd.data.source import SIDE
from kd.errors import ConfigError, DataError, ModelError, RunError, UserError
from kd.networks import saved
from kd.networks.network import Network
from kd.networks.precision import choose_device
from kd.networks.spec import find_weights, is_file
from kd.system.files import digest
from kd.system.installation import NAME, version

DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
LONGEST_SIDE = 2**14  # pixels of a side that a file of weights may ask for


@dataclass(frozen=True)
class Finished:
    """A network with what is known of it.

    Attributes:
        image_size: (height, width) that it was trained at.
        config: its run's configuration; empty where there is no config.yaml beside the weights.
        source: the data of that, which need not be there any more.
    """

    weights: Path
    network: Network
    image_size: tuple[int, int]
    config: dict[str, Any]
    source: Source | None

    @property
    def folder(self) -> Path:
        return self.weights.parent

    @property
    def data(self) -> Source | None:
        """The data as it is on this machine; None where it is gone."""
        source = self.source
        if isinstance(source, OxfordPet):
            source = replace(source, download=False)
        try:
            return source if source and source.size("val") else None
        except DataError:
            return None

    @property
    def mask_values(self) -> tuple[int, ...]:
        """What masks store for each label."""
        values, labels = getattr(self.source, "mask_values", ()), len(self.network.class_names)
        return tuple(values) if len(values) == labels else tuple(range(labels))


def find(path: Path) -> Finished:
    """The network of a run: the student of a run folder, or the file that is named.

    Raises:
        ModelError: there is none, or it cannot be built.
        ConfigError, RunError: the folder's config.yaml is damaged.
    """
    weights = find_weights(path, "run", ("student.safetensors", "teacher.safetensors"))
    file = weights.parent / "config.yaml"
    config = _config(file) if is_file(file) else {}
    try:
        source = read_source(config) if config else None
    except UserError as error:
        raise ConfigError(f"{file}: {error}") from error
    network = saved.load_file(weights).eval().requires_grad_(False)
    if source and source.classes != network.classes:
        raise ConfigError(
            f"{file}: data.classes={source.classes}, but {weights.name} gives {network.classes} logits; put back "
            "the file that the run wrote"
        )
    return Finished(weights, network, _image_size(weights, source), config, source)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"{path} is not readable YAML ({error}): put it back, or name weights elsewhere") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds no configuration: put it back, or name weights elsewhere")
    return config


def _image_size(weights: Path, source: Source | None) -> tuple[int, int]:
    said = saved.saved_facts(weights).get("image_size")
    size = source.image_size if said is None and source else said
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(type(side) is int and 0 < side <= LONGEST_SIDE and side % SIDE == 0 for side in size)
    ):
        raise ModelError(
            f"{weights}: it should say at which image_size it was trained, as two multiples of {SIDE}, but says "
            f"{said}; give the folder of the run that made it"
        )
    return size[0], size[1]


def device_of(name: str) -> torch.device:
    """The device that --device names.

    Raises:
        ConfigError: there is no such kind, or none here.
    """
    if not DEVICES.fullmatch(name):
        raise ConfigError(f"--device={name} should be auto, cpu, mps, cuda or cuda:<number>")
    try:
        return choose_device(name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("trainer.device", "--device")) from error


def facts(run: Finished) -> dict[str, str]:
    """What an exported file says of itself."""
    network, (height, width) = run.network, run.image_size
    mean, std = network.normalisation
    return {
        "class_names": json.dumps(network.class_names),
        "input": f"images: N x 3 x H x W uint8, RGB, 0..255, H and W multiples of {SIDE}; normalised inside",
        "output": "logits: N x C x H x W float32; C = 1: foreground where above 0, else the largest wins",
        "image_size": json.dumps([height, width]),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "mask_values": json.dumps(run.mask_values),
        "arch": network.settings.arch,
        "encoder": network.settings.encoder,
        "producer": f"{NAME} {version()}",
        "run": str(noted(run.folder, "run").get("id", "")),
        "weights": digest(run.weights),
    }


def noted(folder: Path, what: str) -> dict[str, Any]:
    """What <what>.json of a run folder says; nothing where it is missing or damaged."""
    try:
        found = json.loads((folder / f"{what}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
