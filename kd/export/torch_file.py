"""torch.export: the network as a graph that plain torch loads, with a free batch and a free size."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from kd.data.source import SIDE
from kd.network import Network

LARGEST = 512  # times SIDE: 16384 pixels


def traced(network: Network, image_size: tuple[int, int]) -> ExportedProgram:
    """The network in eval mode as a program: batch is free, and so are height and width, in multiples of SIDE."""
    images = torch.zeros(2, 3, *(max(side, 2 * SIDE) for side in image_size), dtype=torch.uint8)
    height, width = (SIDE * Dim(name, min=1, max=LARGEST) for name in ("rows", "columns"))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(
            network.eval(), (images,), dynamic_shapes={"images": {0: Dim("batch", min=1), 2: height, 3: width}}
        )


def save_program(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write a .pt2; what it says of itself is in it as about.json."""
    torch.export.save(program, path, extra_files={"about.json": json.dumps(dict(metadata))})
