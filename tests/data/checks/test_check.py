"""All problems of a data set are found at once: a folder is broken in every way, and each is reported once."""

import os
import shutil
import signal
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import mask, put, save
from PIL import Image

from kd.data import Folder, Shapes
from kd.data.checks.check import RARE, check
from kd.errors import DataError

VOID = 255


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def fill(root, train=6, val=3, test=2):
    """A valid folder: all images differ, every mask has both classes."""
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            put(root, f"{split}{number}", picture((len(split), number)), split=split)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path)
    return tmp_path


def report(root, headers=False, **options):
    return check(Folder(root, image_size=(32, 64), **options), headers)


def found(problems):
    return sorted((problem.kind, problem.file) for problem in problems)


@pytest.mark.parametrize("headers", [False, True])
def test_valid_data_has_no_problems(folder, headers):
    for source in (Folder(folder, image_size=(32, 64)), Shapes(image_size=(32, 32), train=20, val=3, test=3)):
        result = check(source, headers)
        assert result.errors == result.warnings == []
        assert [split.pairs for split in result.splits.values()] == [
            source.size(split) for split in ("train", "val", "test")
        ]


def break_everything(root):
    """Add one of every problem; returns those visible in headers and in pixels."""
    bomb = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bomb + struct.pack(">I", zlib.crc32(b"IHDR" + bomb))
    for stem in ("alone", "bomb", "cut", "lossy", "noise", "small", "values"):
        put(root, stem, picture(len(stem) + ord(stem[0])))
    (root / "masks/train/alone.png").unlink()
    (root / "images/train/bomb.png").write_bytes(bomb)
    content = (root / "images/train/cut.png").read_bytes()
    (root / "images/train/cut.png").write_bytes(content[: len(content) // 2])
    save(Image.fromarray(mask()), root / "masks/train/lossy.png", format="JPEG")
    (root / "masks/train/noise.png").write_bytes(b"<html>")
    save(mask(30, 64), root / "masks/train/small.png")
    save(mask(values=(0, 7)), root / "masks/train/values.png")
    put(root, "orphan", split="val")
    (root / "images/val/orphan.png").unlink()
    put(root, "leak", picture(101), split="test")
    shutil.copy(root / "images/train/train0.png", root / "images/test/leak.png")
    in_headers = {
        ("no_mask", "images/train/alone.png"),
        ("unreadable", "images/train/bomb.png"),
        ("jpeg_mask", "masks/train/lossy.png"),
        ("unreadable", "masks/train/noise.png"),
        ("size", "images/train/small.png"),
        ("no_image", "masks/val/orphan.png"),
    }
    in_pixels = {
        ("unreadable", "images/train/cut.png"),
        ("values", "masks/train/values.png"),
        ("two_splits", "images/test/leak.png"),
    }
    return in_headers, in_pixels


def test_all_problems_are_found_at_once(folder):
    in_headers, in_pixels = break_everything(folder)
    assert found(report(folder).errors) == sorted(in_headers | in_pixels)


def test_headers_show_all_problems_that_need_no_pixels(folder):
    in_headers, _ = break_everything(folder)
    assert found(report(folder, headers=True).errors) == sorted(in_headers)


def test_each_problem_is_one_printable_line_with_a_relative_file_name(folder):
    break_everything(folder)
    put(folder, "n\x1b[31m\n\udcff", labels=mask(values=(0, 9)))
    for problem in report(folder).errors:
        assert problem.message.isprintable()
        assert str(folder) not in problem.message
        assert problem.kind == "values" or problem.file in problem.message or "no image" in problem.message
    assert any("n\\x1b[31m" in problem.message for problem in report(folder).errors)


def test_a_pair_can_have_two_problems(folder):
    (folder / "images/train/train1.png").write_bytes(b"")
    save(mask(values=(3,)), folder / "masks/train/train1.png")
    expected = [("unreadable", "images/train/train1.png"), ("values", "masks/train/train1.png")]
    assert found(report(folder).errors) == expected


def test_valid_samples_are_counted_despite_problems(folder):
    break_everything(folder)
    splits = report(folder).splits
    assert {name: split.pairs for name, split in splits.items()} == {"train": 12, "val": 3, "test": 3}
    assert splits["val"].classes["foreground"] == {"pixels": 3 * 32 * 32, "images": 3}


def test_the_number_of_workers_changes_nothing(folder):
    break_everything(folder)
    fill(folder, train=80)
    one, three = (check(Folder(folder, image_size=(32, 64)), workers=workers) for workers in (1, 3))
    assert one == three
    assert one.errors


class Deadly(Shapes):
    """Reading one sample kills the process, as running out of memory does."""

    def image(self, split, index):
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(split, index)


def test_a_killed_worker_is_one_error_without_a_deadlock():
    with pytest.raises(DataError, match="a process that read images was killed"):
        check(Deadly(image_size=(32, 32), train=80), workers=2)


def test_every_inspected_sample_passes_through_watch(folder):
    seen = []

    def watch(looks, total):
        assert total == 11
        for look in looks:
            seen.append(look.file)
            yield look

    check(Folder(folder, image_size=(32, 64)), watch=watch)
    assert len(set(seen)) == 11


def test_a_missing_folder_and_an_empty_one_are_one_error(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        report(tmp_path / "none")
    with pytest.raises(
        DataError, match=r"images/train does not exist: set data.root to the folder with images/train and "
    ):
        report(tmp_path)


def test_without_masks_every_image_is_listed(folder):
    shutil.rmtree(folder / "masks")
    errors = report(folder).errors
    assert [problem.kind for problem in errors] == ["no_mask"] * 11


def test_an_image_rotated_by_exif_matches_its_mask(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".png", ".jpg"):
        path = folder / f"images/train/sideways{suffix[1]}{suffix}"
        save(Image.fromarray(np.rot90(picture(ord(suffix[1]))).copy()), path, exif=exif)
        save(mask(), folder / f"masks/train/sideways{suffix[1]}.png")
    for headers in (False, True):
        assert report(folder, headers=headers).errors == []


# copies


def test_the_same_image_in_two_splits_is_an_error_under_any_name_and_format(folder):
    with Image.open(folder / "images/train/train2.png") as image:
        save(image, folder / "images/val/other.bmp")
    save(mask(), folder / "masks/val/other.png")
    result = report(folder)
    assert found(result.errors) == [("two_splits", "images/val/other.bmp")]
    assert (
        "is the same picture as images/train/train2.png: train and val must not share images"
        in result.errors[0].message
    )


def test_the_same_image_twice_in_a_split_is_a_warning(folder):
    put(folder, "again", picture(105), split="val")
    put(folder, "once_more", picture(105), split="val")
    result = report(folder)
    assert result.errors == []
    assert found(result.warnings) == [("twice", "images/val/once_more.png")]


def test_an_image_in_train_and_in_the_val_taken_from_it_is_an_error(tmp_path):
    for number in range(12):
        put(tmp_path, f"s{number}", picture(107))
    assert {problem.kind for problem in report(tmp_path).errors} == {"two_splits"}


def test_images_with_equal_bytes_and_different_shapes_differ(tmp_path):
    for stem, size in (("a", (32, 64)), ("b", (64, 32)), ("c", (16, 128))):
        put(tmp_path, stem, np.zeros((*size, 3), np.uint8), mask(*size))
    put(tmp_path, "v", split="val")
    assert report(tmp_path).warnings == []


# classes


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
@settings(deadline=None, max_examples=15)
def test_the_balance_is_the_count_of_every_pixel(tmp_path_factory, seed, classes):
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(seed)
    masks = {"train": random.integers(0, classes, (3, 32, 64)), "val": random.integers(0, classes, (1, 32, 64))}
    masks["train"][0][random.random((32, 64)) < 0.5] = VOID
    masks["train"][1] = 0
    for split, stack in masks.items():
        for number, labels in enumerate(stack):
            put(root, f"{split}{number}", picture((seed, number, len(split))), labels.astype(np.uint8), split=split)
    for split, summary in report(root, classes=classes, ignore_index=VOID).splits.items():
        stack = masks.get(split, np.empty((0, 1, 1)))
        for label, (name, figures) in enumerate(summary.classes.items()):
            hits = stack == label
            assert name == f"class_{label}"
            assert figures == {"pixels": hits.sum(), "images": hits.any(axis=(1, 2)).sum()}
            assert summary.share(name) == pytest.approx(hits.sum() / (stack != VOID).sum())
        assert summary.void == (stack == VOID).sum()
        assert summary.only_background == sum(set(np.unique(labels)) in ({0}, {0, VOID}) for labels in stack)


def test_a_void_mask_is_a_warning_and_does_not_count_as_background(folder):
    put(folder, "void", picture(103), mask(values=(VOID,)))
    result = report(folder, ignore_index=VOID)
    assert result.errors == []
    assert found(result.warnings) == [("void", "images/train/void.png")]
    assert result.splits["train"].only_background == 0


def test_missing_and_rare_classes_are_warnings(tmp_path):
    few = mask(values=(0,))
    few[0, 0] = 1
    for number in range(3):
        put(tmp_path, f"t{number}", picture(number), few if number == 0 else mask(values=(0,)))
    put(tmp_path, "v", picture(109), mask(values=(0,)), split="val")
    result = report(tmp_path)
    assert result.errors == []
    assert [(problem.kind, problem.split) for problem in result.warnings] == [
        ("rare_class", "train"),
        ("absent_class", "val"),
    ]
    assert result.splits["train"].share("foreground") == 1 / (3 * 32 * 64) < RARE
    assert "class foreground is 0.02% of train's pixels, in 1 of 3 images" in result.warnings[0].message


def test_sizes_and_formats_are_counted(folder):
    put(folder, "wide", np.zeros((20, 70, 3), np.uint8), mask(20, 70).astype(np.uint16), suffix=".jpg")
    for headers in (False, True):
        train = report(folder, headers=headers).splits["train"]
        assert train.sizes == {"64x32": 6, "70x20": 1}
        assert train.images == {"PNG RGB": 6, "JPEG RGB": 1}
        assert train.masks == {"PNG L": 6, "PNG I;16": 1}
        assert bool(train.classes) != headers
