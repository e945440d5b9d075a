"""Palettes: one class has one value in all files, whatever order the writer of each file gave its colours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import mask, put, save
from PIL import Image

from kd.data import Folder
from kd.data.checks.check import check
from kd.data.files.decode import mask_palette, read_mask
from kd.data.masks.palettes import RAMP, is_grey, palette_of, renumbers
from kd.errors import DataError

FORMATS = ["png", "gif", "bmp", "tif"]
COLOURS = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)]


def written(values, order, colour_of):
    """A mask as a writer stores it that numbers the values in this order, and drops those that do not occur."""
    order = [value for value in order if (values == value).any()]
    table = np.zeros(256, np.uint8)
    table[order] = np.arange(len(order))
    stored = Image.fromarray(table[values], "P")
    stored.putpalette([part for value in order for part in colour_of(value)])
    return stored


def grey(value):
    return value, value, value


def small(root, **options):
    return Folder(root, image_size=(32, 64), **{"classes": 3, **options})


labels = st.lists(st.integers(0, 4), min_size=6, max_size=6).map(lambda row: np.array([row], np.uint8))


@settings(max_examples=80, deadline=None)
@given(labels, st.permutations(range(5)), st.sampled_from(FORMATS))
def test_a_grey_palette_is_read_as_its_greys_in_any_order(tmp_path_factory, values, order, suffix):
    path = tmp_path_factory.mktemp("grey") / f"a.{suffix}"
    written(values, order, grey).save(path)
    assert np.array_equal(read_mask(path), values)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(labels, st.permutations(range(5))), min_size=2, max_size=4), st.sampled_from(FORMATS))
def test_coloured_masks_are_refused_unless_each_colour_has_one_value_in_all_files(tmp_path_factory, stored, suffix):
    root, meanings = tmp_path_factory.mktemp("coloured"), set()
    for number, (values, order) in enumerate(stored):
        put(root, f"s{number}", np.zeros((1, 6, 3), np.uint8), labels=mask(1, 6))
        (root / f"masks/train/s{number}.png").unlink()
        path = root / f"masks/train/s{number}.{suffix}"
        written(values, order, COLOURS.__getitem__).save(path)
        meanings |= set(zip(values.flat, read_mask(path).flat, strict=True))
    values = [value for value, _ in meanings], [number for _, number in meanings]
    one_to_one = all(len(set(those)) == len(meanings) for those in values)
    assert one_to_one == (not small(root, classes=5).survey().errors)


@settings(max_examples=60, deadline=None)
@given(labels, st.permutations(range(5)), st.sampled_from(FORMATS), st.booleans())
def test_a_header_shows_the_palette_that_decoding_uses(tmp_path_factory, values, order, suffix, coloured):
    path = tmp_path_factory.mktemp("header") / f"a.{suffix}"
    written(values, order, COLOURS.__getitem__ if coloured else grey).save(path)
    with Image.open(path) as picture:
        picture.load()
        assert mask_palette(path) == palette_of(picture)


def test_what_renumbers():
    assert not renumbers(RAMP)
    assert not renumbers(bytes([0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]))  # the end is padding
    assert renumbers(bytes([0, 0, 0, 2, 2, 2]))
    assert not renumbers(bytes([0, 0, 0, 2, 2, 3]))
    assert is_grey(RAMP)
    assert not is_grey(bytes([0, 0, 0, 2, 2, 3]))


def coloured_folder(root, *orders, values=(0, 1, 2)):
    for number, order in enumerate(orders):
        put(root, f"s{number}", np.full((32, 64, 3), number, np.uint8))
        save(written(mask(values=values), order, COLOURS.__getitem__), root / f"masks/train/s{number}.png")
    put(root, "v", split="val")
    save(written(mask(values=values), (0, 1, 2), COLOURS.__getitem__), root / "masks/val/v.png")


def test_one_palette_in_all_files_is_read_by_index(tmp_path):
    coloured_folder(tmp_path, (0, 1, 2), (0, 1, 2))
    source = small(tmp_path)
    source.check()
    assert np.array_equal(source.read("train", 0)[1], mask(values=(0, 1, 2)))


def test_indices_beside_plain_values_are_read_alike(tmp_path):
    coloured_folder(tmp_path, (0, 1, 2))
    put(tmp_path, "plain", labels=mask(values=(0, 1, 2)))
    source = small(tmp_path)
    source.check()
    assert np.array_equal(source.read("train", 0)[1], source.read("train", 1)[1])


def test_files_that_disagree_are_both_named_and_each_is_listed_by_the_check(tmp_path):
    coloured_folder(tmp_path, (0, 1, 2), (0, 2, 1), (2, 1, 0))
    with pytest.raises(DataError) as caught:
        small(tmp_path).check()
    message = str(caught.value)
    assert f"{tmp_path}/masks/train/s1.png has another palette than {tmp_path}/masks/train/s0.png" in message
    assert "1 is colour (0, 200, 0) here and colour (200, 0, 0) there" in message
    assert "save masks as 8-bit grey PNG" in message
    for headers in (False, True):
        errors = check(small(tmp_path), headers).errors
        assert [(error.kind, error.file) for error in errors] == [
            ("palette", "masks/train/s1.png"),
            ("palette", "masks/train/s2.png"),
        ]


def test_greys_that_leave_classes_the_same_are_refused(tmp_path):
    stored = Image.fromarray(mask(values=(0, 1, 2)), "P")
    stored.putpalette([0, 0, 0, 0, 0, 0, 9, 9, 9])
    put(tmp_path, "a", labels=stored)
    put(tmp_path, "b", split="val")
    with pytest.raises(DataError, match=r"a.png uses two entries of its palette that are the same grey: save masks"):
        small(tmp_path).check()


# Fingerprints


def test_the_fingerprint_changes_only_where_greys_are_not_indices(tmp_path, monkeypatch):
    for name, order in (("as_ever", (0, 1, 2)), ("renumbered", (0, 2, 1))):
        put(tmp_path / name, "a", labels=written(mask(values=(0, 1, 2)), order, grey))
        put(tmp_path / name, "b", split="val")
    as_ever, renumbered = (small(tmp_path / name).fingerprint() for name in ("as_ever", "renumbered"))
    monkeypatch.setattr("kd.data.sets.folder.renumbers", lambda palette: False)  # as before greys were read
    assert small(tmp_path / "as_ever").fingerprint() == as_ever
    assert small(tmp_path / "renumbered").fingerprint() != renumbered
