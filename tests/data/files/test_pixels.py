"""RGB of 8 bits is what it always was; any other pixels are read as they are stored, or refused in one line."""

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image
from tiffs import write_tiff

from kd.data import Folder, OxfordPet, Shapes
from kd.data.cache import cached
from kd.data.files.decode import read_image, resized_image
from kd.data.files.pixels import OtherPixelsError, Pixels
from kd.errors import DataError

RANDOM = np.random.default_rng(0)


def numbers(kind, channels, size=(20, 24)):
    top = 1 if kind.startswith("f") else np.iinfo(kind).max
    return (RANDOM.random((*size, channels)) * top).astype(kind)


@pytest.mark.parametrize(("depth", "kind"), [(8, "u1"), (16, "u2"), ("float", "f4")])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_pictures_of_any_channels_and_depth_are_read_as_they_are_stored(tmp_path, depth, kind, channels, suffix):
    pixels = Pixels(channels, depth)
    if pixels.usual:
        return
    array, path = numbers(kind, channels), tmp_path / f"a{suffix}"
    write_tiff(path, array) if suffix == ".tif" else np.save(path, array)
    assert np.array_equal(pixels.read(path), array)
    assert pixels.read(path).dtype == pixels.dtype
    assert pixels.size(path) == (20, 24)
    assert pixels.header(path).mode == f"{channels} x {array.dtype.name}"


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 2), ("RGBA", 4), ("CMYK", 4), ("I;16", 1), ("RGB", 3)],
)
def test_common_formats_have_the_channels_of_their_modes(tmp_path, mode, channels):
    wide = mode == "I;16"
    array = numbers("u2" if wide else "u1", channels)
    picture = Image.fromarray(array[..., 0] if channels == 1 else array, None if wide or mode in ("1", "L") else mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    (picture.convert("1") if mode == "1" else picture).save(path)
    pixels = Pixels(channels, 16 if wide else 8)
    if not pixels.usual:
        found = pixels.read(path)
        assert found.shape == array.shape
        assert mode == "1" or np.array_equal(found, array)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_in_colour_keeps_its_16_bits(tmp_path, channels):
    array = numbers("u2", channels)
    cv2.imwrite(
        str(tmp_path / "a.png"), cv2.cvtColor(array, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    )
    assert np.array_equal(Pixels(channels, 16).read(tmp_path / "a.png"), array)
    assert np.array_equal(read_image(tmp_path / "a.png"), (array[..., :3] >> 8).astype(np.uint8))  # RGB as before
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        Pixels(channels, 16).read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("stored", "kind", "asked", "remedy"),
    [
        (5, "u2", Pixels(), "set data.channels=5 data.depth=16"),
        (5, "u1", Pixels(), "set data.channels=5 data.depth=8"),
        (5, "f4", Pixels(), "set data.channels=5 data.depth=float"),
        (4, "u2", Pixels(5, 16), "set data.channels=4 data.depth=16"),
        (5, "u1", Pixels(5, 16), "set data.channels=5 data.depth=8"),
        (5, "i2", Pixels(5, 16), "set data.channels=5 data.depth=float"),
        (4, "u2", Pixels(5, "float"), "set data.channels=4 data.depth=float"),
        (20, "u2", Pixels(5, 16), "choose 16 of them at most"),
    ],
)
def test_other_pixels_are_refused_with_what_was_found_and_what_to_set(tmp_path, stored, kind, asked, remedy):
    path = write_tiff(tmp_path / "a.tif", numbers(kind, stored))
    for call in (asked.read, asked.size):
        with pytest.raises(OtherPixelsError) as refused:
            call(path)
        said = str(pickle.loads(pickle.dumps(refused.value)))  # as from a worker process
        assert said == str(refused.value)
        assert f"a.tif has {stored} channels of {np.dtype(kind).name}, and {asked.options}: {remedy}" in said


def test_float_takes_every_type_of_numbers_and_no_nan(tmp_path):
    for kind in ("u1", "i2", "u2", "u4", "f8"):
        array = numbers(kind, 2)
        found = Pixels(2, "float").read(write_tiff(tmp_path / "a.tif", array))
        assert np.array_equal(found, array.astype(np.float32))
    for bad in (np.nan, np.inf, 1e300):
        array[3, 4, 1] = bad
        with pytest.raises(DataError, match=r"a\.tif has 1 values that are no finite number of 32 bits"):
            Pixels(2, "float").read(write_tiff(tmp_path / "a.tif", array))


def test_a_palette_is_no_measurement(tmp_path):
    Image.fromarray(numbers("u1", 3)).convert("P").save(tmp_path / "a.png")
    with pytest.raises(DataError, match="stores colours of a palette"):
        Pixels(1).read(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(10, 12), (31, 24), (40, 50)])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_a_channel_is_resized_alike_whatever_is_beside_it(size, kind):
    array = numbers(kind, 7)
    whole = resized_image(array, size)
    assert whole.shape == (*size, 7)
    for channel in range(7):
        assert np.array_equal(resized_image(array[..., [channel]], size)[..., 0], whole[..., channel])


