"""8 bits by ONNX Runtime's static quantisation.

Convolutions and matrix products are quantised (QDQ format, weights per channel), all else stays float32. Activation
ranges are those seen on training images. Weights keep 7 bits (`reduce_range`), because with 8 the instructions of
processors without VNNI overflow, and a file may run anywhere.
Reference: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from kd.deploy.export.onnx_file import INPUT

QUANTISED = ["Conv", "ConvTranspose", "MatMul", "Gemm"]


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image}


def quantise(model: onnx.ModelProto, images: Iterable[np.ndarray], path: Path) -> None:
    """Write `model` with 8-bit weights and activations; `images` are a few dozen of 1 x channels x H x W."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # its advice on the root logger is followed already
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
            onnx.save(model, plain)  # it strips the weights from a model object that it is given
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, path, _Images(images), quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTISED,
                per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )  # fmt: skip
    finally:
        root.setLevel(level)
    finished = onnx.load(path)
    onnx.helper.set_model_props(finished, {each.key: each.value for each in model.metadata_props})
    onnx.save(finished, path)
