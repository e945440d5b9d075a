"""Pictures of 16 bits that lose nearly everything when they are read as 8 bits are said, with what keeps them."""

import json

import cv2
import numpy as np
import pytest
from pairs import mask, save
from tiffs import write_tiff

from kd.config.compose import compose
from kd.config.read import read
from kd.data import Coco, Folder
from kd.data.checks.check import check
from kd.data.checks.survey import DARK


def stripes(largest, channels=1, dtype=np.uint16):
    """A picture whose values are 0, `largest` and half of it."""
    values = np.array([0, largest // 2, largest, 0], dtype)
    return np.broadcast_to(values.repeat(16)[None, :, None], (32, 64, channels)).copy()


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        write_tiff(path, picture)
    else:
        cv2.imwrite(str(path), picture)


def folder(root, pictures, suffix=".png"):
    for number, picture in enumerate(pictures):
        write(root / f"images/train/{number}{suffix}", picture)
        save(mask(), root / f"masks/train/{number}.png")
    return root


def warnings(source):
    return [problem.message for problem in check(source).warnings if problem.kind == "dark"]


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype", "options"),
    [
        (".png", 1, np.uint16, "data.channels=1 data.depth=16"),
        (".png", 3, np.uint16, "data.channels=3 data.depth=16"),
        (".tif", 1, np.uint16, "data.channels=1 data.depth=16"),
        (".tif", 1, np.int32, "data.channels=1 data.depth=float"),
    ],
)
def test_dark_pictures_of_16_bits_are_said_and_the_advice_reads_all_levels(tmp_path, suffix, channels, dtype, options):
    root = folder(tmp_path, [stripes(value, channels, dtype) for value in (2864, 900, 700)], suffix)
    (message,) = warnings(Folder(root, image_size=(32, 64)))
    assert message.startswith("images/")
    assert "but the largest value in the pictures inspected is 2864, so at most 12 of 256 levels are left" in message
    assert message.endswith(f": set {options} if all pictures are like it")
    overrides = ["data=folder", f"data.root={root}", "data.image_size=[32,64]", *options.split()]
    source = read(compose(overrides), look_at_data=False).data
    assert warnings(source) == []
    assert max(int(source.image("train", index).max()) for index in range(source.size("train"))) >= 700


@pytest.mark.parametrize(
    "pictures",
    [[stripes(900), stripes(DARK)], [stripes(9, dtype=np.uint8)] * 2],
    ids=["one uses the range", "8 bits"],
)
def test_pictures_that_use_their_range_or_have_8_bits_are_not_said(tmp_path, pictures):
    assert warnings(Folder(folder(tmp_path, pictures), image_size=(32, 64))) == []


def test_a_damaged_picture_is_an_error_of_its_own(tmp_path):
    root = folder(tmp_path, [stripes(900), stripes(800), stripes(700)])
    (root / "images/train/1.png").write_bytes((root / "images/train/1.png").read_bytes()[:60])
    report = check(Folder(root, image_size=(32, 64)))
    assert [problem.file for problem in report.errors] == ["images/train/1.png"]
    assert [problem.kind for problem in report.warnings if problem.kind == "dark"] == ["dark"]


def test_pictures_in_cocos_format_are_inspected_too(tmp_path):
    images = [{"id": number, "file_name": f"{number}.png", "height": 32, "width": 64} for number in range(2)]
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    said = {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text(json.dumps(said))
    for image in images:
        write(tmp_path / "train" / image["file_name"], stripes(2864))
    (message,) = warnings(Coco(tmp_path, image_size=(32, 64)))
    assert "the largest value in the pictures inspected is 2864" in message
    assert warnings(Coco(tmp_path, image_size=(32, 64), channels=1, depth=16)) == []
