"""Templates, lists and fractions: every file is found where people keep it, and belongs to the split they say."""

import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import mask, picture, put, save

from kd.config.compose import compose
from kd.config.read import read
from kd.config.typed import readable
from kd.data import Folder
from kd.data.checks.check import check
from kd.data.layout.naming import IMAGE_SUFFIXES, SPELLINGS, SPLITS, Template
from kd.data.layout.splitting import Fractions
from kd.errors import ConfigError, DataError


def small(root, **options):
    return Folder(root, image_size=(32, 64), **options)


def refusal(source):
    with pytest.raises(DataError) as caught:
        source.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(source):
    """The stems of each split."""
    return {split: {os.path.splitext(source.name(split, i))[0] for i in range(source.size(split))} for split in SPLITS}


def numbered(root, template, split, stems, array=None):
    """Files of the form of a template, with an image that no other sample has."""
    for number, stem in enumerate(stems):
        text = template.replace("{split}", split).replace("{stem}", stem)
        fresh = np.random.default_rng([number, *map(ord, split)]).integers(0, 256, (32, 64, 3), np.uint8)
        save(fresh if array is None else array, root / text)


# Templates

PLACES = [
    ("images/{split}/{stem}.jpg", "masks/{split}/{stem}.png"),
    ("images/{split}/{stem}.jpg", "masks/{split}/{stem}_mask.png"),
    ("{split}/images/{stem}.jpg", "{split}/labels/{stem}.png"),
    ("{split}/{stem}.jpg", "{split}/{stem}.png"),
    ("{split}/{stem}.png", "{split}/{stem}_mask.png"),
    ("{split}/{stem}_image.png", "{split}/{stem}.png"),
    ("all/{split}_{stem}.png", "gt/{split}_{stem}.png"),
    ("{split}/{stem}/image.png", "{split}/{stem}/mask.png"),
    ("{split}/{stem}/images/{stem}.png", "{split}/{stem}/masks/{stem}.png"),
    ("img/{split}2017/{stem}.JPG", "ann/{split}2017/{stem}.png"),
    ("leftImg8bit/{split}/{stem}_leftImg8bit.png", "gtFine/{split}/{stem}_gtFine_labelIds.png"),
]


@pytest.mark.parametrize(("images", "masks"), PLACES)
@pytest.mark.parametrize("stems", [["a", "b_mask_c", "d.e"], ["bonn/a", "ulm/a", "ulm/old/a"]])
def test_pairs_are_found_wherever_a_template_says(tmp_path, images, masks, stems):
    for word in ("train", "Valid", "testing"):
        numbered(tmp_path, images, word, stems)
        numbered(tmp_path, masks, word, stems, mask())
    source = small(tmp_path, images=images, masks=masks)
    source.check()
    assert names(source) == {split: {*stems} for split in SPLITS}
    assert not check(source, workers=1).errors
    for index in range(3):
        image, where = source.files("train", index)
        stem = os.path.splitext(source.name("train", index))[0]
        assert image == tmp_path / images.replace("{split}", "train").replace("{stem}", stem)
        assert where == tmp_path / masks.replace("{split}", "train").replace("{stem}", stem)


@settings(max_examples=80, deadline=None)
@given(st.text("ab_./", min_size=1, max_size=8), st.sampled_from(["{stem}", "x{stem}_m", "{split}-{stem}", "{stem}/i"]))
def test_a_template_gives_back_the_stem_it_was_filled_with(stem, form):
    template = Template("images", f"of/{form}", IMAGE_SUFFIXES)
    for split, spellings in SPELLINGS.items():
        for word in spellings:
            filled = form.replace("{split}", word).replace("{stem}", stem)
            assert template.stems_of(split)(filled) == stem
    assert template.stems_of("train")(f"?{form}") is None or form.startswith("{stem}")


