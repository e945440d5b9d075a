"""Each plot is a valid PNG in every corner case, and shows the numbers it was given."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from kd.plan.schedules import Constant, Cosine
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import All, AtEpoch, Frozen, Progressive
from kd.run import plots
from kd.run.plots import class_colours, draw_curves, draw_predictions, draw_timeline

pytestmark = pytest.mark.filterwarnings("error")

RATES = LearningRates(1e-3, 1e-6, 0.3, 0.5)
VOID = 255
RED = (209, 73, 91)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw with a function of kd.run.plots: checks the file, returns the figure."""
    figures, save = [], plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))

    def draw(function, *args):
        path = tmp_path / "pictures" / "picture.png"
        function(*args, path)
        with Image.open(path) as picture:
            picture.verify()
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 64
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn
        assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
        assert plt.get_fignums() == []
        return figures[-1]

    yield draw
    plt.close("all")


def lines(axes) -> dict[str, np.ndarray]:
    """The labelled lines of a diagram: x and y."""
    return {
        line.get_label(): np.asarray(line.get_data(), float)
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


# the plan


def plan(policy, epochs=12, blocks=7, schedule=None) -> Timeline:
    return Timeline(schedule or Cosine(4, 1), policy, RATES, epochs, blocks)


@pytest.mark.parametrize(
    "timeline",
    [
        plan(Progressive(2, 1)),
        plan(AtEpoch(11)),
        plan(Frozen()),
        plan(All(), epochs=1),
        plan(Frozen(), epochs=1, blocks=1),
        plan(Progressive(0, 1), epochs=2, blocks=2, schedule=Constant(1.0)),
        plan(Progressive(5, 3), epochs=300, blocks=9, schedule=Cosine(1, 20)),
    ],
)
def test_the_plan_is_drawn_as_it_is(timeline, drawn):
    heat, blocks, rates = drawn(draw_timeline, timeline).axes
    epochs = list(range(1, timeline.epochs + 1))
    assert heat.lines[0].get_xdata().tolist() == epochs
    assert heat.lines[0].get_ydata().tolist() == [step.temperature for step in timeline]
    shown = blocks.images[0].get_array()
    assert shown.shape == (timeline.blocks, timeline.epochs)
    assert shown.sum(axis=0).tolist() == [step.unfrozen_blocks for step in timeline]
    assert all((np.diff(column.astype(int)) <= 0).all() for column in shown.T)  # the deepest first
    assert lines(rates)["decoder"][1].tolist() == [step.lr_decoder for step in timeline]
    unfrozen = [step for step in timeline if step.unfrozen_blocks]
    if unfrozen:
        x, y = lines(rates)["deepest encoder block"]
        assert (x.tolist(), y.tolist()) == ([s.epoch + 1 for s in unfrozen], [s.lr_encoder for s in unfrozen])
    else:
        assert list(lines(rates)) == ["decoder"]


def test_without_a_teacher_no_temperature_is_drawn(drawn):
    figure = drawn(draw_timeline, replace(plan(All()), schedule=None))
    assert [ax.get_ylabel() for ax in figure.axes] == ["encoder block", "learning rate"]


def test_blocks_are_named_from_the_deepest_to_the_stem(drawn):
    names = [label.get_text() for label in drawn(draw_timeline, plan(All())).axes[1].get_yticklabels()]
    assert names == ["deepest", "2", "3", "4", "5", "6", "stem"]


# the curves


def record(epoch, unfrozen=0, miou=0.5, **more):
    return {
        "epoch": epoch, "temperature": 4.0, "unfrozen_blocks": unfrozen, "lr/decoder": 1e-3, "lr/encoder": 1e-4,
        "train/loss": 2.0 / (epoch + 1), "train/kl": 0.1, "train/mse": 1.5, "train/ce": 0.7, "train/dice": 0.9,
        "val/loss": 0.6, "val/miou": miou, "val/dice": 0.6, "val/iou/foreground": 0.3, "val/dice/foreground": 0.4,
        "val/teacher_agreement": 0.8, "seconds": 1.0, "images_per_second": 10.0,
    } | more  # fmt: skip


def without(record, *names):
    return {name: value for name, value in record.items() if not name.startswith(names)}


VALIDATION = ("val/loss", "val/miou", "val/dice", "val/iou/foreground", "val/dice/foreground", "val/teacher_agreement")
NAMES = ["background", "foreground"]


def test_curves_are_the_records(drawn):
    records = [record(epoch, unfrozen=epoch // 2, miou=epoch / 10) for epoch in range(8)]
    references = {"teacher": {"val/iou/foreground": 0.75}, "trivial": {"val/iou/foreground": 0.0}}
    loss, quality = drawn(draw_curves, records, 5, NAMES, references).axes
    expected = {"train/loss", "train/kl", "train/mse", "train/ce", "train/dice", "val/loss"}
    assert set(lines(loss)) == expected
    for name in expected:
        assert lines(loss)[name].tolist() == [list(range(1, 9)), [r[name] for r in records]]
    shown = lines(quality)
    quality_of_two = {"val/iou/foreground", "val/dice/foreground", "val/miou", "val/teacher_agreement"}
    levels = {"val/iou/foreground of teacher": 0.75, "val/iou/foreground of trivial": 0.0}
    assert set(shown) == quality_of_two | set(levels) | {"best epoch"}
    assert shown["val/miou"][1].tolist() == [r["val/miou"] for r in records]
    assert {name: set(shown[name][1]) for name in levels} == {name: {value} for name, value in levels.items()}
    assert set(shown["best epoch"][0]) == {6.0}


def test_curves_of_several_classes_show_means_over_classes(drawn):
    names, references = ["sky", "road", "car"], {"teacher": {"val/miou": 0.6}}
    shown = lines(drawn(draw_curves, [record(0), record(1)], 1, names, references).axes[1])
    assert set(shown) == {"val/miou", "val/dice", "val/teacher_agreement", "val/miou of teacher", "best epoch"}


def test_curves_mark_the_epochs_in_which_blocks_are_unfrozen(drawn):
    records = [record(epoch, unfrozen) for epoch, unfrozen in enumerate([0, 0, 1, 1, 4, 4])]
    figure = drawn(draw_curves, records, 0, NAMES, {})
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("_")] == [3, 5]
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["1", "4"]


def test_a_curve_joins_the_validated_epochs(drawn):
    records = [record(epoch) for epoch in range(4)]
    for epoch in (0, 2):
        del records[epoch]["val/miou"]
    epochs, values = lines(drawn(draw_curves, records, 1, NAMES, {}).axes[1])["val/miou"]
    assert list(epochs) == [2, 4]
    assert not np.isnan(values).any()


def test_curves_have_gaps_where_a_figure_is_missing(drawn):
    records = [record(epoch, miou=None if epoch in (0, 2) else 0.5) for epoch in range(4)]
    _, values = lines(drawn(draw_curves, records, 1, NAMES, {}).axes[1])["val/miou"]
    assert np.isnan(values).tolist() == [True, False] * 2


@pytest.mark.parametrize(
    ("records", "teacher"),
    [
        ([record(0)], {"teacher": {"val/iou/foreground": 0.5}}),
        ([record(0, unfrozen=7)], {"teacher": {}}),
        ([record(0), record(1, unfrozen=7)], {}),
        ([without(record(e), "train/kl", "train/mse", "val/teacher") for e in range(3)], {}),
        ([{**record(e), **dict.fromkeys(VALIDATION)} for e in range(3)], {"teacher": {"val/iou/foreground": None}}),
        ([record(e, **{"train/loss": None, "train/kl": None}) for e in range(3)], {}),
        ([record(e, **{"train/kl": 0.0, "train/mse": 0.0}) for e in range(3)], {}),
    ],
)
def test_curves_of_corner_cases_are_drawn(records, teacher, drawn):
    drawn(draw_curves, records, 0, NAMES, teacher)


def test_a_curve_of_one_epoch_is_visible(drawn):
    """A line through one point is invisible without a marker."""
    figures = [drawn(draw_curves, [record(0)], 0, NAMES, {}), drawn(draw_timeline, plan(AtEpoch(11)))]
    points = [line for figure in figures for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(points) == 11
    assert {line.get_label() for line in points if line.get_marker() in ("None", "", None)} == set()


# the predictions


def sample(classes, size=(32, 48), teacher=True, seed=0, void=False):
    random = np.random.default_rng(seed)
    labels = {name: random.integers(0, classes, size, dtype=np.uint8) for name in ("truth", "student", "teacher")}
    if void:
        labels["truth"][:4] = VOID
    if not teacher:
        del labels["teacher"]
    return {"image": random.integers(0, 256, (*size, 3), dtype=np.uint8), **labels}


def names(count):
    return [f"class number {number}" for number in range(count)]


def panels(figure, rows=1) -> dict[str, np.ndarray]:
    """The pictures of the first of so many rows, by title; they stand on one sheet."""
    axes = figure.axes[0]
    sheet, titles = np.asarray(axes.images[0].get_array()), [text.get_text() for text in axes.texts]
    pitch, width = sheet.shape[1] // len(titles), round(2 * axes.texts[0].get_position()[0])
    height = sheet.shape[0] // rows - (pitch - width)
    return {title: sheet[:height, at * pitch : at * pitch + width] for at, title in enumerate(titles)}


@pytest.mark.parametrize(
    ("count", "classes", "void", "teacher"),
    [(1, 2, None, True), (1, 2, VOID, False), (3, 3, 11, True), (2, 12, VOID, True), (1, 45, None, False)],
)
def test_predictions_are_drawn(count, classes, void, teacher, drawn):
    samples = [sample(classes, teacher=teacher, seed=seed, void=void == VOID) for seed in range(count)]
    figure = drawn(draw_predictions, samples, names(classes), void)
    titles = ["image", "truth", *(["teacher"] if teacher else []), "student", "where student and truth differ"]
    found = panels(figure, count)
    assert list(found) == titles
    assert {picture.shape for picture in found.values()} == {(32, 48, 3)}
    assert np.array_equal(found["image"], samples[0]["image"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names(classes)


@pytest.mark.parametrize("size", [(32, 320), (320, 32)])
def test_predictions_of_any_shape_are_drawn(size, drawn):
    drawn(draw_predictions, [sample(3, size)], names(3), None)


def test_panels_show_labels_in_the_colours_of_their_classes(drawn):
    shown = sample(12, void=True)
    found, colours = panels(drawn(draw_predictions, [shown], names(12), VOID)), class_colours(12)
    assert np.array_equal(found["image"], shown["image"])
    for name in ("teacher", "student"):
        assert np.array_equal(found[name], colours[shown[name]])
    void = shown["truth"] == VOID
    assert np.array_equal(found["truth"][~void], colours[shown["truth"][~void]])
    assert (found["truth"][void] == 255).all()


def test_the_last_panel_marks_the_valid_pixels_with_errors(drawn):
    shown = sample(3, void=True)
    found = panels(drawn(draw_predictions, [shown], names(3), VOID))["where student and truth differ"]
    wrong = (shown["student"] != shown["truth"]) & (shown["truth"] != VOID)
    assert 0 < wrong.sum() < wrong.size
    assert np.array_equal((found == RED).all(axis=2), wrong)


def test_a_perfect_student_has_nothing_marked(drawn):
    shown = sample(3)
    shown["student"] = shown["truth"]
    found = panels(drawn(draw_predictions, [shown], names(3), None))["where student and truth differ"]
    assert (found[..., 0] == found[..., 1]).all()  # grey


@pytest.mark.parametrize("count", [1, 2, 12, 20, 41, 255])
def test_there_is_a_colour_for_each_class(count):
    colours = class_colours(count)
    assert (colours.shape, colours.dtype) == ((count, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == min(count, 41)
    assert colours[0].max() < 64
    assert np.array_equal(colours, class_colours(count + 1)[:count])
