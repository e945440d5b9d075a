"""Five channels of 16 bits, from the folder to the report: trained, resumed from caches, exported, predicted, shown."""

import json

import numpy as np
import onnxruntime
import program
import pytest
import torch
from made_once import made_once
from PIL import Image
from tiffs import write_tiff

import kd
from kd.cli import main
from kd.system import tensor_file

SHAPE = (40, 48)


def write_data(root, splits=(("train", 6), ("val", 3), ("test", 2))):
    """Discs that are bright in the last channel, on a noisy ground; a picture per index."""
    random = np.random.default_rng(0)
    for split, count in splits:
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            rows, columns = np.indices(SHAPE)
            disc = np.hypot(rows - random.integers(12, 28), columns - random.integers(12, 36)) < 9
            ground = 1500 + 300 * random.standard_normal((*SHAPE, 5))
            ground[..., 4] += 2000 * disc
            picture = ground.clip(0, 65535).astype(np.uint16)
            name = f"{index:03}"
            if index % 2:
                np.save(root / "images" / split / f"{name}.npy", picture)
            else:
                write_tiff(root / "images" / split / f"{name}.tif", picture, deflate=True, tile=16, predictor=2)
            Image.fromarray(disc.astype(np.uint8)).save(root / "masks" / split / f"{name}.png")


def _train(folder):
    write_data(folder / "data")
    done = program.train(
        folder, "data=folder", f"data.root={folder / 'data'}", "data.channels=5", "data.depth=16",
        "data.image_size=[64,64]", "data.cache=disk", "backbone=tiny", "trainer.batch_size=3", "trainer.device=cpu",
        "quick=true", "tracking=none", "augment.views=1", f"root={folder}", f"hydra.run.dir={folder / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with data/, and run/ of a student of five channels; not to be changed."""
    return made_once(tmp_path_factory, "five channels", _train)


def test_the_run_says_what_it_measured_and_uses_its_caches(run):
    (line,) = [line for line in (run / "said.txt").read_text().splitlines() if line.startswith("data ")]
    assert line.startswith("data     5 channels of 16 bits, measured on 6 training pictures: 'data.mean=[")
    summary = json.loads((run / "run" / "summary.json").read_text())
    assert summary["teacher_answers"]["read"] > 0
    (records,) = (run / "runs" / "cache" / "data").glob("*/train.records")
    assert records.stat().st_size > 6 * 64 * 64 * (5 * 2 + 1)


def test_the_student_s_file_is_all_that_inference_needs(run):
    said = json.loads((run / "run" / "student.json").read_text())
    assert (said["channels"], said["depth"], len(said["mean"])) == (5, 16, 5)
    network = kd.load(run / "run")
    assert 1400 < network.mean.min() < network.mean.max() < 2500
    with torch.inference_mode():
        assert network(torch.full((1, 5, 64, 64), 1500.0)).shape == (1, 1, 64, 64)


def test_pictures_of_the_report_are_rgb(run, tmp_path):
    tensors, _ = tensor_file.read(run / "run" / "evidence.safetensors")
    images = [tensor for name, tensor in tensors.items() if name.startswith("sample/") and name.endswith("/image")]
    assert images
    assert all(image.dtype == torch.uint8 and image.shape[2] == 3 for image in images)
    assert all(int(image.max()) == 255 for image in images)
    main(["report", str(run / "run"), "-o", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_every_export_takes_stored_values_in_float32(run, tmp_path, capsys):
    main(["export", str(run / "run"), "--int8", "--format", "onnx,smp", "-o", str(tmp_path)])
    network, images = kd.load(run / "run"), torch.rand(2, 5, 64, 64, generator=torch.Generator().manual_seed(0)) * 65535
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"))
    assert session.get_inputs()[0].type == "tensor(float)"
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        expected = network(images).numpy()
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
    record = json.loads((tmp_path / "export.json").read_text())
    assert record["input"].startswith("images: N x 5 x H x W float32, as stored, 0..65535, ")
    assert record["pixels"] == '{"channels": 5, "depth": 16}'
    assert "N x 5 x H x W" in (tmp_path / "student_smp" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["masks", "overlays"])
def test_predictions_are_of_pictures_as_they_are_stored(run, tmp_path, kind, capsys):
    main(["predict", str(run / "run"), str(run / "data" / "images" / "test"), "-o", str(tmp_path), "--kind", kind])
    made = sorted(tmp_path.iterdir())
    assert [path.stem for path in made] == ["000", "001"]
    assert all(Image.open(path).size == SHAPE[::-1] for path in made)


def test_pictures_of_other_channels_are_refused_by_name(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    with pytest.raises(SystemExit):
        main(["predict", str(run / "run"), str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert "a.png has 3 channels of uint8, and this network takes 5 channels of 16 bits: give such pictures" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "001.npy is read where data.channels and data.depth say what it stores"),
        (["data.channels=4", "data.depth=16"], "has 5 channels of uint16, and data.channels=4 data.depth=16"),
        (["data.channels=5", "data.depth=16", "augment=heavy"], "augment.transforms has ColorJitter, which needs RGB"),
    ],
)
def test_a_training_on_them_is_refused_before_it_starts(run, root, overrides, message):
    done = program.train(root, "data=folder", f"data.root={run / 'data'}", "backbone=tiny", *overrides)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list((root / "runs").glob("*/*"))


def test_a_teacher_of_other_channels_is_refused(run, root):
    teacher = f"teacher.path={run / 'run'}"
    done = program.train(root, "teacher=file", teacher, "backbone=tiny", "data.image_size=[64,64]")
    assert done.returncode != 0
    assert (
        "this teacher takes pictures of 5 channels of 16 bits, and the data's have 3 channels of 8 bits" in done.stderr
    )
