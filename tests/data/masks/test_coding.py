"""Masks by values, by a threshold and by colours: every pixel gets its class, and advice in errors is itself valid."""

import re
import shlex

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairs import mask, put, save
from PIL import Image

from kd.config.compose import compose
from kd.config.read import read
from kd.data import Folder
from kd.data.masks.coding import LARGEST, VOID, ValuesError
from kd.data.masks.options import MaskOptions
from kd.data.source import default_names
from kd.errors import DataError

values = st.integers(0, LARGEST)


def coding(classes=1, **options):
    return MaskOptions(**options).coding(classes, default_names(classes))


def small(root, **options):
    return Folder(root, image_size=(32, 64), **options)


# What is read


@st.composite
def options(draw):
    """Several values per class, several void values, and what each stands for."""
    classes = draw(st.integers(1, 5))
    labels = max(classes, 2)
    distinct = draw(st.lists(values, min_size=labels, max_size=labels + 6, unique=True))
    groups = [[value] for value in distinct[:labels]]
    ignored = []
    for value in distinct[labels:]:
        where = draw(st.integers(0, labels))
        (groups[where] if where < labels else ignored).append(value)
    return classes, groups, ignored


@settings(max_examples=80, deadline=None)
@given(options(), st.data())
def test_every_stored_value_is_its_class_or_void(option, data):
    classes, groups, ignored = option
    found = coding(classes, mask_values=groups, ignore_values=ignored)
    meaning = {value: label for label, group in enumerate(groups) for value in group}
    meaning |= dict.fromkeys(ignored, found.void)
    stored = np.array(data.draw(st.lists(st.sampled_from(sorted(meaning)), min_size=4, max_size=40)), np.uint16)
    labels = found.labels_of(stored[None], "a.png")
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == [meaning[value] for value in stored.tolist()]
    assert found.void is None if not ignored else found.void not in range(max(classes, 2))
    other = data.draw(values)
    assume(other not in meaning)
    with pytest.raises(ValuesError, match=r"^a\.png contains the values"):
        found.labels_of(np.array([[other, int(stored[0])]], np.int32), "a.png")


@given(st.integers(1, LARGEST), st.lists(values, min_size=1, max_size=30), st.none() | values)
def test_a_threshold_splits_all_values_but_those_of_void(threshold, stored, ignored):
    found = coding(mask_threshold=threshold, ignore_index=ignored)
    labels = found.labels_of(np.array([stored], np.uint16), "a.png")[0].tolist()
    assert labels == [found.void if value == ignored else int(value >= threshold) for value in stored]


colours = st.tuples(*[st.integers(0, 255)] * 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(colours, min_size=3, max_size=8, unique=True), st.data())
def test_every_colour_is_its_class_or_void_however_it_is_stored(tmp_path_factory, palette, data):
    *classes, void = palette
    numbers = data.draw(st.lists(st.integers(0, len(palette) - 1), min_size=64, max_size=64))
    drawn = np.array([palette[number] for number in numbers], np.uint8).reshape(8, 8, 3)
    expected = np.array([VOID if number == len(classes) else number for number in numbers]).reshape(8, 8)
    written = [
        list(colour) if data.draw(st.booleans()) else "#{:02x}{:02X}{:02x}".format(*colour) for colour in classes
    ]
    found = coding(len(classes), mask_colours=written, ignore_colours=[list(void)])
    path = tmp_path_factory.mktemp("colours") / "a.png"
    indexed = Image.fromarray(np.array(numbers, np.uint8).reshape(8, 8))
    indexed.putpalette(bytes(part for colour in palette for part in colour))
    for picture in (Image.fromarray(drawn), Image.fromarray(drawn).convert("RGBA"), indexed):
        picture.save(path)
        assert np.array_equal(found.read(path), expected)


def test_several_colours_can_be_one_class(tmp_path):
    save(np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]), tmp_path / "a.png")
    assert coding(mask_colours=[[0, 0, 255], ["#ff0000", [0, 255, 0]]]).read(tmp_path / "a.png").tolist() == [[1, 1, 0]]


def test_ade20k_s_zero_is_void_and_its_classes_start_at_one(tmp_path):
    for split in ("train", "val"):
        put(tmp_path, split, labels=mask(values=(0, 1, 2, 3)), split=split)
    for option in ({"ignore_index": 0}, {"ignore_values": [0]}, {"ignore_values": 0}):
        source = small(tmp_path, classes=3, mask_values=[1, 2, 3], **option)
        source.check()
        assert np.array_equal(source.read("train", 0)[1], mask(values=(source.void, 0, 1, 2)))


def test_void_may_be_the_largest_value_of_16_bits(tmp_path):
    for split in ("train", "val"):
        put(tmp_path, split, labels=mask().astype(np.uint16) * 65535, split=split)
    assert np.array_equal(small(tmp_path, classes=2, ignore_index=65535).read("train", 0)[1], mask(values=(0, VOID)))


def test_a_threshold_reads_soft_edges_and_jpeg(tmp_path):
    soft = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1))
    for split in ("train", "val"):
        put(tmp_path, split, labels=soft, split=split)
        (tmp_path / "masks" / split / f"{split}.png").unlink()
        save(soft, tmp_path / "masks" / split / f"{split}.jpg", quality=95)
    source = small(tmp_path, mask_threshold=128)
    source.check()
    assert np.array_equal(source.read("train", 0)[1][:, [0, 20, 40, 63]], np.tile(np.uint8([0, 0, 1, 1]), (32, 1)))


