"""Files of weights: tensors by name, from safetensors or a plain state dict, whoever wrote them.

Nothing else is ever unpickled, and shapes are compared before values are read: what does not fit costs no memory.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.errors import ModelError
from kd.networks.spec import is_file


@dataclass(frozen=True)
class Weights:
    """A file of which only the header is read: the shape of each tensor by its name, and what reads one."""

    shapes: Mapping[str, torch.Size]
    read: Callable[[str], Tensor]


def opened(path: Path) -> Weights:
    """What a file of weights holds.

    Raises:
        ModelError: it is missing, is damaged, or holds something other than tensors by name.
    """
    if not is_file(path):
        raise ModelError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        shapes, whole = _header(path), cache(lambda: load_file(path))
    else:
        check_records(path)
        shapes = {name: value.shape for name, value in _state_dict(path, "meta").items()}
        whole = cache(lambda: _state_dict(path, "cpu"))
    return Weights(shapes, lambda name: whole()[name])


def _header(path: Path) -> dict[str, torch.Size]:
    """The shapes in a safetensors file; numpy's reader does not map the values, as torch's does."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error


def _state_dict(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors by name that torch saved; on the device "meta" they have shapes but no values."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip and runtime errors alike
        raise ModelError(
            f"{path}: not a plain state dict of tensors ({type(error).__name__}); save it as safetensors"
        ) from error
    plain = isinstance(state, dict) and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items())
    if not plain:
        raise ModelError(f"{path}: holds {type(state).__name__}, where a dict of tensors by name is needed")
    return state


def check_records(path: Path) -> None:
    """Refuse an archive that would grow when it is read: torch stores its records as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError):  # torch's format before 1.6, or no weights at all
        return
    if size > path.stat().st_size:
        raise ModelError(f"{path}: its records are compressed ({size} bytes), as torch.save writes none; save it again")


def fill(module: nn.Module, weights: Weights, names: Mapping[str, str], source: str) -> None:
    """Load a module, each of its tensors from the one of the file that `names` says.

    Raises:
        ModelError: the file, which `source` names, has other tensors than the module.
    """
    own = module.state_dict()
    missing, unknown = own.keys() - names.keys(), names.keys() - own.keys()
    misfits = [name for name in own.keys() & names.keys() if own[name].shape != weights.shapes[names[name]]]
    if missing or unknown or misfits:
        example = sorted(missing | unknown | set(misfits))[0]
        raise ModelError(
            f"{source}: the weights do not fit the network ({len(missing)} missing, {len(unknown)} unknown, "
            f"{len(misfits)} of another shape, such as {example})"
        )
    try:
        module.load_state_dict({name: weights.read(names[name]) for name in own})
    except RuntimeError as error:  # sparse, quantised, ...: no values that could be copied
        raise ModelError(f"{source}: the weights do not fit the network ({str(error).splitlines()[-1]})") from error
