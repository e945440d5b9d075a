"""Predictions for images of any size and format, each written at its image's own size.

An image is resized to the size that the network was trained at, as the loader does it, and its logits are resized back
bilinearly before labels are taken: at the training size the result is exactly that of evaluation. Threads read and
write while the network computes. Temperature is 1.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kd.data.decode import read_image, resized_image
from kd.data.image_file import open_file
from kd.data.naming import IMAGE_SUFFIXES
from kd.deploy.provenance import save_array, save_picture
from kd.errors import DataError, shown
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.system.files import digest, json_digest, write_atomically

Kind = Literal["masks", "probabilities", "overlays"]
FLIPS: dict[str, list[tuple[int, ...]]] = {
    "": [()],
    "h": [(), (3,)],
    "hv": [(), (3,), (2,), (2, 3)],
}  # axes of N x C x H x W that each forward pass flips
VERSION = 1  # part of every mark: increase it whenever the same network writes something else for the same picture
SUFFIXES = (*IMAGE_SUFFIXES, ".gif")


@dataclass(frozen=True)
class Wanted:
    """What `kd predict` was asked for: an output kind, a key of FLIPS, images per batch, and whether to overwrite."""

    kind: Kind = "masks"
    flips: str = ""
    batch: int = 8
    overwrite: bool = False


@dataclass(frozen=True)
class Style:
    """How predictions are written: masks have `values[i]` for label i, overlays `colours[i]`.

    `palette`, red, green and blue of each label, is that of masks in colour, which store the label as its index.
    """

    kind: Kind
    classes: int
    values: Sequence[int]
    colours: np.ndarray | None = None
    palette: bytes | None = None

    @property
    def suffix(self) -> str:
        if self.kind == "overlays":
            return ".jpg"
        return ".npy" if self.kind == "probabilities" and self.classes > 1 else ".png"


@dataclass
class Tally:
    """Counts images written, collects those that failed, and sums the network's seconds."""

    written: int = 0
    failures: list[DataError] = field(default_factory=list)
    network_seconds: float = 0.0


