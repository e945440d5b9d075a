"""Images of any size and format get the labels of evaluation, at their own size, and none is lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finished import built, images, settings_of
from pairs import put
from PIL import Image

from kd.data import Folder
from kd.data.batches.loading import EvalLoader
from kd.data.files.decode import read_image
from kd.data.sizing import Sizing
from kd.deploy.predictor import FLIPS, Predictor, Tally, listed, logits_of, outputs
from kd.deploy.style import Style, labels_at, probabilities_at
from kd.networks.precision import Precision
from kd.training.evaluation import evaluate
from tests.data.files.test_tiled_tiff import tiled

CPU = Precision(torch.device("cpu"))


@pytest.fixture(scope="module", params=[1, 3], ids=["binary", "3 classes"])
def trained(request):
    settings = settings_of(f"data.classes={request.param}")
    return CPU.place(built(settings)), settings.data


def predicted(network, data, jobs, kind="masks", flips="", batch=4):
    style = Style(kind, network.classes, range(len(network.class_names)), np.eye(3, 3, dtype=np.uint8) * 255)
    tally = Tally()
    done = sum(Predictor(network, data.sizing, CPU, style, flips).run(jobs, batch, 2, tally))
    assert done == len(jobs)
    return tally


def saved(data, folder):
    """The validation images as files."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(data.size("val"))]
    for index, path in enumerate(paths):
        Image.fromarray(data.read("val", index)[0]).save(path)
    return paths


def test_at_the_training_size_labels_are_those_of_evaluation(trained, tmp_path):
    network, data = trained
    jobs = [(path, tmp_path / "out" / path.name) for path in saved(data, tmp_path / "in")]
    predicted(network, data, jobs)
    labels = torch.cat(evaluate(network, EvalLoader(data, "val", 4), CPU, None, keep_labels=True).labels)
    assert len(labels.unique()) == len(network.class_names)
    written = np.stack([np.array(Image.open(target)) for _, target in jobs])
    np.testing.assert_array_equal(written, labels.numpy())


@pytest.mark.parametrize("size", [(1, 1), (7, 45), (50, 33), (32, 32)])
def test_logits_are_resized_bilinearly_before_the_label_is_taken(trained, size):
    network, data = trained
    logits = logits_of(network, images(data)[:2], CPU)
    reference = F.interpolate(torch.from_numpy(logits), size=size, mode="bilinear", align_corners=False)
    two = reference if network.classes > 1 else torch.cat([torch.zeros_like(reference), reference], dim=1)
    best = two.topk(2, dim=1).values
    clear = ((best[:, 0] - best[:, 1]) > 1e-5).numpy()  # elsewhere rounding decides
    labels = np.stack([labels_at(each, size) for each in logits])
    assert labels.shape == (2, *size)
    np.testing.assert_array_equal(labels[clear], two.argmax(1).numpy()[clear])
    found = torch.from_numpy(np.stack([probabilities_at(each, size) for each in logits]))
    expected = reference.sigmoid()[:, 0] if network.classes == 1 else reference.softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("flips", ["h", "hv"])
def test_flips_give_the_mean_of_the_probabilities(trained, flips):
    network, data = trained
    batch = images(data)[:2]
    slow = []
    for axes in FLIPS[flips]:
        turned = network(torch.flip(batch, axes)) if axes else network(batch)
        probability = turned.sigmoid() if network.classes == 1 else turned.softmax(1)
        slow.append(torch.flip(probability, axes) if axes else probability)
    assert len(slow) == {"h": 2, "hv": 4}[flips]
    found = torch.from_numpy(logits_of(network, batch, CPU, flips))
    found = found.sigmoid() if network.classes == 1 else found.softmax(1)
    torch.testing.assert_close(found, torch.stack(slow).mean(0), atol=1e-5, rtol=1e-4)


