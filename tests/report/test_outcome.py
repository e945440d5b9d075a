"""Results: the figures side by side, and what follows from them."""

import json

import pytest
import torch
from pages import Parsed, write

from kd.config.read import checked
from kd.report.outcome import results, side_by_side
from kd.report.run_files import read


def test_the_trivial_baseline_is_made_of_the_training_masks(distilled):
    data = checked(read(distilled).config).data
    stack = torch.stack([torch.from_numpy(data.read("train", index)[1]) for index in range(16)]).long()
    usual = torch.nn.functional.one_hot(stack, 3).sum(0).argmax(-1)
    counts = torch.zeros(3, 3)
    for index in range(8):
        truth = torch.from_numpy(data.read("test", index)[1]).long()
        counts += torch.bincount((truth * 3 + usual).flatten(), minlength=9).view(3, 3)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    there = union > 0
    expected = float((counts.diagonal()[there] / union[there]).mean())
    page = Parsed(write(distilled))
    assert [*page.numbers["baseline.test/miou"]] == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize(("miou", "warned"), [(0.1, True), (0.3, True), (0.31, False)])
def test_a_student_that_does_not_beat_the_trivial_baseline_is_a_warning(copied, miou, warned):
    for name, key in (("summary.json", "student"), ("evidence.json", "baseline")):
        facts = json.loads((copied / name).read_text())
        facts[key] |= {"val/miou": miou if key == "student" else 0.3, "test/miou": 0.9 if key == "student" else 0.0}
        (copied / name).write_text(json.dumps(facts))
    warnings = [block.lines for block in results(read(copied), {}).blocks if getattr(block, "tone", "") == "warning"]
    expected = f"The student does not beat the trivial baseline: mIoU {miou:.4f} against 0.3000 on validation."
    assert warnings == ([[expected]] if warned else [])


def test_a_row_without_any_figure_is_left_out():
    table = side_by_side({"teacher": {"parameters": 10}, "student": {"parameters": 5, "val/miou": None}})
    assert [[cell.text for cell in row] for row in table.rows] == [["parameters", "10", "5"]]
