"""Data is refused exactly if there is nothing to learn from train or to measure on val."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.data import Shapes, Source
from kd.data.checks.check import check
from kd.data.masks.content import check_content
from kd.errors import DataError

VOID = 9


@dataclass(frozen=True)
class Stored(Source):
    """Masks as they are given, by split."""

    masks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def size(self, split):
        return len(self.masks.get(split, ()))

    def name(self, split, index):
        return f"{split}{index}"

    def read(self, split, index):
        mask = self.mask(split, index)
        image = np.random.default_rng([len(split), index]).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
        return image, mask

    def mask(self, split, index):
        return self.masks[split][index]

    def fingerprint(self):
        return str({split: [mask.tolist() for mask in masks] for split, masks in self.masks.items()})

    def check(self):
        pass


def stored(**rows):
    masks = {
        split: [np.full((32, 32), 0, np.uint8) + np.repeat(row, 8) for row in each] for split, each in rows.items()
    }
    masks = {split: [mask.astype(np.uint8) for mask in each] for split, each in masks.items()}
    return Stored(classes=3, image_size=(32, 32), ignore_index=VOID, masks=masks)


rows = st.lists(st.lists(st.sampled_from([0, 0, 1, 2, VOID, VOID]), min_size=4, max_size=4), min_size=1, max_size=3)
NAMES = ("class_0", "class_1", "class_2")


@settings(max_examples=150, deadline=None)
@given(rows, rows, st.sets(st.sampled_from(NAMES)))
def test_data_is_refused_exactly_if_it_teaches_or_measures_nothing(train, val, measured):
    source = stored(train=train, val=val)
    shown = [{value for row in split for value in row} - {VOID} for split in (train, val)]
    fit = shown[0] - {0} and shown[1] and {NAMES.index(name) for name in measured} <= shown[1]
    try:
        check_content(source, sorted(measured))
        refused = None
    except DataError as error:
        refused = str(error)
    assert bool(fit) == (refused is None)
    problems = [problem.message for problem in check(source, workers=1, measured=sorted(measured)).errors]
    contents = [message for message in problems if "same picture" not in message]
    assert contents[:1] == ([] if refused is None else [refused])


def test_a_class_that_is_lost_by_resizing_is_not_there():
    few = np.zeros((320, 320), np.uint8)
    few[0, 0] = 1
    source = Stored(image_size=(32, 32), masks={"train": [few], "val": [few]})
    with pytest.raises(DataError, match=r"masks show more before they are resized: raise 'data.image_size=\[32,32\]'"):
        check_content(source, ["foreground"])


def test_reading_stops_as_soon_as_all_is_seen_and_is_not_repeated(monkeypatch):
    read = []
    monkeypatch.setattr(Shapes, "mask", lambda self, split, index: read.append(split) or np.ones((32, 32), np.uint8))
    source = Shapes(image_size=(32, 32), train=50, val=50, seed=123)
    check_content(source, ["foreground"])
    check_content(source, ["foreground"])
    assert read == ["train", "val"]
