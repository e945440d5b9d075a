"""The verbs on a finished run: what they write, what they say, and what they refuse in one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from finished import finished
from PIL import Image

from kd.cli import main
from kd.config.compose import PROJECT, compose, plain
from kd.deploy import find
from kd.deploy.export import OnnxNetwork
from kd.run.folder import RunFolder

GONE = ["data=folder", "data.root=/nowhere", "data.image_size=[32,32]", "data.mask_values=[0,255]", "backbone=tiny"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with its ONNX file; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    finished(folder)
    main(["export", str(folder), "--format", "onnx"])
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def refused(capsys, *arguments):
    """The one line with which a verb ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def pictures(folder):
    """A folder of pictures of several sizes, one of them in a folder of its own."""
    random = np.random.default_rng(0)
    for name, size in (("a.png", (40, 70)), ("b.jpg", (32, 32)), ("sub/c.png", (9, 5))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


# export


def test_export_notes_what_was_checked_and_keeps_what_was_there(copy, capsys):
    main(["export", str(copy), "--format", "smp"])
    said = capsys.readouterr().out
    noted = json.loads((copy / "export" / "export.json").read_text())
    assert {*noted["files"]} == {"student.onnx", "student_smp"}
    assert {path.name for path in (copy / "export").iterdir()} == {"student.onnx", "student_smp", "export.json"}
    for file in noted["files"].values():
        assert file["checked_on"] == "6 images of val"
        assert 0 <= file["difference"]["relative"] < file["tolerance"] == 1e-3
    assert "student_smp" in said
    assert noted["run"] == "0123456789abcdef"
    assert noted["versions"]["torch"] == torch.__version__.partition("+")[0]
    finished(copy, seed=1)  # other weights: what was noted of the old ones is no longer true
    main(["export", str(copy), "--format", "smp"])
    assert {*json.loads((copy / "export" / "export.json").read_text())["files"]} == {"student_smp"}


def test_a_run_whose_data_is_gone_is_checked_on_noise_and_says_so(copy, capsys):
    RunFolder(copy).write_config(plain(compose(GONE)))
    main(["export", str(copy), "--format", "smp", "-o", str(copy / "elsewhere")])
    assert "noise, since the run's data is gone" in " ".join(capsys.readouterr().out.split())
    assert "--int8 needs images" in refused(capsys, "export", copy, "--format", "onnx", "--int8")


def test_beyond_the_tolerance_nothing_is_left(copy, capsys):
    out = copy / "new"
    assert "differ" in refused(capsys, "export", copy, "--format", "smp", "--tolerance", "0", "-o", out)
    assert list(out.iterdir()) == []


def test_weights_without_their_run_are_enough(run, tmp_path, capsys):
    for name in ("student.safetensors", "student.json"):
        shutil.copy(run / name, tmp_path / name)
    main(["export", str(tmp_path / "student.safetensors"), "--format", "smp"])
    assert (tmp_path / "export" / "student_smp" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("arch", "os.system", "is not an architecture"),
        ("encoder", "../../evil", "is not an encoder"),
        ("encoder", "\x1b[31m", "do not print"),
        ("classes", 7, "names do not fit"),
        ("mean", [0, 0, "x"], "valid number"),
    ],
)
def test_a_description_that_asks_for_something_else_is_refused_in_one_line(copy, capsys, key, value, told):
    said = json.loads((copy / "student.json").read_text())
    (copy / "student.json").write_text(json.dumps(said | {key: value}))
    for verb in (["export", copy], ["predict", copy, copy, "-o", copy], ["bench-model", copy]):
        assert told in refused(capsys, *verb)


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system [true]", "[1, 2]", "data: {_target_: os.system}", "{"]
)
def test_a_configuration_that_is_none_is_refused_in_one_line(copy, capsys, text):
    (copy / "config.yaml").write_text(text)
    assert str(copy / "config.yaml") in refused(capsys, "export", copy)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "{run}", "--format", "tflite"], "--format=tflite should be one or more of onnx, pt2, smp"),
        (["export", "/nowhere"], "no weights there"),
        (["export", "{run}", "--tolerance", "nan"], "--tolerance=nan must be 0 or more"),
        (["predict", "{run}", "{run}", "-o", "out", "--batch", "0"], "--batch=0 must be 1 or more"),
        (["predict", "{run}", "/nowhere", "-o", "out"], "is neither an image nor a folder"),
        (["predict", "{run}", "{run}", "-o", "out"], "has no images"),
        (["predict", "{run}", "{run}", "-o", "out", "--device", "tpu"], "--device=tpu should be auto, cpu"),
        (["bench-model", "{run}", "--device", "cuda:99"], "--device=cuda:99: this machine has"),
        (["bench-model", "{run}", "--size", "100x64"], "--size=100x64 should be height x width"),
        (["bench-model", "{run}", "--rounds", "0"], "--rounds=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, capsys, arguments, told):
    assert told in refused(capsys, *(argument.format(run=run) for argument in arguments))


# predict


def test_predict_writes_one_output_for_each_picture_with_the_masks_own_values(copy, tmp_path, capsys):
    RunFolder(copy).write_config(plain(compose(GONE)))
    main(["predict", str(copy), str(pictures(tmp_path / "in")), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert "predict  3 masks" in capsys.readouterr().out
    for name, size in (("a.png", (70, 40)), ("b.png", (32, 32)), ("sub/c.png", (5, 9))):
        with Image.open(tmp_path / "out" / name) as mask:
            assert mask.size == size
            assert {*np.unique(np.array(mask)).tolist()} <= {0, 255}


def test_predict_goes_on_where_it_was_cut_off_unless_told_otherwise(run, tmp_path, capsys):
    source, out = pictures(tmp_path / "in"), tmp_path / "out"
    command = ["predict", str(run), str(source), "-o", str(out)]
    main(command)
    whole = (out / "a.png").read_bytes()
    (out / "a.png").write_bytes(b"kept")
    (out / "b.png").unlink()
    main(command)
    assert "skipped 2 of 3 that exist" in capsys.readouterr().out
    assert (out / "a.png").read_bytes() == b"kept"
    assert (out / "b.png").exists()
    main([*command, "--overwrite"])
    assert (out / "a.png").read_bytes() == whole


def test_predict_names_every_picture_that_it_could_not_read_and_exits_with_1(run, tmp_path, capsys):
    source = pictures(tmp_path / "in")
    (source / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(source), "-o", str(tmp_path / "out")])
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {source / 'broken.png'} cannot be read")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_predict_never_writes_over_a_picture(run, tmp_path, capsys):
    source = pictures(tmp_path / "in")
    before = (source / "a.png").read_bytes()
    assert "is one of the images" in refused(capsys, "predict", run, source, "-o", source, "--overwrite")
    assert "is one of the images" in refused(capsys, "predict", run, source / "a.png", "-o", source, "--overwrite")
    assert (source / "a.png").read_bytes() == before


def test_the_guide_s_lines_for_onnxruntime_give_the_masks_of_predict(run, tmp_path):
    source = pictures(tmp_path / "in")
    main(["predict", str(run), str(source), "-o", str(tmp_path / "out"), "--device", "cpu"])
    guide = (PROJECT / "docs" / "deploy.md").read_text()
    (code,) = re.findall(r"```python\n(import cv2.*?)```", guide, re.DOTALL)
    for name in ("a.png", "sub/c.png"):
        (tmp_path / "here").mkdir(exist_ok=True)
        shutil.copy(source / name, tmp_path / "here" / "photo.png")
        shutil.copy(run / "export" / "student.onnx", tmp_path / "here")
        lines = "import sys; sys.modules['kd'] = sys.modules['torch'] = None\n" + code.replace("photo.jpg", "photo.png")
        subprocess.run([sys.executable, "-c", lines], check=True, cwd=tmp_path / "here")
        given, expected = (np.array(Image.open(p)) for p in (tmp_path / "here" / "mask.png", tmp_path / "out" / name))
        np.testing.assert_array_equal(given, expected)


# bench-model


def test_bench_model_times_teacher_student_and_its_onnx_file(run, capsys):
    (run / "summary.json").write_text(json.dumps({"student": {"val/miou": 0.5}, "teacher": {"file_bytes": 10**6}}))
    main(["bench-model", str(run), "--json", "--rounds", "2", "--batch", "2", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["batch"]) for row in told["rows"]] == [
        (name, batch) for batch in (1, 2) for name in ("teacher", "student", "ONNX")
    ]
    by_name = {row["name"]: row for row in told["rows"]}
    assert by_name["student"]["parameters"] == find(run).network.count_parameters() < by_name["teacher"]["parameters"]
    assert by_name["student"]["val/miou"] == by_name["ONNX"]["val/miou"] == 0.5
    assert by_name["teacher"]["file_bytes"] == 10**6
    assert by_name["teacher"]["times_faster"] == 1
    assert by_name["student"]["times_faster"] > 0
    assert all(0 < row["p10"] <= row["median"] <= row["p90"] for row in told["rows"])
    assert told["threads"] == torch.get_num_threads()
    main(["bench-model", str(run), "--rounds", "1", "--batch", "1", "--device", "cpu", "--size", "64x32"])
    said = capsys.readouterr().out
    assert "faster" in said
    assert "64 x 32" in said


@pytest.mark.parametrize("teacher", [{"kind": "smp", "path": "my_unet"}, {"path": "gone.safetensors"}])
def test_a_teacher_that_nobody_can_build_again_is_not_timed_as_another(copy, capsys, teacher):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "teacher": teacher}))
    main(["bench-model", str(copy), "--json", "--rounds", "1", "--batch", "1", "--device", "cpu"])
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"]] == ["student", "ONNX"]


def test_a_finished_run_is_what_its_folder_says(run):
    found = find(run)
    assert (found.image_size, found.mask_values, found.data.size("val")) == ((32, 32), (0, 1), 6)
    assert found.source.size("test") == 4
    onnx = OnnxNetwork(run / "export" / "student.onnx", found.network.class_names)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    torch.testing.assert_close(onnx(images), found.network(images), atol=1e-4, rtol=1e-4)


def test_a_run_of_an_older_version_whose_configuration_lacks_keys_can_still_be_used(copy, tmp_path):
    config = RunFolder(copy).config()
    RunFolder(copy).write_config({"data": {k: v for k, v in config["data"].items() if k not in ("cache", "cache_gb")}})
    main(["predict", str(copy), str(pictures(tmp_path / "in")), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / "a.png").exists()
