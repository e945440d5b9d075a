"""A TIFF read by rows is the picture that Pillow reads whole, for every layout and compression that it writes."""

from itertools import product

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from kd.data.files.decode import read_image
from kd.data.files.tiled_tiff import TiledTiff
from kd.errors import DataError


def photo(size=(300, 210)):
    rows, columns = np.indices(size)
    return np.stack([rows % 256, columns % 256, (rows * columns) % 256], axis=2).astype(np.uint8)


def tiled(path, array, tile=(64, 48)):
    """Write a tiled TIFF without compression; Pillow writes strips only."""
    height, width = array.shape[:2]
    rows, columns = -(-height // tile[0]), -(-width // tile[1])
    padded = np.zeros((rows * tile[0], columns * tile[1], 3), np.uint8)
    padded[:height, :width] = array
    cut = [
        padded[y * tile[0] : (y + 1) * tile[0], x * tile[1] : (x + 1) * tile[1]].tobytes()
        for y in range(rows)
        for x in range(columns)
    ]
    tags, start = ImageFileDirectory_v2(), 4096
    for tag, value in {
        256: width, 257: height, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3, 284: 1, 322: tile[1], 323: tile[0],
        324: tuple(start + number * len(cut[0]) for number in range(len(cut))), 325: tuple(map(len, cut)),
    }.items():  # fmt: skip
        tags[tag] = value
    with path.open("wb") as file:
        tags.save(file)
        assert file.tell() < start
        file.seek(start)
        file.write(b"".join(cut))
    return path


@pytest.mark.parametrize("size", [(300, 210), (64, 48), (65, 49), (1, 1)])
def test_rows_of_tiles_are_rows_of_the_picture(tmp_path, size):
    array = photo(size)
    read = TiledTiff(tiled(tmp_path / "a.tif", array))
    assert read.size == size
    for top, bottom in {(0, size[0]), (0, 1), (size[0] // 2, size[0]), (size[0] // 3, size[0] // 3 + 1)}:
        assert np.array_equal(read.rows(top, bottom), array[top:bottom])


COMPRESSIONS = ["tiff_lzw", "tiff_adobe_deflate", "packbits"]
EVERY = [*product(COMPRESSIONS, ["RGB", "L", "RGBA"]), ("jpeg", "RGB"), ("jpeg", "L")]  # JPEG has no alpha


@pytest.mark.parametrize(("compression", "mode"), EVERY)
@pytest.mark.parametrize("big", [False, True])
def test_every_compression_is_read_in_strips(tmp_path, compression, mode, big):
    path = tmp_path / "a.tif"
    Image.fromarray(photo()).convert(mode).save(path, compression=compression, strip_size=25_200, big_tiff=big)
    read = TiledTiff(path)
    assert read.tile[0] < 300
    found = np.concatenate([read.rows(top, min(300, top + 70)) for top in range(0, 300, 70)])
    assert np.abs(found.astype(int) - read_image(path)).max() <= (2 if compression == "jpeg" else 0)


def test_what_cannot_be_read_in_tiles_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("kd.data.files.tiled_tiff.MAX_PIXELS", 10_000)
    Image.fromarray(photo()).save(tmp_path / "a.tif", strip_size=10**9)
    with pytest.raises(DataError, match=r"a.tif cannot be read in tiles \(it is one piece, without tiles\)"):
        TiledTiff(tmp_path / "a.tif")
    Image.fromarray(photo()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is not a TIFF file"):
        TiledTiff(tmp_path / "a.png")
    broken = tiled(tmp_path / "b.tif", photo())
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"b\.tif cannot be read in tiles"):
        TiledTiff(broken).rows(0, 300)
