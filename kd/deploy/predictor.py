"""Predictions for images of any size and format, each written at its image's own size.

An image is resized to the size that the network was trained at, as the loader does it (letterboxed, if it was trained
so), and its logits are resized back bilinearly before labels are taken: at the training size the result is exactly that
of evaluation. A network that was trained on crops sees the whole image through windows, as in evaluation, at the
image's own size; a tiled TIFF that is too large to be read whole is read row by row. Threads read and write while the
network computes. Temperature is 1.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.files.decode import height_width
from kd.data.files.image_file import TooLargeError, open_file
from kd.data.files.pixels import OtherPixelsError, Pixels
from kd.data.files.raw_tiff import RawTiff
from kd.data.files.stretch import as_rgb
from kd.data.files.tiff_directory import TIFF_SUFFIXES, ByRows
from kd.data.files.tiled_tiff import TiledTiff
from kd.data.layout.listing import is_clutter
from kd.data.layout.naming import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from kd.data.sizing import Sizing
from kd.data.views.windows import Windows
from kd.deploy.style import WRITERS, Kind, Style, result_at
from kd.errors import DataError, shown
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.networks.sliding import bands
from kd.system.files import digest, json_digest, write_atomically

FLIPS: dict[str, list[tuple[int, ...]]] = {
    "": [()],
    "h": [(), (3,)],
    "hv": [(), (3,), (2,), (2, 3)],
}  # axes of N x C x H x W that each forward pass flips
VERSION = 1  # part of every mark: increase it whenever the same network writes something else for the same picture
AHEAD = 2  # whole pictures that are read ahead, or wait to be written, since each may be large
SUFFIXES = (*IMAGE_SUFFIXES, ".gif")


@dataclass(frozen=True)
class Wanted:
    """What `kd predict` was asked for: an output kind, a key of FLIPS, images per batch, and whether to overwrite."""

    kind: Kind = "masks"
    flips: str = ""
    batch: int = 8
    overwrite: bool = False


@dataclass
class Tally:
    """Counts images written, collects those that failed, and sums the network's seconds."""

    written: int = 0
    failures: list[DataError] = field(default_factory=list)
    network_seconds: float = 0.0


def suffixes(pixels: Pixels) -> Sequence[str]:
    """Those of the files that a network of such pixels predicts."""
    return SUFFIXES if pixels.usual else (*SUFFIXES, *ARRAY_SUFFIXES)


class Listed(NamedTuple):
    """What is below a folder, relative to it and sorted: images, files of other formats, links to folders."""

    images: list[Path]
    others: list[Path]
    links: list[Path]


def listed(images: Path, out: Path, suffixes: Sequence[str] = SUFFIXES) -> Listed:
    """What is below a folder, without what is hidden and `out`; for a file, its name. No link to a folder is entered.

    Images are recognised by their `suffixes`.

    Raises:
        DataError: there are no images.
    """
    if images.is_file():
        return Listed([Path(images.name)], [], [])
    found, inside = Listed([], [], []), os.path.realpath(out)
    for folder, names, files in os.walk(images):
        here = Path(folder).relative_to(images)
        names[:] = [name for name in names if not is_clutter(name) and os.path.realpath(Path(folder) / name) != inside]
        found.links.extend(here / name for name in names if (Path(folder) / name).is_symlink())
        for name in files:
            if not is_clutter(name):
                (found.images if Path(name).suffix.lower() in suffixes else found.others).append(here / name)
    if not found.images:
        unread = "has no images" if images.is_dir() else "is neither an image nor a folder"
        what = unread if images.exists() else "does not exist"
        raise DataError(f"{shown(images)} {what} ({', '.join(suffixes)}): give another path")
    return Listed(*(sorted(paths) for paths in found))


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
    """Logits of a batch (N x channels x H x W) as N x C x H x W float32; with flips, of the mean probability."""
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


