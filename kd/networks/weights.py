"""Weights files: tensors by name, from safetensors or a plain state dict, by any author.

Nothing else is ever unpickled, and shapes are compared before values are read, so a mismatch costs no memory.
"""

import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.errors import ModelError
from kd.networks.spec import is_file

ARCHIVE = b"PK\x03\x04"  # how a zip archive begins
MOST_PICKLED = 2**24  # bytes of names and shapes in one pickle
#: What a pickle of tensors names, as pickletools shows it.
REBUILT = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch\.storage (Untyped|Typed)Storage"
    r"|torch (\w+Storage|Size|\w*float\w*|u?int\d+)"
)


@dataclass(frozen=True)
class Weights:
    """A weights file whose values are read on demand: the shape of each tensor by name, and a function to read one."""

    shapes: Mapping[str, torch.Size]
    read: Callable[[str], Tensor]


def opened(path: Path) -> Weights:
    """Open a weights file and read its shapes.

    Raises:
        ModelError: it is missing or damaged, does not hold tensors by name, or would do more than that.
    """
    if not is_file(path):
        raise ModelError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        shapes, whole = _header(path), cache(lambda: load_file(path))
    else:
        check_records(path)
        check_pickles(path)
        shapes = {name: value.shape for name, value in _state_dict(path, "meta").items()}
        whole = cache(lambda: _state_dict(path, "cpu"))
    return Weights(shapes, lambda name: whole()[name])


def _header(path: Path) -> dict[str, torch.Size]:
    """The shapes in a safetensors file, by numpy's reader, which unlike torch's does not map the values."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error


def _state_dict(path: Path, device: str) -> dict[str, Tensor]:
    """A state dict written by torch.save; on the device "meta" tensors have shapes but no values."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip and runtime errors
        raise _no_state_dict(path, error) from error
    plain = isinstance(state, dict) and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items())
    if not plain:
        raise ModelError(f"{path}: holds {type(state).__name__}, but a dict of tensors by name is needed")
    return state


def _no_state_dict(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: not a plain state dict of tensors ({type(error).__name__}); save it as safetensors")


def check_records(path: Path) -> None:
    """Refuse an archive with compressed records, which could expand without bound: torch does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError):  # of torch before 1.6, or what `check_pickles` refuses
        return
    if size > path.stat().st_size:
        raise ModelError(f"{path}: its records are compressed ({size} bytes), unlike torch.save's; save it again")


def check_pickles(path: Path) -> None:
    """Refuse pickles that call more than rebuilds tensors: `weights_only` also allows bytearray(n), which fills memory.

    Of an archive all, of a file in torch's format before 1.6 the five that precede its values; which of them it is,
    its first bytes say, as they do to torch. What cannot be read here is not loaded.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(ARCHIVE)) != ARCHIVE:
                file.seek(0)
                for _ in range(5):
                    _check_pickle(path, file)
                return
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.filename.endswith(".pkl"):
                    with archive.open(record) as pickled:
                        _check_pickle(path, pickled)
    except (ValueError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise _no_state_dict(path, error) from error


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    begin = file.tell()
    for operation, argument, _ in pickletools.genops(file):
        if file.tell() - begin > MOST_PICKLED:
            raise ModelError(f"{path}: names more than weights do; save it as safetensors")
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not REBUILT.fullmatch(str(argument)):
            raise ModelError(f"{path}: calls {argument}, which weights do not need; save it as safetensors")


def fill(module: nn.Module, weights: Weights, names: Mapping[str, str], source: str, adapt: bool = False) -> None:
    """Load a module's tensors from a file; `names` maps the module's names to the file's.

    With `adapt`, the kernel of the first convolution may be of RGB where the module takes other channels.

    Raises:
        ModelError: the tensors of the file, which `source` names, do not match the module.
    """
    own = module.state_dict()
    missing, unknown = own.keys() - names.keys(), names.keys() - own.keys()
    mismatched = [name for name in own.keys() & names.keys() if own[name].shape != weights.shapes[names[name]]]
    first = mismatched[0] if adapt and len(mismatched) == 1 else None
    if first is not None and _of_rgb(own[first].shape, weights.shapes[names[first]]):
        mismatched = []
    if missing or unknown or mismatched:
        example = sorted(missing | unknown | set(mismatched))[0]
        raise ModelError(
            f"{source}: the weights do not match the network ({len(missing)} missing, {len(unknown)} unknown, "
            f"{len(mismatched)} of another shape, such as {example})"
        )
    try:
        state = {name: weights.read(names[name]) for name in own}
        if first is not None:
            state[first] = adapted(state[first], own[first].shape[1])
        module.load_state_dict(state)
    except RuntimeError as error:  # sparse, quantised, ...: values cannot be copied
        raise ModelError(f"{source}: the weights do not match the network ({str(error).splitlines()[-1]})") from error


def _of_rgb(own: torch.Size, stored: torch.Size) -> bool:
    """Whether a stored kernel is that of a convolution of RGB, and the module's own one takes other channels."""
    return len(own) == len(stored) == 4 and stored[1] == 3 and (own[0], *own[2:]) == (stored[0], *stored[2:])


def adapted(kernel: Tensor, channels: int) -> Tensor:
    """The kernel of a first convolution, out x 3 x h x w, for so many channels, as timm and smp adapt named weights.

    Of one channel it is the sum over RGB; of others RGB is repeated, and scaled so that the response to channels of
    equal values is kept.
    """
    from timm.models import adapt_input_conv

    return adapt_input_conv(channels, kernel)
