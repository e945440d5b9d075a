"""`kd predict` writes one output for each image, resumes, never overwrites an image, and lists what failed."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from finished import GONE, finished
from PIL import Image

from kd.cli import main
from kd.config.compose import PROJECT, compose, plain
from kd.config.read import source
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


def test_masks_of_data_in_colour_are_written_in_its_colours(copy, photos, tmp_path):
    colours = ["data.mask_values=null", "data.mask_colours=[[0,0,0],[200,30,9]]"]
    config = plain(compose([*GONE, *colours]))
    RunFolder(copy).write_config(config)
    main(["predict", str(copy), str(photos), "-o", str(tmp_path / "out"), "--device", "cpu"])
    with Image.open(tmp_path / "out" / "a.png") as mask:
        assert {*np.unique(np.array(mask)).tolist()} <= {0, 1}
        assert {colour for _, colour in mask.convert("RGB").getcolors()} <= {(0, 0, 0), (200, 30, 9)}
    source(config).coding.read(tmp_path / "out" / "a.png")


def test_existing_outputs_are_skipped_unless_overwrite_is_given(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(run), str(photos), "-o", str(out)]
    main(command)
    complete = (out / "a.png").read_bytes()
    os.utime(out / "a.png", (0, 0))
    (out / "b.png").unlink()
    main(command)
    assert "skipped 2 of 3 that exist" in capsys.readouterr().out
    assert (out / "a.png").stat().st_mtime == 0
    assert (out / "b.png").exists()
    main([*command, "--overwrite"])
    assert (out / "a.png").read_bytes() == complete
    assert (out / "a.png").stat().st_mtime > 0


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A run of the same configuration whose student has other weights."""
    folder = tmp_path_factory.mktemp("other") / "run"
    finished(folder, seed=1)
    return folder


@pytest.mark.parametrize("kind", ["masks", "probabilities", "overlays"])
def test_outputs_of_another_network_are_refused_and_replaced_on_demand(run, other_run, photos, tmp_path, refused, kind):
    out, options = tmp_path / "out", ["--kind", kind]
    main(["predict", str(run), str(photos), "-o", str(out), *options])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    message = refused("predict", other_run, photos, "-o", out, *options)
    assert message.startswith(f"-o {out}: {out}/a.")
    assert "was not made by this network from this picture with these options (3 of 3 files there)" in message
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    main(["predict", str(other_run), str(photos), "-o", str(out), *options, "--overwrite"])
    assert not any(before[path] == path.read_bytes() for path in before)
    main(["predict", str(other_run), str(photos), "-o", str(out), *options])


def other_picture(photos, out):
    with Image.open(photos / "a.png") as picture:
        picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(photos / "a.png")


def drawn_by_hand(photos, out):
    Image.new("L", (70, 40)).save(out / "a.png")


def no_picture(photos, out):
    (out / "a.png").write_bytes(b"x")


@pytest.mark.parametrize("change", [other_picture, drawn_by_hand, no_picture])
def test_an_output_of_another_picture_or_hand_is_neither_kept_nor_overwritten(run, photos, tmp_path, refused, change):
    out = tmp_path / "out"
    main(["predict", str(run), str(photos), "-o", str(out)])
    change(photos, out)
    before = (out / "a.png").read_bytes()
    assert "a.png exists and was not made by this network from this picture" in refused(
        "predict", run, photos, "-o", out
    )
    assert (out / "a.png").read_bytes() == before


def test_outputs_of_other_options_are_refused(run, photos, tmp_path, refused):
    main(["predict", str(run), str(photos), "-o", str(tmp_path / "out")])
    assert "with these options" in refused("predict", run, photos, "-o", tmp_path / "out", "--flips", "hv")
    assert "with these options" in refused("predict", run, photos, "-o", tmp_path / "out", "--kind", "probabilities")


def test_every_unreadable_image_is_named_and_the_exit_code_is_1(run, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(photos), "-o", str(tmp_path / "out")])
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {photos / 'broken.png'} cannot be read")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_files_of_other_formats_and_links_to_folders_are_named(run, photos, tmp_path, capsys):
    for name in ("phone.heic", "sub/scan.avif"):
        (photos / name).touch()
    (photos / "linked").symlink_to(photos / "sub", target_is_directory=True)
    main(["predict", str(run), str(photos), "-o", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert "predict  not read: 2 files (.heic 1, .avif 1: phone.heic, scan.avif)" in lines
    assert "predict  not entered: linked, a link to a folder; predict it by its own path" in lines


def test_no_image_is_ever_overwritten(run, photos, refused):
    before = (photos / "a.png").read_bytes()
    assert "is one of the images" in refused("predict", run, photos, "-o", photos, "--overwrite")
    assert "is one of the images" in refused("predict", run, photos / "a.png", "-o", photos, "--overwrite")
    assert (photos / "a.png").read_bytes() == before


def test_the_guides_lines_for_onnxruntime_give_the_masks_of_predict(run, photos, tmp_path):
    main(["predict", str(run), str(photos), "-o", str(tmp_path / "out"), "--device", "cpu"])
    guide = (PROJECT / "docs" / "deploy" / "onnx-runtime.md").read_text()
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
        (["/nowhere", "-o", "out"], "/nowhere does not exist"),
        (["/dev/null", "-o", "out"], "is neither an image nor a folder"),
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
