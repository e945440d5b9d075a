"""ONNX files: written by torch's older exporter (docs/adr/0012), run by ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor, nn

from kd.deploy.export.padding import constant_padding
from kd.networks.network import Network
from kd.networks.sizes import takes_other_sizes

OPSET = 18  # torch's exporter writes it without conversion; ONNX Runtime 1.14 and later read it
INPUT, OUTPUT = "images", "logits"


class Session:
    """An ONNX file (or its bytes) as a function: N x channels x H x W, uint8 or float32 -> N x C x H x W float32.

    `threads`: the number of threads; 0 leaves it to ONNX Runtime.
    """

    def __init__(self, model: Path | bytes, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: it warns of its own optimisations
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (logits,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        return logits


class OnnxNetwork(nn.Module):
    """An ONNX file with the interface of a network, for `kd.training.evaluation`."""

    def __init__(self, model: Path, class_names: tuple[str, ...], threads: int = 0) -> None:
        super().__init__()
        self.session, self.class_names = Session(model, threads), class_names

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session(images.cpu().numpy())).to(images.device)


def to_onnx(network: Network, image_size: tuple[int, int], metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The network as an ONNX model with free batch, height and width; `metadata` is in its `metadata_props`.

    Height and width are fixed if the network takes one size alone.
    """
    images, written = network.black(2, image_size), BytesIO()
    free = {0: "batch"} | ({2: "height", 3: "width"} if takes_other_sizes(network, image_size) else {})
    with _quiet(), constant_padding():
        torch.onnx.export(
            network, (images,), written,  # type: ignore[arg-type]  # it accepts a buffer, its annotation does not
            dynamo=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_axes={INPUT: free, OUTPUT: free},
        )  # fmt: skip
    model = onnx.load_from_string(written.getvalue())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = network.classes
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in half precision; images and logits keep their types.

    Images in float32 are normalised in it too: stored values may be larger than half precision's largest number, and
    differ by less than it resolves. The converter would round them first, so it is not shown these nodes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    ahead = _normalising(copy.graph)
    for node in ahead:
        copy.graph.node.remove(node)
    if ahead:
        copy.graph.input[0].name = ahead[-1].output[0]
    with _quiet():
        half = OnnxModel(convert_float_to_float16(copy, keep_io_types=True))
    half.model.graph.input[0].name = INPUT
    half.model.graph.node.extend(ahead)
    half.topological_sort()  # the converter puts its casts at the end
    onnx.checker.check_model(half.model)
    return half.model


def _normalising(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that normalise images in float32, with their constants: all that comes right after the input."""
    if graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return []
    found: list[onnx.NodeProto] = []
    value = INPUT
    while len(after := [node for node in graph.node if value in node.input]) == 1 and after[0].op_type in (
        "Cast", "Sub", "Div",
    ):  # fmt: skip
        found += [node for node in graph.node if node.op_type == "Constant" and node.output[0] in after[0].input]
        found.append(after[0])
        value = after[0].output[0]
    return found


def proto(path: Path) -> onnx.ModelProto:
    """Load an ONNX model that this package wrote: in one file, so that no other file is read."""
    return onnx.load(path, load_external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the exporter and the converter about their own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxruntime.transformers.float16")]
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