def listed(images: Path, out: Path) -> list[Path]:
    """The images below a folder, relative to it and sorted, without hidden ones and `out`; for a file, its name.

    Raises:
        DataError: there are no images.
    """
    if images.is_file():
        return [Path(images.name)]
    found, inside = [], os.path.realpath(out)
    for folder, names, files in os.walk(images):
        names[:] = [
            name for name in names if not name.startswith(".") and os.path.realpath(Path(folder) / name) != inside
        ]
        found += [
            (Path(folder) / name).relative_to(images)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        what = "has no images" if images.is_dir() else "is neither an image nor a folder"
        raise DataError(f"{shown(images)} {what} ({', '.join(SUFFIXES)}): give another path")
    return sorted(found)


def outputs(names: Sequence[Path], suffix: str) -> dict[Path, Path]:
    """Map each image to its output: the name with another suffix, appended to the old one if two would collide."""
    found, before = {name: name.with_suffix(suffix) for name in names}, None
    while found != before:  # a.png collides with a.jpg, and its new name a.png.png may collide with that of a.png.bmp
        before, often = found, Counter(str(path).lower() for path in found.values())
        found = {
            name: path if often[str(path).lower()] == 1 else name.with_name(name.name + suffix)
            for name, path in found.items()
        }
    return found


@torch.inference_mode()
def logits_of(network: Network, images: Tensor, precision: Precision, flips: str = "") -> np.ndarray:
    """Logits of a batch (N x 3 x H x W uint8) as N x C x H x W float32; with flips, of the mean probability."""
    images = images.to(precision.device)
    passes = []
    for axes in FLIPS[flips]:
        with precision.autocast():
            passes.append(network(images.flip(axes) if axes else images).float().flip(axes))
    return (passes[0] if len(passes) == 1 else _mean_probability(torch.stack(passes))).cpu().numpy()


def _mean_probability(logits_KNCHW: Tensor) -> Tensor:
    """Logits (N x C x H x W) whose sigmoid or softmax is the mean over K passes."""
    if logits_KNCHW.shape[2] == 1:
        return F.logsigmoid(logits_KNCHW).logsumexp(0) - F.logsigmoid(-logits_KNCHW).logsumexp(0)
    return logits_KNCHW.log_softmax(2).logsumexp(0)


def labels_at(logits_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at another size, H x W uint8; computed class by class, since all logits of a photo would fill memory."""
    if len(logits_CHW) == 1:
        return (_resized(logits_CHW[0], size) > 0).astype(np.uint8)
    best, labels = _resized(logits_CHW[0], size), np.zeros(size, np.uint8)
    for label in range(1, len(logits_CHW)):
        plane = _resized(logits_CHW[label], size)
        labels[plane > best] = label
        np.maximum(best, plane, out=best)
    return labels


def probabilities_at(logits_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Probabilities at another size: H x W of the foreground, or C x H x W."""
    planes = np.stack([_resized(plane, size) for plane in logits_CHW])
    if len(planes) == 1:
        return (np.tanh(planes[0] / 2) + 1) / 2
    planes -= planes.max(0)
    np.exp(planes, out=planes)
    return planes / planes.sum(0)


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Predictor:
    """A network and everything else that its predictions depend on."""

    network: Network
    image_size: tuple[int, int]
    precision: Precision
    style: Style
    flips: str = ""
    weights: Sequence[str] = ()  # digests of the network's files

    def mark(self, picture: Path) -> str:
        """A digest of everything that the output of a picture depends on."""
        made_by = [VERSION, *self.weights, self.image_size, self.flips, self.style.kind, list(self.style.values)]
        palette = [] if self.style.palette is None else [self.style.palette.hex()]
        return json_digest([made_by, digest(picture, open_file), *palette])

    def run(self, jobs: Sequence[tuple[Path, Path]], batch: int, threads: int, tally: Tally) -> Iterator[int]:
        """Predict every (image, output) pair, and yield how many more are done; `tally` is kept up to date.

        Raises:
            DiskError: an output cannot be written.
        """
        pending: deque[Future[None]] = deque()
        with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
            reads = _ahead(readers, self._read, jobs, 2 * batch + threads)
            while group := list(islice(reads, batch)):
                loaded = _loaded(group, tally)
                if loaded:
                    started = time.perf_counter()
                    images = torch.from_numpy(np.stack([each.small for each in loaded])).permute(0, 3, 1, 2)
                    logits_NCHW = logits_of(self.network, images, self.precision, self.flips)
                    tally.network_seconds += time.perf_counter() - started
                    for each, logits in zip(loaded, logits_NCHW, strict=True):
                        pending.append(writers.submit(self._write, logits, each))
                while len(pending) > 2 * threads:
                    pending.popleft().result()
                tally.written += len(loaded)
                yield len(group)
            for write in pending:
                write.result()

    def _read(self, job: tuple[Path, Path]) -> "_Loaded":
        picture = read_image(job[0])
        small = resized_image(picture, self.image_size)
        needed = picture if self.style.kind == "overlays" else picture.shape[:2]
        return _Loaded(job[1], small, needed, self.mark(job[0]))

    def _write(self, logits: np.ndarray, loaded: "_Loaded") -> None:
        write, style = _WRITERS[self.style.kind], self.style
        write_atomically(loaded.path, lambda temporary: write(style, logits, loaded.picture, temporary, loaded.mark))


class _Loaded(NamedTuple):
    """An image at the network's size, its output, and what writing that needs.

    Attributes:
        picture: the image itself for overlays, else its size.
        mark: what makes the output.
    """

    path: Path
    small: np.ndarray
    picture: Any
    mark: str


def _loaded(group: Sequence[tuple[Any, Future[_Loaded]]], tally: Tally) -> list[_Loaded]:
    """The jobs whose image could be read; errors go to `tally`."""
    loaded = []
    for _, future in group:
        try:
            loaded.append(future.result())
        except DataError as error:
            tally.failures.append(error)
    return loaded


def _write_mask(style: Style, logits: np.ndarray, size: tuple[int, int], path: Path, mark: str) -> None:
    values = np.asarray(style.values, np.uint8 if max(style.values) < 256 else np.uint16)
    picture = Image.fromarray(values[labels_at(logits, size)])
    if style.palette is not None:
        picture.putpalette(style.palette)
    save_picture(picture, path, mark)


def _write_probabilities(style: Style, logits: np.ndarray, size: tuple[int, int], path: Path, mark: str) -> None:
    found = probabilities_at(logits, size)
    if style.classes == 1:
        save_picture(Image.fromarray(np.round(found * 65535).astype(np.uint16)), path, mark)
    else:
        save_array(found.astype(np.float16), path, mark)


def _write_overlay(style: Style, logits: np.ndarray, picture: np.ndarray, path: Path, mark: str) -> None:
    labels = labels_at(logits, picture.shape[:2])
    assert style.colours is not None
    mixed = (picture.astype(np.uint16) + style.colours[labels]) // 2
    if style.classes == 1:  # background pixels keep the image
        mixed = np.where(labels[..., None] == 0, picture, mixed)
    save_picture(Image.fromarray(mixed.astype(np.uint8)), path, mark, quality=92)


_WRITERS: Mapping[str, Callable[..., None]] = {
    "masks": _write_mask,
    "probabilities": _write_probabilities,
    "overlays": _write_overlay,
}


def _ahead(
    pool: ThreadPoolExecutor, call: Callable[[Any], Any], jobs: Sequence[Any], most: int
) -> Iterator[tuple[Any, Future[Any]]]:
    """Yield (job, future) in order, with at most `most` jobs submitted ahead."""
    submitted: deque[tuple[Any, Future[Any]]] = deque()
    for job in jobs:
        submitted.append((job, pool.submit(call, job)))
        if len(submitted) > most:
            yield submitted.popleft()
    yield from submitted
