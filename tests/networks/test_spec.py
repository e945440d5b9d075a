"""What stands beside a file of weights is read without torch, and refused in one line where it is not what it says."""

import json
import subprocess
import sys

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
    """A file of weights with a sound description beside it."""
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


def test_a_description_is_read_as_it_was_written(weights):
    spec = read_spec(weights)
    assert json.loads(spec.model_dump_json()) == SPEC
    assert spec == NetworkSpec(**SPEC)


def test_facts_beside_the_description_do_not_matter(weights):
    write(weights, {**SPEC, "epoch": 3, "image_size": [64, 64], "from_the_future": {"a": None}})
    assert read_spec(weights) == NetworkSpec(**SPEC)


def test_names_of_any_language_are_kept(weights):
    names = ["Straße", "道路", "dois-je « citer » ?"]
    write(weights, json.dumps({**SPEC, "class_names": names}, ensure_ascii=False))
    assert read_spec(weights).class_names == tuple(names)


def test_a_description_does_not_change(weights):
    with pytest.raises(ValidationError, match="frozen"):
        read_spec(weights).classes = 4


def test_a_missing_description_is_named(weights):
    weights.with_suffix(".json").unlink()
    assert refusal(read_spec, weights) == (
        f"{weights.with_suffix('.json')} is missing; it says which network {weights.name} holds"
    )


@pytest.mark.parametrize("text", ["", "{", '{"arch": "unet"', "not JSON", "\x00\x01"])
def test_what_is_not_json_is_refused(weights, text):
    write(weights, text)
    assert refusal(read_spec, weights).startswith(f"{weights.with_suffix('.json')} is not readable JSON")


def test_bytes_that_are_no_text_are_refused(weights):
    weights.with_suffix(".json").write_bytes(b"\xff\xfe\xfa")
    assert "is not readable JSON" in refusal(read_spec, weights)


def test_a_folder_in_its_place_is_refused(weights):
    weights.with_suffix(".json").unlink()
    weights.with_suffix(".json").mkdir()
    assert "is not readable JSON" in refusal(read_spec, weights)


@pytest.mark.parametrize("key", SPEC)
def test_a_missing_key_is_named(weights, key):
    write(weights, {name: value for name, value in SPEC.items() if name != key})
    assert refusal(read_spec, weights).startswith(f"{weights.with_suffix('.json')}: {key}: ")


@pytest.mark.parametrize("content", [[], [SPEC], "1", "null", '"unet"'])
def test_json_of_something_else_is_refused(weights, content):
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
def test_names_that_do_not_fit_the_number_of_classes_are_refused(weights, classes, names):
    """One name per logit, and two where a single logit is binary: metrics are counted by name."""
    write(weights, {**SPEC, "classes": classes, "class_names": names})
    assert "class_names" in refusal(read_spec, weights)


def test_a_file_of_weights_means_itself(weights):
    assert find_weights(weights, "teacher.path") == weights


def test_a_run_folder_means_its_teacher_and_else_its_student(weights):
    assert find_weights(weights.parent, "teacher.path") == weights
    (weights.parent / "teacher.safetensors").write_bytes(b"")
    assert find_weights(weights.parent, "teacher.path") == weights.parent / "teacher.safetensors"
    assert find_weights(weights.parent, "model", ("student.safetensors",)) == weights


def test_a_path_may_start_at_home(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert find_weights(type(weights)("~/student.safetensors"), "teacher.path") == weights


@pytest.mark.parametrize("name", ["none.safetensors", "nowhere", "student.json", "student.pt", "empty"])
def test_a_path_without_weights_is_refused_by_its_key(weights, name):
    (weights.parent / "student.pt").write_bytes(b"")
    (weights.parent / "empty").mkdir()
    path = weights.parent / name
    assert refusal(find_weights, path, "teacher.path").startswith(f"teacher.path={path}: no weights there")


def test_reading_a_description_imports_nothing_heavy(weights):
    program = (
        "import sys; from pathlib import Path; from kd.spec import find_weights, read_spec\n"
        "print(read_spec(find_weights(Path(sys.argv[1]), 'teacher.path')).encoder)\n"
        "print(sorted({'torch', 'segmentation_models_pytorch', 'mlflow', 'albumentations'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(weights)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["resnet18", "[]"]
