"""A miniature in COCO's format becomes masks of classes; a file that is damaged or hostile is refused in one line."""

import json

import numpy as np
import pytest
from PIL import Image

from kd.config.compose import compose
from kd.config.read import read
from kd.data import Coco
from kd.data.checks.check import check
from kd.data.sets.instances import instances
from kd.errors import DataError

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "Straße"}]


def square(left, top, side):
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def annotation(image, category, segmentation, **more):
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "id": 1, "iscrowd": 0, **more}


#: A large cat, a smaller dog on it (although earlier), a crowd of dogs under both, and a street.
OBJECTS = [
    annotation(11, 3, square(4, 4, 6)),
    annotation(11, 7, square(2, 2, 12)),
    annotation(11, 3, {"size": [20, 30], "counts": [0, 200, 400]}, iscrowd=1),
    annotation(11, 90, square(22, 10, 8)),
]


def instances_file(path, names=("a.png",), objects=OBJECTS, categories=CATEGORIES, **more):
    images = [{"id": 11 + at, "file_name": name, "height": 20, "width": 30} for at, name in enumerate(names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {"x": [1, {}]}, "images": images, **more, "annotations": objects,
                                "categories": categories}, ensure_ascii=False), encoding="utf-8")  # fmt: skip
    return path


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        names = [f"{split[0]}/{name}.png" for name in "abcd"]
        instances_file(tmp_path / "annotations" / f"{split}.json", names)
        for value, name in enumerate(names):
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), (value, 0, 0)).save(tmp_path / split / name)
    return tmp_path


def test_the_smaller_object_is_on_top_and_a_crowd_is_void_under_all(root):
    data = Coco(root, classes=3, categories=["cat", "dog"], image_size=(32, 32))
    mask = data.mask("train", 0)
    expected = np.zeros((20, 30), np.uint8)
    expected[:, :10] = 255  # columns come first in run lengths
    expected[2:14, 2:14] = 1
    expected[4:10, 4:10] = 2
    assert np.array_equal(mask, expected)
    assert data.class_names == ("background", "cat", "dog")
    assert set(np.unique(data.read("train", 0)[1])) == {0, 1, 2, 255}
    assert not data.mask("train", 1).any()  # has no annotations
    assert [data.name("train", index) for index in range(4)] == [f"t/{name}.png" for name in "abcd"]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, {"cat": 1, "dog": 1, "Straße": 1}),
        ({"categories": ["dog"]}, {"cat": 0, "dog": 1, "Straße": 0}),
        ({"categories": ["dog"], "others": "void"}, {"cat": 255, "dog": 1, "Straße": 255}),
        ({"classes": 3, "categories": [["cat", "Straße"], "dog"]}, {"cat": 1, "dog": 2, "Straße": 1}),
        ({"classes": 3, "class_names": ["nothing", "Straße", "cat"]}, {"cat": 2, "dog": 0, "Straße": 1}),
        ({"classes": 3, "class_names": ["nothing", "pet", "way"], "categories": [["cat", "dog"], "Straße"]},
         {"cat": 1, "dog": 1, "Straße": 2}),
    ],
)  # fmt: skip
def test_classes_are_categories_by_name(root, options, labels):
    objects = [annotation(11, each["id"], square(10 * at, 5, 8)) for at, each in enumerate(CATEGORIES)]
    instances_file(root / "annotations" / "train.json", ["t/a.png", "t/b.png"], objects)
    mask = Coco(root, **options).mask("train", 0)
    assert {each["name"]: mask[8, 10 * at + 4] for at, each in enumerate(CATEGORIES)} == labels


def test_without_val_a_part_of_train_is_held_out_and_labelled_ones_are_kept(root):
    (root / "annotations" / "val.json").unlink()
    data = Coco(root, val_fraction=0.4, labelled=1)
    names = {split: {data.name(split, at) for at in range(data.size(split))} for split in ("train", "val")}
    assert not names["train"] & names["val"]
    assert data.size("train") == 1
    assert data.size("train") + data.size("val") + data.unlabelled_size() == 4
    assert data.read("unlabelled", 0)[1].max() == 0


def test_the_fingerprint_follows_files_and_options(root):
    prints = {Coco(root).fingerprint(), Coco(root, categories=["cat"]).fingerprint()}
    prints |= {Coco(root, others="void").fingerprint(), Coco(root, fit="crop").fingerprint()}
    instances_file(root / "annotations" / "train.json", [f"t/{name}.png" for name in "abcd"], OBJECTS[:1])
    prints.add(Coco(root).fingerprint())
    Image.new("RGB", (30, 20), (9, 9, 9)).save(root / "train" / "t" / "a.png")
    assert len(prints | {Coco(root).fingerprint()}) == 6


def test_it_is_read_from_a_configuration_and_checked(root):
    settings = read(compose(["data=coco", f"data.root={root}", "data.classes=3", "data.categories=[cat,dog]"]))
    report = check(settings.data, workers=1)
    assert report.splits["train"].classes["dog"]["pixels"] == 36
    assert [problem.kind for problem in report.errors] == ["two_splits"] * 4
    cropped = Coco(root, fit="crop", image_size=(32, 32))
    assert cropped.read_size("train", 0) == cropped.read("train", 0)[1].shape == (20, 30)