def test_a_template_without_a_suffix_takes_any_and_folders_may_be_told_apart_by_masks_alone(tmp_path):
    for number, stem in enumerate("abcd"):
        suffix = (".jpg", ".png", ".tif", ".bmp")[number]
        numbered(tmp_path, f"pictures/{{stem}}{suffix}", stem, [stem])
        save(mask(), tmp_path / "masks" / ("train" if number < 3 else "val") / f"{stem}_gt.png")
    source = small(tmp_path, images="pictures", masks="masks/{split}/{stem}_gt")
    source.check()
    assert names(source) == {"train": {*"abc"}, "val": {"d"}, "test": set()}


def test_the_default_names_are_today_s_layout_and_say_the_same(tmp_path):
    for stem in ("a", "bonn/b"):
        put(tmp_path, stem)
    put(tmp_path, "v", split="val")
    usual = small(tmp_path)
    spelt = small(tmp_path, images="images/{split}/{stem}", masks="./masks/{split}/{stem}.png")
    assert spelt.fingerprint() == usual.fingerprint()
    assert names(spelt) == names(usual)
    assert pickle.loads(pickle.dumps(spelt)).fingerprint() == usual.fingerprint()


def test_pictures_of_another_form_are_named_and_other_files_beside_masks_are_not(tmp_path):
    for split in ("train", "val"):
        numbered(tmp_path, "i/{split}/{stem}_rgb.png", split, "ab")
        numbered(tmp_path, "m/{split}/{stem}_ids.png", split, "ab", mask())
        numbered(tmp_path, "m/{split}/{stem}_colour.png", split, "ab", mask())
    numbered(tmp_path, "i/{split}/{stem}_depth.png", "train", "ab")
    source = small(tmp_path, images="i/{split}/{stem}_rgb.png", masks="m/{split}/{stem}_ids.png")
    (warning,) = source.survey().warnings
    assert "i/train has 2 files (.png 2: a_depth.png, b_depth.png) that are not of the form data.images=" in str(
        warning.error
    )


def test_a_missing_mask_is_expected_where_the_template_says(tmp_path):
    numbered(tmp_path, "{split}/images/{stem}.jpg", "train", "ab")
    numbered(tmp_path, "{split}/labels/{stem}_m.png", "train", "b", mask())
    message = refusal(small(tmp_path, images="{split}/images", masks="{split}/labels/{stem}_m.png"))
    assert f"train/images/a.jpg has no mask: expected {tmp_path}/train/labels/a_m.png" in message


def test_unlabelled_pictures_follow_the_template_of_images(tmp_path):
    for split in ("train", "val", "unlabeled"):
        numbered(tmp_path, "{split}/images/{stem}.jpg", split, "ab")
    for split in ("train", "val"):
        numbered(tmp_path, "{split}/labels/{stem}.png", split, "ab", mask())
    source = small(tmp_path, images="{split}/images", masks="{split}/labels")
    source.check()
    assert [source.name("unlabelled", index) for index in range(source.unlabelled_size())] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("images", ["train/images", "images"])
def test_the_advice_for_other_layouts_reads_them(tmp_path, images):
    flat = images != "train/images"
    names = ("images", "masks") if flat else ("train/images", "train/labels")
    for number in range(4):
        fresh = np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)
        save(fresh, tmp_path / names[0] / f"{number}.jpg")
        save(mask(), tmp_path / names[1] / f"{number}.png")
    message = refusal(small(tmp_path))
    advice = [word.rstrip(",") for word in message.split() if word.startswith("data.") and "=" in word]
    assert [word.partition("=")[0] for word in advice] == ["data.images", "data.masks"]
    found = read(compose(["data=folder", f"data.root={tmp_path}", *advice]), look_at_data=False).data
    found.check()
    assert found.size("train") + found.size("val") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "images/{spilt}"}, "images=images/{spilt} has {spilt}, but the placeholders are {split}"),
        ({"images": "images/{split"}, "has {split, but the placeholders"),
        ({"images": ""}, "images must be a path below data.root, such as images/{split}, but got ''"),
        ({"masks": "/masks"}, "masks=/masks must be a path below data.root"),
        ({"masks": "../masks"}, "masks=../masks must be a path below data.root"),
        ({"masks": "m/{stem}.npy"}, "masks=m/{stem}.npy ends in .npy, which is not read: the formats are .png"),
        ({"masks": "images/{split}/"}, "say what tells their files apart, as in data.masks=images/{split}/{stem}_mask"),
        ({"split_lists": "lists/{split}.txt"}, "{split} in data.images=images/{split}: set data.images=images, or"),
        ({"split_lists": "a.txt"}, "split_lists=a.txt must have {split} in it"),
        ({"split_lists": {"val": "a.txt"}}, "split_lists must have a path for train"),
        ({"split_lists": {"train": "a", "dev": "b"}}, "split_lists must have a path for train, and may"),
        ({"follow_links": "yes"}, "follow_links must be true or false, but got 'yes'"),
        ({"test_fraction": 1}, "test_fraction must be 0 or more and below 1, but got 1"),
        ({"test_fraction": 0.9}, "test_fraction=0.9 and data.val_fraction=0.15 leave nothing for train"),
        ({"split_seed": -1}, "split_seed must be a whole number, 0 or more, but got -1"),
    ],
)  # fmt: skip
def test_invalid_names_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Folder("x", **options)


