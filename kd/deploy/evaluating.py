"""`kd evaluate`: a run's network, or an ONNX file that was exported from it, scored on pictures with masks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from kd.config.compose import compose, plain
from kd.config.read import source as read_source
from kd.config.typed import readable
from kd.data import Source
from kd.data.batches.loading import EvalLoader
from kd.data.sizing import Sizing
from kd.deploy.export import OnnxNetwork
from kd.deploy.finished import Finished, device_of, find
from kd.deploy.style import logits_at
from kd.errors import ConfigError, ModelError, shown
from kd.networks.precision import Precision, hold_memory
from kd.run import console
from kd.study.hydra_options import overrides_as_values
from kd.system.files import real
from kd.system.untrusted import is_regular
from kd.training.evaluation import evaluate
from kd.training.metrics import Confusion, reference_summary
from kd.training.quality import Compared

ONE_CLASS = "one class everywhere"  # not the trivial prediction of a run, which is made of its training masks
#: What says how pictures are brought to the network: the run's own, unless typed.
SIZES = ("image_size", "fit", "scale", "window_overlap")


@dataclass(frozen=True)
class Question:
    """What `kd evaluate` is asked.

    Attributes:
        overrides: which data, as for `kd train`; without `data=...` they change the run's own.
        split: one of train, val and test; None: test, or val if the data has no test split.
        native: whether logits are resized to each picture's own size, and compared with its mask as it is.
        batch: pictures, or windows, computed together.
    """

    overrides: Sequence[str] = ()
    split: str | None = None
    native: bool = False
    batch: int = 8
    device: str = "auto"


def evaluate_run(path: Path, asked: Question, as_json: bool) -> None:
    """Score the network of a run on a split, and print its quality beside that of one class everywhere.

    Raises:
        ConfigError: the data has other classes than the network, or no such split.
    """
    run, network = _network(path)
    data = _data(run, asked.overrides)
    split = asked.split or ("test" if data.size("test") else "val")
    _check(run, data, split)
    precision = Precision(device_of("cpu" if isinstance(network, OnnxNetwork) else asked.device))
    if precision.device.type == "cpu":
        hold_memory()
    found = _confusion(network, data, split, asked, precision)
    names, words = run.network.class_names, _in_words(data.sizing, asked.native)
    metrics = {f"{split}/{name}": value for name, value in found.summary(names).items()}
    one_class = {f"{split}/{name}": value for name, value in reference_summary(most_frequent(found), names).items()}
    warnings = [*_renamed(run, data), *_partial(data, split), *_absent(found, names)]
    if as_json:
        result = {"weights": str(path), "split": split, "images": data.size(split), "measured_at": words}
        print(json.dumps({**result, "student": metrics, "one_class": one_class, "warnings": warnings}, indent=2))
        return
    console.say(f"evaluate {shown(path)}: {data.size(split)} pictures of {split}")
    compared = Compared(names, metrics, {}, one_class, f"a prediction of {ONE_CLASS}")
    console.show(console.comparison(compared, words, run.weights.stem, ONE_CLASS))
    if len(names) > 2:
        console.show(_classes(names, found))
    for warning in (*warnings, compared.warning()):
        if warning:
            console.say(f"warning  {warning}")


def _network(path: Path) -> tuple[Finished, nn.Module]:
    """The run that a path names, and the network to score: the run's own, or that of an ONNX file in its export/."""
    if path.suffix != ".onnx":
        run = find(path)
        return run, run.network
    export = real(path).parent
    folder = export.parent
    if export.name != "export" or not is_regular(folder, f"export/{path.name}"):
        raise ModelError(f"{shown(path)} is not a file that kd export wrote into the folder export/ of a run; give one")
    run = find(folder / f"{path.name.partition('.')[0]}.safetensors")
    return run, OnnxNetwork(path, run.network.class_names)


def _data(run: Finished, overrides: Sequence[str]) -> Source:
    """The data that was asked for, at the size that the run's network takes unless another one is typed."""
    overrides = readable(overrides)
    typed = dict(overrides_as_values(overrides))
    for key in typed:
        if key != "data" and not key.startswith("data."):
            raise ConfigError(f"{key} says nothing of the data; only data=... and data.<key>=... can be given here")
    if "data" in typed:
        node = plain(compose(overrides))["data"]
    elif run.config:
        node = {**run.config["data"], **{key.removeprefix("data."): value for key, value in typed.items()}}
    else:
        raise ConfigError(f"{run.folder} has no config.yaml that says which data; add data=folder data.root=...")
    own = {name: getattr(run.sizing, name) for name in SIZES if f"data.{name}" not in typed}
    return read_source({"data": {**node, **own}})


