"""predictions.png is valid in every corner case, and shows the labels that it was given."""

import numpy as np
import pytest

from kd.run.predictions import ERRORS, INVENTED, MISSED, class_colours, draw_predictions

pytestmark = pytest.mark.filterwarnings("error")

VOID = 255


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
    titles = ["image", "truth", *(["teacher"] if teacher else []), "student", ERRORS]
    found = panels(figure, count)
    assert list(found) == titles
    assert {picture.shape for picture in found.values()} == {(32, 48, 3)}
    assert np.array_equal(found["image"], samples[0]["image"])
    errors = [*(["void"] if void == VOID else []), *(["missed", "invented"] if classes == 2 else ["wrong"])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names(classes), *errors]


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


def test_void_is_in_the_legend_where_there_is_some(drawn):
    for index, expected in ((VOID, [*names(3), "void", "wrong"]), (None, [*names(3), "wrong"])):
        figure = drawn(draw_predictions, [sample(3, void=index is not None)], names(3), index)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == expected


def test_the_last_panel_marks_the_valid_pixels_with_errors(drawn):
    shown = sample(3, void=True)
    found = panels(drawn(draw_predictions, [shown], names(3), VOID))[ERRORS]
    wrong = (shown["student"] != shown["truth"]) & (shown["truth"] != VOID)
    assert 0 < wrong.sum() < wrong.size
    assert np.array_equal((found == MISSED).all(axis=2), wrong)


def test_for_two_classes_what_was_missed_and_what_was_invented_differ_in_colour(drawn):
    shown = sample(2)
    found = panels(drawn(draw_predictions, [shown], names(2), None))[ERRORS]
    truth, made = shown["truth"], shown["student"]
    assert np.array_equal((found == MISSED).all(axis=2), (truth == 1) & (made == 0))
    assert np.array_equal((found == INVENTED).all(axis=2), (truth == 0) & (made == 1))


def test_a_row_has_its_note_below_and_the_size_stands_at_the_foot(drawn):
    rows = [{**sample(2, seed=seed), "note": f"{seed}$.png   mIoU 0.5"} for seed in range(2)]
    figure = drawn(draw_predictions, rows, names(2), None, measured_at="64 x 64 pixels")
    texts = [text for text in figure.axes[0].texts if text.get_text().endswith("mIoU 0.5")]
    assert [text.get_text()[0] for text in texts] == ["0", "1"]
    first, second = (text.get_position()[1] for text in texts)
    assert 32 <= first < 44 < second
    assert figure.legends[0].get_title().get_text() == "at 64 x 64 pixels"


def test_a_perfect_student_has_nothing_marked(drawn):
    shown = sample(3)
    shown["student"] = shown["truth"]
    found = panels(drawn(draw_predictions, [shown], names(3), None))[ERRORS]
    assert (found[..., 0] == found[..., 1]).all()  # grey


@pytest.mark.parametrize("count", [1, 2, 12, 20, 41, 255])
def test_there_is_a_colour_for_each_class(count):
    colours = class_colours(count)
    assert (colours.shape, colours.dtype) == ((count, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == min(count, 41)
    assert colours[0].max() < 64
    assert np.array_equal(colours, class_colours(count + 1)[:count])