@dataclass(frozen=True)
class Predictor:
    """A network and everything else that its predictions depend on."""

    network: Network
    sizing: Sizing
    precision: Precision
    style: Style
    flips: str = ""
    weights: Sequence[str] = ()  # digests of the network's files

    def mark(self, picture: Path) -> str:
        """A digest of everything that the output of a picture depends on."""
        made_by = [VERSION, *self.weights, self.sizing.image_size, self.flips, self.style.kind, list(self.style.values)]
        palette = [] if self.style.palette is None else [self.style.palette.hex()]
        return json_digest([made_by, digest(picture, open_file), *palette])

    def run(self, jobs: Sequence[tuple[Path, Path]], batch: int, threads: int, tally: Tally) -> Iterator[int]:
        """Predict every (image, output) pair, and yield how many more are done; `tally` is kept up to date.

        Raises:
            DiskError: an output cannot be written.
        """
        pending: deque[Future[None]] = deque()
        together, ahead = (1, AHEAD) if self.sizing.crops else (batch, 2 * batch + threads)
        with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
            reads = _ahead(readers, self._read, jobs, ahead)
            while group := list(islice(reads, together)):
                loaded = _loaded(group, tally)
                if loaded:
                    started = time.perf_counter()
                    found = [self._seen(loaded[0], batch)] if self.sizing.crops else self._together(loaded)
                    tally.network_seconds += time.perf_counter() - started
                    for each, result in zip(loaded, found, strict=True):
                        pending.append(writers.submit(self._write, result, each))
                while len(pending) > (AHEAD if self.sizing.crops else 2 * threads):
                    pending.popleft().result()
                tally.written += len(loaded)
                yield len(group)
            for write in pending:
                write.result()

    def _read(self, job: tuple[Path, Path]) -> "_Loaded":
        pixels = self.network.pixels
        try:
            picture = pixels.read(job[0])
        except OtherPixelsError as error:
            raise DataError(f"{error.found}, and this network takes {pixels.in_words}: give such pictures") from error
        except TooLargeError:
            by_rows = self.sizing.crops and self.sizing.scale == 1 and self.style.kind != "overlays"
            if not by_rows or job[0].suffix.lower() not in TIFF_SUFFIXES:
                raise
            tiles = _by_rows(job[0], pixels)
            return _Loaded(job[1], tiles, tiles.size, tiles.size, self.mark(job[0]))
        size = height_width(picture)
        needed = as_rgb(picture, pixels) if self.style.kind == "overlays" else size
        return _Loaded(job[1], self.sizing.image(picture), size, needed, self.mark(job[0]))

    def _together(self, loaded: Sequence["_Loaded"]) -> "list[Callable[[], np.ndarray]]":
        """What becomes of each of several images, which the network sees at once; computed by who writes it."""
        images = self._taken(np.stack([each.image for each in loaded])).permute(0, 3, 1, 2)
        found = logits_of(self.network, images, self.precision, self.flips)
        return [
            partial(result_at, self.style, self.sizing.without_padding(logits, each.size), each.size)
            for each, logits in zip(loaded, found, strict=True)
        ]

    def _taken(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.network.pixels.taken(images)))

    def _seen(self, loaded: "_Loaded", batch: int) -> "Callable[[], np.ndarray]":
        """What becomes of an image that the network sees through windows, `batch` of them at a time."""
        windows = Windows(self.sizing.image_size, self.sizing.window_overlap, batch)
        image = loaded.image
        size = self.sizing.size_of(loaded.size)

        def rows(top: int, bottom: int) -> Tensor:
            part = image[top:bottom] if isinstance(image, np.ndarray) else image.rows(top, bottom)
            return self._taken(part).permute(2, 0, 1)[None]

        def predict(images: Tensor) -> Tensor:
            return torch.from_numpy(logits_of(self.network, images, self.precision, self.flips))

        found = ((top, logits[0].numpy()) for top, logits in bands(predict, rows, size, windows))
        if size != loaded.size:
            logits = np.concatenate([each for _, each in found], axis=1)
            return partial(result_at, self.style, logits, loaded.size)
        result = None
        for top, logits in found:
            part = result_at(self.style, logits, (logits.shape[1], logits.shape[2]))
            if result is None:
                result = np.empty((*part.shape[:-2], *size), part.dtype)
            result[..., top : top + part.shape[-2], :] = part
        assert result is not None
        whole = result
        return lambda: whole

    def _write(self, result: "Callable[[], np.ndarray]", loaded: "_Loaded") -> None:
        write, style, found = WRITERS[self.style.kind], self.style, result()
        write_atomically(loaded.path, lambda temporary: write(style, found, loaded.picture, temporary, loaded.mark))


class _Loaded(NamedTuple):
    """An image as the network needs it, its output, and what writing that needs.

    Attributes:
        image: at the network's size; for windows the whole image, or the file that its rows are read from.
        size: its own (height, width).
        picture: the image itself for overlays, else its size.
        mark: what makes the output.
    """

    path: Path
    image: Any
    size: tuple[int, int]
    picture: Any
    mark: str


def _by_rows(path: Path, pixels: Pixels) -> ByRows:
    """A TIFF file that is read row by row, of such pixels; raises DataError."""
    if pixels.usual:
        return TiledTiff(path)
    pixels.size(path)  # which checks channels and depth
    return RawTiff(path)


def _loaded(group: Sequence[Future[_Loaded]], tally: Tally) -> list[_Loaded]:
    """The jobs whose image could be read; errors go to `tally`."""
    loaded = []
    for future in group:
        try:
            loaded.append(future.result())
        except DataError as error:
            tally.failures.append(error)
    return loaded


def _ahead(
    pool: ThreadPoolExecutor, call: Callable[[Any], Any], jobs: Sequence[Any], most: int
) -> Iterator[Future[Any]]:
    """Yield the future of each job in order, with at most `most` submitted ahead."""
    submitted: deque[Future[Any]] = deque()
    for job in jobs:
        submitted.append(pool.submit(call, job))
        if len(submitted) > most:
            yield submitted.popleft()
    yield from submitted
