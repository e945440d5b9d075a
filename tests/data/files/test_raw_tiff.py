"""TIFF of any channels and types comes out as it was written, however it was written; see tests/tiffs.py."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiffs import write_pages, write_tiff

from kd.data.files.raw_tiff import RawTiff
from kd.errors import DataError

TYPES = ["u1", "u2", "i2", "u4", "f4", "f8"]


def numbers(kind, size=(20, 33), channels=5, seed=0):
    random = np.random.default_rng(seed)
    if kind[0] == "f":
        return (random.standard_normal((*size, channels)) * 1000).astype(kind)
    return random.integers(0, np.iinfo(kind).max, (*size, channels), kind)


@given(
    kind=st.sampled_from(TYPES),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.integers(1, 16),
    planar=st.booleans(),
    tile=st.sampled_from([None, 16]),
    deflate=st.booleans(),
    big_endian=st.booleans(),
    predictor=st.integers(1, 3),
)
def test_every_layout_is_read_as_it_was_written(
    tmp_path_factory, kind, size, channels, planar, tile, deflate, big_endian, predictor
):
    array = numbers(kind, size, channels)
    predictor = 2 if predictor == 3 and kind[0] != "f" else predictor
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    write_tiff(path, array, planar=planar, tile=tile, deflate=deflate, predictor=predictor, big_endian=big_endian)
    tiff = RawTiff(path)
    assert (tiff.channels, tiff.size, tiff.dtype.newbyteorder("=")) == (channels, size, array.dtype)
    assert np.array_equal(tiff.read(), array)
    assert np.array_equal(tiff.rows(size[0] // 2, size[0]), array[size[0] // 2 :])


@pytest.mark.parametrize("kind", TYPES)
def test_pages_of_one_channel_are_channels(tmp_path, kind):
    array = numbers(kind)
    assert np.array_equal(RawTiff(write_pages(tmp_path / "a.tif", array)).read(), array)


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
def test_what_another_library_wrote_is_read(tmp_path, compression, kind):
    array = numbers(kind, channels=3)
    cv2.imwrite(str(tmp_path / "a.tif"), array[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    assert np.array_equal(RawTiff(tmp_path / "a.tif").read(), array)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
def test_what_pillow_wrote_is_read(tmp_path, compression):
    array = numbers("u1", channels=3)
    Image.fromarray(array).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(RawTiff(tmp_path / "a.tif").read(), array)


def edited(path, old, new):
    """A file with the value of a tag replaced: (tag, value) pairs of entries with one number."""
    entry, changed = (number.to_bytes(2, "little") + b"\4\0\1\0\0\0" for number in (old[0], new[0]))
    before, after = entry + old[1].to_bytes(4, "little"), changed + new[1].to_bytes(4, "little")
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ((256, 33), (256, 2**31), "more than|is one large piece|bytes of a tile are missing"),
        ((257, 20), (257, 2**31), "more than|tiles instead of"),
        ((277, 5), (277, 60000), "channels|bits|missing"),
        ((262, 1), (262, 3), "photometric interpretation is 3"),
        ((259, 1), (259, 9999), "compression 9999 is not read"),
        ((278, 7), (278, 1), "3 tiles instead of 20"),
        ((317, 1), (317, 7), "predictor 7 is not read"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, old, new, message):
    path = write_tiff(tmp_path / "a.tif", numbers("u2"))
    edited(path, old, new)
    with pytest.raises(DataError, match=message) as refused:
        RawTiff(path).read()
    assert "a.tif" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("deflate", [False, True])
def test_a_file_that_is_cut_off_is_refused(tmp_path, deflate):
    path = write_tiff(tmp_path / "a.tif", numbers("u2"), deflate=deflate)
    whole = path.read_bytes()
    for end in (4, 9, 100, len(whole) - 20):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.tif"):
            RawTiff(path).read()


def test_directories_that_lead_to_each_other_end(tmp_path):
    path = write_pages(tmp_path / "a.tif", numbers("u2", channels=2))
    content = bytearray(path.read_bytes())
    link = 8 + 2 + 12 * int.from_bytes(content[8:10], "little")
    content[link : link + 4] = (8).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    assert RawTiff(path).channels == 1


def test_pages_that_differ_are_refused(tmp_path):
    one, other = (write_tiff(tmp_path / name, numbers("u2", size, 1)) for name, size in (("a", (9, 9)), ("b", (8, 9))))
    content, second = bytearray(one.read_bytes()), other.read_bytes()
    link = 8 + 2 + 12 * int.from_bytes(content[8:10], "little")
    content[link : link + 4] = len(content).to_bytes(4, "little")
    count = int.from_bytes(second[8:10], "little")
    one.write_bytes(bytes(content) + second[8 : 10 + 12 * count] + bytes(4))
    with pytest.raises(DataError, match="its pages differ"):
        RawTiff(one)