def test_a_large_file_is_kept_as_positions(root):
    objects = [annotation(11 + at % 4, 7, square(at % 20, 3, 5), id=at) for at in range(2000)]
    path = instances_file(root / "big.json", [f"t/{name}.png" for name in "abcd"], objects, licenses=[{"ü": "€"}])
    found = instances(path)
    assert found.spans.shape == (2000, 2)
    assert [each["id"] for each in found.annotations(2)] == [at for at in range(2000) if at % 4 == 2]
    assert found.categories == {7: "cat", 3: "dog", 90: "Straße"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"[]", r"there should be \{"),
        (b"{", "ends too early"),
        (b'{"images": [', "ends too early"),
        (b'{"images": []}', "it has no images"),
        (b'{"images": 3}', r"there should be \["),
        (b'{"images": [{"id": 1, "file_name": "a"}]}', "'height' is missing"),
        (b'{"images": [{"id": 1, "file_name": "../a", "height": 2, "width": 2}]}', "no path below"),
        (b'{"images": [{"id": 1, "file_name": "/a", "height": 2, "width": 2}]}', "no path below"),
        (b'{"images": [{"id": 1, "file_name": "a", "height": 2, "width": true}]}', "has height and width 2 and True"),
        (b'{"images": [{"id": 1, "file_name": "a", "height": 99999, "width": 99999}]}', "has height and width"),
        (b'{"images": [{"id": [], "file_name": "a", "height": 2, "width": 2}]}', "is no id"),
        (b'{"images": [' + b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b'{"a":' * 100_000, "nested too deep"),
        (b'{"images": [{"id": 1, "file_name": 5, "height": 2, "width": 2}]}', "cannot be read"),
        (b'{"images": [null]}', "cannot be read"),
        (b'\xff\xfe{"images": []}', "there should be"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_in_one_line(root, content, message):
    (root / "annotations" / "train.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        Coco(root).size("train")
    assert "train.json cannot be read as COCO's instances" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"objects": [annotation(99, 7, square(1, 1, 5))]},
            "an annotation has an image_id that no image of the file has",
        ),
        ({"objects": [annotation(11, 5, square(1, 1, 5))]}, "annotation 1 of t/a.png: its category_id is 5"),
        ({"objects": [annotation(11, 7, [[1, 2]])]}, "annotation 1 of t/a.png: a polygon should be"),
        (
            {"objects": [annotation(11, 7, [], bbox=[1, 1, 5, 5], area=25)]},
            "annotation 1 of t/a.png: it has a box but no outline: correct or remove it",
        ),
        ({"objects": [annotation(11, 7, {"size": [2, 2], "counts": [4]})]}, r"of size \[2, 2\], and the picture is"),
        ({"names": ["t/a.png", "t/a.png"]}, "the same file_name"),
        ({"names": ["t/z.png", "t/a.png"]}, r"z\.png cannot be read"),
        ({"categories": CATEGORIES[1:]}, r"has no category cat; .*dog"),
    ],
)
def test_what_does_not_fit_together_is_named(root, change, message):
    instances_file(root / "annotations" / "train.json", **{"names": ["t/a.png", "t/b.png"], **change})
    data = Coco(root, classes=3, categories=["cat", "dog"])
    with pytest.raises(DataError, match=message) as refused:
        data.check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("more", [{}, {"bbox": [1, 1, 0, 0], "area": 0}, {"bbox": None}])
def test_an_annotation_without_outline_and_box_is_background(root, more):
    instances_file(root / "annotations" / "train.json", ["t/a.png", "t/b.png"], [annotation(11, 7, [], **more)])
    assert not Coco(root).mask("train", 0).any()


def test_a_picture_of_another_size_and_a_link_out_of_the_root_are_refused(root, tmp_path_factory):
    Image.new("RGB", (9, 9)).save(root / "train" / "t" / "a.png")
    with pytest.raises(DataError, match="is 9x9 pixels"):
        Coco(root).read("train", 0)
    other = tmp_path_factory.mktemp("other") / "a.png"
    Image.new("RGB", (30, 20)).save(other)
    (root / "train" / "t" / "a.png").unlink()
    (root / "train" / "t" / "a.png").symlink_to(other)
    with pytest.raises(DataError, match="is a link out of"):
        Coco(root).read("train", 0)
    assert Coco(root, follow_links=True).read("train", 0)[0].shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 3}, r"classes=3 needs the names of their categories"),
        ({"classes": 3, "categories": ["cat"]}, "categories has 1 entries, and classes=3 needs 2"),
        ({"categories": "cat"}, "categories must be different names"),
        ({"categories": ["cat", ["cat"]]}, "categories must be different names"),
        ({"categories": [[]]}, "categories must be different names"),
        ({"others": "ignore"}, "others must be background or void"),
        ({"ignore_index": None}, "ignore_index must be a number"),
        ({"annotations": "all.json"}, "must have {split} in it"),
        ({"images": "../x"}, r"without \.\."),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Coco("data", **options)