def folder(root, channels=5, kind="u2", **more):
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (root / name / split).mkdir(parents=True, exist_ok=True)
        for index in range(3):
            np.save(root / "images" / split / f"{index}.npy", numbers(kind, channels))
            Image.fromarray(np.indices((20, 24))[0].astype(np.uint8) // 10).save(
                root / "masks" / split / f"{index}.png"
            )
    return Folder(root, image_size=(32, 32), channels=channels, **more)


@pytest.mark.parametrize("cache", ["ram", "disk", "off"])
@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
@pytest.mark.parametrize(("depth", "kind"), [(8, "u1"), (16, "u2"), ("float", "f4")])
def test_a_cached_sample_is_what_was_read(tmp_path, cache, fit, depth, kind):
    if (cache, fit) == ("disk", "crop"):
        return
    source = folder(tmp_path / "data", kind=kind, depth=depth, cache=cache, fit=fit)
    samples = cached(source, tmp_path / "cache")
    for _ in range(2):
        for (image, mask), (own, labels) in [(samples.read("val", i), source.read("val", i)) for i in range(3)]:
            assert image.dtype == source.pixels.dtype
            assert np.array_equal(image, own)
            assert np.array_equal(mask, labels)


def test_channels_depth_and_statistics_are_in_digests_and_the_usual_ones_are_not(tmp_path):
    images, masks = (tmp_path / name / "train" for name in ("images", "masks"))
    for place in (images, masks):
        place.mkdir(parents=True)
    for index in range(9):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(images / f"{index}.bmp")
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(masks / f"{index}.bmp")
    usual = Folder(tmp_path, image_size=(32, 32))
    assert usual.fingerprint() == "d10bdc2c7d9df252cde046d72cd78c19"  # of the version before there were others
    others = [Folder(tmp_path, image_size=(32, 32), **more) for more in (
        {"channels": 1}, {"channels": 4}, {"depth": 16}, {"depth": "float"}, {"channels": 1, "depth": 16},
    )]  # fmt: skip
    assert len({source.fingerprint() for source in [usual, *others]}) == 6
    stated = Folder(tmp_path, image_size=(32, 32), mean=[1, 2, 3], std=[4, 5, 6])
    assert stated.fingerprint() == usual.fingerprint()  # the samples are the same
    assert usual.view_facts() == {}
    assert stated.view_facts() == {"mean": (1, 2, 3), "std": (4, 5, 6)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be a whole number, from 1 to 16"),
        ({"channels": 17}, "channels must be a whole number, from 1 to 16"),
        ({"depth": 12}, "depth must be 8 or 16"),
        ({"depth": True}, "depth must be 8 or 16"),
        ({"mean": [1, 2, 3]}, "mean and std belong together"),
        ({"mean": [1, 2], "std": [1, 2]}, "mean must be a list with a number for each of the 3 channels"),
        ({"mean": [100, 2, 3], "std": [1, 0, 2]}, "std must be above 0"),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, "in stored values, from 0 to 255"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Folder("data", **options)


@pytest.mark.parametrize("kind", [Shapes, lambda **more: OxfordPet("data", **more)])
def test_data_sets_of_rgb_have_no_other_channels(kind):
    with pytest.raises(ValueError, match="channels and depth must be 3 and 8, as its pictures are RGB"):
        kind(channels=5)


def test_arrays_are_not_listed_beside_rgb(tmp_path):
    folder(tmp_path)
    with pytest.raises(DataError, match=r"is read where data.channels and data.depth say what it stores"):
        Folder(tmp_path).check()


def test_a_fourth_channel_that_is_no_alpha_is_said_to_be_dropped(tmp_path):
    for name, kind in (("images", "RGBX"), ("masks", "L")):
        (tmp_path / name / "train").mkdir(parents=True)
        for index in range(3):
            Image.new(kind, (8, 8)).save(tmp_path / name / "train" / f"{index}.tif")
    (warning, *_) = Folder(tmp_path).survey().warnings
    assert "has a fourth channel that is no alpha, and is read as RGB: data.channels=4 reads it" in str(warning.error)
    assert Folder(tmp_path, channels=4).survey().warnings == []
    assert Folder(tmp_path, channels=4, image_size=(32, 32)).read("train", 0)[0].shape == (32, 32, 4)


def test_the_digest_of_built_in_data_is_as_before():
    assert Shapes().fingerprint() == "46c91af81c13b5b88a4eae9d96ca37f0"  # of the version before there were other pixels
    assert Shapes(mean=[1, 2, 3], std=[4, 5, 6]).fingerprint() == Shapes().fingerprint()
