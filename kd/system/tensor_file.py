"""Tensors and facts in one safetensors file with a digest over its whole content.

Facts are JSON in the header. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd.errors import one_line
from kd.system.untrusted import UnreadableError, regular_in

FORMAT = "2"

#: What `read` and `facts` raise for a file that is damaged or of another kind.
DAMAGES = (UnreadableError, SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file, not atomically: combine it with `kd.system.files.write_atomically`."""
    laid_out = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(facts))
    header = {"format": FORMAT, "facts": text, "digest": digest(laid_out, text)}
    save_file(laid_out, path, metadata=header)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a file's tensors and facts; raises one of DAMAGES."""
    with safe_open(regular_in(path.parent, path.name), framework="pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, but this version reads {FORMAT!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if header["digest"] != digest(tensors, header["facts"]):
        raise ValueError("its digest does not match its content")
    return tensors, json.loads(header["facts"])


def facts(path: Path) -> dict[str, Any]:
    """Read the facts only, without verifying the rest; raises one of DAMAGES."""
    with safe_open(regular_in(path.parent, path.name), framework="pt") as file:
        return dict(json.loads(file.metadata()["facts"]))


def reason(error: BaseException) -> str:
    """Why a file could not be read, in one line: the reason of one of DAMAGES."""
    if isinstance(error, UnreadableError):
        return error.reason
    return one_line(str(error))[:300] or type(error).__name__


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """A hash of contiguous CPU tensors and a text; it detects damage, not tampering."""
    found = xxhash.xxh3_128(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
