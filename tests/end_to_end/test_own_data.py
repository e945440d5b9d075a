"""What a training says of people's own files before it starts."""

import re

import numpy as np
import program
import pytest
from PIL import Image

from kd.cli import main as kd
from kd.config.compose import compose
from kd.config.hydra_errors import one_line_errors
from kd.config.read import read
from kd.data import Folder
from kd.errors import DataError

SMALL = (
    "backbone=tiny loss=hard_only unfreeze=all data=folder data.image_size=[32,32] trainer.batch_size=2 "
    "trainer.epochs=1 trainer.device=cpu tracking=none pictures=false"
).split()


@pytest.fixture
def data(root):
    """A folder of noise: three pairs in each of two splits, the lower half of each mask foreground."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / "data" / kind / split).mkdir(parents=True)
        for name in "abc":
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / "images" / split / f"{name}.jpg")
            Image.fromarray(np.repeat(np.uint8([[0], [1]]), 16, 0).repeat(32, 1)).save(
                root / "data" / "masks" / split / f"{name}.png"
            )
    return root / "data"


def train(root, *overrides):
    return program.train(root, *SMALL, f"data.root={root / 'data'}", *overrides)


def test_a_training_names_pictures_that_are_turned_beside_their_masks(root, data):
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in "ab":
        path = data / "images" / "train" / f"{name}.jpg"
        with Image.open(path) as picture:
            picture.load()
            picture.save(path, exif=exif)
    done = train(root)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "EXIF" in line]
    assert line.startswith("warning  ")
    assert "images/train/a.jpg is turned by 180 degrees by its EXIF orientation (3), but" in line
    assert "(and 1 more: b.jpg; kd check lists all)" in line
    assert done.stdout.index(line) < done.stdout.index("epoch")


def test_a_run_on_data_by_a_relative_path_is_used_from_other_folders(root, data, tmp_path_factory, capsys, monkeypatch):
    done = program.train(root, *SMALL, "data.root=data", "hydra.run.dir=run", cwd=root)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    kd(["evaluate", str(root / "run"), "--device", "cpu"])
    assert "3 pictures of val" in capsys.readouterr().out


def test_a_training_says_what_it_reads_under_another_name_and_what_it_does_not_read(root, data):
    for kind in ("images", "masks"):
        (data / kind / "val").rename(data / kind / "valid")
    (data / "images" / "train" / "d.avif").write_bytes(b"x")
    done = train(root)
    assert done.returncode == 0, done.stderr
    before, _, _ = done.stdout.partition("epoch")
    assert f"warning  {data}/images/valid is read as val (and 1 more: valid; kd check lists all)" in before
    assert f"warning  {data}/images/train has 1 file (.avif 1: d.avif) of formats that are not read" in before


@pytest.mark.parametrize(
    ("split", "value", "overrides", "says"),
    [
        ("train", 0, [], "train shows nothing but background, so there is nothing to learn"),
        ("train", 255, ["data.ignore_index=255"], "train has no valid pixel, its masks are all data.ignore_index=255"),
        ("val", 255, ["data.ignore_index=255"], "val has no valid pixel"),
        ("val", 0, [], "class foreground never occurs in val, and objective measures it there"),
        ("val", 1, ["data.classes=3", "objective=val/iou/class_2"], "class class_2 never occurs in val"),
    ],
)
def test_data_that_teaches_or_measures_nothing_is_refused_before_anything_trains(
    root, data, capsys, split, value, overrides, says
):
    for path in (data / "masks" / split).iterdir():
        Image.new("L", (32, 32), value).save(path)
    with pytest.raises(SystemExit) as ended:
        kd(["check", "data=folder", "data.image_size=[32,32]", f"data.root={data}", *overrides])
    assert ended.value.code == 1
    assert f"error: {says}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended, one_line_errors():
        read(compose([*SMALL, f"data.root={data}", *overrides]))
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {says}")


def test_such_data_leaves_no_run_behind(root, data):
    for path in (data / "masks" / "train").iterdir():
        Image.new("L", (32, 32), 0).save(path)
    done = train(root)
    assert done.returncode == 1
    assert done.stderr.startswith("error: train shows nothing but background")
    assert done.stderr.count("\n") == 1
    assert not list(root.rglob("config.yaml"))


def test_a_training_reads_other_layouts_and_masks_in_colour(root, data):
    usual = Folder(data, image_size=(32, 32))
    samples = [usual.read(split, index) for split in ("train", "val") for index in range(3)]
    for split in ("train", "val"):
        for name in "abc":
            with Image.open(data / "masks" / split / f"{name}.png") as labels:
                colours = np.uint8([[10, 20, 30], [200, 0, 0]])[np.array(labels)]
            target = root / "other" / split / f"{name}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(target)
            (data / "images" / split / f"{name}.jpg").rename(root / "other" / split / f"{name}.jpg")
    options = [
        "data.images={split}/{stem}.jpg",
        "data.masks={split}/{stem}_mask.png",
        "data.root=" + str(root / "other"),
    ]
    colours = ["data.mask_colours=[[10,20,30],[200,0,0]]"]
    with pytest.raises(DataError, match=re.escape(f"set '{colours[0]}' if these are the classes in order")):
        read(compose([*SMALL, *options]))
    kd(["check", "data=folder", "data.image_size=[32,32]", *options, *colours])
    done = train(root, *options, *colours)
    assert done.returncode == 0, done.stderr
    other = read(compose([*SMALL, *options, *colours])).data
    found = [other.read(split, index) for split in ("train", "val") for index in range(3)]
    assert all(np.array_equal(*each) for pair in zip(samples, found, strict=True) for each in zip(*pair, strict=True))
