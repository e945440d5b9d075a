"""The EXIF orientation found in a header is the one that reading applies, and a mask without one is named."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import mask, put, save
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from kd.data import Folder
from kd.data.checks.check import check
from kd.data.files.decode import picture_size, read_image
from kd.data.files.orientation import TAG, orientation
from kd.errors import DataError

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def tagged(number):
    exif = Image.Exif()
    exif[TAG] = number
    return exif


def moved_to_the_end(path):
    """Move the orientation of a PNG behind its pixels."""
    content, at, chunks = path.read_bytes(), 8, []
    while at < len(content):
        length = struct.unpack(">I", content[at : at + 4])[0] + 12
        chunks.append(content[at : at + length])
        at += length
    chunks.sort(key=lambda chunk: [b"IHDR", b"IDAT", b"eXIf", b"iTXt", b"IEND"].index(chunk[4:8]))
    path.write_bytes(content[:8] + b"".join(chunks))


def store(path, pixels, number, how):
    """Save a picture with an orientation, as EXIF or XMP, in a PNG also behind the pixels."""
    picture, options = Image.fromarray(pixels), {}
    if how == "xmp" and path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.format(number))
    elif how == "xmp" and path.suffix == ".jpg":
        options["xmp"] = XMP.format(number).encode()
    else:
        options["exif"] = tagged(number)
    picture.save(path, **options)
    if how == "end" and path.suffix == ".png":
        moved_to_the_end(path)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 9), st.sampled_from(["jpg", "png", "tif", "webp"]), st.sampled_from(["exif", "xmp", "end"]),
    st.sampled_from([(16, 16), (16, 24)]),
)  # fmt: skip
def test_a_header_shows_the_orientation_that_reading_applies(tmp_path_factory, number, suffix, how, size):
    path = tmp_path_factory.mktemp("turned") / f"a.{suffix}"
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:8, :8] = 255  # one corner
    store(path, pixels, number, how)
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert np.array_equal(read_image(path), upright)
    assert picture_size(path) == upright.shape[:2]
    assert orientation(path) == (number if 1 <= number <= 8 else 1)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1\0\0", b"BM"])
def test_a_damaged_file_counts_as_upright(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert orientation(tmp_path / "a.png") == 1


def test_metadata_that_says_nothing_of_the_orientation_is_upright(tmp_path):
    text = PngInfo()
    text.add_text("Title", "a")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    png = (tmp_path / "a.png").read_bytes()
    body = b"date:create\x002026"
    late = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    (tmp_path / "a.png").write_bytes(png[:-12] + late + png[-12:])  # as ImageMagick writes it
    assert orientation(tmp_path / "a.png") == 1


# Pairs


def small(root):
    return Folder(root, image_size=(32, 64))


def pair(root, stem, turned, mask_turned=1, size=(32, 64), split="train"):
    seed = sum(map(ord, stem))
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    save(pixels, root / f"images/{split}/{stem}.jpg", exif=tagged(turned))
    save(mask(*size), root / f"masks/{split}/{stem}.png", exif=tagged(mask_turned))


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
@pytest.mark.parametrize("headers", [False, True])
def test_a_picture_with_an_orientation_beside_a_mask_without_one_is_a_warning(tmp_path, size, headers):
    pair(tmp_path, "plain", 1, size=size)
    pair(tmp_path, "upside_down", 3, size=size)
    pair(tmp_path, "both", 3, 3, size=size)
    pair(tmp_path, "mask_alone", 1, 3, size=size)
    pair(tmp_path, "v", 2, size=size, split="val")
    report = check(small(tmp_path), headers)
    assert report.errors == []
    assert sorted(problem.file for problem in report.warnings if problem.kind == "orientation") == [
        "images/train/mask_alone.jpg", "images/train/upside_down.jpg", "images/val/v.jpg",
    ]  # fmt: skip
    (message,) = [problem.message for problem in report.warnings if "upside_down" in problem.file]
    assert message.startswith(
        "images/train/upside_down.jpg is turned by 180 degrees by its EXIF orientation (3), but "
        "masks/train/upside_down.png has no such tag"
    )
    assert "exiftool -Orientation= FILE" in message


@pytest.mark.parametrize("headers", [False, True])
def test_a_size_that_differs_by_an_orientation_says_so(tmp_path, headers):
    pair(tmp_path, "sideways", 6)
    pair(tmp_path, "v", 1, split="val")
    cause = "the picture is turned by 90 degrees by its EXIF orientation (6), and the mask was drawn on the stored"
    with pytest.raises(DataError) as caught:
        small(tmp_path).check()
    assert cause in str(caught.value)
    (error,) = check(small(tmp_path), headers).errors
    assert error.kind == "size"
    assert cause in error.message
    put(tmp_path, "other", labels=mask(16, 16))
    assert "the two must match" in " ".join(error.message for error in check(small(tmp_path), headers).errors)


def test_the_advice_helps(tmp_path):
    pair(tmp_path, "sideways", 6)
    pair(tmp_path, "v", 1, split="val")
    with Image.open(tmp_path / "images/train/sideways.jpg") as picture:
        save(Image.fromarray(np.asarray(picture)), tmp_path / "images/train/sideways.jpg")  # as without the tag
    small(tmp_path).check()
    assert check(small(tmp_path)).warnings == []
