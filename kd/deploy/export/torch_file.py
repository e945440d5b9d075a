"""torch.export: the network as a program that plain torch loads, with free batch and image size."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from kd.data.source import SIDE
from kd.deploy.export.check import ExportError
from kd.deploy.export.padding import constant_padding
from kd.networks.network import Network
from kd.networks.sizes import takes_other_sizes

LEAST, LARGEST = 2, 512  # times SIDE: 64 to 16384 pixels; torch specialises programs to a size of 1


def traced(network: Network, image_size: tuple[int, int]) -> ExportedProgram:
    """The network in eval mode as a program with free batch, height and width, these in multiples of SIDE.

    Height and width are fixed if the network takes one size alone.

    Raises:
        ExportError: it was trained on images that are too small.
    """
    if min(image_size) < LEAST * SIDE:
        raise ExportError(
            f"pt2 needs images of {LEAST * SIDE} pixels or more in both directions, and this network was trained at "
            f"{image_size[0]} x {image_size[1]}; leave it out: --format=onnx,smp"
        )
    images = network.black(2, image_size)
    free: dict[int, Any] = {0: Dim("batch", min=1)}
    if takes_other_sizes(network, image_size):
        free |= {2: SIDE * Dim("rows", min=LEAST, max=LARGEST), 3: SIDE * Dim("columns", min=LEAST, max=LARGEST)}
    with warnings.catch_warnings(), torch.no_grad(), constant_padding():
        warnings.simplefilter("ignore")
        return torch.export.export(network.eval(), (images,), dynamic_shapes={"images": free})


def save_program(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write a .pt2 file; `metadata` is in it as about.json."""
    torch.export.save(program, path, extra_files={"about.json": json.dumps(dict(metadata))})
