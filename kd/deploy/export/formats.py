"""The export formats; each file is checked, or measured, before it gets its name."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch import Tensor

from kd.data import Source
from kd.data.batches.loading import EvalLoader
from kd.data.files.pixels import USUAL, Pixels
from kd.data.source import spaced
from kd.data.views.crops import cut
from kd.deploy.export.check import Check, ExportError
from kd.deploy.export.int8 import quantise
from kd.deploy.export.onnx_file import OnnxNetwork, Session, to_half, to_onnx
from kd.deploy.export.smp_folder import Normalised, save_folder
from kd.deploy.export.torch_file import save_program, traced
from kd.errors import DataError, UserError
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.system.files import write_atomically, writing
from kd.training.evaluation import evaluate

FORMATS = ("onnx", "pt2", "smp")
CALIBRATION = 64  # training images that 8-bit activation ranges are taken from
NOISE = "noise, since the run's data is gone"
BATCH = 4  # images per batch when a split is measured

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What to export: any of FORMATS, and ONNX in half precision or 8 bits."""

    formats: tuple[str, ...] = FORMATS
    fp16: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ExportError(f"--format={name} should be one or more of {', '.join(FORMATS)}")
        if not self.count:
            raise ExportError(f"--format names nothing to write: give one or more of {', '.join(FORMATS)}")

    @property
    def count(self) -> int:
        """The number of files."""
        return len({*self.formats}) + self.fp16 + self.int8


def export(
    network: Network,
    image_size: tuple[int, int],
    target: Path,
    wanted: Wanted,
    check: Check,
    metadata: Mapping[str, str],
    data: Source | None = None,
) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Write the wanted files one by one, and yield the name of each with its size, difference and quality.

    A file that fails, since the network cannot be converted or its logits differ, comes with its error instead.

    Args:
        network: on the CPU, in eval mode.
        target: the files' path without a suffix: `export/student` for `export/student.onnx`.
        metadata: texts that ONNX and torch.export files carry.
        data: for calibrating and measuring 8 bits.
    """
    model = cache(lambda: _converted("onnx", network, lambda: to_onnx(network, image_size, metadata)))
    writers: dict[str, Callable[[Path], dict[str, Any]]] = {}
    if "onnx" in wanted.formats:
        writers[".onnx"] = lambda path: _write_onnx(model(), path, check)
    if wanted.fp16:
        writers[".fp16.onnx"] = lambda path: _write_half(network, model(), path, check)
    if wanted.int8:
        writers[".int8.onnx"] = lambda path: _write_int8(network, model(), path, check, data)
    if "smp" in wanted.formats:
        writers["_smp"] = lambda path: _write_folder(network, image_size, path, check)
    if "pt2" in wanted.formats:
        writers[".pt2"] = lambda path: _write_program(network, image_size, path, check, metadata)
    for suffix, write in writers.items():
        path = target.with_name(target.name + suffix)
        try:
            yield path.name, write(path)
        except UserError as error:
            yield path.name, error


def _converted(form: str, network: Network, convert: Callable[[], T]) -> T:
    """Result of a converter; its error, which may be pages long, becomes one line."""
    try:
        return convert()
    except (UserError, OSError):
        raise
    except Exception as error:  # converters raise nearly anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(
            f"{network.settings.arch} with {network.settings.encoder} cannot be converted to {form} "
            f"({type(error).__name__}: {reason[:200]}); leave it out (--format)"
        ) from error


def _write_half(network: Network, model: onnx.ModelProto, path: Path, check: Check) -> dict[str, Any]:
    return _write_onnx(_converted("fp16", network, lambda: to_half(model)), path, check, half=True)


def _write_onnx(model: onnx.ModelProto, path: Path, check: Check, half: bool = False) -> dict[str, Any]:
    found = check.passed(path, _on_tensors(Session(model.SerializeToString())), half)
    write_atomically(path, lambda temporary: onnx.save(model, temporary))
    return _figures(path, found=asdict(found), opset=model.opset_import[0].version)


def _write_int8(
    network: Network, model: onnx.ModelProto, path: Path, check: Check, data: Source | None
) -> dict[str, Any]:
    """Calibrate on training images, and measure on validation and test beside the network itself."""
    if data is None:
        raise ExportError(f"{path}: --int8 needs images of the run's data, which is gone; leave it out")
    images = (_sample(data, "train", index)[None] for index in spaced(data.size("train"), CALIBRATION))
    found: dict[str, float] = {}
    quality: dict[str, dict[str, float | None]] = {}

    def write(temporary: Path) -> None:
        quantise(model, images, temporary)
        small = OnnxNetwork(temporary, network.class_names)
        found.update(asdict(check.difference(small)))
        quality.update(_quality(network, small, data))

    write_atomically(path, write)
    return _figures(path, found=found, calibrated_on=min(CALIBRATION, data.size("train")),
                    opset=model.opset_import[0].version, quality=quality)  # fmt: skip


def _quality(network: Network, small: OnnxNetwork, data: Source) -> dict[str, dict[str, float | None]]:
    """mIoU on validation and test, of the network and of its 8-bit copy."""

    def miou(each: Any, split: str) -> float | None:
        loader = EvalLoader(data, split, BATCH)
        return evaluate(each, loader, precision, data.void).metrics(network.class_names)["miou"]

    precision = Precision(torch.device("cpu"))
    return {
        f"{split}/miou": {"fp32": miou(network, split), "int8": miou(small, split)}
        for split in ("val", "test")
        if data.size(split)
    }


def _write_program(
    network: Network, image_size: tuple[int, int], path: Path, check: Check, metadata: Mapping[str, str]
) -> dict[str, Any]:
    program, found = _converted("pt2", network, lambda: traced(network, image_size)), {}

    def write(temporary: Path) -> None:
        _converted("pt2", network, lambda: save_program(program, metadata, temporary))  # it knows fewer operators
        found.update(asdict(check.passed(path, torch.export.load(temporary).module())))

    write_atomically(path, write)
    return _figures(path, found=found)


def _write_folder(network: Network, image_size: tuple[int, int], path: Path, check: Check) -> dict[str, Any]:
    """Fill and check the folder under a temporary name."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            save_folder(network, image_size, temporary)
            found = check.passed(path, Normalised(temporary, network))
            temporary.chmod(0o755)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _figures(path, found=asdict(found))


