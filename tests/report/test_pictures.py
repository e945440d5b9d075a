"""The pictures of a report are valid PNGs of the values they were given."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from kd.report import pictures
from kd.run.predictions import class_colours
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


def test_panels_of_a_sample_are_its_arrays():
    sample = {
        "image": torch.randint(0, 256, (4, 6, 3), dtype=torch.uint8),
        **{name: torch.randint(0, 3, (4, 6), dtype=torch.uint8) for name in ("truth", "teacher", "student")},
    }
    found = dict(pictures.panels(sample, 3, None))
    assert list(found) == ["image", "truth", "teacher", "student", "the student's errors"]
    np.testing.assert_array_equal(pixels(found["image"]), sample["image"].numpy())
    np.testing.assert_array_equal(pixels(found["student"]), class_colours(3)[sample["student"].numpy()])
    assert "teacher" not in dict(pictures.panels({k: v for k, v in sample.items() if k != "teacher"}, 3, None))


@pytest.mark.parametrize(("size", "kind"), [((4, 7), torch.uint8), ((4, 6), torch.int64)])
def test_panels_of_another_size_or_type_are_refused(size, kind):
    sample = {"image": torch.zeros(4, 6, 3, dtype=torch.uint8), "truth": torch.zeros(size, dtype=kind)}
    with pytest.raises(ValueError, match="differ in size"):
        pictures.panels(sample, 3, None)
