"""Which files there are, in the order in which they are written; each is checked, or measured, before it is there."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.export import ExportedProgram

from kd.data import Source
from kd.data.loading import EvalLoader
from kd.data.source import spaced
from kd.deploy.export.check import HALF, Check, ExportError
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
CALIBRATION = 64  # training images that 8-bit ranges are taken from
BATCH = 4  # images at a time where a split is measured

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What to export: some of FORMATS, and ONNX in half precision or in 8 bits."""

    formats: tuple[str, ...] = FORMATS
    fp16: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ExportError(f"--format={name} is none of {', '.join(FORMATS)}")


def export(
    network: Network,
    image_size: tuple[int, int],
    out: Path,
    name: str,
    wanted: Wanted,
    check: Check,
    metadata: Mapping[str, str],
    data: Source | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write what is wanted into `out`, file by file, and yield the name of each with what was found of it.

    `network` is on the CPU in eval mode; `data` is what 8 bits are calibrated and measured on.

    Raises:
        ExportError: the network cannot be put into a format, or a file answers differently.
    """
    if wanted.fp16 or wanted.int8 or "onnx" in wanted.formats:
        model = _converted("onnx", network, lambda: to_onnx(network, image_size, metadata))
        if "onnx" in wanted.formats:
            yield f"{name}.onnx", _write_onnx(model, out / f"{name}.onnx", check)
        if wanted.fp16:
            half = _converted("fp16", network, lambda: to_half(model))
            yield f"{name}.fp16.onnx", _write_onnx(half, out / f"{name}.fp16.onnx", check, HALF)
        if wanted.int8:
            yield f"{name}.int8.onnx", _write_int8(network, model, out / f"{name}.int8.onnx", check, data)
    if "smp" in wanted.formats:
        yield f"{name}_smp", _write_folder(network, image_size, out / f"{name}_smp", check)
    if "pt2" in wanted.formats:
        program = _converted("pt2", network, lambda: traced(network, image_size))
        yield f"{name}.pt2", _write_program(program, out / f"{name}.pt2", check, metadata)


def _converted(form: str, network: Network, convert: Callable[[], T]) -> T:
    """What a converter of torch's makes; one line where it cannot, as it has pages to say."""
    try:
        return convert()
    except UserError:
        raise
    except Exception as error:  # they raise nearly anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(
            f"{network.settings.arch} with {network.settings.encoder} cannot be put into the format {form} "
            f"({type(error).__name__}: {reason[:200]}); leave it out (--format)"
        ) from error


def _write_onnx(model: onnx.ModelProto, path: Path, check: Check, leniency: float = 1) -> dict[str, Any]:
    found = check.passed(path, _asked(Session(model.SerializeToString())), leniency)
    write_atomically(path, lambda temporary: onnx.save(model, temporary))
    return _figures(path, found=asdict(found), opset=model.opset_import[0].version)


def _write_int8(
    network: Network, model: onnx.ModelProto, path: Path, check: Check, data: Source | None
) -> dict[str, Any]:
    """Calibrated on training images, and measured on validation and test beside the network itself."""
    if data is None:
        raise ExportError(f"{path}: 8 bits need images of the run's data, which is not there; leave --int8 out")
    images = (_sample(data, "train", index)[None] for index in spaced(data.size("train"), CALIBRATION))
    write_atomically(path, lambda temporary: quantise(model, images, temporary))
    small = OnnxNetwork(path, network.class_names)
    found = check.difference(small)
    return _figures(path, found=asdict(found), calibrated_on=min(CALIBRATION, data.size("train")),
                    opset=model.opset_import[0].version, quality=_quality(network, small, data))  # fmt: skip


def _quality(network: Network, small: OnnxNetwork, data: Source) -> dict[str, dict[str, float | None]]:
    """mIoU on validation and test, of the network and of its small copy."""
    precision, found = Precision(torch.device("cpu")), {}
    for split in ("val", "test"):
        if data.size(split):
            found[f"{split}/miou"] = {
                who: evaluate(cast(Network, each), EvalLoader(data, split, BATCH), precision, data.ignore_index)
                .metrics(network.class_names)["miou"]
                for who, each in (("fp32", network), ("int8", small))
            }  # fmt: skip
    return found


def _write_program(program: ExportedProgram, path: Path, check: Check, metadata: Mapping[str, str]) -> dict[str, Any]:
    found = {}

    def write(temporary: Path) -> None:
        save_program(program, metadata, temporary)
        found.update(asdict(check.passed(path, torch.export.load(temporary).module())))

    write_atomically(path, write)
    return _figures(path, found=found)


def _write_folder(network: Network, image_size: tuple[int, int], path: Path, check: Check) -> dict[str, Any]:
    """The folder is filled and checked under another name."""
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


def _asked(session: Session) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.from_numpy(session(images.numpy()))


def _figures(path: Path, found: Mapping[str, float], **more: Any) -> dict[str, Any]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {"bytes": sum(file.stat().st_size for file in files), "difference": dict(found), **more}


def _sample(data: Source, split: str, index: int) -> np.ndarray:
    """An image of the data, 3 x H x W uint8."""
    return np.ascontiguousarray(data.read(split, index)[0].transpose(2, 0, 1))


def pictures(data: Source | None, image_size: tuple[int, int], count: int = 8) -> tuple[Tensor, str]:
    """Images to check with, N x 3 x H x W uint8, and where they come from: validation, or noise where it is gone."""
    try:
        if data is not None and tuple(data.image_size) == image_size:
            indices = spaced(data.size("val"), count)
            images = torch.from_numpy(np.stack([_sample(data, "val", index) for index in indices]))
            return images.repeat(2 if len(indices) == 1 else 1, 1, 1, 1), f"{len(indices)} images of val"
    except DataError:  # moved, deleted, on another machine
        pass
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, *image_size), generator=generator, dtype=torch.uint8)
    return noise, "noise, as the run's data is not there"