@pytest.mark.parametrize("plus", ["", "++"])
@pytest.mark.parametrize("text", ["masks/{split}/{stem}_mask.png", "{split}/labels", "'{split}/labels'", '"{split}/x"'])
def test_a_template_may_be_typed_without_quotes_for_hydra(text, plus):
    found = read(compose(["data=folder", "data.root=x", f"{plus}data.masks={text}"]), look_at_data=False).data
    assert found.masks == text.strip("'\"")
    assert readable(["data.x=1", "a={b:c}", "-m"]) == ["data.x=1", "a={b:c}", "-m"]


# Lists


def listed(root, **lists):
    for name, text in lists.items():
        (root / "lists").mkdir(exist_ok=True)
        (root / "lists" / f"{name}.txt").write_text(text)


def pool(root, stems, **options):
    numbered(root, "images/{stem}.jpg", "x", stems)
    numbered(root, "masks/{stem}.png", "x", stems, mask())
    return small(root, images="images", masks="masks", **options)


LISTS = [
    {"train": "a\nb\n\n# c\n", "val": "d\n"},
    {"train": "a.jpg\r\nb.jpg", "val": "d.jpg"},
    {"train": "images/a.jpg masks/a.png\n/images/b.jpg /masks/b.png\n", "val": "  d  "},
    {"training": "\ufeffa\nb", "valid": "d"},
]


@pytest.mark.parametrize("lists", LISTS)
def test_lists_say_which_stems_are_in_which_split(tmp_path, lists):
    listed(tmp_path, **lists)
    source = pool(tmp_path, "abcd", split_lists="lists/{split}.txt")
    source.check()
    assert names(source) == {"train": {"a", "b"}, "val": {"d"}, "test": set()}
    (note,) = source.survey().warnings
    assert "1 file (.jpg 1: c.jpg) with masks are in no list of data.split_lists, and not read" in str(note.error)


def test_only_what_lists_name_must_be_complete(tmp_path):
    listed(tmp_path, a="a\nb", b="c")
    source = pool(tmp_path, "abcd", split_lists={"train": "lists/a.txt", "val": str(tmp_path / "lists/b.txt")})
    (tmp_path / "masks/d.png").unlink()
    source.check()
    (tmp_path / "masks/b.png").unlink()
    again = small(tmp_path, images="images", masks="masks", split_lists=source.split_lists)
    assert "images/b.jpg has no mask: expected" in refusal(again)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val": "a"}, "lists/train.txt does not exist: correct data.split_lists=lists/{split}.txt, or data.root"),
        ({"train": "a", "training": "b"}, "are two lists of one split: keep one of them"),
        ({"train": "a\nmissing"}, "lists/train.txt, line 2: there is no"),
        ({"train": "a\nb", "val": "b"}, "lists/val.txt, line 1: b is in the list of train, too: remove it from one"),
        ({"train": "\n"}, "contains no images"),
    ],
)
def test_what_is_wrong_with_lists_is_named(tmp_path, lists, message):
    listed(tmp_path, **lists)
    assert message in refusal(pool(tmp_path, "abcd", split_lists="lists/{split}.txt"))