# Fingerprints


@pytest.mark.parametrize(
    ("options", "as_before"),
    [
        ({}, [None]),
        ({"ignore_index": 255}, [255]),
        ({"ignore_values": [255]}, [255]),
        ({"mask_values": [0, 255], "ignore_index": 128}, [128, 0, 255]),
    ],
)
def test_what_could_be_said_before_has_the_fingerprint_of_before(options, as_before):
    assert coding(**options).fingerprint == as_before


@settings(max_examples=60, deadline=None)
@given(options(), options())
def test_codings_with_equal_fingerprints_read_alike(one, other):
    found = [
        coding(classes, mask_values=groups, ignore_values=ignored)
        for classes, groups, ignored in ((one[0], one[1], one[2]), (one[0], one[1], other[2]))
        if not {value for group in groups for value in group} & {*ignored}
    ]
    assume(len(found) == 2)
    assert (found[0].fingerprint == found[1].fingerprint) == (found[0] == found[1])


# What is written


@settings(max_examples=40, deadline=None)
@given(options())
def test_written_values_are_read_as_what_they_were(option):
    classes, groups, ignored = option
    found = coding(classes, mask_values=groups, ignore_values=ignored)
    assert found.labels_of(np.array([found.written]), "x").tolist() == [list(range(max(classes, 2)))]
    for threshold in (1, 128, 255, 256, LARGEST):
        split = coding(mask_threshold=threshold)
        assert split.labels_of(np.array([split.written]), "x").tolist() == [[0, 1]]


# Advice


def alternatives(message):
    """The overrides of each piece of advice in a message."""
    _, _, advice = message.rpartition(": ")
    found = (re.findall(r"'?data\.\w+=[^\s;]+", part) for part in re.split(r",? or |, as in ", advice))
    return [shlex.split(" ".join(text.rstrip(",") for text in overrides)) for overrides in found if overrides]


def follow(root, typed, path):
    """Read a mask with what was typed, and with each piece of advice of the error; the number of pieces."""

    def opened(*overrides):
        folder = [f"data=folder data.root={root}".split(), "data.image_size=[32,64]".split()]
        return read(compose([*folder[0], *folder[1], *overrides]), look_at_data=False).data

    try:
        opened(*typed).coding.read(path)
    except DataError as error:
        message = str(error)
    else:
        return 0
    assert not re.search(r"(?<!')data\.\w+=\[", message.rpartition(": ")[2]), "a shell would expand it"
    advice = alternatives(message)
    for overrides in advice:
        opened(*typed, *overrides).coding.read(path)
    return len(advice)


TYPED = [
    [], ["data.classes=3"], ["data.mask_values=[0,255]"], ["data.classes=3", "data.mask_values=[1,[2,4],7]"],
    ["data.ignore_index=255"], ["data.classes=2", "data.class_names=[a,b]"], ["data.ignore_values=[3,9]"],
    ["data.classes=3", "data.ignore_index=9"], ["data.classes=3", "data.mask_values=[1,2,3]", "data.ignore_index=0"],
]  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(TYPED), st.sets(st.integers(0, 10) | st.sampled_from([128, 254, 255, 256, LARGEST]), min_size=1))
def test_every_piece_of_advice_about_values_reads_the_mask(tmp_path_factory, typed, stored):
    root = tmp_path_factory.mktemp("advice")
    save(np.array([sorted(stored)], np.uint16), root / "a.png")
    follow(root, typed, root / "a.png")


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(TYPED), st.sets(colours, min_size=2, max_size=5))
def test_every_piece_of_advice_about_colours_reads_the_mask(tmp_path_factory, typed, found):
    assume(any(len(set(colour)) > 1 for colour in found))
    root = tmp_path_factory.mktemp("advice")
    save(np.array([sorted(found)], np.uint8), root / "a.png")
    follow(root, typed, root / "a.png")


def test_advice_is_given_where_it_can_be(tmp_path):
    soft = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    save(soft, tmp_path / "soft.png")
    assert follow(tmp_path, [], tmp_path / "soft.png") == 1
    save(np.uint8([[0, 7, 8, 33, 4]]), tmp_path / "ids.png")
    assert follow(tmp_path, ["data.classes=2", "data.mask_values=[7,8]"], tmp_path / "ids.png") >= 1
    save(np.uint8([[[9, 9, 9], [1, 2, 3]]]), tmp_path / "colours.png")
    two = ["data.mask_colours=[[9,9,9],[8,8,8]]"]
    assert follow(tmp_path, two, tmp_path / "colours.png") == 1


def test_advice_where_options_themselves_are_refused_is_valid():
    with pytest.raises(ValueError, match="as in") as caught:
        Folder("x", classes=3, ignore_index=0)
    (overrides,) = alternatives(str(caught.value))
    typed = ["data=folder", "data.root=x", "data.classes=3", "data.ignore_index=0"]
    assert read(compose([*typed, *overrides]), look_at_data=False).data.void == VOID
