"""Whatever a person gets wrong in a configuration ends in one line that names the key, before heavy imports."""

import os
import subprocess
import sys
from pathlib import Path

import program
import pytest
from PIL import Image

from kd.cli import main
from kd.composition import PROJECT

#: What was typed, and what the line must say.
CATALOGUE = [
    ("trainer.epoch=3", ["trainer.epoch is not an option", "'trainer.epochs'"]),
    ("schedul=cosine", ["schedul is not an option", "'schedule'"]),
    ("schedule=cosin", ["schedule=cosin", "'cosine'"]),
    ("backbone=b1", ["backbone=b1", "conf/backbone"]),
    ("experiment=b0", ["experiment=b0", "conf/experiment"]),
    ("+loss.foo=1", ["loss.foo is not an option"]),
    ("+foo=1", ["foo is not an option"]),
    ("loss.alfa=1", ["loss.alfa is not an option", "'loss.alpha'"]),
    ("backbone.student.encodr=x", ["'backbone.student.encoder'"]),
    ("schedule.initial=[1", ["schedule.initial=[1"]),
    ("schedule=null", ["must be a string"]),
    ("trainer.epochs=abc", ["trainer.epochs='abc'", "integer"]),
    ("trainer.epochs=0", ["trainer.epochs=0", "greater than 0"]),
    ("trainer.batch_size=1.5", ["trainer.batch_size=1.5", "integer"]),
    ("trainer.precision=fp8", ["trainer.precision='fp8'", "'bf16'"]),
    ("trainer.device=tpu", ["trainer.device='tpu'", "cuda"]),
    ("trainer.workers=-2", ["trainer.workers=-2", "0 or more"]),
    ("optimizer.lr=0", ["optimizer.lr=0", "greater than 0"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
    ("optimizer.min_lr=1", ["min_lr must not be above lr=0.001", "1"]),
    ("optimizer.depth_decay=2", ["optimizer.depth_decay=2", "less than or equal to 1"]),
    ("optimizer.clip_norm=-5", ["optimizer.clip_norm=-5"]),
    ("loss.alpha=-1", ["loss.alpha=-1", "greater than or equal to 0"]),
    ("loss={alpha:0,beta:0,gamma:0,delta:0}", ["alpha, beta, gamma and delta are all 0"]),
    ("schedule.initial=-1", ["schedule.initial", "positive", "-1"]),
    ("schedule.final=0", ["schedule.final", "positive", "0"]),
    ("schedule.initial=inf", ["schedule.initial", "finite", "inf"]),
    ("schedule.initial=warm", ["schedule.initial", "'warm'"]),
    ("unfreeze.rate=0", ["unfreeze.rate", "1 or more", "0"]),
    ("unfreeze.start_epoch=-1", ["unfreeze.start_epoch", "-1"]),
    ("unfreeze.start_epoch=25", ["unfreeze.start_epoch=25 is beyond the last epoch, 24"]),
    ("unfreeze.max_blocks=0", ["unfreeze.max_blocks", "1 or more"]),
    ("data.image_size=[100,100]", ["data.image_size", "multiples of 32", "[96,96] or [128,128]"]),
    ("data.image_size=128", ["data.image_size", "[height,width]"]),
    ("data.classes=0", ["data.classes", "0"]),
    ("data.ignore_index=1", ["data.ignore_index", "1"]),
    ("data=folder", ["data.root", "data.root=..."]),
    ("seed=-1", ["seed=-1"]),
    ("objective=val/mio", ["objective=val/mio", "'val/miou'"]),
    ("objective=student/latency_ms", ["cannot choose the best epoch"]),
    ("schedule._target_=os.system", ["schedule._target_=os.system", "may build"]),
    ("data._target_=kd.data.folder.hashlib.new", ["may build"]),
    ("tracking=wandb", ["tracking=wandb", "mlflow, none"]),
    ("teacher=file", ["teacher.path"]),
]


def one_line(error: str) -> str:
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(("typed", "says"), CATALOGUE, ids=[typed for typed, _ in CATALOGUE])
def test_a_mistake_is_told_in_one_line(typed, says, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["preview", typed])
    error = one_line(capsys.readouterr().err)
    assert exit_.value.code == 2
    assert all(part in error for part in says), error


def train(*overrides, **env):
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *overrides],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_train_tells_the_same_line_and_leaves_nothing_behind(root):
    done = train("schedule.initial=-1")
    assert done.returncode == 2
    assert "schedule.initial must be a positive" in one_line(done.stderr)
    assert leftovers(root) == []


def test_the_traceback_is_there_for_who_asks():
    done = train("schedule.initial=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_mistake_is_told_before_anything_heavy_is_imported(tmp_path):
    for module in ("torch", "albumentations", "mlflow", "segmentation_models_pytorch"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('imported too early')")
    done = train("trainer.epochs=0", PYTHONPATH=str(tmp_path))
    assert "trainer.epochs=0" in one_line(done.stderr)


def test_a_mismatched_torchvision_is_advised_on(tmp_path, root):
    (tmp_path / "shadow").mkdir()
    message = "operator torchvision::nms does not exist"
    (tmp_path / "shadow" / "torchvision.py").write_text(f"raise RuntimeError({message!r})")
    done = train("trainer.epochs=1", "unfreeze=all", PYTHONPATH=str(tmp_path / "shadow"))
    assert done.returncode == 1
    assert "matching pair" in one_line(done.stderr)
    assert "requirements.lock" in done.stderr


UNBUILDABLE = [
    ("backbone.student.encoder=efficientnet-b00", ["backbone.student.encoder=efficientnet-b00", "'efficientnet-b0'"]),
    ("backbone.student.arch=unett", ["backbone.student.arch=unett", "'unet'"]),
    ("backbone.student.weights=imagenet", ["backbone.student.weights=imagenet", "backbone.student.weights=null"]),
    ("backbone.student.weights=./none.safetensors", ["none.safetensors", "no such file"]),
    ("augment.transforms=[{_target_: os.system, command: true}]", ["augment.transforms", "os.system"]),
    ("augment.transforms=[{_target_: albumentations.NoSuch}]", ["augment.transforms", "NoSuch"]),
]


@pytest.mark.parametrize(("typed", "says"), UNBUILDABLE, ids=[typed for typed, _ in UNBUILDABLE])
def test_a_network_or_transform_that_cannot_be_built_is_told_in_one_line(typed, says, root):
    done = program.train(root, "backbone=tiny", "loss=hard_only", "data.image_size=[32,32]", "tracking=none", typed)
    assert done.returncode != 0
    error = one_line(done.stderr)
    assert all(part in error for part in says), error
    assert leftovers(root) == []


def test_a_teacher_that_is_not_there_is_told_in_one_line(root):
    done = program.train(root, "teacher=file", "teacher.path=/nowhere")
    assert done.returncode == 1
    assert "teacher.path=/nowhere: no weights there" in one_line(done.stderr)
    assert leftovers(root) == []


# data that is not what the configuration says


def pictures(root: Path, **masks: int) -> Path:
    """A folder of 32 x 32 pictures, a pair per name; each mask is filled with its number, and has one pixel of 0."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for name, value in masks.items():
            Image.effect_noise((32, 32), 50).convert("RGB").save(root / "images" / split / f"{name}.jpg")
            mask = Image.new("L", (32, 32), value)
            mask.putpixel((0, 0), 0)
            mask.save(root / "masks" / split / f"{name}.png")
    return root


def distil(root: Path, data: Path, *overrides: str) -> subprocess.CompletedProcess:
    small = [
        "backbone=tiny",
        "loss=hard_only",
        "unfreeze=all",
        "trainer.epochs=1",
        "trainer.batch_size=2",
        "tracking=none",
    ]
    return program.train(root, "data=folder", f"data.root={data}", "data.image_size=[32,32]", *small, *overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.classes=1"],
            ["masks", "holds the values 0,2", "data.classes=1 allows 0 to 1", "data.mask_values=[0,2]"],
        ),
        (["data.classes=2"], ["holds the values 0,2", "data.classes=2 allows 0 to 1"]),
    ],
)
def test_masks_beyond_the_classes_are_told_in_one_line(overrides, says, tmp_path, root):
    done = distil(root, pictures(tmp_path / "data", a=2, b=2), *overrides)
    error = one_line(done.stderr)
    assert all(part in error for part in says), error
    assert not (root / "runs").exists() or leftovers(root / "runs") == []


def test_a_mask_without_its_image_is_told_in_one_line(tmp_path, root):
    data = pictures(tmp_path / "data", a=1, b=1)
    (data / "images" / "train" / "b.jpg").unlink()
    error = one_line(distil(root, data).stderr)
    assert "b.png" in error
    assert "image" in error


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_cut_short_is_told_in_one_line(workers, tmp_path, root):
    data = pictures(tmp_path / "data", a=1, b=1, c=1)
    for image in (data / "images" / "train").iterdir():
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    done = distil(root, data, f"trainer.workers={workers}")
    assert done.returncode == 1
    error = one_line(done.stderr)
    assert ".jpg" in error
    assert "cannot be read as a picture" in error
    assert not (root / "runs").exists() or leftovers(root / "runs") == []


def test_the_same_folder_trains_once_it_is_whole(tmp_path, root):
    done = distil(root, pictures(tmp_path / "data", a=1, b=1, c=1))
    assert done.returncode == 0, done.stderr
    assert any(path.name == "student.safetensors" for path in leftovers(root / "runs"))
