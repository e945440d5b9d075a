"""Tensors and facts in one file that tells whether it is whole: safetensors, with a digest over all of it.

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

FORMAT = "2"

#: What `read` and `facts` raise of a file that is damaged, or is another kind of file.
DAMAGES = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file; not atomically, which is `kd.files.write_atomically`'s part."""
    laid_out = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(facts))
    header = {"format": FORMAT, "facts": text, "digest": digest(laid_out, text)}
    save_file(laid_out, path, metadata=header)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of a file; raises one of DAMAGES."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, where {FORMAT!r} is known")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if header["digest"] != digest(tensors, header["facts"]):
        raise ValueError("its digest does not fit its content")
    return tensors, json.loads(header["facts"])


def facts(path: Path) -> dict[str, Any]:
    """The facts alone, without a look at the rest; raises one of DAMAGES."""
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["facts"]))


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """A hash of tensors in the memory of a CPU, each contiguous, and of a text; it finds damage, not malice."""
    found = xxhash.xxh3_128(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
