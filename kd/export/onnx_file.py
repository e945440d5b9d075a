"""ONNX: written from torch's exported program, run by ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn
from torch.export import ExportedProgram

OPSET = 18  # what torch's exporter writes without converting; ONNX Runtime 1.14 and later read it
INPUT, OUTPUT = "images", "logits"


class Session:
    """An ONNX file (or its bytes) as a function: N x 3 x H x W uint8 -> N x C x H x W float32.

    `threads`: how many compute; 0 leaves that to ONNX Runtime.
    """

    def __init__(self, model: Path | bytes, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: it warns of its own optimisations
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (logits,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        return logits


class OnnxNetwork(nn.Module):
    """An ONNX file where `kd.evaluation` expects a network."""

    def __init__(self, model: Path, class_names: tuple[str, ...], threads: int = 0) -> None:
        super().__init__()
        self.session, self.class_names = Session(model, threads), class_names

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session(images.cpu().numpy())).to(images.device)


def to_onnx(program: ExportedProgram, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The program as an ONNX model, with what it says of itself in `metadata_props`."""
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    model = converted.model_proto
    for tensor, names in ((model.graph.input[0], "batch height width"), (model.graph.output[0], "batch height width")):
        shape = tensor.type.tensor_type.shape
        for axis, name in zip((0, 2, 3), names.split(), strict=True):
            shape.dim[axis].dim_param = name
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in half precision: images and logits keep their types, and pixels are normalised in float32."""
    first = _normalisation(model.graph)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        return convert_float_to_float16(copy, keep_io_types=True, node_block_list=first)


def _normalisation(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes from the images up to the first one that has weights of its own: a convolution, mostly."""
    reached, names = {INPUT}, []
    for node in graph.node:  # in the order of computing
        if reached & set(node.input):
            if node.op_type not in ("Cast", "Sub", "Div", "Mul", "Add"):
                break
            reached |= set(node.output)
            names.append(node.name)
    return names


def proto(path: Path) -> onnx.ModelProto:
    """The model in a file that we wrote."""
    return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the converter's advice to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