def _on_tensors(session: Session) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.from_numpy(session(images.numpy()))


def _figures(path: Path, found: Mapping[str, float], **more: Any) -> dict[str, Any]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {"bytes": sum(file.stat().st_size for file in files), "difference": dict(found), **more}


def _sample(data: Source, split: str, index: int) -> np.ndarray:
    """One image of the data as its network takes it, channels x H x W: of pictures of their own sizes, the middle."""
    image, (height, width) = data.read(split, index)[0], data.image_size
    middle = cut(image, ((image.shape[0] - height) // 2, (image.shape[1] - width) // 2), data.image_size, 0)
    return data.pixels.taken(np.ascontiguousarray(middle.transpose(2, 0, 1)))


def pictures(
    data: Source | None, image_size: tuple[int, int], count: int = 8, pixels: Pixels = USUAL
) -> tuple[Tensor, str]:
    """Images for a check, N x channels x H x W, and their origin: val, or noise if the data is gone."""
    try:
        if data is not None and tuple(data.image_size) == image_size and data.pixels == pixels:
            indices = spaced(data.size("val"), count)
            images = torch.from_numpy(np.stack([_sample(data, "val", index) for index in indices]))
            return images.repeat(2 if len(indices) == 1 else 1, 1, 1, 1), f"{len(indices)} images of val"
    except DataError:  # moved, deleted, or on another machine
        pass
    return torch.from_numpy(pixels.noise(2, image_size)), NOISE
