"""The description beside a weights file is read without torch, and refused in one line if it is invalid."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from kd.errors import ModelError
from kd.networks.spec import NetworkSpec, find_weights, read_spec

SPEC = {
    "arch": "unet",
    "encoder": "resnet18",
    "classes": 3,
    "class_names": ["a", "b", "c"],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.fixture
def weights(tmp_path):
    """A weights file with a valid description beside it."""
    (tmp_path / "student.safetensors").write_bytes(b"")
    write(tmp_path / "student.safetensors", SPEC)
    return tmp_path / "student.safetensors"


def write(weights, content) -> None:
    weights.with_suffix(".json").write_text(
        content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
    )


def refusal(call, *args) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_description_is_read_as_written(weights):
    spec = read_spec(weights)
    assert json.loads(spec.model_dump_json(exclude_none=True)) == SPEC
    assert spec == NetworkSpec(**SPEC)


def test_other_facts_are_ignored(weights):
    write(weights, {**SPEC, "epoch": 3, "image_size": [64, 64], "from_the_future": {"a": None}})
    assert read_spec(weights) == NetworkSpec(**SPEC)


def test_class_names_can_be_in_any_language(weights):
    names = ["Straße", "道路", "dois-je « citer » ?"]
    write(weights, json.dumps({**SPEC, "class_names": names}, ensure_ascii=False))
    assert read_spec(weights).class_names == tuple(names)


def test_a_description_is_immutable(weights):
    with pytest.raises(ValidationError, match="frozen"):
        read_spec(weights).classes = 4


def test_a_missing_description_is_named(weights):
    weights.with_suffix(".json").unlink()
    assert refusal(read_spec, weights) == (
        f"{weights.with_suffix('.json')} is missing; it describes the network in {weights.name}"
    )


@pytest.mark.parametrize("text", ["", "{", '{"arch": "unet"', "not JSON", "\x00\x01"])
def test_invalid_json_is_refused(weights, text):
    write(weights, text)
    assert refusal(read_spec, weights).startswith(f"{weights.with_suffix('.json')} is not readable JSON")


def test_bytes_that_are_not_text_are_refused(weights):
    weights.with_suffix(".json").write_bytes(b"\xff\xfe\xfa")
    assert "is not readable JSON" in refusal(read_spec, weights)


def test_a_folder_in_its_place_is_refused(weights):
    weights.with_suffix(".json").unlink()
    weights.with_suffix(".json").mkdir()
    assert "is a folder and should be a file" in refusal(read_spec, weights)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_description_that_would_block_or_never_end_is_refused_unread(weights, make):
    weights.with_suffix(".json").unlink()
    make(weights.with_suffix(".json"))
    assert "is a pipe or a device" in refusal(read_spec, weights)


@pytest.mark.parametrize("name", ["student.safetensors", "student.json"])
def test_a_link_out_of_a_run_folder_is_refused_and_a_link_that_was_named_is_followed(weights, tmp_path, name):
    run, typed = tmp_path / "run", tmp_path / "typed"
    for folder in (run, typed):
        folder.mkdir()
        for file in (weights, weights.with_suffix(".json")):
            (folder / f"student{file.suffix}").write_bytes(file.read_bytes() if file.exists() else b"")
        (folder / name).unlink()
        (folder / name).symlink_to(weights.with_suffix(Path(name).suffix))
    assert "is a link to a place outside its folder" in refusal(find_weights, run, "run", ("student.safetensors",))
    assert find_weights(typed / "student.safetensors", "run") == typed / "student.safetensors"


@pytest.mark.parametrize("key", SPEC)
def test_a_missing_key_is_named(weights, key):
    write(weights, {name: value for name, value in SPEC.items() if name != key})
    assert refusal(read_spec, weights).startswith(f"{weights.with_suffix('.json')}: {key}: ")


@pytest.mark.parametrize("content", [[], [SPEC], "1", "null", '"unet"'])
def test_other_json_is_refused(weights, content):
    write(weights, content)
    assert str(weights.with_suffix(".json")) in refusal(read_spec, weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arch", None),
        ("arch", ["unet"]),
        ("encoder", {"_target_": "os.system"}),
        ("classes", 0),
        ("classes", "three"),
        ("classes", 1.5),
        ("class_names", "abc"),
        ("class_names", [1, 2, 3]),
        ("mean", [0.5]),
        ("mean", [0.5, 0.5, 0.5, 0.5]),
        ("std", ["a", "b", "c"]),
    ],
)
def test_an_impossible_value_is_named(weights, key, value):
    write(weights, {**SPEC, key: value})
    assert refusal(read_spec, weights).startswith(f"{weights.with_suffix('.json')}: {key}")


@pytest.mark.parametrize(
    ("classes", "names"),
    [(3, ["a", "b"]), (2, ["a", "b", "c"]), (1, ["a", "b", "c"]), (1, ["foreground"]), (2, [])],
)
def test_a_wrong_number_of_class_names_is_refused(weights, classes, names):
    """One name per logit, or two for a single binary logit, since metrics are named after them."""
    write(weights, {**SPEC, "classes": classes, "class_names": names})
    assert "class_names" in refusal(read_spec, weights)


def test_a_weights_file_is_found(weights):
    assert find_weights(weights, "teacher.path") == weights


def test_a_run_folder_stands_for_its_teacher_or_else_its_student(weights):
    assert find_weights(weights.parent, "teacher.path") == weights
    (weights.parent / "teacher.safetensors").write_bytes(b"")
    assert find_weights(weights.parent, "teacher.path") == weights.parent / "teacher.safetensors"
    assert find_weights(weights.parent, "model", ("student.safetensors",)) == weights


def test_a_path_may_start_with_a_tilde(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert find_weights(type(weights)("~/student.safetensors"), "teacher.path") == weights


@pytest.mark.parametrize("name", ["none.safetensors", "nowhere", "student.json", "student.pt", "empty"])
def test_a_path_without_weights_is_refused_with_its_key(weights, name):
    (weights.parent / "student.pt").write_bytes(b"")
    (weights.parent / "empty").mkdir()
    path = weights.parent / name
    assert refusal(find_weights, path, "teacher.path").startswith(f"teacher.path={path}: no weights found")


def test_reading_a_description_imports_nothing_slow(weights):
    program = (
        "import sys; from pathlib import Path; from kd.networks.spec import find_weights, read_spec\n"
        "print(read_spec(find_weights(Path(sys.argv[1]), 'teacher.path')).encoder)\n"
        "print(sorted({'torch', 'segmentation_models_pytorch', 'mlflow', 'albumentations'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(weights)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["resnet18", "[]"]
