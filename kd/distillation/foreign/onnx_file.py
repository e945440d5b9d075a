"""A network in an ONNX file, run by onnxruntime's own CPU or CUDA kernels; the file is data and brings no code."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError, Message
from torch import Tensor, nn

from kd.distillation.foreign.network import Body
from kd.errors import ModelError
from kd.system.files import remembered
from kd.system.untrusted import is_regular

FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class Session(nn.Module):
    """An onnxruntime session as a module: float pixels B x channels x H x W in, the first output out."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self._session = session
        self._input, self._output = session.get_inputs()[0], session.get_outputs()[0]

    def forward(self, pixels: Tensor) -> Tensor:
        array = pixels.detach().to("cpu", FLOATS[self._input.type]).contiguous().numpy()
        logits = self._session.run([self._output.name], {self._input.name: array})[0]
        return torch.from_numpy(logits).to(pixels.device)


def external_files(path: Path) -> tuple[Path, ...]:
    """The external data files of an ONNX file.

    Raises:
        ModelError: the file is damaged, or refers to a file outside its folder.
    """
    folder, found = path.parent.resolve(), set()
    for location in _locations(path):
        file = folder / location
        if not location or not is_regular(folder, location):
            raise ModelError(
                f"teacher.path={path}: keeps external data in {location!r}, which is not a file in its folder; move it "
                "there, or save the model as a single file: onnx.save(onnx.load(...), 'teacher.onnx')"
            )
        found.add(file.resolve())
    return tuple(sorted(found))


@remembered  # every trial of a study calls it, and files may be large
def _locations(path: Path) -> tuple[str, ...]:
    """The locations of external data that an ONNX file names."""
    tensors = (tensor for tensor in _tensors(_parsed(path)) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    said = (next((entry.value for entry in each.external_data if entry.key == "location"), "") for each in tensors)
    return tuple(dict.fromkeys(said))


def onnx_network(path: Path, device: torch.device, channels: int = 3) -> Body:
    """Load the network of an ONNX file.

    Raises:
        ModelError: the file is damaged, onnxruntime cannot run it, or its input is not a batch of images.
    """
    external_files(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # the same as torch's, since results may depend on it
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # the exception carries the message
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(device))
    except Exception as error:  # onnxruntime has one exception type per error code
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"teacher.path={path}: onnxruntime cannot run it ({said}); export it again") from error
    return Body(Session(session), _parameters(path), _takes(session, path, channels))


def _providers(device: torch.device) -> list[Any]:
    """CUDA if the run uses it and this onnxruntime supports it, else the CPU."""
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _takes(
    session: onnxruntime.InferenceSession, path: Path, channels: int
) -> tuple[int | None, int | None, int | None]:
    """The batch, height and width of the input; None where any works."""
    inputs = session.get_inputs()
    shapes = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
    shape: list[int | str | None] = inputs[0].shape if len(inputs) == 1 else []
    if len(shape) != 4 or inputs[0].type not in FLOATS or (isinstance(shape[1], int) and shape[1] != channels):
        raise ModelError(
            f"teacher.path={path}: its inputs are {shapes or 'none'}; a teacher takes one float tensor "
            f"batch x {channels} x height x width (data.channels={channels})"
        )
    batch, _, height, width = (size if isinstance(size, int) else None for size in shape)
    return batch, height, width


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError, RecursionError) as error:
        raise ModelError(f"teacher.path={path}: not a readable ONNX file ({type(error).__name__})") from error


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message at any depth: in subgraphs, attributes and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from _tensors(each)


def _parameters(path: Path) -> int:
    """The number of floating-point values that the file holds."""
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    tensors = (tensor for tensor in _parsed(path).graph.initializer if tensor.data_type in floats)
    return sum(math.prod(tensor.dims) for tensor in tensors)