def test_without_a_list_of_val_a_part_of_train_is_held_out(tmp_path):
    listed(tmp_path, train="a\nb\nc\nd")
    source = pool(tmp_path, "abcd", split_lists="lists/{split}.txt")
    assert [source.size(split) for split in SPLITS] == [3, 1, 0]


# Fractions


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.sampled_from([(0.2, 0.2), (0.1, 0.0), (0.4, 0.5)]))
def test_more_pictures_never_move_others_between_splits(tmp_path_factory, seed, parts):
    root = tmp_path_factory.mktemp("pool")
    options = {"val_fraction": parts[0], "test_fraction": parts[1], "split_seed": seed}
    before = names(pool(root, [f"s{number}" for number in range(40)], **options))
    after = names(pool(root, [f"s{number}" for number in range(60)], **options))
    assert sum(map(len, before.values())) == 40
    assert len(set().union(*before.values())) == 40
    assert all(before[split] <= after[split] for split in SPLITS)
    assert bool(after["test"]) == bool(parts[1])


def test_each_seed_chooses_others_and_seed_0_what_was_chosen_before(tmp_path):
    stems = [f"s{number}" for number in range(60)]
    usual = names(pool(tmp_path, stems))
    for stem in stems:
        put(tmp_path / "splits", stem)
    assert names(small(tmp_path / "splits")) == usual
    assert len({frozenset(names(pool(tmp_path, stems, split_seed=seed))["val"]) for seed in range(5)}) == 5


@pytest.mark.parametrize("count", range(5))
def test_few_pictures_fill_every_split_or_are_refused(tmp_path, count):
    source = pool(tmp_path, [f"s{number}" for number in range(count)], test_fraction=0.15)
    if count < 3:
        refusal(source)
    else:
        source.check()
        assert min(source.size(split) for split in SPLITS) == 1


def test_fractions_are_about_the_fractions():
    from kd.data.layout.splitting import _test_stems, val_stems

    stems = [f"image_{number}" for number in range(1000)]
    val = val_stems(stems, 0.2, "here", 3)
    test = _test_stems([stem for stem in stems if stem not in val], Fractions(0.2, 0.3, 3), "here")
    assert abs(len(val) - 200) < 50
    assert abs(len(test) - 300) < 50
    assert not val & test


# Links


def test_links_out_of_the_root_are_followed_only_where_that_is_asked_for(tmp_path):
    for stem in "ab":
        put(tmp_path / "store", stem, picture(value=ord(stem)))
    put(tmp_path / "store", "v", split="val")
    for path in sorted((tmp_path / "store").rglob("*.png")):
        link = tmp_path / "data" / path.relative_to(tmp_path / "store")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert "or, if you trust it, set data.follow_links=true" in refusal(small(tmp_path / "data"))
    source = small(tmp_path / "data", follow_links=True)
    source.check()
    assert source.fingerprint() == small(tmp_path / "store").fingerprint()
    (tmp_path / "data/images/train/loop").symlink_to(tmp_path)
    assert "loop is not a file but a folder" in refusal(small(tmp_path / "data", follow_links=True))


def test_a_whole_folder_may_be_a_link_that_is_followed(tmp_path):
    put(tmp_path / "store", "a")
    put(tmp_path / "store", "v", split="val")
    (tmp_path / "data").mkdir()
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).symlink_to(tmp_path / "store" / kind)
    assert "data.follow_links=true" in refusal(small(tmp_path / "data"))
    small(tmp_path / "data", follow_links=True).check()


def test_a_bad_template_is_one_line_of_a_configuration():
    with pytest.raises(ConfigError, match=r"^data.images=a/{x} has {x}"):
        read(compose(["data=folder", "data.root=x", "data.images='a/{x}'"]), look_at_data=False)
