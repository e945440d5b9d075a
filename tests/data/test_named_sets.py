"""The data sets by name, each on a miniature of its published layout: which files are read, the classes, the void."""

import numpy as np
import pytest
from pairs import save
from PIL import Image

from kd.config.compose import compose
from kd.config.read import read
from kd.data.checks.check import check

SIZE = "data.image_size=[32,64]"


def opened(name, root, *overrides):
    source = read(compose([f"data={name}", f"data.root={root}", SIZE, *overrides]), look_at_data=False).data
    source.check()
    assert not check(source, workers=1).errors
    return source


def photo(number):
    return np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)


def stripes(*values):
    """The values in vertical stripes, from left to right."""
    return np.tile(np.repeat(np.uint8(values), 64 // len(values)), (32, 1))


def shown(source, split="train", index=0):
    """The labels of the stripes of a mask."""
    row = source.read(split, index)[1][0]
    return [int(value) for at, value in enumerate(row) if not at or row[at - 1] != value]


def sizes(source):
    return [source.size(split) for split in ("train", "val", "test")]


def with_palette(values):
    """A mask as VOC stores it: an index with a colour for each."""
    picture = Image.fromarray(values)
    picture.putpalette(np.random.default_rng(0).permutation(256 * 3).astype(np.uint8).tobytes())
    return picture


def voc(root, masks, store, lists):
    for number, stem in enumerate(("2007_000032", "2007_000033", "2008_000008", "2009_000001")):
        save(photo(number), root / f"JPEGImages/{stem}.jpg")
        if stem != "2009_000001":  # most pictures have no mask
            save(store(stripes(0, 255, 20, 255)), root / masks / f"{stem}.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, text in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text(text)


def test_pascal_voc(tmp_path):
    voc(tmp_path, "SegmentationClass", with_palette, {"train": "2007_000032\n2007_000033\n", "val": "2008_000008\n",
                                                      "test": "2009_000001\n"})  # fmt: skip
    source = opened("voc", tmp_path)
    assert (sizes(source), source.void) == ([2, 1, 0], 255)
    assert shown(source) == [0, 255, 20, 255]
    assert (source.class_names[0], source.class_names[20]) == ("background", "tvmonitor")


@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"])
def test_pascal_voc_with_sbd_s_masks_and_either_form_of_its_lists(tmp_path, line):
    train = "\n".join(map(line.format, ("2007_000032", "2007_000033")))
    voc(tmp_path, "SegmentationClassAug", Image.fromarray, {"trainaug": train, "val": line.format("2008_000008")})
    source = opened("voc_sbd", tmp_path)
    assert sizes(source) == [2, 1, 0]
    assert shown(source, "val") == [0, 255, 20, 255]


def test_cityscapes(tmp_path):
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau"), ("test", "bonn")):
        for number in range(2):
            stem = f"{split}/{city}/{city}_{number:06}_000019"
            save(photo([len(split), ord(city[0]), number]), tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
            void = stripes(0, 1, 2, 3)
            ids = void if split == "test" else stripes(7, 8, 0, 34 - 1, 6, 255, 31, 29)
            save(ids, tmp_path / f"gtFine/{stem}_gtFine_labelIds.png")
            save(ids, tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png")
            save(photo(0), tmp_path / f"gtFine/{stem}_gtFine_color.png")
            (tmp_path / f"gtFine/{stem}_gtFine_polygons.json").write_text("{}")
    source = opened("cityscapes", tmp_path)
    assert (sizes(source), source.void) == ([4, 2, 2], 255)
    assert shown(source) == [0, 1, 255, 18, 255, 16, 255]
    assert source.name("train", 0) == "aachen/aachen_000000_000019.png"
    assert not source.survey().warnings
    assert (source.class_names[0], source.class_names[18]) == ("road", "bicycle")


def test_every_label_of_cityscapes_is_a_class_or_void():
    source = read(compose(["data=cityscapes", "data.root=x"]), look_at_data=False).data
    labels = source.coding.labels_of(np.arange(34)[None], "x")[0]
    assert sorted(labels[labels != source.void]) == list(range(19))
    assert source.coding.labels_of(np.uint8([[255]]), "x").item() == source.void


def test_ade20k(tmp_path):
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in range(2):
            name = f"ADE_{split}_{number:08}"
            save(photo([len(split), number]), tmp_path / f"images/{folder}/{name}.jpg")
            save(stripes(0, 1, 2, 150), tmp_path / f"annotations/{folder}/{name}.png")
    (tmp_path / "objectInfo150.txt").write_text("...")
    source = opened("ade20k", tmp_path)
    assert (sizes(source), source.void) == ([2, 2, 0], 255)
    assert shown(source) == [255, 0, 1, 149]
    assert (source.class_names[0], source.class_names[149], len(source.class_names)) == ("wall", "flag", 150)


def test_camvid_s_void_is_still_its_eleven(tmp_path):
    for split in ("train", "val"):
        save(photo(len(split)), tmp_path / f"images/{split}/a.png")
        save(stripes(0, 10, 11, 3), tmp_path / f"masks/{split}/a.png")
    source = opened("camvid", tmp_path)
    assert source.void == 11
    assert shown(source) == [0, 10, 11, 3]


def test_the_options_of_a_named_set_can_be_replaced(tmp_path):
    voc(tmp_path, "colours", lambda values: with_palette(values).convert("RGB"),
        {"all": "2007_000032\n2007_000033\n2008_000008"})  # fmt: skip
    palette = with_palette(stripes(0, 1)).getpalette()
    colours = [palette[3 * index : 3 * index + 3] for index in (*range(21), 255)]
    source = opened(
        "voc", tmp_path, "data.masks=colours/{stem}.png",
        "data.split_lists={train: ImageSets/Segmentation/all.txt, val: null}",
        "data.ignore_index=null", f"data.mask_colours={colours[:21]}", f"data.ignore_colours={colours[21:]}",
    )  # fmt: skip
    assert sizes(source) == [2, 1, 0]
    assert shown(source) == [0, 255, 20, 255]
