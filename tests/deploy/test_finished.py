"""A finished run is what its folder says, and a damaged or hostile folder is refused in one line."""

import json
import os

import pytest
import torch
from finished import finished

from kd.data.sizing import Sizing
from kd.deploy import find
from kd.deploy.export import OnnxNetwork
from kd.deploy.finished import facts
from kd.errors import ModelError
from kd.networks import saved


def test_a_finished_run_is_what_its_folder_says(run):
    found = find(run)
    assert (found.image_size, found.mask_values, found.data.size("val")) == ((32, 32), (0, 1), 6)
    assert found.source.size("test") == 4
    onnx = OnnxNetwork(run / "export" / "student.onnx", found.network.class_names)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    torch.testing.assert_close(onnx(images), found.network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("arch", "os.system", "is not an architecture"),
        ("encoder", "../../evil", "is not an encoder"),
        ("encoder", "\x1b[31m", "non-printable"),
        ("classes", 7, "names do not match"),
        ("mean", [0, 0, "x"], "valid number"),
    ],
)
def test_a_hostile_description_is_refused_by_every_verb_in_one_line(copy, refused, key, value, message):
    described = json.loads((copy / "student.json").read_text())
    (copy / "student.json").write_text(json.dumps(described | {key: value}))
    for verb in (["export", copy], ["predict", copy, copy, "-o", copy], ["bench-model", copy]):
        assert message in refused(*verb)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system [true]", "[1, 2]", "data: {_target_: os.system}", "{", "a: &a [*a]"]
)
def test_a_damaged_configuration_is_refused_in_one_line(copy, refused, text):
    (copy / "config.yaml").write_text(text)
    assert str(copy / "config.yaml") in refused("export", copy)


def test_a_configuration_that_is_a_pipe_is_refused_in_one_line(copy, refused):
    (copy / "config.yaml").unlink()
    os.mkfifo(copy / "config.yaml")
    assert "is a pipe or a device" in refused("export", copy)


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"id": [[]]}'])
def test_a_missing_or_damaged_run_json_costs_the_id_only(copy, text):
    (copy / "run.json").unlink()
    if text is not None:
        (copy / "run.json").write_text(text)
    assert facts(find(copy))["run"] in ("", "[[]]")


@pytest.mark.parametrize(
    ("overrides", "sizing"),
    [
        ([], Sizing((32, 32))),
        (["data.fit=letterbox"], Sizing((32, 32), "letterbox")),
        (["data.fit=crop", "data.scale=0.5", "data.window_overlap=0.5"], Sizing((32, 32), "crop", 0.5, 0.5)),
    ],
)
def test_a_student_says_how_pictures_are_brought_to_it(tmp_path, overrides, sizing):
    """In its own files: the run's configuration may be gone."""
    finished(tmp_path, *overrides)
    (tmp_path / "config.yaml").unlink()
    run = find(tmp_path)
    assert run.sizing == sizing
    assert json.loads((tmp_path / "student.json").read_text()).get("fit", "resize") == sizing.fit
    assert ("sizing" in facts(run)) == (sizing.fit != "resize")


@pytest.mark.parametrize(
    "wrong", [{"fit": "squeeze"}, {"fit": "crop", "scale": 1e9}, {"fit": "crop", "window_overlap": "x"}]
)
def test_a_sizing_that_is_none_is_refused(tmp_path, wrong):
    network = finished(tmp_path)
    saved.save(network, tmp_path / "student.safetensors", image_size=[32, 32], **wrong)
    with pytest.raises(ModelError, match=r"student\.safetensors: its (fit|scale|window_overlap) must be"):
        find(tmp_path)
