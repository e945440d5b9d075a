"""Each exported file gives the network's logits, and exists only if it is complete."""

import re
from dataclasses import replace

import pytest
import torch
from exported import ABOUT, DATA, SIZE, check_of, network

from kd.deploy.export import Check, ExportError, Wanted, export, pictures
from kd.deploy.export.onnx_file import to_onnx
from kd.errors import DataError


def test_every_file_is_within_its_tolerance(exported):
    _, found = exported
    assert {name for name, figures in found.items() if figures["difference"]["relative"] < 1e-4} == {
        "student.onnx",
        "student.pt2",
        "student_smp",
    }
    assert 1e-5 < found["student.fp16.onnx"]["difference"]["relative"] < 2e-2


def test_nothing_but_complete_files_is_left(exported):
    out, found = exported
    assert {path.name for path in out.iterdir()} == {*found}


def test_a_file_beyond_the_tolerance_never_appears(tiny, tmp_path):
    check = check_of(tiny)
    strict = replace(check, logits=tuple(logits + 0.1 for logits in check.logits))
    for form in ("onnx", "smp"):
        steps = export(tiny, SIZE, tmp_path / "student", Wanted((form,)), strict, ABOUT, DATA)
        ((_, error),) = steps
        assert "differ from the network's by" in str(error)
        assert list(tmp_path.iterdir()) == []


def test_a_program_that_torch_cannot_save_is_one_line_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    """torch traces more operators than it saves (2.15: not `math.ceil` of a free size)."""

    def fails(*_, **__):
        raise KeyError("ceil\nis not in _SYM_OPS")

    monkeypatch.setattr("torch.export.save", fails)
    steps = export(tiny, SIZE, tmp_path / "student", Wanted(("pt2",)), check_of(tiny), ABOUT, DATA)
    ((_, error),) = steps
    assert re.search(r"cannot be converted to pt2 \(KeyError: .*\); leave it out \(--format\)$", str(error))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused():
    with pytest.raises(ExportError, match="--format=tflite should be one or more of onnx, pt2, smp"):
        Wanted(("onnx", "tflite"))


def test_without_data_the_images_are_noise_and_said_to_be():
    images, origin = pictures(None, SIZE)
    assert images.shape == (2, 3, *SIZE)
    assert "noise" in origin
    assert pictures(DATA, SIZE)[1] == "6 images of val"


def test_8_bits_without_data_are_refused(tiny, tmp_path):
    wanted = Wanted((), int8=True)
    ((_, error),) = export(tiny, SIZE, tmp_path / "student", wanted, check_of(tiny), ABOUT)
    assert "--int8 needs images" in str(error)


def test_8_bits_that_cannot_be_measured_leave_nothing(tiny, tmp_path, monkeypatch):
    def fails(*_):
        raise DataError("a picture of test is gone")

    monkeypatch.setattr("kd.deploy.export.formats._quality", fails)
    steps = export(tiny, SIZE, tmp_path / "student", Wanted((), int8=True), check_of(tiny), ABOUT, DATA)
    ((_, error),) = steps
    assert "is gone" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_does_not_keep_the_others_from_being_written(tiny, tmp_path, monkeypatch):
    overflowing = network()
    with torch.no_grad():
        overflowing.body.segmentation_head[0].bias += torch.inf
    monkeypatch.setattr("kd.deploy.export.formats.to_half", lambda _: to_onnx(overflowing, SIZE, ABOUT))
    wanted = Wanted(("onnx", "smp"), fp16=True)
    found = dict(export(tiny, SIZE, tmp_path / "student", wanted, check_of(tiny), ABOUT))
    assert [name for name, each in found.items() if isinstance(each, ExportError)] == ["student.fp16.onnx"]
    assert "leave --fp16 out" in str(found["student.fp16.onnx"])
    assert {path.name for path in tmp_path.iterdir()} == {"student.onnx", "student_smp"}
    assert len(found) == wanted.count


class Interrupting(Check):
    """A check during which Ctrl-C is pressed."""

    def passed(self, *_):
        raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["onnx", "smp"])
def test_an_interrupted_export_leaves_the_old_files_and_nothing_incomplete(tiny, tmp_path, form):
    (tmp_path / "student_smp").mkdir()
    for name in ("student.onnx", "student_smp/config.json"):
        (tmp_path / name).write_text("older")
    check = Interrupting(**vars(check_of(tiny)))
    with pytest.raises(KeyboardInterrupt):
        list(export(tiny, SIZE, tmp_path / "student", Wanted((form,)), check, ABOUT, DATA))
    assert {path.name for path in tmp_path.iterdir()} == {"student.onnx", "student_smp"}
    assert (tmp_path / "student.onnx").read_text() == (tmp_path / "student_smp" / "config.json").read_text() == "older"
