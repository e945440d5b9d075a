"""Exports of networks whose images are float32: half precision must not touch them before they are normalised."""

import numpy as np
import onnx.utils
import torch
from onnx.reference import ReferenceEvaluator

from kd.data.files.pixels import Pixels
from kd.data.statistics import Statistics
from kd.deploy.export.onnx_file import INPUT, Session, to_half, to_onnx
from kd.networks.build import build
from kd.settings import NetworkSettings

THERMAL = Statistics((30000.0, 65000.0), (5.0, 500.0))  # neither differs by a deviation in half precision


def test_half_precision_normalises_in_float32():
    """Looked at by ONNX's own evaluator: ONNX Runtime on a CPU computes in float32 what a GPU would round."""
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-test_resnet")
    network = build(settings, 1, ("background", "foreground"), "backbone.student", Pixels(2, 16), THERMAL).eval()
    random = np.random.default_rng(0)
    noise = random.standard_normal((2, 2, 64, 64))
    images = (noise * np.reshape(THERMAL.std, (2, 1, 1)) + np.reshape(THERMAL.mean, (2, 1, 1))).astype(np.float32)
    with torch.inference_mode():
        normalised, expected = network.normalised(torch.from_numpy(images)).numpy(), network(torch.from_numpy(images))
    half = to_half(to_onnx(network, (64, 64), {}))
    (quotient,) = (node.output[0] for node in half.graph.node if node.op_type == "Div")
    start = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(half)).extract_model([INPUT], [quotient])
    np.testing.assert_allclose(ReferenceEvaluator(start).run(None, {INPUT: images})[0], normalised, rtol=1e-6)
    logits = Session(half.SerializeToString())(images)
    assert np.abs(logits - expected.numpy()).mean() <= 0.005 * expected.abs().max()
