"""Save and load networks: weights in `<name>.safetensors`, what to build in `<name>.json`, as plain strings.

Nothing in either file is unpickled or imported by name.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kd.networks.build import create, parts
from kd.networks.network import Network
from kd.networks.spec import NetworkSpec, find_weights, is_file, read_spec
from kd.networks.weights import fill, opened
from kd.settings import NetworkSettings
from kd.system.files import write_atomically, write_json

FACTS = "facts"  # the key in the header of a weights file


def save(network: Network, path: Path, **facts: Any) -> None:
    """Write `path` (.safetensors) and the .json beside it, both with `facts` (plain JSON)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    header = {FACTS: json.dumps(facts)}  # a single entry, since the order of several varies
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    spec = NetworkSpec(
        arch=network.settings.arch,
        encoder=network.settings.encoder,
        classes=network.classes,
        class_names=network.class_names,
        mean=network.normalisation[0],
        std=network.normalisation[1],
        channels=network.pixels.channels,
        depth=network.pixels.depth,  # type: ignore[arg-type]  # which pydantic checks
        decoder_channels=network.settings.decoder_channels,
    )
    write_json(path.with_suffix(".json"), {**spec.model_dump(exclude_none=True), **facts})


def saved_facts(path: Path) -> dict[str, Any]:
    """The `facts` passed to `save`, from the weights file; empty if it is missing or damaged."""
    if not is_file(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(FACTS, "{}")))
    except (OSError, SafetensorError, ValueError, TypeError):
        return {}


def load_file(path: Path) -> Network:
    """Load a network written by `save`.

    Raises:
        ModelError: a file is missing or damaged, or the two do not match.
    """
    spec = read_spec(path)
    settings = NetworkSettings(arch=spec.arch, encoder=spec.encoder, decoder_channels=spec.decoder_channels)
    weights = opened(path)
    body = create(settings, spec.classes, f"{path.with_suffix('.json')}: ", None, spec.channels)
    network = Network(
        settings, body, spec.classes, spec.class_names, (spec.mean, spec.std), parts(settings, body), spec.pixels
    )
    fill(network, weights, {name: name for name in weights.shapes}, str(path))
    return network


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Network:
    """Load the best student of a run folder, or any network from a .safetensors with its .json beside it.

    The network is in eval mode and includes its own normalisation.

    Args:
        path: a run folder, or a .safetensors file; `~` is expanded.
        device: the torch device to load it to.

    Shape:
        network: images B x 3 x H x W, RGB, 0..255 (uint8 or float), H and W multiples of 32 -> raw logits
        B x C x H x W; C = 1 is binary. Where `data.channels` or `data.depth` were others: so many, in stored values.

    Raises:
        ModelError: the weights file is missing or damaged. Nothing is unpickled or imported by name.

    >>> network = load("runs/2026-11-21/10-15-30-123456")  # doctest: +SKIP
    >>> with torch.inference_mode():  # doctest: +SKIP
    ...     labels = predict_labels(network(images))
    """
    file = find_weights(Path(path), "path", ("student.safetensors", "teacher.safetensors"))
    return load_file(file).to(device).eval()
