"""The network of a finished run, with its configuration and data."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kd.config.read import source as read_source
from kd.data import Folder, HuggingFace, OxfordPet, Source
from kd.data.sizing import Sizing
from kd.data.source import SIDE
from kd.errors import ConfigError, DataError, ModelError, UserError
from kd.networks import saved
from kd.networks.network import Network
from kd.networks.precision import choose_device
from kd.networks.sizes import takes_other_sizes
from kd.networks.spec import find_weights
from kd.run.folder import SavedRun
from kd.settings.keys import DEVICE
from kd.system.files import digest
from kd.system.installation import NAME, version
from kd.system.untrusted import UnreadableError

LONGEST_SIDE = 2**14  # pixels; a file of weights may not ask for more


@dataclass(frozen=True)
class Finished:
    """The network of a run.

    Attributes:
        sizing: how pictures are brought to the size that it was trained at.
        config: the run's configuration; empty if there is no config.yaml beside the weights.
        source: the data of that configuration, which may no longer exist.
    """

    weights: Path
    network: Network
    sizing: Sizing
    config: dict[str, Any]
    source: Source | None

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) it was trained at: of its pictures, or of their crops."""
        return self.sizing.image_size

    @property
    def folder(self) -> Path:
        return self.weights.parent

    @property
    def data(self) -> Source | None:
        """The data, if it is on this machine; else None."""
        source = self.source
        if isinstance(source, OxfordPet):
            source = replace(source, download=False)
        try:
            return source if source and source.size("val") else None
        except (DataError, ConfigError):  # it is not there, or a package that reads it
            return None

    @property
    def mask_values(self) -> tuple[int, ...]:
        """The pixel value that masks have for each label."""
        labels = len(self.network.class_names)
        values = self.source.coding.written if isinstance(self.source, Folder | HuggingFace) else ()
        return values if len(values) == labels else tuple(range(labels))

    @property
    def mask_palette(self) -> bytes | None:
        """Red, green and blue of each label where the data has masks in colour; else None."""
        return self.source.coding.palette if isinstance(self.source, Folder | HuggingFace) else None


def find(path: Path) -> Finished:
    """Load the network of a run: the student in a run folder, or a file of weights.

    Raises:
        ModelError: the network is missing, or cannot be built.
        ConfigError, RunError: the folder's config.yaml is damaged.
    """
    weights = find_weights(path, "run", ("student.safetensors", "teacher.safetensors"))
    file, config = weights.parent / "config.yaml", SavedRun(weights.parent).config()
    try:
        source = read_source(config) if config else None
    except UserError as error:
        raise ConfigError(f"{file}: {error}") from error
    network = saved.load_file(weights).eval().requires_grad_(False)
    if source and source.classes != network.classes:
        raise ConfigError(
            f"{file}: data.classes={source.classes}, but {weights.name} has {network.classes} logits; restore "
            "the file that the run wrote"
        )
    if source and source.pixels != network.pixels:
        raise ConfigError(
            f"{file}: {source.pixels.options}, but {weights.name} takes {network.pixels.in_words}; restore the file "
            "that the run wrote"
        )
    return Finished(weights, network, _sizing(weights, source), config, source)


def _sizing(weights: Path, source: Source | None) -> Sizing:
    facts = saved.saved_facts(weights)
    size = _image_size(weights, source, facts.get("image_size"))
    try:
        return Sizing.of(size, facts)
    except ValueError as error:
        raise ModelError(f"{weights}: its {error}; give the folder of the run that made it") from error


def _image_size(weights: Path, source: Source | None, noted: Any) -> tuple[int, int]:
    size = source.image_size if noted is None and source else noted
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(type(side) is int and 0 < side <= LONGEST_SIDE and side % SIDE == 0 for side in size)
    ):
        raise ModelError(
            f"{weights}: its image_size is {noted} and should be two multiples of {SIDE}; give the folder of the run "
            "that made it"
        )
    return size[0], size[1]


def device_of(name: str) -> torch.device:
    """The device for an option `--device`.

    Raises:
        ConfigError: there is no such kind of device, or none on this machine.
    """
    if not DEVICE.fullmatch(name):
        raise ConfigError(f"--device={name} should be auto, cpu, mps, cuda or cuda:<number>")
    try:
        return choose_device(name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("trainer.device", "--device")) from error


def facts(run: Finished) -> dict[str, str]:
    """Metadata that every exported file carries."""
    network, pixels, (height, width) = run.network, run.network.pixels, run.image_size
    kind = "" if pixels.deep else "uint8, "
    mean, std = network.normalisation
    sides = f"H = {height} and W = {width}"
    if takes_other_sizes(network, run.image_size):
        sides = f"H and W multiples of {SIDE}"
    return {
        "class_names": json.dumps(network.class_names),
        "input": f"images: N x {pixels.channels} x H x W {kind}{pixels.values}, {sides}; normalised inside",
        "output": "logits: N x C x H x W float32; C = 1: foreground where above 0, else the largest logit wins",
        "image_size": json.dumps([height, width]),
        **({} if run.sizing.fit == "resize" else {"sizing": json.dumps(run.sizing.facts())}),
        **({} if pixels.usual else {"pixels": json.dumps(pixels.facts())}),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "mask_values": json.dumps(run.mask_values),
        "arch": network.settings.arch,
        "encoder": network.settings.encoder,
        "producer": f"{NAME} {version()}",
        "run": _run_id(run.folder),
        "weights": digest(run.weights),
    }


def _run_id(folder: Path) -> str:
    """The id of a run; empty if run.json is missing or damaged."""
    try:
        return str(SavedRun(folder).identity().get("id", ""))
    except UnreadableError:
        return ""
