"""`kd check`: its output for people, its JSON and its exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pairs import mask, put, save

from kd.cli import main
from kd.data.checks.check_report import MAX_LINES


def fill(root, count=3):
    for split in ("train", "val"):
        for number in range(count):
            put(root, f"{split}{number}", np.full((32, 64, 3), 10 * number + len(split), np.uint8), split=split)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "data")
    return tmp_path / "data"


def kd_check(capsys, *arguments):
    """(exit code, stdout, stderr) of `kd check`."""
    code = 0
    try:
        main(["check", *arguments])
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


def test_built_in_data_has_no_problems(capsys):
    code, out, err = kd_check(capsys, "data=shapes", "data.train=20", "data.val=4", "data.test=4")
    assert (code, err) == (0, "")
    assert out.endswith("28 pairs, no problems\n")


def test_a_valid_folder_is_reported_with_its_class_balance(capsys, folder):
    code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}")
    assert code == 0
    assert "train 3 pairs  64x32 (3)  images PNG RGB (3)  masks PNG L (3)" in out
    assert out.count("50.00%") == 4
    assert out.endswith("6 pairs, no problems\n")


@pytest.mark.parametrize(("columns", "rare"), [(0, False), (4, True), (16, False)])
def test_a_rare_foreground_is_named_with_the_objective_to_choose_by(capsys, tmp_path, columns, rare):
    for split in ("train", "val"):
        truth = np.zeros((32, 64), np.uint8)
        truth[:, :columns] = 1
        put(tmp_path, split, np.full((32, 64, 3), len(split), np.uint8), truth, split=split)
    _, out, _ = kd_check(capsys, "data=folder", f"data.root={tmp_path}")
    hint = "hint: foreground is rare (6.2% of the pixels): choose by it, objective=val/iou/foreground"
    assert (hint in out) == ("hint" in out) == rare


def test_errors_exit_with_one_and_warnings_with_zero(capsys, folder):
    put(folder, "copy", np.full((32, 64, 3), 5, np.uint8))
    code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}")
    assert "warning: images/train/train0.png is the same picture as images/train/copy.png" in out
    assert (code, out.splitlines()[-1]) == (0, "7 pairs, 0 errors, 1 warning")
    save(mask(values=(0, 5)), folder / "masks/val/val0.png")
    code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}")
    assert "error: masks/val/val0.png contains the values 0,5, but data.classes=1 allows 0 to 1" in out
    assert (code, out.splitlines()[-1]) == (1, "7 pairs, 1 error, 1 warning")


def test_a_problem_is_one_line_on_any_terminal(capsys, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    (folder / "masks/train/train1.png").write_bytes(b"x" * 9)
    _, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}")
    (error,) = (line for line in out.splitlines() if line.startswith("error: "))
    assert error.endswith("replace or remove it (of a pair, both)")


def test_long_lists_are_shortened_for_people_and_complete_in_json(capsys, folder):
    for number in range(MAX_LINES + 5):
        put(folder, f"bad{number:02}", np.full((32, 64, 3), 100 + number, np.uint8), mask(values=(0, 9)))
    (folder / "images/val/val2.png").write_bytes(b"")
    code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}")
    assert code == 1
    assert out.count("contains the values 0,9") == MAX_LINES
    assert out.count("error: and 5 more") == 1
    assert out.count("val2.png cannot be read") == 1
    code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}", "--json")
    errors = json.loads(out)["errors"]
    assert code == 1
    assert sum(error["kind"] == "values" for error in errors) == MAX_LINES + 5
    assert {error["file"] for error in errors if error["kind"] == "unreadable"} == {"images/val/val2.png"}


def test_json_contains_the_whole_report(capsys, folder):
    code, out, err = kd_check(capsys, "data=folder", f"data.root={folder}", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["errors"] == found["warnings"] == []
    assert found["splits"]["train"] == {
        "pairs": 3,
        "sizes": {"64x32": 3},
        "images": {"PNG RGB": 3},
        "masks": {"PNG L": 3},
        "classes": {name: {"pixels": 3 * 32 * 32, "images": 3, "share": 0.5} for name in ("background", "foreground")},
        "void": 0,
        "only_background": 0,
    }
    assert found["splits"]["test"]["pairs"] == 0


def test_with_headers_only_there_is_no_balance(capsys, folder):
    content = (folder / "images/train/train0.png").read_bytes()
    (folder / "images/train/train0.png").write_bytes(content[: len(content) // 2])
    code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}", "--headers")
    assert (code, "%" in out) == (0, False)
    assert kd_check(capsys, "data=folder", f"data.root={folder}")[0] == 1


def test_file_names_cannot_control_the_terminal(capsys, folder):
    (folder / "masks/train/\x1b]0;owned\x07[red].png").write_bytes(b"")
    for form in ([], ["--json"]):
        code, out, _ = kd_check(capsys, "data=folder", f"data.root={folder}", *form)
        assert code == 1
        assert not {"\x1b", "\x07"} & set(out)
        assert "[red]" in out
    (error,) = json.loads(out)["errors"]
    assert error["file"] == "masks/train/\x1b]0;owned\x07[red].png"


@pytest.mark.parametrize("typed", ["data.root=/nowhere", "data.classes=0", "data.rot=x"])
def test_a_mistake_is_reported_in_one_line(capsys, typed, folder):
    overrides = ["data=folder", f"data.root={folder}", typed]
    code, out, err = kd_check(capsys, *overrides)
    assert code > 0
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_check_imports_nothing_slow(folder):
    code = (
        "import sys; from kd.cli import main; main(['check', *sys.argv[1:]]);"
        "heavy = {'torch', 'albumentations', 'cv2', 'mlflow', 'matplotlib', 'segmentation_models_pytorch'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "data=folder", f"data.root={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
