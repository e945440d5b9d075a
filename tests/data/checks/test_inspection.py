"""Inspecting a sample returns its properties and all of its problems, with any number of processes."""

import numpy as np
import pytest
from pairs import mask, picture, put, save

from kd.data import Folder, Shapes
from kd.data.checks.inspection import CHUNK, inspect_sample, inspect_samples, relative_message, relative_name
from kd.errors import DataError

VOID = 255


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, "a", labels=mask(values=(0, 1, VOID, VOID)))
    put(tmp_path, "b", split="val")
    return Folder(tmp_path, image_size=(32, 64), ignore_index=VOID)


def test_a_sample_has_its_size_formats_and_pixels(folder):
    sample = inspect_sample(folder, "train", 0, headers=False)
    assert (sample.split, sample.file, sample.size) == ("train", "images/train/a.png", (32, 64))
    assert sample.formats == ("PNG RGB", "PNG L")
    assert sample.pixels == (32 * 16, 32 * 16, 32 * 32)
    assert sample.problems == ()


def test_headers_are_inspected_without_pixels(folder):
    sample = inspect_sample(folder, "train", 0, headers=True)
    assert (sample.size, sample.digest, sample.pixels) == ((32, 64), None, None)


def test_a_sample_without_files_is_named_after_its_number():
    sample = inspect_sample(Shapes(image_size=(32, 32)), "val", 3, headers=False)
    assert (sample.file, sample.formats, sample.size) == ("val_00003", (), (32, 32))


def test_equal_pixels_have_equal_digests_whatever_the_format(folder):
    save(picture(), folder.root / "images" / "train" / "c.bmp")
    save(mask(), folder.root / "masks" / "train" / "c.png")
    put(folder.root, "d", picture(value=121))
    same = Folder(folder.root, image_size=(32, 64), ignore_index=VOID)
    one, other, changed = (inspect_sample(same, "train", index, headers=False).digest for index in range(3))
    assert one == other != changed


def test_every_problem_of_a_sample_is_reported(folder):
    (folder.root / "images" / "train" / "a.png").write_bytes(b"no image")
    save(mask(values=(0, 7)), folder.root / "masks" / "train" / "a.png")
    problems = inspect_sample(folder, "train", 0, headers=False).problems
    assert [(problem.kind, problem.file) for problem in problems] == [
        ("unreadable", "images/train/a.png"),
        ("values", "masks/train/a.png"),
    ]
    assert all(str(folder.root) not in problem.message for problem in problems)


def test_samples_are_inspected_in_order_by_any_number_of_processes():
    source = Shapes(image_size=(32, 32), train=CHUNK + 5)
    todo = [("train", index) for index in range(CHUNK + 5)]
    one, two = (list(inspect_samples(source, todo, False, workers)) for workers in (1, 2))
    assert one == two
    assert [sample.file for sample in one] == [source.name("train", index) for index in range(CHUNK + 5)]


def test_files_and_messages_are_relative_to_the_root(tmp_path):
    assert relative_name(tmp_path / "images" / "a.png", tmp_path) == "images/a.png"
    assert relative_name(tmp_path / "a.png", tmp_path / "other") == str(tmp_path / "a.png")
    error = DataError(f"{tmp_path}/images/a.png and {tmp_path}/masks/a.png differ")
    assert relative_message(error, tmp_path) == "images/a.png and masks/a.png differ"


def test_a_mask_of_another_size_is_a_problem(folder):
    save(np.zeros((16, 64), np.uint8), folder.root / "masks" / "train" / "a.png")
    (problem,) = inspect_sample(folder, "train", 0, headers=True).problems
    assert problem.kind == "size"
    assert "is 64x32 pixels (width x height), but its mask masks/train/a.png is 64x16" in problem.message
