"""The README's picture: test images, their truth, and what teacher, student alone and taught student make of them.

    python -m benchmarks.side_by_side TEACHER ALONE TAUGHT docs/side_by_side.png

Each is a run folder (or a weights file) of one data set. The pictures are evenly spaced over its test split.
"""

import sys
from pathlib import Path

import torch

from kd.data.source import spaced
from kd.deploy.finished import find
from kd.errors import DataError
from kd.run.predictions import draw_side_by_side
from kd.training.metrics import predict_labels

ROWS = 4


@torch.inference_mode()
def main(teacher: str, alone: str, taught: str, out: str) -> None:
    runs = {"teacher": find(Path(teacher)), "student alone": find(Path(alone)), "taught student": find(Path(taught))}
    data = runs["taught student"].data
    if data is None:
        raise DataError(f"the data of {taught} is not on this machine")
    rows = []
    for index in spaced(data.size("test"), ROWS):
        image, truth = data.read("test", index)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        made = {name: predict_labels(run.network(pixels))[0].numpy() for name, run in runs.items()}
        rows.append({"image": image, "truth": data.voided(truth), **made})
    draw_side_by_side(rows, data.class_names, data.void, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
