"""Files in sub-folders are found, nothing is passed over in silence, and every split is found under its other names."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import mask, picture, put, save

from kd.data import Folder
from kd.data.checks.check import check
from kd.data.layout.listing import below
from kd.data.layout.naming import SPELLINGS
from kd.data.layout.split_folders import layout
from kd.errors import DataError

SUFFIXES = (".png", ".jpg")
parts = st.sampled_from(["a", "b", "c.d", "Ü"])
places = st.lists(parts, min_size=1, max_size=4).map("/".join)


def small(root, **options):
    return Folder(root, image_size=(32, 64), **options)


def refusal(source):
    with pytest.raises(DataError) as caught:
        source.check()
    return str(caught.value)


def splits(source):
    return {split: source.size(split) for split in ("train", "val", "test")}


def noise(number):
    return np.random.default_rng(number).integers(0, 256, (32, 64, 3), dtype=np.uint8)


# Files


@settings(max_examples=60, deadline=None)
@given(st.sets(places, max_size=6), st.lists(st.sampled_from([".png", ".JPG", ".avif", ".npy", ""]), min_size=6))
def test_every_file_below_a_folder_is_found_or_ignored_by_its_path(tmp_path_factory, stems, suffixes):
    root = tmp_path_factory.mktemp("tree")
    known, other = set(), set()
    for stem, suffix in zip(sorted(stems), suffixes, strict=False):
        path = root / "of" / f"{stem}_file{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        (known if suffix.lower() in SUFFIXES else other).add(path)
    found = below(root / "of", root, SUFFIXES)
    assert set(found.files.values()) == known
    assert set(found.ignored.values()) == other
    for key, path in found.files.items():
        assert key == os.path.splitext(path.relative_to(root / "of"))[0]


def test_pairs_in_sub_folders_are_found_by_their_path(tmp_path):
    for number, stem in enumerate(("a", "bonn/a", "bonn/old/a", "ulm/b")):
        put(tmp_path, stem, picture(value=number))
    put(tmp_path, "ulm/v", split="val")
    source = small(tmp_path)
    source.check()
    names = [source.name("train", index) for index in range(source.size("train"))]
    assert names == ["a.png", "bonn/a.png", "bonn/old/a.png", "ulm/b.png"]
    assert [source.read("train", index)[0][0, 60, 1] for index in range(4)] == [0, 1, 2, 3]
    (tmp_path / "masks/train/bonn/a.png").unlink()
    assert "images/train/bonn/a.png has no mask: expected" in refusal(small(tmp_path))


def test_the_fingerprint_knows_the_folder_of_a_file(tmp_path):
    for name, stem in (("one", "bonn/a"), ("two", "ulm/a"), ("flat", "a")):
        put(tmp_path / name, stem)
        put(tmp_path / name, "v", split="val")
    assert len({small(tmp_path / name).fingerprint() for name in ("one", "two", "flat")}) == 3


def test_val_is_split_off_by_the_whole_path(tmp_path):
    for number in range(20):
        put(tmp_path, f"city{number}/same_name")
    assert splits(small(tmp_path, val_fraction=0.3)).keys() == {"train", "val", "test"}
    assert sum(splits(small(tmp_path, val_fraction=0.3)).values()) == 20
    assert splits(small(tmp_path, val_fraction=0.3))["val"] < 15


def test_a_link_that_leads_around_or_out_is_named_and_one_to_a_sibling_is_followed(tmp_path):
    data = tmp_path / "data"
    put(data, "a")
    put(data, "v", split="val")
    for kind in ("images", "masks"):
        put(data, "b", split="more")
        (data / kind / "train/sibling").symlink_to(data / kind / "more")
    assert splits(small(data))["train"] == 2
    (data / "images/train/loop").symlink_to(data / "images")
    assert "images/train/loop is not a file but a folder: remove it" in refusal(small(data))
    (data / "images/train/loop").unlink()
    put(tmp_path / "elsewhere", "c")
    (data / "images/train/out").symlink_to(tmp_path / "elsewhere/images/train")
    assert "images/train/out is a link out of" in refusal(small(data))


def test_files_of_other_formats_are_counted_and_named(tmp_path):
    put(tmp_path, "a")
    put(tmp_path, "v", split="val")
    for name in ("b.avif", "c.avif", "more/d.npy", ".hidden.avif", "Thumbs.db"):
        (tmp_path / "images/train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images/train" / name).write_bytes(b"x")
    source = small(tmp_path)
    source.check()
    (warning,) = check(source).warnings
    assert warning.message.startswith(
        "images/train has 3 files (.avif 2, .npy 1: b.avif, c.avif, d.npy) of formats that are not read"
    )


def test_a_partner_of_another_format_is_the_cause_that_is_named(tmp_path):
    put(tmp_path, "a")
    put(tmp_path, "v", split="val")
    (tmp_path / "images/train/a.png").rename(tmp_path / "images/train/a.avif")
    message = refusal(small(tmp_path))
    assert f"{tmp_path}/masks/train/a.png has no image" in message
    assert f"{tmp_path}/images/train/a.avif is of a format that is not read: convert it" in message


def test_a_folder_of_other_formats_alone_says_which(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/train/a.jfif").write_bytes(b"x")
    message = refusal(small(tmp_path))
    assert f"{tmp_path}/images/train contains no images (.jpg, " in message
    assert "but 1 file (.jfif 1: a.jfif): convert them" in message


# Folders


@pytest.mark.parametrize(
    ("split", "name"),
    [
        *(("train", name) for name in ("Train", "training")),
        *(("val", name) for name in ("valid", "Val", "validation")),
        *(("test", name) for name in ("testing", "TEST")),
    ],
)
def test_a_split_is_found_under_its_other_names_and_that_is_said(tmp_path, split, name):
    for number, each in enumerate(("train", "val", "test")):
        for count in range(2):
            put(tmp_path, f"{each}{count}", noise((number, count)), split=each)
    usual = small(tmp_path).fingerprint()
    for kind in ("images", "masks"):
        (tmp_path / kind / split).rename(tmp_path / kind / name)
    source = small(tmp_path)
    source.check()
    assert splits(source) == {"train": 2, "val": 2, "test": 2}
    assert source.fingerprint() == usual
    assert [warning.message for warning in check(source).warnings] == [
        f"{kind}/{name} is read as {split}" for kind in ("images", "masks")
    ]


def test_the_images_and_the_masks_may_spell_a_split_differently(tmp_path):
    put(tmp_path, "a")
    put(tmp_path, "v", split="val")
    (tmp_path / "masks/val").rename(tmp_path / "masks/Valid")
    assert splits(small(tmp_path)) == {"train": 1, "val": 1, "test": 0}


def test_two_spellings_of_a_split_are_refused(tmp_path):
    for split in ("train", "val", "valid"):
        put(tmp_path, "a", split=split)
    assert "images/val and" in refusal(small(tmp_path))
    assert "images/valid are two spellings of one folder: keep one of them" in refusal(small(tmp_path))


def test_no_name_stands_for_two_splits():
    names = [name for names in SPELLINGS.values() for name in names]
    assert len(set(names)) == len(names)
    assert all(split == names[0] for split, names in SPELLINGS.items())


def test_other_folders_and_files_beside_the_splits_are_counted_and_named(tmp_path):
    put(tmp_path, "a")
    put(tmp_path, "v", split="val")
    put(tmp_path, "h", split="holdout")
    save(picture(), tmp_path / "images/loose.png")
    (tmp_path / "images/empty").mkdir()
    (tmp_path / "images/.cache").mkdir()
    messages = [warning.message for warning in check(small(tmp_path)).warnings]
    assert (
        "images/holdout is not read: 1 file (.png 1: h.png); the splits are train, val, test, unlabelled" in messages[0]
    )
    assert "images has 1 file (.png 1: loose.png) outside of the splits, which are not read: move" in messages[1]
    assert "masks/holdout is not read: 1 file" in messages[2]


def test_a_folder_without_splits_says_where_its_files_belong_and_that_helps(tmp_path):
    for stem in "abc":
        save(picture(), tmp_path / f"images/{stem}.png")
        save(mask(), tmp_path / f"masks/{stem}.png")
    assert f"move them to {tmp_path}/images/train, and their masks to {tmp_path}/masks/train" in refusal(
        small(tmp_path)
    )
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir()
        for path in (tmp_path / kind).glob("*.png"):
            path.rename(tmp_path / kind / "train" / path.name)
    small(tmp_path).check()


def test_splits_around_images_and_masks_say_how_to_turn_them(tmp_path):
    save(picture(), tmp_path / "train/images/a.png")
    assert f"move {tmp_path}/train/images to {tmp_path}/images/train" in refusal(small(tmp_path))


# Pictures without masks


def test_pictures_without_masks_may_have_sub_folders(tmp_path):
    put(tmp_path, "a")
    put(tmp_path, "v", split="val")
    for place in ("images/Unlabelled/b.png", "images/Unlabelled/day/b.png"):
        save(picture(), tmp_path / place)
    source = small(tmp_path)
    assert [source.name("unlabelled", index) for index in range(source.unlabelled_size())] == ["b.png", "day/b.png"]
    other = small(tmp_path, unlabelled=tmp_path / "images/Unlabelled/day")
    assert [other.name("unlabelled", index) for index in range(other.unlabelled_size())] == ["b.png"]


@pytest.mark.parametrize("given", [".", "images", "../data"])
def test_a_folder_that_holds_the_pictures_with_masks_is_not_one_of_pictures_without(tmp_path, given):
    put(tmp_path / "data", "a")
    put(tmp_path / "data", "v", split="val")
    assert f"data.unlabelled={Path(given)} contains" in refusal(small(tmp_path / "data", unlabelled=given))


def test_a_root_that_is_the_working_directory_has_the_same_names(tmp_path, monkeypatch):
    put(tmp_path, "ulm/a")
    put(tmp_path, "v", split="val")
    monkeypatch.chdir(tmp_path)
    assert small(".").fingerprint() == small(tmp_path).fingerprint()
    assert layout(Path(".")).images.keys() == {"train", "val"}
