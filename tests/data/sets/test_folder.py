"""Folders of images and masks: every common format is read, and every problem is reported in one line."""

import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import mask, picture, put, save
from PIL import Image

from kd.data import Folder
from kd.data.layout.splitting import val_stems
from kd.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        put(tmp_path, f"s{number}", picture(value=10 * number))
    put(tmp_path, "v", split="val")
    put(tmp_path, "t", split="test")
    return tmp_path


def small(root, **options):
    return Folder(root, image_size=(32, 64), **options)


def refusal(source, call=lambda source: source.check()):
    with pytest.raises(DataError) as caught:
        call(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_first(source):
    return source.read("train", 0)


# What is read


def test_reading_returns_what_was_saved(folder):
    source = small(folder)
    source.check()
    assert [source.size(split) for split in ("train", "val", "test")] == [10, 1, 1]
    assert source.name("train", 3) == "s3.png"
    image, labels = source.read("train", 3)
    assert np.array_equal(image, picture(value=30))
    assert np.array_equal(labels, mask())
    assert image.dtype == labels.dtype == np.uint8
    with pytest.raises(IndexError):
        source.read("val", 1)
    with pytest.raises(IndexError):
        source.read("val", -1)


@pytest.mark.parametrize("size", [(64, 32), (96, 160), (32, 224)])
def test_resizing_adds_no_mask_values(tmp_path, size):
    put(tmp_path, "a", picture(50, 70), mask(50, 70, (0, 9)))
    put(tmp_path, "b", split="val")
    image, labels = Folder(tmp_path, classes=10, image_size=size).read("train", 0)
    assert image.shape == (*size, 3)
    assert labels.shape == size
    assert set(np.unique(labels)) == {0, 9}


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".TIFF", ".webp"])
def test_every_image_format_is_read(tmp_path, suffix):
    put(tmp_path, "a", suffix=suffix)
    put(tmp_path, "b", split="val")
    image, _ = read_first(small(tmp_path))
    assert np.abs(image[:, [4, 60]].astype(int) - picture()[:, [4, 60]]).max() < 12


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (Image.fromarray(np.full((32, 64), 77, np.uint8)), (77, 77, 77)),
        (Image.fromarray(np.full((32, 64), 257 * 77, np.uint16)), (77, 77, 77)),
        (Image.fromarray(np.full((32, 64), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((32, 64, 4), (9, 8, 7, 0), np.uint8)), (9, 8, 7)),
        (Image.fromarray(np.full((32, 64, 2), (77, 9), np.uint8), "LA"), (77, 77, 77)),
        (Image.fromarray(np.full((32, 64), True)), (255, 255, 255)),
        (Image.fromarray(np.full((32, 64, 3), (200, 10, 30), np.uint8)).quantize(4), (200, 10, 30)),
    ],
    ids=["grey", "grey16", "white16", "rgba", "grey+alpha", "one bit", "palette"],
)
def test_every_pixel_type_is_converted_to_rgb(tmp_path, stored, expected):
    put(tmp_path, "a", stored)
    put(tmp_path, "b", split="val")
    image, _ = read_first(small(tmp_path))
    assert image.shape == (32, 64, 3)
    assert tuple(image[5, 5]) == expected


def test_a_palette_with_transparency_is_converted_without_a_warning(tmp_path, recwarn):
    stored = Image.fromarray(np.full((32, 64, 3), (200, 10, 30), np.uint8)).quantize(4)
    save(mask(), tmp_path / "masks/train/a.png")
    save(stored, tmp_path / "images/train/a.png", transparency=bytes([0, 255, 255, 255]))
    put(tmp_path, "b", split="val")
    assert tuple(read_first(small(tmp_path))[0][5, 5]) == (200, 10, 30)
    assert not recwarn


def test_the_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    sideways = Image.fromarray(np.rot90(picture()).copy())
    save(sideways, tmp_path / "images/train/a.png", exif=exif)
    save(mask(), tmp_path / "masks/train/a.png")
    put(tmp_path, "b", split="val")
    source = small(tmp_path)
    source.check()
    assert np.array_equal(read_first(source)[0], picture())


