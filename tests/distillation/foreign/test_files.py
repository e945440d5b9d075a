"""A foreign teacher's files, config.json and classes are checked before torch is imported."""

import json
import subprocess
import sys

import pytest

from kd.config.compose import PROJECT, compose, plain
from kd.config.read import checked
from kd.distillation.foreign.files import channels, find, smp_config
from kd.errors import ConfigError, ModelError
from kd.settings import ForeignTeacher

CONFIG = {"_model_class": "Unet", "encoder_name": "resnet18", "classes": 2, "in_channels": 3, "aux_params": None}


def teacher(kind, path, **more) -> ForeignTeacher:
    given = {"normalisation": "imagenet", "class_map": None, "cache": "auto", "cache_gb": 1, **more}
    return ForeignTeacher(kind=kind, path=str(path), **given)


@pytest.fixture
def folder(tmp_path):
    """A folder as save_pretrained writes it, with an empty weights file."""
    (tmp_path / "smp").mkdir()
    (tmp_path / "smp" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "smp" / "model.safetensors").touch()
    return tmp_path / "smp"


# files


def test_safetensors_weights_are_preferred(folder):
    (folder / "pytorch_model.bin").touch()
    assert find(teacher("smp", folder)) == folder / "model.safetensors"
    (folder / "model.safetensors").unlink()
    assert find(teacher("smp", folder)) == folder / "pytorch_model.bin"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub client's cache with one revision of a repository, on a machine without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--teacher"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    return snapshot


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_the_hub_is_loaded_from_the_local_cache(name, hub):
    (hub / name).touch()
    for path in ("hf-hub:someone/teacher", "hf-hub:someone/teacher@main", f"hf-hub:someone/teacher@{hub.name}"):
        assert find(teacher("smp", path)) == hub / name
    assert smp_config(hub / name).classes == 2


@pytest.mark.parametrize("path", ["hf-hub:someone/else", "hf-hub:someone/teacher@other", "hf-hub:someone/teacher"])
def test_a_failed_download_is_reported(path, hub):
    with pytest.raises(ModelError, match=f"^teacher.path={path}: download failed .* network"):
        find(teacher("smp", path))


@pytest.mark.parametrize("path", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:a/b c"])
def test_an_invalid_repository_name_is_refused(path):
    with pytest.raises(ModelError, match="<owner>/<name>"):
        find(teacher("smp", path))


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("torchvision", "teacher.onnx", "takes a .safetensors or .pth or .pt file"),
        ("exported", "teacher.bin", "takes a .onnx file"),
        ("exported", "teacher.pt", "TorchScript.*torch.onnx.export"),
        ("exported", "teacher.ts", "TorchScript.*torch.onnx.export"),
        ("exported", "teacher.pt2", r"torch.export .*torch\.onnx\.export\(model, .*'teacher.onnx'"),
    ],
)
def test_an_unsupported_file_format_is_refused(kind, name, says, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=f"teacher.path=.*{says}"):
        find(teacher(kind, tmp_path / name))


@pytest.mark.parametrize("kind", ["smp", "torchvision", "exported"])
@pytest.mark.parametrize("path", ["/nowhere", "~nobody-of-that-name/x", "x" * 300, "/dev/zero"])
def test_a_missing_path_is_refused(kind, path):
    with pytest.raises(ModelError, match=r"^teacher\.path="):
        find(teacher(kind, path))


# descriptions


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 10**9}, "classes"),
        ({"classes": True}, "classes"),
        ({"in_channels": 17}, "in_channels"),
        ({"aux_params": {"classes": 2}}, "aux_params"),
        ({"encoder_name": {"_target_": "os.system"}}, "encoder_name"),
        ({"_model_class": "Unet\x1b[2J"}, "_model_class.*non-printable"),
    ],
)
def test_a_config_of_a_network_that_cannot_teach_is_refused(change, says, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelError, match=f"config.json: {says}"):
        smp_config(folder / "model.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, " " * 2**21, "[1]", "{}"])
def test_an_unreadable_config_is_refused(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        smp_config(folder / "model.safetensors")


# classes

BINARY, FOUR = ("background", "foreground"), ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("class_map", "given", "names", "expected"),
    [
        (None, 1, BINARY, (0, 1)),
        (None, 2, BINARY, (0, 1)),
        (None, 4, FOUR, (0, 1, 2, 3)),
        ((1, 0), 1, BINARY, (1, 0)),
        ((0, 15), 21, BINARY, (0, 15)),
        ((3, 2, 1, 0), 4, FOUR, (3, 2, 1, 0)),
    ],
)
def test_every_class_has_a_channel(class_map, given, names, expected):
    assert channels(teacher("smp", "x", class_map=class_map), given, names) == expected


@pytest.mark.parametrize(
    ("class_map", "given", "names", "says"),
    [
        (None, 21, BINARY, r"has 21 channels, the data has 2 classes .*class_map=\[2 different.* 0 to 20"),
        (None, 1, FOUR, r"has 1 channels, the data has 4 classes \(a, b, c, d\)"),
        ((0, 1), 21, FOUR, r"\[0, 1\] has 2 channels, the data has 4 classes"),
        ((0, 1, 2, 4), 4, FOUR, r"has 4 channels; give numbers from 0 to 3"),
        ((0, 2), 1, BINARY, "from 0 to 1"),
    ],
)
def test_a_class_map_that_does_not_match_is_refused(class_map, given, names, says):
    with pytest.raises(ConfigError, match=says):
        channels(teacher("smp", "x", class_map=class_map), given, names)


@pytest.fixture(scope="module")
def usual():
    return plain(compose(["teacher=smp", "teacher.path=x"]))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("class_map", [0, 0], "each channel once"),
        ("class_map", [-1, 0], "greater than or equal to 0"),
        ("class_map", ["a", "b"], "integer"),
        ("class_map", [0.5, 1], "integer"),
        ("class_map", [True, 0], "integer"),
        ("normalisation", "imaginet", "should be imagenet, half"),
        ("normalisation", None, "should be imagenet, half"),
        ("normalisation", {"mean": [0, 0, 0]}, "required"),
        ("normalisation", {"mean": [0, 0, 0], "std": [0, 1, 1]}, "greater than 0"),
        ("normalisation", {"mean": [0, 0], "std": [1, 1, 1]}, "mean has 2 numbers and std 3"),
        ("normalisation", {"mean": [0, 0, float("nan")], "std": [1, 1, 1]}, "finite"),
        ("kind", "foo", "'smp', 'torchvision' or 'exported'"),
    ],
)
def test_an_error_names_the_setting(key, value, says, usual):
    config = usual | {"teacher": usual["teacher"] | {key: value}}
    with pytest.raises(ConfigError, match=f"^teacher.{key}.*{says}"):
        checked(config, look_at_data=False)


def test_an_unsuitable_teacher_is_refused_before_torch_is_imported(folder):
    """For smp this includes the number of classes."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"classes": 5}))
    code = (
        "import sys\nfrom kd.config.compose import compose\nfrom kd.config.read import read\n"
        "from kd.errors import UserError\n"
        "try:\n    read(compose(sys.argv[1:]))\nexcept UserError as error:\n    print(error, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "teacher=smp", f"teacher.path={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert "has 5 channels" in done.stdout
    assert done.stdout.endswith("False\n")
