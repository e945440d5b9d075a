"""`kd export` records how each file was checked, keeps earlier exports of the same weights, and leaves no bad file."""

import json
import shutil

import pytest
import torch
from finished import GONE, finished

from kd.cli import main
from kd.config.compose import compose, plain
from kd.deploy import find, timing
from kd.deploy.export import ExportError
from kd.deploy.exporting import export_record
from kd.networks.precision import Precision
from kd.run.folder import RunFolder


def test_a_record_has_the_checks_and_keeps_earlier_exports_of_the_same_weights(copy, capsys):
    main(["export", str(copy), "--format", "smp"])
    printed = capsys.readouterr().out
    record = json.loads((copy / "export" / "export.json").read_text())
    assert {*record["files"]} == {"student.onnx", "student_smp"}
    assert {path.name for path in (copy / "export").iterdir()} == {"student.onnx", "student_smp", "export.json"}
    for file in record["files"].values():
        assert file["checked_on"] == "6 images of val"
        assert 0 <= file["difference"]["relative"] < file["tolerance"] == 1e-3
    assert "student_smp" in printed
    assert record["run"] == "0123456789abcdef"
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    finished(copy, seed=1)  # other weights
    main(["export", str(copy), "--format", "smp"])
    assert {*json.loads((copy / "export" / "export.json").read_text())["files"]} == {"student_smp"}


@pytest.mark.parametrize("text", ["", "[1]", '{"weights": 3, "files": {"a": 1}}', "{", '{"files": [1]}'])
def test_a_damaged_record_counts_as_none(copy, text):
    (copy / "export" / "export.json").write_text(text)
    assert export_record(find(copy), copy / "export")["files"] == {}


def test_a_run_whose_data_is_gone_is_checked_on_noise_and_says_so(copy, capsys, refused):
    RunFolder(copy).write_config(plain(compose(GONE)))
    main(["export", str(copy), "--format", "smp", "-o", str(copy / "elsewhere")])
    assert "noise, since the run's data is gone" in " ".join(capsys.readouterr().out.split())
    assert "--int8 needs images" in refused("export", copy, "--format", "onnx", "--int8")


def test_beyond_the_tolerance_nothing_is_left(copy, refused):
    out = copy / "new"
    assert "differ" in refused("export", copy, "--format", "smp", "--tolerance", "0", "-o", out)
    assert list(out.iterdir()) == []


def test_every_file_that_failed_is_named_and_the_others_are_kept(copy, capsys, monkeypatch):
    monkeypatch.setattr("kd.deploy.export.formats.quantise", _fails("of 8 bits"))
    monkeypatch.setattr("kd.deploy.export.formats.to_half", _fails("of 16 bits"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["export", str(copy), "--format", "smp", "--fp16", "--int8", "-o", str(copy / "new")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == ["error: of 16 bits", "error: of 8 bits"]
    assert {path.name for path in (copy / "new").iterdir()} == {"student_smp", "export.json"}


def _fails(reason):
    def fail(*_):
        raise ExportError(reason)

    return fail


def test_weights_without_their_run_are_enough(run, tmp_path):
    for name in ("student.safetensors", "student.json"):
        shutil.copy(run / name, tmp_path / name)
    main(["export", str(tmp_path / "student.safetensors"), "--format", "smp"])
    assert (tmp_path / "export" / "student_smp" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{run}", "--format", "tflite"], "--format=tflite should be one or more of onnx, pt2, smp"),
        (["export", "{run}", "--format", ","], "--format names nothing to write: give one or more of onnx, pt2, smp"),
        (["export", "/nowhere"], "no weights found"),
        (["export", "{run}", "--tolerance", "nan"], "--tolerance=nan must be 0 or more"),
    ],
)
def test_an_impossible_export_is_refused_in_one_line(run, refused, arguments, message):
    assert message in refused(*(argument.format(run=run) for argument in arguments))


def test_an_export_folder_that_leads_out_of_the_run_is_refused(copy, tmp_path, refused):
    shutil.rmtree(copy / "export")
    (tmp_path / "outside").mkdir()
    (copy / "export").symlink_to(tmp_path / "outside")
    assert "export is a link to a place outside its folder" in refused("export", copy, "--format", "smp")
    assert list((tmp_path / "outside").iterdir()) == []


def test_an_export_that_is_a_link_is_not_registered_or_timed(copy, tmp_path):
    file = copy / "export" / "student.onnx"
    file.rename(tmp_path / "elsewhere.onnx")
    file.symlink_to(tmp_path / "elsewhere.onnx")
    run = find(copy)
    precision = Precision(torch.device("cpu"))
    titles = [contestant.name for contestant in timing._contestants(run, precision, 1)]
    assert "student" in titles
    assert "ONNX" not in titles
