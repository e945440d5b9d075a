"""Rows of a data set of the Hugging Face hub are read as files are; `datasets` is a stand-in with its interface."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kd.config.compose import compose
from kd.config.read import read
from kd.data import Folder, HuggingFace
from kd.data.checks.check import check
from kd.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)


class Rows:
    """What `datasets.Dataset` has of what is used here; pictures are decoded unless a column says otherwise."""

    def __init__(self, columns, decoded=("image", "annotation", "other")):
        self.columns, self.decoded = columns, decoded

    @property
    def column_names(self):
        return list(self.columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def select_columns(self, names):
        return Rows({name: self.columns[name] for name in names}, self.decoded)

    def cast_column(self, name, feature):
        assert feature.decode is False
        return Rows(self.columns, [each for each in self.decoded if each != name])

    def __getitem__(self, row):
        assert not set(self.columns) & set(self.decoded), "a picture would be decoded by the library"
        return {name: values[row] for name, values in self.columns.items()}


def png(array, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def rows(count, labels=2, form="PNG"):
    images = [{"bytes": png(RANDOM.integers(0, 256, (20, 24, 3), np.uint8), form), "path": None} for _ in range(count)]
    masks = [{"bytes": png((np.indices((20, 24))[0] % labels).astype(np.uint8)), "path": "x.png"} for _ in range(count)]
    return Rows({"image": images, "annotation": masks, "other": [1] * count})


@pytest.fixture
def hub(monkeypatch):
    """The stand-in: its splits, and what was asked for."""
    splits, asked = {"train": rows(6), "validation": rows(3)}, []

    def load_dataset(path, name=None, *, split, revision=None):
        asked.append((path, name, split, revision))
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.\nsecond line')
        return splits[split]

    module = SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: SimpleNamespace(decode=decode))
    monkeypatch.setitem(sys.modules, "datasets", module)
    return SimpleNamespace(splits=splits, asked=asked)


NAMED = {"train": "train", "val": "validation"}


def test_rows_are_read_as_files_of_a_folder_are(hub, tmp_path):
    data = HuggingFace("owner/name", split_names=NAMED, subset="full", revision="v1", image_size=(32, 32))
    assert [data.size(split) for split in ("train", "val", "test")] == [6, 3, 0]
    assert hub.asked == [("owner/name", "full", "train", "v1"), ("owner/name", "full", "validation", "v1")]
    for split, where in NAMED.items():
        for kind, column in (("images", "image"), ("masks", "annotation")):
            (tmp_path / kind / split).mkdir(parents=True)
            for row, cell in enumerate(hub.splits[where].columns[column]):
                (tmp_path / kind / split / f"{row:06}.png").write_bytes(cell["bytes"])
    folder = Folder(tmp_path, image_size=(32, 32))
    for split in NAMED:
        for index in range(folder.size(split)):
            assert all(map(np.array_equal, data.read(split, index), folder.read(split, index)))


def test_a_configuration_is_read_and_checked(hub):
    options = ["data=hugging_face", "data.path=owner/name", "data.split_names={train: train, val: validation}"]
    report = check(read(compose(options)).data, workers=1)
    assert report.splits["train"].pairs == 6
    assert report.errors == []


def test_without_val_a_part_of_train_is_held_out(hub):
    data = HuggingFace("owner/name", val_fraction=0.3, labelled=2)
    assert data.size("val") >= 1
    assert data.size("train") == 2
    assert data.size("train") + data.size("val") + data.unlabelled_size() == 6
    names = {data.name(split, index) for split in ("train", "val") for index in range(data.size(split))}
    assert len(names) == data.size("train") + data.size("val")


def test_the_fingerprint_is_that_of_the_content(hub):
    first = HuggingFace("owner/name").fingerprint()
    assert HuggingFace("owner/copy").fingerprint() == first
    assert HuggingFace("owner/name", fit="crop").fingerprint() != first
    hub.splits["train"].columns["annotation"][3] = rows(1, 1).columns["annotation"][0]
    assert HuggingFace("owner/name").fingerprint() != first


def test_pictures_beside_the_rows_are_read(hub, tmp_path):
    cells = hub.splits["train"].columns["image"]
    (tmp_path / "a.png").write_bytes(cells[0]["bytes"])
    expected = HuggingFace("owner/name").image("train", 0)
    for split in range(len(cells)):
        cells[split] = {"bytes": None, "path": str(tmp_path / "a.png")}
    assert HuggingFace("owner/name").image("train", 0).shape == expected.shape


def test_masks_have_the_options_of_a_folder(hub):
    hub.splits["train"] = rows(6, 3)
    with pytest.raises(DataError, match="contains the values 0,1,2, but data"):
        HuggingFace("owner/name").mask("train", 0)
    data = HuggingFace("owner/name", ignore_index=0, mask_values=[1, 2])
    assert set(np.unique(data.mask("train", 0))) == {0, 1, 255}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_names": {"train": "dev"}}, r"split dev cannot be loaded \(ValueError: Unknown split"),
        ({"mask_column": "mask"}, "has no column mask, but image, annotation, other: set data.image_column"),
        ({"mask_column": "other"}, "row 0 of train has no picture in column other"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(hub, options, message):
    hub.splits["train"].decoded = ("image", "annotation")
    with pytest.raises(DataError, match=message) as refused:
        HuggingFace("owner/name", **options).check()
    assert "\n" not in str(refused.value)


def test_a_picture_that_cannot_be_decoded_is_named(hub):
    hub.splits["train"].columns["image"][:] = [{"bytes": b"%!PS-Adobe", "path": None}] * 6
    with pytest.raises(DataError, match=r"train/\d+ cannot be read as an image"):
        HuggingFace("owner/name").check()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package datasets: pip install -e '\.\[hf\]'"):
        HuggingFace("owner/name").check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path must be a name"),
        ({"path": "a/b", "split_names": {"val": "x"}}, "split_names must name train"),
        ({"path": "a/b", "mask_threshold": 128, "mask_values": [0, 255]}, "contradict"),
        ({"path": "a/b", "channels": 5}, "its pictures are RGB"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HuggingFace(**options)