def odd_pictures(folder: Path):
    """Images of formats that need special handling."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (37, 50, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    rgb.save(folder / "exif.jpg", exif=exif)
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("RGBA").save(folder / "alpha.webp")
    rgb.quantize(16).save(folder / "palette.gif")
    rgb.convert("CMYK").save(folder / "print.tif")
    Image.fromarray(random.integers(0, 65536, (20, 30)).astype(np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.bmp")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", ["masks", "probabilities", "overlays"])
def test_images_of_every_format_come_out_upright_and_at_their_own_size(trained, tmp_path, kind):
    network, data = trained
    (tmp_path / "in").mkdir()
    pictures = odd_pictures(tmp_path / "in")
    suffix = Style(kind, network.classes, ()).suffix
    jobs = [(path, tmp_path / "out" / f"{path.stem}{suffix}") for path in pictures]
    tally = predicted(network, data, jobs, kind)
    assert (tally.written, tally.failures) == (7, [])
    for path, target in jobs:
        size = read_image(path).shape[:2]
        assert size == ((50, 37) if path.stem == "exif" else size)
        if suffix == ".npy":
            written = np.load(target)
            assert (written.dtype, written.shape) == (np.float16, (network.classes, *size))
            np.testing.assert_allclose(written.astype(np.float32).sum(0), 1, atol=5e-3)
        else:
            with Image.open(target) as picture:
                assert picture.size == size[::-1]
                assert picture.mode == {"masks": "L", "overlays": "RGB"}.get(kind, "I;16")


def test_an_unreadable_image_does_not_stop_the_others(trained, tmp_path):
    network, data = trained
    paths = saved(data, tmp_path / "in")
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[2].unlink()
    tally = predicted(network, data, [(path, tmp_path / "out" / path.name) for path in paths])
    assert tally.written == len(paths) - 2
    assert [str(error).split(" cannot")[0] for error in tally.failures] == [str(paths[1]), str(paths[2])]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in paths} - {"1.png", "2.png"}


def test_masks_have_the_values_of_the_training_masks(tmp_path):
    settings = settings_of()
    network, (path, *_) = built(settings), saved(settings.data, tmp_path / "in")
    for values, mode in (((0, 255), "L"), ((7, 40_000), "I;16")):
        style = Style("masks", 1, values)
        list(Predictor(network, Sizing((32, 32)), CPU, style).run([(path, tmp_path / "mask.png")], 1, 1, Tally()))
        with Image.open(tmp_path / "mask.png") as mask:
            assert (mask.mode, set(np.unique(np.array(mask)).tolist())) == (mode, set(values))


def test_outputs_keep_folders_and_never_collide():
    names = [Path(name) for name in "a.jpg a.png b.tif sub/a.jpg a.png.bmp a.png.bmp.webp c.jpg C.png".split()]
    found = outputs(names, ".png")
    assert len({str(path).lower() for path in found.values()}) == len(names)
    assert {str(name): str(path) for name, path in found.items()}.items() >= {
        "b.tif": "b.png", "sub/a.jpg": "sub/a.png", "a.jpg": "a.jpg.png", "c.jpg": "c.jpg.png", "C.png": "C.png.png",
    }.items()  # fmt: skip


def test_a_folder_is_listed_with_its_folders_and_without_hidden_files_and_outputs(tmp_path):
    for name in ("a.JPG", "b/c.png", ".hidden.png", "b/.git/d.png", "notes.txt", "out/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert listed(tmp_path, tmp_path / "out").images == [Path("a.JPG"), Path("b/c.png")]
    assert listed(tmp_path / "notes.txt", tmp_path).images == [Path("notes.txt")]


# students of other fits


def trained_by(fit, **more):
    settings = settings_of("data.image_size=[64,64]")
    data = replace(settings.data, image_size=(32, 32), fit=fit, **more)
    return CPU.place(built(settings)), data


@pytest.fixture
def sized(tmp_path):
    """Pictures of their own sizes, with masks, as a data folder."""
    random = np.random.default_rng(0)
    for index, size in enumerate([(40, 70), (32, 32), (9, 50), (100, 33)]):
        image = random.integers(0, 256, (*size, 3), np.uint8)
        for split in ("train", "val"):
            put(tmp_path / "data", f"p{index}", image, (image[..., 0] > 99).astype(np.uint8), split=split)
    return tmp_path / "data"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_student_of_crops_predicts_at_every_picture_s_own_size_what_evaluation_counts(sized, tmp_path, batch):
    network, _ = trained_by("crop")
    data = Folder(sized, image_size=(32, 32), fit="crop")
    jobs = [(path, tmp_path / path.name) for path in sorted((sized / "images" / "val").iterdir())]
    assert not predicted(network, data, jobs, batch=batch).failures
    expected = evaluate(network, EvalLoader(data, "val", batch), CPU, data.void, keep_labels=True).pictures()
    for (_, target), labels in zip(jobs, expected, strict=True):
        np.testing.assert_array_equal(np.array(Image.open(target)), labels.numpy())


@pytest.mark.parametrize("kind", ["masks", "probabilities"])
def test_a_tiled_tiff_beyond_the_limit_gives_what_it_gives_when_read_whole(sized, tmp_path, monkeypatch, kind):
    network, data = trained_by("crop")
    array = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    path = tiled(tmp_path / "a.tif", array, (16, 48))
    predicted(network, data, [(path, tmp_path / "whole.png")], kind)
    for module in ("image_file", "tiled_tiff"):
        monkeypatch.setattr(f"kd.data.files.{module}.MAX_PIXELS", 5000)
    assert not predicted(network, data, [(path, tmp_path / "tiles.png")], kind).failures
    whole, tiles = (np.array(Image.open(tmp_path / name)) for name in ("whole.png", "tiles.png"))
    np.testing.assert_array_equal(whole, tiles)
    Image.fromarray(array).save(tmp_path / "a.png")
    (error,) = predicted(network, data, [(tmp_path / "a.png", tmp_path / "b.png")], kind).failures
    assert "has more than 5000 pixels: scale it down, or cut it up" in str(error)


def test_a_student_of_letterboxed_pictures_sees_them_so_and_its_padding_is_cut_off(sized, tmp_path):
    network, data = trained_by("letterbox")
    image = np.random.default_rng(1).integers(0, 256, (32, 20, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    predicted(network, data, [(tmp_path / "a.png", tmp_path / "mask.png")])
    padded = np.zeros((32, 32, 3), np.uint8)
    padded[:, 6:26] = image
    logits = logits_of(network, torch.from_numpy(padded).permute(2, 0, 1)[None], CPU)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "mask.png")), logits[0, 0, :, 6:26] > 0)


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
@pytest.mark.parametrize("kind", ["masks", "probabilities", "overlays"])
def test_every_kind_is_written_at_the_picture_s_own_size(sized, tmp_path, fit, kind):
    network, data = trained_by(fit, **({"scale": 0.5} if fit == "crop" else {}))
    jobs = [(path, tmp_path / f"{path.stem}.png") for path in sorted((sized / "images" / "val").iterdir())]
    assert not predicted(network, data, jobs, kind, "h").failures
    for path, target in jobs:
        assert Image.open(path).size == Image.open(target).size