def _check(run: Finished, data: Source, split: str) -> None:
    """Raise ConfigError unless the data has the network's classes, and the split has pictures."""
    if not data.size(split):
        raise ConfigError(f"--split={split}: the data has no pictures there; choose another split")
    names = run.network.class_names
    if data.classes != run.network.classes:
        raise ConfigError(
            f"data.classes={data.classes}, but {run.weights.name} has {run.network.classes} logits, for "
            f"{', '.join(names)}; give data with these classes"
        )


def _renamed(run: Finished, data: Source) -> list[str]:
    """A warning, if the data's classes have other names than the network's."""
    own, other = run.network.class_names, data.class_names
    if tuple(own) == tuple(other):
        return []
    return [
        f"the data's classes are named {', '.join(other)}, the network's {', '.join(own)}: they are compared in this "
        "order"
    ]


def _partial(data: Source, split: str) -> list[str]:
    """A warning, if a part of the split is scored."""
    if data.limit is None or data.size(split) < data.limit:
        return []
    return [f"data.limit={data.limit}: no more pictures of the split are scored; data.limit=null scores all"]


def _absent(found: Confusion, names: Sequence[str]) -> list[str]:
    """A warning, if the masks lack classes."""
    absent = [name for name, pixels in zip(names, found.counts.sum(1).tolist(), strict=True) if not pixels]
    if not absent:
        return []
    return [
        f"{len(absent)} of {len(names)} classes have no pixel in these masks ({', '.join(absent)}): the mean counts "
        "each as 0 if it is predicted anywhere, and leaves it out otherwise; are these the network's classes?"
    ]


def _confusion(network: nn.Module, data: Source, split: str, asked: Question, precision: Precision) -> Confusion:
    if not isinstance(network, OnnxNetwork):
        network = precision.place(network)  # type: ignore[type-var]
    stretched = asked.native and not data.sizing.crops
    seen = replace(data, fit="crop", scale=1.0, cache="off") if stretched else data
    loader = EvalLoader(seen, split, asked.batch, whole=stretched)
    network = Stretched(network, data.sizing) if stretched else network
    return evaluate(network, loader, precision, data.void).confusion  # type: ignore[arg-type]


class Stretched(nn.Module):
    """A network of one size that takes a picture of any: the picture is resized to it, and the logits back.

    As `kd predict` does, without flips. Shape: 1 x channels x H x W, as stored -> 1 x C x H x W.
    """

    def __init__(self, network: nn.Module, sizing: Sizing) -> None:
        super().__init__()
        self.network, self.sizing, self.class_names = network, sizing, network.class_names

    def forward(self, images: Tensor) -> Tensor:
        own = (images.shape[2], images.shape[3])
        small = self.sizing.image(np.ascontiguousarray(images[0].permute(1, 2, 0).cpu().numpy()))
        logits = self.network(torch.from_numpy(small).permute(2, 0, 1)[None].to(images.device))[0].float().cpu().numpy()
        logits = self.sizing.without_padding(logits, own)
        return torch.from_numpy(logits_at(logits, own))[None].to(images.device)


def most_frequent(confusion: Confusion) -> Confusion:
    """The counts of a prediction that gives every pixel the label that is most frequent in the truth."""
    trivial = Confusion(len(confusion.counts))
    truth = confusion.counts.sum(1).cpu()
    trivial.counts[:, int(truth.argmax())] = truth
    return trivial


def _in_words(sizing: Sizing, native: bool) -> str:
    return "the pictures' own size (logits resized)" if native and not sizing.crops else sizing.in_words


def _classes(names: Sequence[str], found: Confusion) -> Table:
    table, pixels = Table(title="classes", title_justify="left"), found.counts.sum(1)
    for name in ("", "IoU", "Dice", "pixels"):
        table.add_column(name, justify="right" if name else "left")
    for name, iou, dice, count in zip(names, found.iou(), found.dice(), pixels.tolist(), strict=True):
        table.add_row(name, console.figure(iou), console.figure(dice), f"{count / int(pixels.sum()):.2%}")
    return table
