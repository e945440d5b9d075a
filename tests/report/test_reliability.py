"""Confusion and calibration on the page are those of the evidence."""

import pytest
import torch
from pages import Parsed, summary_of, write

from kd.report.reliability import MATRIX, agreement, confusion
from kd.report.run_files import read
from kd.system import tensor_file
from kd.training.calibration import expected_error


def test_ece_and_confusion_of_the_page_are_those_of_the_evidence(distilled):
    page, (seen, _) = Parsed(write(distilled)), tensor_file.read(distilled / "evidence.safetensors")
    for who in ("teacher", "student"):
        for split, title in (("val", "validation"), ("test", "test")):
            table, counts = seen[f"{who}/{split}/calibration"], seen[f"{who}/{split}/confusion"]
            assert page.numbers[f"ece.{who}, {title}"] == {expected_error(table)}
            assert int(counts.sum()) == int(table[:, 0].sum()) == 8 * 32 * 32
            iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
            expected = summary_of(distilled)[who][f"{split}/miou"]
            assert float(iou.nanmean()) == pytest.approx(expected, abs=1e-6)


def test_tensors_of_another_shape_cost_their_part_of_the_page(copied):
    seen, facts = tensor_file.read(copied / "evidence.safetensors")
    changed = {name: torch.zeros(2, 2, dtype=torch.uint8) for name in seen}
    tensor_file.write(copied / "evidence.safetensors", changed, facts)
    page = Parsed(write(copied))
    assert "damaged data" in page.missing
    assert {"setup", "results", "per-class", "curves", "cost", "reproduce"} <= {*page.sections}


@pytest.fixture
def run(lean):
    return read(lean)


def with_tensors(run, **tensors):
    run.seen.clear()
    run.seen.update({name.replace("_", "/"): tensor for name, tensor in tensors.items()})
    return run


def test_a_matrix_shows_shares_of_each_true_class_and_names_the_errors(run):
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    matrix, errors = confusion(with_tensors(run, student_test_confusion=counts)).blocks
    assert [[cell.text for cell in row] for row in matrix.rows] == [
        ["sky", "80", "20", "0", "10"], ["road", "–", "–", "–", "0"], ["car", "25", "0", "75", "4"],
    ]  # fmt: skip
    assert errors.lines == [
        "Most frequent errors, as shares of all pixels: sky taken for road (14.3%); car taken for sky (7.1%)."
    ]


def test_a_matrix_of_many_classes_is_left_to_the_file(run):
    run.evidence["class_names"] = [f"class {number}" for number in range(MATRIX + 1)]
    counts = torch.eye(MATRIX + 1, dtype=torch.long)
    text, errors = confusion(with_tensors(run, student_test_confusion=counts)).blocks
    assert "too many" in text.lines[0]
    assert errors.lines == ["No errors."]


def test_agreement_shows_which_of_the_two_is_right(run):
    jointly = torch.tensor([[1, 2], [3, 4]])  # [teacher wrong, right] x [student wrong, right]
    run.records.clear()
    (table, text) = agreement(with_tensors(run, student_val_jointly=jointly)).blocks
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["teacher is right", "0.4000", "0.3000"], ["teacher is wrong", "0.2000", "0.1000"],
    ]  # fmt: skip
    assert text.lines == ["Only the teacher is right on 30.0% of pixels, only the student on 20.0%."]
