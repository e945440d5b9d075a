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


WARNINGS = {0.1: "does not beat", 0.3: "does not beat", 0.33: "is hardly better than", 0.34: ""}


@pytest.mark.parametrize(("miou", "warned"), WARNINGS.items())
def test_a_student_near_the_trivial_baseline_is_a_warning(copied, miou, warned):
    facts = json.loads((copied / "summary.json").read_text())
    facts["student"] |= {"test/miou": miou}
    facts["baseline"] |= {"test/miou": 0.3}
    (copied / "summary.json").write_text(json.dumps(facts))
    warnings = [block.lines for block in results(read(copied), {}).blocks if getattr(block, "tone", "") == "warning"]
    sentence = f"The student {warned} a trivial prediction: mIoU {miou:.4f} against 0.3000 on test. Train longer."
    assert warnings == ([[sentence]] if warned else [])


def test_a_row_without_any_figure_is_left_out():
    columns = {"teacher": {"parameters": 10}, "student": {"parameters": 5, "val/miou": None}}
    table = side_by_side(columns, ["sky", "road", "car"])
    assert [[cell.text for cell in row] for row in table.rows] == [["parameters", "10", "5"]]