def palette(values):
    image = Image.fromarray(values, "P")
    image.putpalette([200, 30, 40, 10, 250, 60, 70, 80, 90])
    return image


@pytest.mark.parametrize(
    "stored",
    [
        mask(),
        mask().astype(bool),
        mask().astype(np.uint16),
        palette(mask()),
        np.repeat(mask()[..., None], 3, axis=2),
        Image.fromarray(mask()).convert("LA"),
        Image.fromarray(np.repeat(mask()[..., None], 3, axis=2)).convert("RGBA"),
    ],
    ids=["grey", "one bit", "16 bit", "palette", "rgb", "grey+alpha", "rgba"],
)
def test_masks_of_every_pixel_type_are_read(tmp_path, stored):
    put(tmp_path, "a", labels=stored)
    put(tmp_path, "b", split="val")
    assert np.array_equal(read_first(small(tmp_path))[1], mask())


def test_mask_values_map_stored_values_to_classes(tmp_path):
    put(tmp_path, "a", labels=mask(values=(0, 255, 128)))
    put(tmp_path, "b", labels=mask(values=(0, 255, 128)), split="val")
    binary = small(tmp_path, mask_values=[0, 255], ignore_index=128)
    assert np.array_equal(read_first(binary)[1], mask(values=(0, 1, 128)))
    several = small(tmp_path, classes=3, mask_values=[128, 255, 0])
    assert np.array_equal(read_first(several)[1], mask(values=(2, 1, 0)))


def test_ignored_pixels_stay_ignored(tmp_path):
    put(tmp_path, "a", labels=mask(values=(0, 10, 11)))
    put(tmp_path, "b", labels=mask(values=(3, 11)), split="val")
    source = small(tmp_path, classes=11, ignore_index=11)
    source.check()
    assert np.array_equal(read_first(source)[1], mask(values=(0, 10, 11)))


# Splits


def test_val_is_taken_from_train_by_name_and_stable_when_files_are_added(tmp_path):
    for number in range(30):
        put(tmp_path, f"s{number}")

    def held_out():
        source = small(tmp_path, val_fraction=0.3)
        names = {split: {source.name(split, i) for i in range(source.size(split))} for split in ("train", "val")}
        assert not names["train"] & names["val"]
        assert source.size("test") == 0
        return names

    before = held_out()
    assert sum(map(len, before.values())) == 30
    for number in range(30, 45):
        put(tmp_path, f"s{number}")
    after = held_out()
    assert before["val"] <= after["val"]
    assert before["train"] <= after["train"]


@pytest.mark.parametrize("fraction", [0.001, 0.15, 0.5, 0.999])
@pytest.mark.parametrize("count", [2, 3, 200])
def test_val_has_about_the_fraction_and_no_split_is_empty(fraction, count):
    stems = [f"image_{number}" for number in range(count)]
    val = val_stems(stems, fraction, "here")
    assert 1 <= len(val) < count
    assert count < 200 or abs(len(val) / count - fraction) < 0.1


def test_one_image_is_too_few_to_split(tmp_path):
    put(tmp_path, "a")
    message = refusal(small(tmp_path))
    assert "contains too few images (1) to split off a validation set: add some, or a val split" in message


# Settings, fingerprint, pickling


def test_constructing_accesses_no_files():
    assert Folder("/no/such/place").class_names == ("background", "foreground")


