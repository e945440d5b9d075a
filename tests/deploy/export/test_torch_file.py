"""A .pt2 file loads with plain torch, and takes any batch and size."""

import json

import torch
from exported import ABOUT, DATA, SIZE, check_of, network

from kd.deploy.export import Wanted, export


def test_a_program_loads_with_plain_torch_and_takes_any_batch_and_size(exported, tiny):
    about = {"about.json": ""}
    program = torch.export.load(exported[0] / "student.pt2", extra_files=about).module()
    images = torch.randint(0, 256, (3, 3, 64, 128), dtype=torch.uint8)
    torch.testing.assert_close(program(images), tiny(images), atol=1e-4, rtol=1e-4)
    assert json.loads(about["about.json"]) == ABOUT


def test_the_default_student_is_saved_with_free_sizes(tmp_path):
    """It has TensorFlow's "same" padding, whose symbolic arithmetic torch cannot save."""
    net = network(encoder="tu-tf_efficientnet_lite0")
    ((name, found),) = export(net, SIZE, tmp_path / "student", Wanted(("pt2",)), check_of(net), ABOUT)
    assert name == "student.pt2"
    assert found["difference"]["relative"] < 1e-4


def test_a_network_trained_on_small_images_is_refused(tiny, tmp_path):
    ((_, error),) = export(tiny, (32, 64), tmp_path / "student", Wanted(("pt2",)), check_of(tiny), ABOUT, DATA)
    assert "leave it out: --format=onnx,smp" in str(error)
