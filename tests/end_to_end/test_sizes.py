"""Pictures of their own sizes, from training to prediction, as a person runs it."""

import json

import numpy as np
import program
import pytest
from pairs import save
from PIL import Image

SMALL = (
    "backbone=tiny data=folder data.image_size=[32,32] trainer.batch_size=2 trainer.epochs=1 teacher.epochs=1 "
    "trainer.device=cpu tracking=none unfreeze=all augment.views=1 pictures=false"
).split()
SIZES = [(40, 70), (33, 33), (20, 100)]


@pytest.fixture
def data(root):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, size in enumerate(SIZES):
            image = random.integers(0, 100, (*size, 3), np.uint8)
            mask = np.zeros(size, np.uint8)
            mask[5:15, 5:15] = 1
            save(image + 100 * mask[..., None], root / "data" / "images" / split / f"{number}.png")
            save(mask, root / "data" / "masks" / split / f"{number}.png")
    return root / "data"


def trained(root, data, name, *overrides):
    folder = root / "runs" / "all" / name
    done = program.train(root, *SMALL, f"data.root={data}", f"hydra.run.dir={folder}", *overrides)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_crops_are_taught_from_the_cache_measured_whole_and_predicted_whole(root, data):
    fit = ["data.fit=crop", "data.crop_foreground=0.5"]
    first, said = trained(root, data, "first", *fit)
    assert "results at the pictures' own size (windows of 32 x 32)" in said
    again, _ = trained(root, data, "again", *fit)
    live, _ = trained(root, data, "live", *fit, "teacher.cache=off", "data.cache=off", "trainer.workers=1")
    weights = [(folder / "student.safetensors").read_bytes() for folder in (first, again, live)]
    assert weights[0] == weights[1] == weights[2]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, again)]
    assert summaries[0]["teacher_answers"]["computed"] > 0
    assert summaries[1]["teacher_answers"]["computed"] == 0
    assert summaries[0]["measured_at"] == "the pictures' own size (windows of 32 x 32)"
    for who in ("student", "teacher", "baseline"):
        assert summaries[0][who]["val/miou"] is not None
    done = program.run_kd(root, "predict", str(first), str(data / "images" / "val"), "-o", str(root / "out"))
    assert done.returncode == 0, done.stderr
    counts = np.zeros((2, 2), int)
    for number, size in enumerate(SIZES):
        mask, truth = (np.array(Image.open(folder / f"{number}.png")) for folder in
                       (root / "out", data / "masks" / "val"))  # fmt: skip
        assert mask.shape == size
        np.add.at(counts, (truth, mask), 1)
    iou = counts[1, 1] / max(1, counts[1].sum() + counts[:, 1].sum() - counts[1, 1])
    assert iou == pytest.approx(summaries[0]["student"]["val/iou/foreground"], abs=0.01)
