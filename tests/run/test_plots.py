"""Each plot is a valid PNG in every corner case, and shows the numbers it was given."""

from dataclasses import replace

import numpy as np
import pytest

from kd.plan.schedules import Constant, Cosine
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import All, AtEpoch, Frozen, Progressive
from kd.run.plots import draw_curves, draw_timeline

pytestmark = pytest.mark.filterwarnings("error")

RATES = LearningRates(1e-3, 1e-6, 0.3, 0.5)


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
    loss, quality, apart = drawn(draw_curves, records, 5, NAMES, references).axes
    expected = {"train/loss", "train/kl", "train/mse", "train/ce", "train/dice", "val/loss"}
    assert set(lines(loss)) == expected
    for name in expected:
        assert lines(loss)[name].tolist() == [list(range(1, 9)), [r[name] for r in records]]
    shown = lines(quality)
    quality_of_two = {"val/iou/foreground", "val/dice/foreground", "val/miou"}
    levels = {"val/iou/foreground of the teacher": 0.75, "val/iou/foreground of a trivial prediction": 0.0}
    assert set(shown) == quality_of_two | set(levels) | {"best epoch"}
    assert shown["val/miou"][1].tolist() == [r["val/miou"] for r in records]
    assert {name: set(shown[name][1]) for name in levels} == {name: {value} for name, value in levels.items()}
    assert set(shown["best epoch"][0]) == {6.0}
    assert lines(apart)["student and teacher differ"][1] == pytest.approx(
        [1 - r["val/teacher_agreement"] for r in records]
    )


def test_terms_are_drawn_as_they_enter_the_sum(drawn):
    loss, *_ = drawn(draw_curves, [record(0), record(1)], 1, NAMES, {}, weights={"kl": 0.3, "mse": 1.0}).axes
    assert lines(loss)["0.3 × train/kl"][1] == pytest.approx([0.3 * 0.1] * 2)
    assert {"train/mse", "train/ce", "train/loss"} < set(lines(loss))


def test_without_a_teacher_there_is_no_panel_of_differences(drawn):
    records = [without(record(epoch), "val/teacher") for epoch in range(3)]
    assert len(drawn(draw_curves, records, 1, NAMES, {}).axes) == 2


def test_curves_of_several_classes_show_means_over_classes(drawn):
    names, references = ["sky", "road", "car"], {"teacher": {"val/miou": 0.6}}
    shown = lines(drawn(draw_curves, [record(0), record(1)], 1, names, references).axes[1])
    assert set(shown) == {"val/miou", "val/dice", "val/miou of the teacher", "best epoch"}


@pytest.mark.parametrize("name", ["foreground", "nucleus of a living cell", "nucleus_of_a_living_mammalian_cell"])
def test_no_legend_is_cut_by_the_edge(name, drawn):
    figures = {f"val/{metric}/{name}": 0.3 for metric in ("iou", "dice")}
    records = [without(record(0), "val/iou", "val/dice") | figures]
    references = {who: {f"val/iou/{name}": 0.1} for who in ("teacher", "trivial")}
    figure = drawn(draw_curves, records, 0, ["background", name], references)
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().x1 <= figure.bbox.x1


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
