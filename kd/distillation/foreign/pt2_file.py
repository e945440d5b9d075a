"""A network in a file of torch.export (.pt2), read without torch.export.load, which would execute what the file says.

The archive holds a graph as JSON and weights as plain bytes; both are read as data (`kd.foreign.graph`). docs/adr/0011
says what torch's own loader does with a hostile file.
"""

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd.distillation.foreign.graph import DTYPES, Program, Refused, argument_of, is_skipped, step, with_ends
from kd.distillation.foreign.network import Body
from kd.errors import ModelError
from kd.networks.weights import check_records

SCHEMA = 8  # torch._export.serde.schema.SCHEMA_VERSION[0]


def exported_network(path: Path) -> Body:
    """The network of a .pt2 file.

    Raises:
        ModelError: it is damaged, holds more than arithmetic, or takes something other than pictures.
    """
    check_records(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(_Archive(archive))
    except Refused as error:
        raise ModelError(
            f"teacher.path={path}: {error}; export the plain network, in eval mode, with torch.export.save, or to ONNX "
            "with torch.onnx.export"
        ) from error
    except Exception as error:  # what is not there, is of another type, or is no archive at all
        raise ModelError(
            f"teacher.path={path}: not a readable file of torch.export ({type(error).__name__}); save it again with "
            f"torch.export.save (torch {torch.__version__} reads its own)"
        ) from error


class _Archive:
    """The records that are read of an archive, by the ends of their names; all others are left alone."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        models = [name for name in archive.namelist() if re.search(r"(^|/)models/[^/]+\.json$", name)]
        if len(models) != 1:
            raise Refused(f"holds {len(models)} exported programs, where one is needed")
        self.root, _, file = models[0].rpartition("models/")
        self.model = file.removesuffix(".json")
        self.program = json.loads(archive.read(models[0]))

    def tensors(self, folder: str, wanted: set[str]) -> tuple[dict[str, Tensor], int]:
        """Those wanted of the weights or the constants, and how many numbers of them are parameters."""
        if not wanted:
            return {}, 0
        config = json.loads(self.archive.read(f"{self.root}data/{folder}/{self.model}_{folder}_config.json"))["config"]
        tensors = {name: self._tensor(folder, name, config[name]) for name in sorted(wanted)}
        learnt = {  # each once, under however many names
            (config[name]["path_name"], tensor.storage_offset(), tensor.numel())
            for name, tensor in tensors.items()
            if config[name]["is_param"]
        }
        return tensors, sum(count for *_, count in learnt)

    def _tensor(self, folder: str, name: str, payload: dict[str, Any]) -> Tensor:
        if payload["use_pickle"]:
            raise Refused(f"keeps {name} as a pickle, which is not read")
        meta, data = payload["tensor_meta"], self.archive.read(f"{self.root}data/{folder}/{payload['path_name']}")
        size, stride = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
        dtype, offset = DTYPES[meta["dtype"]], meta["storage_offset"]["as_int"]
        if math.prod(size) * dtype.itemsize > len(data):
            raise Refused(f"promises more values of {name} than it holds")
        if not data:
            return torch.zeros(size, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype).as_strided(size, stride, offset)


def _read(archive: _Archive) -> Body:
    version, module = archive.program["schema_version"]["major"], archive.program["graph_module"]
    if version != SCHEMA:
        raise Refused(f"was written by a torch of another schema ({version!r}, not {SCHEMA})")
    graph, specs = module["graph"], module["signature"]["input_specs"]
    sources: dict[str, dict[str, str]] = {"weights": {}, "constants": {}}
    constants, pictures = {}, []
    for spec, argument in zip(specs, graph["inputs"], strict=True):
        ((kind, said),) = spec.items()
        if kind == "user_input":
            pictures.append(argument)
        elif kind == "parameter" or (kind == "buffer" and said["persistent"]):
            sources["weights"][said["arg"]["name"]] = said[f"{kind}_name"]
        elif kind in ("buffer", "tensor_constant"):
            sources["constants"][said["arg"]["name"]] = said[f"{kind}_name"]
        elif kind == "constant_input":
            constants[said["name"]] = argument_of(said["value"])
        else:
            raise Refused(f"is given a {kind}")
    tensors: dict[str, Tensor] = {}
    parameters = 0
    for folder, found in sources.items():
        kept, count = archive.tensors(folder, set(found.values()))
        tensors |= {name: kept[source] for name, source in found.items()}
        parameters += count
    picture, takes = _picture(pictures, graph["tensor_values"])
    output = _output(module["signature"]["output_specs"])
    steps = with_ends([step(node) for node in graph["nodes"] if not is_skipped(node)], output)
    return Body(Program(steps, tensors, constants, (picture, output)), parameters, takes)


def _picture(inputs: list[Any], values: dict[str, Any]) -> tuple[str, tuple[int | None, int | None, int | None]]:
    """The name of the one input, and the batch, height and width that it must have; None where any will do."""
    if len(inputs) != 1 or "as_tensor" not in inputs[0]:
        raise Refused(f"takes {len(inputs)} inputs, where one batch of pictures is needed")
    name = inputs[0]["as_tensor"]["name"]
    sizes = [size.get("as_int") for size in values[name]["sizes"]]
    if len(sizes) != 4 or sizes[1] not in (3, None) or DTYPES.get(values[name]["dtype"]) is not torch.float32:
        raise Refused(f"takes {sizes}, where float32 batch x 3 x height x width is needed")
    return name, (sizes[0], sizes[2], sizes[3])


def _output(specs: list[dict[str, Any]]) -> str:
    """The name of the first output that is the user's."""
    for spec in specs:
        if "user_output" in spec:
            return str(spec["user_output"]["arg"]["as_tensor"]["name"])
    raise Refused("has no output")
