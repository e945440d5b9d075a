"""Image files are not trusted: neither their format, nor their size, nor that they are regular files."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kd.data.files.decode import picture_size, read_image, read_mask, resized_image, resized_labels
from kd.data.files.image_file import MAX_PIXELS, open_file, read_header
from kd.errors import DataError


def png(width, height):
    """A few bytes that claim to be a grey image of that size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def swollen(path, width, height):
    """A valid small image in the suffix's format, whose header claims another size."""
    Image.new("RGB", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    if path.suffix == ".bmp":
        content[18:26] = struct.pack("<II", width, height)
    elif path.suffix == ".gif":
        content[6:10] = struct.pack("<HH", width, height)
    else:
        frame = content.index(b"\xff\xc0") + 5
        content[frame : frame + 4] = struct.pack(">HH", height, width)
    path.write_bytes(content)


@pytest.fixture(params=[".png", ".bmp", ".gif", ".jpg"])
def bomb(request, tmp_path):
    path = tmp_path / f"bomb{request.param}"
    if path.suffix == ".png":
        path.write_bytes(png(50_000, 50_000))
    else:
        swollen(path, 50_000, 50_000)
    assert path.stat().st_size < 2000
    return path


@pytest.mark.parametrize("read", [read_image, read_mask, read_header, picture_size])
def test_an_image_with_too_many_pixels_is_refused_in_one_line(read, bomb):
    with pytest.raises(DataError) as caught:
        read(bomb)
    assert str(caught.value) == (
        f"{bomb} has more than {MAX_PIXELS} pixels: scale it down, or cut it up (kd predict also takes a tiled TIFF, "
        "with a student that was trained by data.fit=crop)"
    )


def test_a_bomb_is_refused_before_memory_is_allocated(bomb):
    code = (
        "import resource, sys; from pathlib import Path; from kd.data.files.decode import *; from kd.errors import *\n"
        "from PIL import Image; Image.new('RGB', (1, 1)); Image.init()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for read in (read_image, read_mask, picture_size):\n"
        "    try: read(Path(sys.argv[1]))\n"
        "    except DataError: print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, bomb], capture_output=True, text=True, check=True)
    spent = list(map(int, done.stdout.split()))
    assert len(spent) == 3
    assert max(spent) < 2**26  # the picture would take 2.5 GB or more


def test_the_limit_holds_if_pillows_own_is_disabled(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png(50_000, 50_000))
    with pytest.raises(DataError, match="has more than"):
        read_mask(tmp_path / "a.png")


def test_the_largest_allowed_image_is_accepted(tmp_path):
    (tmp_path / "a.png").write_bytes(png(MAX_PIXELS, 1))
    assert read_header(tmp_path / "a.png")[2:] == (1, MAX_PIXELS)
    (tmp_path / "a.png").write_bytes(png(MAX_PIXELS + 1, 1))
    with pytest.raises(DataError, match="has more than"):
        read_header(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", b"P6 1 1 255 abc", b"", b"x"]
)
def test_an_unknown_format_is_refused_under_any_name(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value).startswith(
        f"{path} cannot be read as an image (it is not one of JPEG, PNG, BMP, GIF, TIFF"
    )


def test_odd_metadata_raises_no_warning(tmp_path, recwarn):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x01")
    assert read_image(tmp_path / "a.jpg").shape == (4, 4, 3)
    assert not recwarn


@pytest.mark.parametrize("read", [read_image, read_mask, read_header, picture_size, open_file])
def test_a_pipe_folder_device_or_missing_file_is_refused_without_blocking(read, tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name, says in {
        "folder": "cannot be read (Is a directory)",
        "pipe": "is not a file but a pipe, socket or device",
        "device": "is not a file but a pipe, socket or device",
        "missing": "cannot be read (No such file or directory)",
    }.items():
        path = tmp_path / f"{name}.png"
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} {says}")


def test_names_are_escaped_and_long_ones_shortened(tmp_path):
    for name in ("\x1b[31mred\a.png", "line\nbreak.png", "not\udcffutf8.png", "n" * 250 + ".png"):
        path = tmp_path / name
        path.write_bytes(b"x")
        with pytest.raises(DataError) as caught:
            read_image(path)
        message = str(caught.value)
        assert message.isprintable()
        assert message.encode()
        assert len(message) < len(str(tmp_path)) + 250
    assert "n...n" in message
    assert "nn.png cannot be read" in message


def test_a_header_has_format_mode_and_size(tmp_path):
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png") == ("PNG", "L", 3, 5)
    Image.new("RGB", (5, 3)).save(tmp_path / "really_a_jpeg.png", format="JPEG")
    assert read_header(tmp_path / "really_a_jpeg.png") == ("JPEG", "RGB", 3, 5)


# masks follow pictures


def centroid(weights):
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    weights = weights.astype(np.float64)
    return (y * weights).sum() / weights.sum(), (x * weights).sum() / weights.sum()


def disc(height, width):
    """A centred disc, or an ellipse in the picture's proportions; in whole numbers, so that it is symmetric."""
    y, x = np.mgrid[:height, :width]
    distance = ((2 * y + 1 - height) * width) ** 2 + ((2 * x + 1 - width) * height) ** 2
    return (2 * distance < (height * width) ** 2).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@example(26, 26, 16, 17)  # cells whose distance is the radius exactly
@given(*[st.integers(16, 300)] * 2, *[st.integers(16, 160)] * 2)
def test_a_centred_disc_stays_centred_in_picture_and_mask(height, width, new_height, new_width):
    mask = disc(height, width)
    size = new_height, new_width
    picture, labels = resized_image(np.repeat(mask[..., None] * 200, 3, axis=2), size), resized_labels(mask, size)
    centre = (new_height - 1) / 2, (new_width - 1) / 2
    assert centroid(labels) == pytest.approx(centre, abs=1e-6)
    assert centroid(picture[..., 0]) == pytest.approx(centre, abs=0.02)  # OpenCV's weights are fixed-point numbers


@settings(max_examples=60, deadline=None)
@given(st.data(), *[st.integers(1, 24)] * 4)
def test_each_cell_has_a_label_from_around_its_centre(data, height, width, new_height, new_width):
    mask = np.array(data.draw(st.lists(st.integers(0, 4), min_size=height * width, max_size=height * width)), np.uint8)
    mask = mask.reshape(height, width)
    labels = resized_labels(mask, (new_height, new_width))
    assert labels.shape == (new_height, new_width)
    for row, column in np.ndindex(labels.shape):
        y, x = (row + 0.5) * height / new_height - 0.5, (column + 0.5) * width / new_width - 0.5
        rows = [i for i in range(height) if abs(i - min(max(y, 0), height - 1)) < 0.5 + 1e-9]
        columns = [j for j in range(width) if abs(j - min(max(x, 0), width - 1)) < 0.5 + 1e-9]
        around = [int(mask[i, j]) for i in rows for j in columns]
        most = max(around.count(label) for label in around)
        best = [label for label in around if around.count(label) == most]
        rarest = min(int((mask == label).sum()) for label in best)
        assert labels[row, column] in best
        assert int((mask == labels[row, column]).sum()) == rarest


def test_a_thin_line_survives_halving():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 21] = 1
    assert (resized_labels(mask, (32, 32)).sum(1) == 1).all()


def test_a_mask_of_its_own_size_is_returned_as_it_is():
    mask = disc(32, 64)
    assert resized_labels(mask, (32, 64)) is mask


# masks with an alpha channel


def with_alpha(grey, alpha, mode):
    bands = (grey,) if mode == "LA" else (grey, grey, grey)
    return Image.merge(mode, [Image.fromarray(band) for band in (*bands, alpha)])


rows = st.lists(st.sampled_from([0, 1, 255]), min_size=4, max_size=4).map(lambda row: np.array([row], np.uint8))


@settings(deadline=None, max_examples=80)
@given(rows, rows, st.sampled_from(["LA", "RGBA"]))
def test_a_mask_is_refused_exactly_if_alpha_varies_and_colours_do_not(tmp_path_factory, grey, alpha, mode):
    path = tmp_path_factory.mktemp("alpha") / "a.png"
    with_alpha(grey, alpha, mode).save(path)
    if len(set(alpha.flat)) > 1 and len(set(grey.flat)) == 1:
        with pytest.raises(DataError, match="has its shape in the alpha channel"):
            read_mask(path)
        with Image.open(path) as picture:  # as the message advises
            picture.getchannel("A").save(path)
        assert np.array_equal(read_mask(path), alpha)
    else:
        assert np.array_equal(read_mask(path), grey)


def test_a_palette_of_one_colour_and_several_alphas_is_refused(tmp_path):
    stored = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    stored.putpalette([200, 0, 0, 200, 0, 0])
    stored.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    with pytest.raises(DataError, match=r"a.png has its shape in the alpha channel \(0 to 255\)"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize(("suffix", "channels"), [("png", 3), ("png", 4), ("tif", 3)])
def test_a_mask_of_several_channels_of_16_bits_is_refused(tmp_path, suffix, channels):
    import cv2

    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), np.full((4, 5, channels), 3, np.uint16))  # Pillow would read the upper 8 bits: 0
    with pytest.raises(DataError, match="a mask of 16 bits must have one channel"):
        read_mask(path)
    cv2.imwrite(str(path), np.full((4, 5), 3, np.uint16))
    assert np.array_equal(read_mask(path), np.full((4, 5), 3))


def test_a_mask_of_floats_is_refused_and_reads_as_integers_of_8_to_32_bits(tmp_path):
    path, values = tmp_path / "a.tif", np.full((4, 5), 3)
    Image.fromarray(values.astype(np.float32)).save(path)
    with pytest.raises(DataError, match=r"is stored as F, but .*: convert it to integers of 8 or 16 bits"):
        read_mask(path)
    for dtype in (np.uint8, np.uint16, np.int32):
        Image.fromarray(values.astype(dtype)).save(path)
        assert np.array_equal(read_mask(path), values)
