"""The pictures of a report are valid PNGs of the values they were given."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from kd.report import pictures
from kd.run.predictions import INVENTED, MISSED, class_colours
from kd.training.calibration import BINS


@pytest.fixture
def drawn(monkeypatch):
    """Draw a figure with a function of `pictures`; returns matplotlib's figure."""
    figures, png = [], pictures._png
    monkeypatch.setattr(pictures, "_png", lambda figure: (figures.append(figure), png(figure))[1])

    def draw(function, *arguments):
        Image.open(io.BytesIO(function(*arguments))).verify()
        return figures[-1]

    yield draw
    assert plt.get_fignums() == []


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_drawn_picture_is_what_the_function_writes():
    assert pictures.drawn(lambda path: path.write_bytes(b"content")) == b"content"


def test_reliability_has_accuracy_and_confidence_of_the_filled_bins(drawn):
    table = torch.zeros(BINS, 3, dtype=torch.float64)
    table[3] = torch.tensor([10, 5, 2.3])
    table[14] = torch.tensor([30, 30, 29.1])
    above, below = drawn(pictures.reliability, {"student, test": table}).axes
    assert [bar.get_height() for bar in above.patches] == [0.5, 1.0]
    assert above.lines[1].get_xdata().tolist() == pytest.approx([0.23, 0.97])
    shares = [0.25 * (number == 3) + 0.75 * (number == 14) for number in range(BINS)]
    assert [bar.get_height() for bar in below.patches] == pytest.approx(shares)


def test_the_shares_of_pixels_of_two_networks_are_drawn_on_one_scale(drawn):
    sure, unsure = torch.zeros(BINS, 3, dtype=torch.float64), torch.ones(BINS, 3, dtype=torch.float64)
    sure[14] = torch.tensor([30, 30, 29.1])
    *_, left, right = drawn(pictures.reliability, {"teacher, test": sure, "student, test": unsure}).axes
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[1] >= 1


def test_curves_of_runs_are_overlaid_where_they_have_values(drawn):
    one = [
        {"epoch": epoch, "val/miou": 0.1 * epoch, "train/loss": 1.0, "temperature": 4.0, "unfrozen_blocks": epoch}
        for epoch in range(3)
    ]
    other = [
        {"epoch": 0, "unfrozen_blocks": 0},
        {"epoch": 1, "val/miou": None, "train/loss": 2.0, "unfrozen_blocks": 7},
    ]
    miou, loss, temperature, blocks = drawn(pictures.overlay, {"A": one, "B": other}).axes
    assert [line.get_ydata().tolist() if len(line.get_ydata()) else [] for line in loss.lines] == [[1.0] * 3, [2.0]]
    assert [len(line.get_ydata()) for line in miou.lines] == [3, 0]
    assert [line.get_label() for line in temperature.lines if len(line.get_ydata())] == ["A"]
    assert [list(line.get_ydata()) for line in blocks.lines] == [[0, 1, 2], [0, 7]]
    assert blocks.get_title(loc="left") == "unfrozen encoder blocks"


def test_many_overlaid_curves_all_look_different(drawn):
    runs = {str(number): [{"epoch": 0, "val/miou": 0.5}] for number in range(20)}
    miou = drawn(pictures.overlay, runs).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in miou.lines}) == 20


def sample(labels: int, *students: str) -> dict[str, np.ndarray]:
    """A random image, its truth, and labels of each student."""
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, labels, (4, 6), dtype=np.uint8) for name in ("truth", *students)}
    return {"image": random.integers(0, 256, (4, 6, 3), dtype=np.uint8), **arrays}


def test_panels_of_a_sample_are_its_arrays():
    shown = sample(3, "teacher", "student")
    found = dict(pictures.panels(shown, 3, None))
    assert list(found) == ["image", "truth", "teacher", "student", "the student's errors"]
    np.testing.assert_array_equal(pixels(found["image"]), shown["image"])
    np.testing.assert_array_equal(pixels(found["student"]), class_colours(3)[shown["student"]])
    assert "teacher" not in dict(pictures.panels({k: v for k, v in shown.items() if k != "teacher"}, 3, None))


def test_two_students_of_two_classes_show_what_each_missed_and_invented():
    shown = sample(2, "a", "b")
    shown["truth"][0] = 255
    found = pictures.compared(shown, {"A": ("mIoU 0.5", shown["a"]), "B": ("mIoU 0.6", shown["b"])}, 2, 255)
    assert [title for title, _ in found] == ["image", "truth", "A, mIoU 0.5", "B, mIoU 0.6"]
    for (_, png), labels in zip(found[2:], (shown["a"], shown["b"]), strict=True):
        valid, truth = shown["truth"] != 255, shown["truth"]
        missed, invented = valid & (truth == 1) & (labels == 0), valid & (truth == 0) & (labels == 1)
        assert missed.any()
        assert invented.any()
        np.testing.assert_array_equal((pixels(png) == MISSED).all(axis=2), missed)
        np.testing.assert_array_equal((pixels(png) == INVENTED).all(axis=2), invented)
        rest = ~missed & ~invented
        np.testing.assert_array_equal(pixels(png)[rest], class_colours(2)[labels][rest])


def test_the_errors_of_more_classes_stand_beside_the_labels():
    shown = sample(3, "a")
    found = dict(pictures.compared(shown, {"A": ("mIoU 0.5", shown["a"])}, 3, None))
    assert list(found) == ["image", "truth", "A, mIoU 0.5", "A's errors"]
    np.testing.assert_array_equal(pixels(found["A, mIoU 0.5"]), class_colours(3)[shown["a"]])
    np.testing.assert_array_equal((pixels(found["A's errors"]) == MISSED).all(axis=2), shown["a"] != shown["truth"])
