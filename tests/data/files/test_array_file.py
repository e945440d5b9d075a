"""Arrays come out as they were saved; only pictures are read, and nothing is unpickled."""

import numpy as np
import pytest

from kd.data.files.array_file import array_header, read_array
from kd.errors import DataError


@pytest.mark.parametrize("kind", ["u1", ">u2", "<f4", "f8", "i4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 5)])
def test_an_array_is_read_as_it_was_saved(tmp_path, kind, order, shape):
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype=kind, order=order)
    np.save(tmp_path / "a.npy", array)
    found = read_array(tmp_path / "a.npy")
    assert found.shape == (*shape, 1)[:3]
    assert found.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(found, array.reshape(found.shape))
    assert array_header(tmp_path / "a.npy")[0] == found.shape


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}], object), "is an array 1 of object"),
        (np.zeros((2, 3, 4, 5)), "is an array 2 x 3 x 4 x 5"),
        (np.zeros((0, 3)), "is an array 0 x 3"),
        (np.zeros((2, 3), complex), "complex128"),
        (np.zeros((2, 3), bool), "of bool"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_array(tmp_path / "a.npy")


def test_damage_is_named_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((20, 30, 4), np.float32))
    whole = path.read_bytes()
    for content, message in (
        (whole[:-1], "its end is missing"),
        (whole[:20], "cannot be read as an array"),
        (b"not numpy", "cannot be read as an array"),
        (whole.replace(b"(20, 30, 4)", b"(9**9,3,4)"), "cannot be read as an array"),
        (whole.replace(b"(20, 30, 4)", b"(99999,99,99)"[:11].ljust(11)), "cannot be read as an array"),
        (whole.replace(b"20, 30, 4", b"99999,999"), "cut it up"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_array(path)


@pytest.mark.parametrize("shape", ["(-1, 4, 1)", "(-2, -3)", "(1099511627776, -1, 3)", "(True, 4, 1)", "(2.0, 3)"])
def test_sides_that_are_no_counts_are_refused(tmp_path, shape):
    """Anyone may have written the header."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64
    )
    for read in (array_header, read_array):
        with pytest.raises(DataError, match=r"is an array|cannot be read as an array"):
            read(tmp_path / "a.npy")
