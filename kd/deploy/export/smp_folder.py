"""segmentation-models-pytorch's own layout (config.json, model.safetensors): `smp.from_pretrained(folder)` loads it.

smp's networks do not normalise: mean and standard deviation are in the README, and in config.json under names with a
leading underscore, which smp ignores.
"""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from kd.data.files.pixels import Pixels
from kd.networks.network import Network
from kd.networks.sizes import takes_other_sizes

README = """\
---
library_name: segmentation-models-pytorch
pipeline_tag: image-segmentation
tags: [segmentation-models-pytorch, semantic-segmentation, pytorch]
---
# {arch} with {encoder}

Trained with kd-sweeper on images of {height} x {width} (height x width), classes: {names}.

This network does **not** normalise its input. Load it and compute logits in two lines; `images`
are {images}:

```python
model = smp.from_pretrained("path/of/this/folder").eval()
logits = model((images{scaled} - torch.tensor({mean}).view(-1, 1, 1)) / torch.tensor({std}).view(-1, 1, 1))
```

{sides} {meaning}
"""


def save_folder(network: Network, image_size: tuple[int, int], folder: Path) -> None:
    """Write config.json, model.safetensors and README.md into an existing folder."""
    mean, std = ([float(value) for value in values] for values in network.normalisation)
    meaning = (
        "One logit: foreground where the logit is above 0."
        if network.classes == 1
        else "The class with the largest logit wins."
    )
    any_size = takes_other_sizes(network, image_size)
    sides = "Sides must be multiples of 32." if any_size else "It takes images of this size alone."
    text = README.format(
        arch=network.settings.arch, encoder=network.settings.encoder, height=image_size[0], width=image_size[1],
        names=", ".join(network.class_names), mean=mean, std=std, meaning=meaning, sides=sides,
        images=f"N x {network.pixels.channels} x H x W, {network.pixels.values}", scaled=_scaled(network.pixels),
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")  # otherwise smp writes its own
    model: Any = network.body  # smp's class, which has more methods than nn.Module
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = {"_mean": mean, "_std": std, "_class_names": network.class_names, "_image_size": image_size}
    (folder / "config.json").write_text(json.dumps(config | about, indent=2, sort_keys=True), encoding="utf-8")


def _scaled(pixels: Pixels) -> str:
    """The division that brings stored values to the numbers of a normalisation."""
    return "" if pixels.level == 1 else f" / {pixels.level:g}"


class Normalised(torch.nn.Module):
    """The folder as its README says to use it: loaded by smp, with the input normalised outside."""

    def __init__(self, folder: Path, network: Network) -> None:
        super().__init__()
        with redirect_stdout(StringIO()):  # the hub client prints that it loads
            self.body = smp.from_pretrained(str(folder)).eval()
        mean, std = network.normalisation
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.level = network.pixels.level

    def forward(self, images: Tensor) -> Tensor:
        return self.body((images / self.level - self.mean) / self.std)