def test_tildes_are_expanded_and_relative_roots_allowed(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for spelling in (f"~/{folder.name}", folder.name):
        assert small(spelling).size("train") == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_values": [0]}, r"mask_values must be 2 different values.*but got \[0\]"),
        ({"mask_values": [5, 5]}, r"mask_values must be 2 different values"),
        ({"mask_values": [0, -1]}, r"mask_values must be whole numbers from 0"),
        ({"mask_values": [0, 255], "ignore_index": 255}, "ignore_index 255 must not be one of mask_values"),
        ({"val_fraction": 0}, "val_fraction must be between 0 and 1, both excluded, but got 0"),
        ({"val_fraction": 1.5}, "val_fraction must be between 0 and 1"),
        ({"image_size": [100, 100]}, r"use \[96,96\] or \[128,128\]"),
        ({"root": " "}, "root must name the folder"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Folder(**{"root": "x", **options})


def test_the_fingerprint_depends_on_content_names_and_settings_but_not_the_path(folder, tmp_path_factory):
    first = small(folder).fingerprint()
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, elsewhere)
    assert small(elsewhere).fingerprint() == first
    assert small(elsewhere, classes=2, class_names=("a", "b")).fingerprint() != first
    assert Folder(elsewhere, image_size=(64, 64)).fingerprint() != first
    save(picture(value=99), elsewhere / "images/train/s0.png")
    changed = small(elsewhere).fingerprint()
    assert changed != first
    for kind in ("images", "masks"):
        (elsewhere / kind / "train/s0.png").rename(elsewhere / kind / "train/r0.png")
    assert small(elsewhere).fingerprint() not in (first, changed)


FILES = [f"{kind}/{place}" for kind in ("images", "masks") for place in ("train/a.png", "train/b.png", "val/v.png")]


def raw(root, contents):
    """A folder of arbitrary files, since a fingerprint only depends on bytes."""
    for place, content in zip(FILES, contents, strict=True):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(content)
    return small(root).fingerprint()


contents = st.lists(st.binary(min_size=1, max_size=40), min_size=len(FILES), max_size=len(FILES))


@given(contents, contents)
@settings(deadline=None, max_examples=40)
def test_fingerprints_are_equal_exactly_if_all_content_is(tmp_path_factory, one, other):
    first, second, third = (tmp_path_factory.mktemp("raw") for _ in range(3))
    assert raw(first, one) == raw(second, one)
    assert (raw(first, one) == raw(third, other)) == (one == other)


@given(contents, st.data())
@settings(deadline=None, max_examples=25)
def test_changing_one_byte_of_one_file_changes_the_fingerprint(tmp_path_factory, content, data):
    root = tmp_path_factory.mktemp("raw")
    before = raw(root, content)
    which = data.draw(st.integers(0, len(FILES) - 1))
    place = data.draw(st.integers(0, len(content[which]) - 1))
    changed = bytearray(content[which])
    changed[place] ^= data.draw(st.integers(1, 255))
    assert raw(root, [*content[:which], bytes(changed), *content[which + 1 :]]) != before
    assert raw(root, content) == before


def test_swapping_two_files_changes_the_fingerprint(tmp_path):
    one, two, *rest = [bytes([number]) for number in range(len(FILES))]
    assert raw(tmp_path, [one, two, *rest]) != raw(tmp_path, [two, one, *rest])


def test_a_source_can_be_pickled(folder):
    source = small(folder)
    before = source.read("train", 1)
    after = pickle.loads(pickle.dumps(source)).read("train", 1)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


# What can be wrong


def test_missing_folders_are_named(tmp_path):
    message = refusal(small(tmp_path / "none"))
    assert f"data.root={tmp_path / 'none'} is not a folder" in message
    assert "images/train" in message
    (tmp_path / "images").mkdir()
    assert f"{tmp_path}/images/train does not exist" in refusal(small(tmp_path))


def test_an_image_without_a_mask_is_named(folder):
    (folder / "masks/train/s4.png").unlink()
    message = refusal(small(folder))
    assert f"{folder}/images/train/s4.png has no mask: expected {folder}/masks/train/s4.png" in message
    assert "1 of 10" in message


def test_a_mask_without_an_image_is_named(folder):
    (folder / "images/test/t.png").unlink()
    assert f"{folder}/masks/test/t.png has no image: expected {folder}/images/test/t.jpg" in refusal(small(folder))


def test_two_images_with_the_same_name_are_named(folder):
    save(picture(), folder / "images/train/s4.jpg")
    assert "s4.jpg and" in refusal(small(folder))


def test_other_files_and_hidden_files_are_ignored(folder):
    for name in ("Thumbs.db", "notes.txt", "._s4.png", ".hidden.png"):
        (folder / "images/train" / name).write_bytes(b"x")
    small(folder).check()


def test_jpeg_masks_are_refused(folder):
    (folder / "masks/train/s4.png").unlink()
    save(mask(), folder / "masks/train/s4.jpg")
    assert "s4.jpg is a JPEG, which does not keep class indices exactly: save masks as PNG" in refusal(small(folder))


@pytest.mark.parametrize(
    ("values", "options", "advice"),
    [
        ((0, 255), {}, "contains the values 0,255, but data.classes=1 allows 0 to 1: set 'data.mask_values=[0,255]'"),
        ((255,), {}, "set 'data.mask_values=[0,255]' if 255 is the foreground"),
        ((0, 1, 255), {}, "set data.ignore_index=255 if it marks pixels to ignore"),
        ((0, 1, 2, 7), {"classes": 3}, "allows 0 to 2: set data.ignore_index=7"),
        ((0, 50, 90), {"classes": 3}, "set 'data.mask_values=[0,50,90]' if these are the classes in order"),
        (
            (0, 7),
            {"classes": 3, "ignore_index": 9},
            "allows 0 to 2 with data.ignore_index=9: set 'data.ignore_values=[7,9]' if 7 marks pixels to ignore",
        ),
        ((0, 128), {"mask_values": [0, 255]}, "data.mask_values is [0,255]: set data.ignore_index=128"),
        (tuple(range(20)), {"classes": 3}, "contains the values 0,1,2,3,4,5,6,7,... (20 values)"),
    ],
)
def test_values_beyond_the_classes_come_with_advice(tmp_path, values, options, advice):
    put(tmp_path, "a", labels=mask(values=values))
    put(tmp_path, "b", labels=mask(values=(0,)), split="val")
    for call in (Folder.check, read_first):
        message = refusal(small(tmp_path, **options), call)
        assert f"{tmp_path}/masks/train/a.png contains" in message
        assert advice in message


def test_16_bit_mask_values_above_255_are_refused(tmp_path):
    put(tmp_path, "a", labels=mask().astype(np.uint16) * 256)
    put(tmp_path, "b", split="val")
    assert "contains the values 0,256" in refusal(small(tmp_path))


def test_a_colour_mask_is_refused(folder):
    save(picture(), folder / "masks/train/s0.png")
    message = refusal(small(folder))
    assert "s0.png is a colour image, but a mask is one channel of class indices" in message
    assert "set 'data.mask_colours=[[120,120,120],[250,120,120]]' if these are the classes in order" in message


def test_different_sizes_are_both_named(folder):
    save(mask(32, 60), folder / "masks/train/s0.png")
    for call in (Folder.check, read_first):
        message = refusal(small(folder), call)
        assert "s0.png is 64x32 pixels (width x height), but its mask" in message
        assert "is 60x32" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_or_empty_image_is_reported_in_one_line(tmp_path, suffix, keep):
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    put(tmp_path, "a", noise, suffix=suffix)
    put(tmp_path, "b", split="val")
    path = tmp_path / f"images/train/a{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    message = refusal(small(tmp_path), read_first)
    assert message.startswith(f"{path} cannot be read as an image (")


def test_a_file_that_is_not_an_image_is_reported_in_one_line(folder):
    (folder / "images/train/s0.png").write_text("<html>not found</html>")
    assert "s0.png cannot be read as an image" in refusal(small(folder))


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_refused(folder, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    path = folder / "masks/train/s0.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    assert f"{path} has more than 89478485 pixels: scale it down" in refusal(small(folder))


def test_floating_point_images_are_refused(tmp_path):
    save(np.zeros((32, 64), np.float32), tmp_path / "images/train/a.tif")
    save(mask(), tmp_path / "masks/train/a.png")
    put(tmp_path, "b", split="val")
    assert "a.tif contains floating-point values: save it with 8 or 16 bits" in refusal(small(tmp_path), read_first)


def test_check_reads_masks_of_every_split(folder):
    for split, stem in (("train", "s9"), ("val", "v"), ("test", "t")):
        save(mask(values=(0, 200)), folder / "masks" / split / f"{stem}.png")
        assert f"masks/{split}/{stem}.png contains the values 0,200" in refusal(small(folder))
        save(mask(), folder / "masks" / split / f"{stem}.png")
    small(folder).check()
