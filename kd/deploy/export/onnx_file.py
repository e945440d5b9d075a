"""ONNX: written by torch, run by ONNX Runtime.

Of torch's two exporters the older one is used (docs/adr/0012).
"""

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

from kd.networks.network import Network

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


def to_onnx(network: Network, image_size: tuple[int, int], metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The network as an ONNX model with free batch, height and width; what it says of itself is in `metadata_props`."""
    images, written = torch.zeros(2, 3, *image_size, dtype=torch.uint8), BytesIO()
    free = {0: "batch", 2: "height", 3: "width"}
    with _quiet():
        torch.onnx.export(
            network, (images,), written,  # type: ignore[arg-type]  # a buffer will do, its annotation lacks that
            dynamo=False, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_axes={INPUT: free, OUTPUT: free},
        )  # fmt: skip
    model = onnx.load_from_string(written.getvalue())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = network.classes
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in half precision, all but the images and the logits."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        half = OnnxModel(convert_float_to_float16(copy, keep_io_types=True))
    half.topological_sort()  # the converter puts its casts at the end
    onnx.checker.check_model(half.model)
    return half.model


def proto(path: Path) -> onnx.ModelProto:
    """The model in a file that we wrote."""
    return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the converter's advice to themselves."""
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
