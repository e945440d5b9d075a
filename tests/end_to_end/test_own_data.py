"""What a training says of people's own files before it starts."""

import numpy as np
import program
import pytest
from PIL import Image

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


def test_a_training_says_what_it_reads_under_another_name_and_what_it_does_not_read(root, data):
    for kind in ("images", "masks"):
        (data / kind / "val").rename(data / kind / "valid")
    (data / "images" / "train" / "d.avif").write_bytes(b"x")
    done = train(root)
    assert done.returncode == 0, done.stderr
    before, _, _ = done.stdout.partition("epoch")
    assert f"warning  {data}/images/valid is read as val (and 1 more: valid; kd check lists all)" in before
    assert f"warning  {data}/images/train has 1 file (.avif 1: d.avif) of formats that are not read" in before
