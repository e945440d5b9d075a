"""An output carries the mark of what made it, and is read by others as if it had none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd.deploy.provenance import mark_of, save_array, save_picture
from kd.system.files import json_digest

marks = st.integers().map(json_digest)


@settings(max_examples=40, deadline=None)
@given(marks, st.sampled_from(["png", "jpg"]), st.sampled_from([np.uint8, np.uint16]))
def test_a_picture_keeps_its_mark_and_its_pixels(tmp_path_factory, mark, suffix, kind):
    path = tmp_path_factory.mktemp("marked") / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(kind if suffix == "png" else np.uint8)
    save_picture(Image.fromarray(pixels), path, mark)
    assert mark_of(path) == mark
    Image.fromarray(pixels).save(path.with_stem("plain"))
    assert mark_of(path.with_stem("plain")) is None
    with Image.open(path) as marked, Image.open(path.with_stem("plain")) as plain:
        assert np.array_equal(np.asarray(marked), np.asarray(plain))


@settings(max_examples=40, deadline=None)
@given(marks, st.integers(0, 5), st.sampled_from([None, "r"]))
def test_an_array_keeps_its_mark_and_its_values(tmp_path_factory, mark, length, mmap):
    path, values = tmp_path_factory.mktemp("marked") / "a.npy", np.ones((2, length + 1, 3), np.float16)
    save_array(values, path, mark)
    assert mark_of(path) == mark
    assert np.array_equal(np.load(path, mmap_mode=mmap), values)
    np.save(path, values)
    assert mark_of(path) is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.npy", "missing.png", "missing.npy"])
def test_a_file_that_cannot_be_read_has_no_mark(tmp_path, name):
    if name.startswith("a"):
        (tmp_path / name).write_bytes(b"x")
    assert mark_of(tmp_path / name) is None
