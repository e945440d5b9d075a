"""Optuna's plots: each as a PNG and as a page that opens offline, and only those that a study has enough trials for."""

import pytest
from optuna.trial import TrialState
from PIL import Image

from kd.study import pictures
from kd.study.plots import DRAWINGS
from kd.study.storage import Database
from tests.study.test_results import pruned, study, trial


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return Database(f"sqlite:///{tmp_path_factory.mktemp('database')}/studies.db").open()


def several(count: int = 4) -> list:
    """Complete trials of different values, with learning curves."""
    return [trial(index / 8, lr=10.0 ** -(1 + index % 3), curve=[index / 9, index / 8]) for index in range(count)]


def plots(storage, *trials, **more) -> list[str]:
    return list(pictures._plots(study(storage, *trials, **more)))


def test_a_study_without_trials_has_no_plots(storage, tmp_path):
    assert pictures.draw(study(storage), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_a_complete_trial_has_a_timeline_only(storage):
    assert plots(storage, pruned(0.5, [0.5]), trial()) == ["timeline"]


def test_a_small_study_has_no_importances(storage):
    assert "param_importances" not in plots(storage, *several(3))
    assert "param_importances" in plots(storage, *several(4))


def test_curves_need_reports_and_slices_need_something_searched(storage):
    assert "intermediate_values" not in plots(storage, trial(0.5))
    assert "slice" not in plots(storage, trial(0.5, params={}), searched={})


@pytest.mark.parametrize(("count", "front"), [(2, True), (3, True), (4, False)])
def test_several_objectives_have_a_pareto_front_up_to_three(count, front, storage):
    objectives = {name: "maximize" for name in "abcd"[:count]}
    assert ("pareto_front" in plots(storage, trial((0.5,) * count), objectives=objectives)) is front


def test_every_plot_is_a_picture_and_a_page_that_opens_offline(storage, tmp_path):
    results = study(storage, *several(), trial(0.25, TrialState.PRUNED, curve=[0.25]))
    drawn = pictures.draw(results, tmp_path)
    assert {"optimization_history", "timeline", "intermediate_values", "slice", "parallel_coordinate"} <= set(drawn)
    for name in {*drawn} & {*DRAWINGS}:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100
        assert 'src="plotly.min.js"' in (tmp_path / f"{name}.html").read_text()
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_a_plot_that_optuna_cannot_draw_is_a_warning(storage, tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no backend")

    monkeypatch.setattr(pictures.pages, "plot_timeline", broken)
    drawn = pictures.draw(study(storage, trial(0.5)), tmp_path)
    assert "timeline" not in drawn
    assert "optimization_history" in drawn
    assert "the plot timeline could not be drawn (no backend)" in caplog.text
