"""An 8-bit file is smaller, and its reported mIoU is its own."""

import pytest
import torch
from exported import DATA

from kd.data.batches.loading import EvalLoader
from kd.deploy.export import OnnxNetwork
from kd.networks.precision import Precision
from kd.training.evaluation import evaluate


def test_half_precision_halves_the_file_and_8_bits_quarter_it(exported):
    out, _ = exported
    full, half, eight = ((out / f"student{kind}.onnx").stat().st_size for kind in ("", ".fp16", ".int8"))
    assert half < 0.6 * full
    assert eight < 0.45 * full


def test_the_miou_of_8_bits_is_that_of_the_file_measured_again(exported, tiny):
    out, found = exported
    small, cpu = OnnxNetwork(out / "student.int8.onnx", DATA.class_names), Precision(torch.device("cpu"))
    for split in ("val", "test"):
        for who, net in (("int8", small), ("fp32", tiny)):
            again = evaluate(net, EvalLoader(DATA, split, 1), cpu, None).metrics(DATA.class_names)["miou"]
            assert found["student.int8.onnx"]["quality"][f"{split}/miou"][who] == pytest.approx(again, abs=1e-3)
