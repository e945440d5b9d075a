"""A study's pictures show the numbers of its trials, in every corner case."""

from itertools import pairwise

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from PIL import Image

from kd.study import plots
from kd.study.storage import Database
from tests.study.test_results import pruned, study, trial


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return Database(f"sqlite:///{tmp_path_factory.mktemp('database')}/studies.db").open()


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw with a function of kd.study.plots: checks the file, returns the axes."""
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (figures.append(figure), save(figure, path)))

    def draw(function, results):
        function(results, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
        return figures[-1].axes

    return draw


def some(storage, **more):
    trials = [
        trial(0.5, lr=1e-3, curve=[0.4, 0.5]), pruned(0.2, [0.2], lr=1e-1, start=60),
        trial(0.7, lr=1e-2, schedule="linear", curve=[0.6, 0.7], start=120), trial(start=180),
        trial(0.6, lr=3e-3, curve=[0.3, 0.6], start=240),
    ]  # fmt: skip
    return study(storage, *trials, **more)


def points(ax) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in ax.lines}


def test_the_history_has_every_result_and_the_best_so_far(storage, drawn):
    (ax,) = drawn(plots.history, some(storage))
    assert points(ax) == {
        "complete": [(0, 0.5), (2, 0.7), (4, 0.6)], "pruned": [(1, 0.2)], "best so far": [(0, 0.5), (2, 0.7), (4, 0.7)]
    }  # fmt: skip


def test_the_best_so_far_falls_where_less_is_better(storage, drawn):
    results = some(storage, objectives={"val/loss": "minimize"})
    assert points(drawn(plots.history, results)[0])["best so far"] == [(0, 0.5), (2, 0.5), (4, 0.5)]


def test_curves_are_the_reports_and_the_best_trial_is_named(storage, drawn):
    (ax,) = drawn(plots.curves, some(storage))
    assert points(ax)["trial 2, the best"] == [(1, 0.6), (2, 0.7)]
    assert points(ax)["pruned"] == [(1, 0.2)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["complete", "pruned", "trial 2, the best"]


def test_slices_stand_at_the_parameters_values_on_its_own_scale(storage, drawn):
    rates, schedules = drawn(plots.slices, some(storage))
    assert rates.get_xscale() == "log"
    others, best = points_of(rates)
    assert (others, best) == ([(1e-3, 0.5), (3e-3, 0.6)], [(1e-2, 0.7)])
    assert [label.get_text() for label in schedules.get_xticklabels()] == ["linear", "cosine"]
    assert points_of(schedules) == [[(1.0, 0.5), (1.0, 0.6)], [(0.0, 0.7)]]


def test_slices_of_many_parameters_take_several_rows(storage, drawn):
    """In one row they would be illegible where a page shrinks the picture to its own width."""
    searched = {f"n{number}": IntDistribution(1, 9) for number in range(9)}
    results = study(storage, trial(0.5, params=dict.fromkeys(searched, 2), searched=searched), searched=searched)
    axes = drawn(plots.slices, results)
    assert [ax.get_xlabel() for ax in axes] == [*searched]
    assert axes[0].figure.get_size_inches()[0] <= 11
    assert len({round(ax.get_position().y0, 3) for ax in axes}) == 3
    assert [bool(ax.get_ylabel()) for ax in axes] == [number % 4 == 0 for number in range(9)]


def test_the_values_under_a_slice_do_not_overlap(storage, drawn):
    rates = {f"lr{number}": FloatDistribution(1e-6, 1, log=True) for number in range(4)}
    spans = [(1e-3, 3e-3), (1e-3, 1.9e-2), (1.2e-4, 8.8e-3), (1e-5, 1e-1)]
    ends = [trial(0.5 + end / 10, params={name: span[end] for name, span in zip(rates, spans, strict=True)},
                  searched=rates) for end in (0, 1)]  # fmt: skip
    for ax in drawn(plots.slices, study(storage, *ends, searched=rates)):
        low, high = ax.get_xlim()
        shown = sorted((place, text.get_window_extent()) for place, text in
                       zip(ax.get_xticks(), ax.get_xticklabels(), strict=True) if low <= place <= high)  # fmt: skip
        assert shown
        assert all(left.x1 < right.x0 for (_, left), (_, right) in pairwise(shown))


def points_of(ax):
    return [[*zip(*line.get_data(), strict=True)] for line in ax.lines]


def test_importances_are_bars_the_longest_on_top(storage, drawn, monkeypatch):
    results = some(storage)
    monkeypatch.setattr(type(results), "importances", {"lr": 0.75, "schedule": 0.25})
    (ax,) = drawn(plots.importances, results)
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.75]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["schedule", "lr"]


def test_the_timeline_has_a_bar_per_trial_in_minutes(storage, drawn):
    (ax,) = drawn(plots.timeline, some(storage))
    assert sorted((bar.get_x(), bar.get_width()) for bar in ax.patches) == [(number, 1.0) for number in range(5)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["complete", "pruned", "failed"]


def test_the_front_tells_its_trials_from_the_others(storage, drawn):
    both = {"val/miou": "maximize", "student/latency_ms": "minimize"}
    results = study(storage, trial((0.5, 3.0)), trial((0.7, 4.0)), trial((0.4, 5.0)), objectives=both)
    (ax,) = drawn(plots.front, results)
    assert points(ax) == {"other trials": [(0.4, 5.0)], "Pareto front": [(0.5, 3.0), (0.7, 4.0)]}


def test_one_trial_alone_and_many_categories_are_drawn(storage, drawn):
    searched = {"kind": CategoricalDistribution([f"option number {n}" for n in range(20)]), "n": IntDistribution(1, 9)}
    lonely = study(storage, trial(0.5, params={"kind": "option number 3", "n": 2}, searched=searched, curve=[0.5]),
                   searched=searched)  # fmt: skip
    for draw in (plots.history, plots.curves, plots.slices, plots.timeline):
        drawn(draw, lonely)


def test_trials_that_only_run_have_a_timeline(storage, drawn):
    drawn(plots.timeline, study(storage, trial(state=TrialState.FAIL)))


def test_a_study_of_many_trials_has_no_more_artists_than_a_small_one(storage, drawn):
    """Thousands of lines, bars or places for a legend took minutes to draw."""
    many = study(storage, *(trial(0.5 + number / 1000, lr=1e-3, curve=[0.4, 0.5]) for number in range(300)))
    (ax,) = drawn(plots.curves, many)
    assert len(ax.lines) == 2
    assert np.isnan(ax.lines[0].get_xdata()).sum() == 298  # gaps between the 299 that are not the best
    assert [len(ax.lines) for ax in drawn(plots.slices, many)] == [2, 2]
