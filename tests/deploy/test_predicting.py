"""`kd predict` writes one output for each image, resumes, never overwrites an image, and lists what failed."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from finished import GONE
from PIL import Image

from kd.cli import main
from kd.config.compose import PROJECT, compose, plain
from kd.deploy import predicting
from kd.run.folder import RunFolder


def test_each_image_gets_one_mask_with_the_training_masks_own_values(copy, photos, tmp_path, capsys):
    RunFolder(copy).write_config(plain(compose(GONE)))
    main(["predict", str(copy), str(photos), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert "predict  3 masks" in capsys.readouterr().out
    for name, size in (("a.png", (70, 40)), ("b.png", (32, 32)), ("sub/c.png", (5, 9))):
        with Image.open(tmp_path / "out" / name) as mask:
            assert mask.size == size
            assert {*np.unique(np.array(mask)).tolist()} <= {0, 255}


def test_existing_outputs_are_skipped_unless_overwrite_is_given(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(run), str(photos), "-o", str(out)]
    main(command)
    complete = (out / "a.png").read_bytes()
    (out / "a.png").write_bytes(b"kept")
    (out / "b.png").unlink()
    main(command)
    assert "skipped 2 of 3 that exist" in capsys.readouterr().out
    assert (out / "a.png").read_bytes() == b"kept"
    assert (out / "b.png").exists()
    main([*command, "--overwrite"])
    assert (out / "a.png").read_bytes() == complete


def test_every_unreadable_image_is_named_and_the_exit_code_is_1(run, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(photos), "-o", str(tmp_path / "out")])
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {photos / 'broken.png'} cannot be read")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_no_image_is_ever_overwritten(run, photos, refused):
    before = (photos / "a.png").read_bytes()
    assert "is one of the images" in refused("predict", run, photos, "-o", photos, "--overwrite")
    assert "is one of the images" in refused("predict", run, photos / "a.png", "-o", photos, "--overwrite")
    assert (photos / "a.png").read_bytes() == before


def test_the_guides_lines_for_onnxruntime_give_the_masks_of_predict(run, photos, tmp_path):
    main(["predict", str(run), str(photos), "-o", str(tmp_path / "out"), "--device", "cpu"])
    guide = (PROJECT / "docs" / "deploy.md").read_text()
    (code,) = re.findall(r"```python\n(import cv2.*?)```", guide, re.DOTALL)
    for name in ("a.png", "sub/c.png"):
        (tmp_path / "here").mkdir(exist_ok=True)
        shutil.copy(photos / name, tmp_path / "here" / "photo.png")
        shutil.copy(run / "export" / "student.onnx", tmp_path / "here")
        lines = "import sys; sys.modules['kd'] = sys.modules['torch'] = None\n" + code.replace("photo.jpg", "photo.png")
        subprocess.run([sys.executable, "-c", lines], check=True, cwd=tmp_path / "here")
        given, expected = (np.array(Image.open(p)) for p in (tmp_path / "here" / "mask.png", tmp_path / "out" / name))
        np.testing.assert_array_equal(given, expected)


def test_a_configuration_of_an_older_version_that_lacks_keys_is_enough(copy, photos, tmp_path):
    config = RunFolder(copy).config()
    RunFolder(copy).write_config({"data": {k: v for k, v in config["data"].items() if k not in ("cache", "cache_gb")}})
    main(["predict", str(copy), str(photos), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "-o", "out", "--batch", "0"], "--batch=0 must be 1 or more"),
        (["/nowhere", "-o", "out"], "is neither an image nor a folder"),
        (["{run}", "-o", "out"], "has no images"),
        (["{run}", "-o", "out", "--device", "tpu"], "--device=tpu should be auto, cpu"),
    ],
)
def test_an_impossible_prediction_is_refused_in_one_line(run, refused, arguments, message):
    assert message in refused("predict", run, *(argument.format(run=run) for argument in arguments))


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(predicting, "QUIET", -1)
    assert list(predicting._progress(iter([2, 1]), 3)) == [2, 1]
    assert capsys.readouterr().out.splitlines() == ["predict  2 of 3", "predict  3 of 3"]
    monkeypatch.setattr(predicting, "QUIET", 1000)
    assert list(predicting._progress(iter([2, 1]), 3)) == [2, 1]
    assert capsys.readouterr().out == ""
