"""The results of a study: its table, its best trials, what pruning saved, importances."""

import csv
import io
import math
from datetime import datetime, timedelta
from itertools import count, product

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from kd.errors import StudyError
from kd.study.folder import _ending
from kd.study.results import Results, all_in, ours_in, points, rows, table
from kd.study.space import Space
from kd.study.storage import Database

SEARCHED = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "schedule": CategoricalDistribution(["linear", "cosine"])}
START = datetime(2026, 1, 1)
NAMES = (f"study{number}" for number in count())


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return Database(f"sqlite:///{tmp_path_factory.mktemp('database')}/studies.db").open()


def study(storage, *trials, searched=SEARCHED, objectives=None, config=None, name=None) -> Results:
    """A study of these trials."""
    space = Space(searched, (), objectives or {"val/miou": "maximize"}, config or {})
    made = optuna.create_study(study_name=name or next(NAMES), storage=storage, directions=space.directions)
    space.write(made)
    made.add_trials(trials)
    return Results.of(storage, made.study_name)


def trial(value=None, state=None, lr=0.01, schedule="cosine", curve=(), start=0, seconds=60, params=None,
          searched=SEARCHED, retry_of=(), **facts):  # fmt: skip
    """A trial that began `start` seconds after the first; complete where it has a value, else failed."""
    values = None if value is None else list(value) if isinstance(value, tuple) else [value]
    params = {"lr": lr, "schedule": schedule} if params is None else params
    return optuna.trial.FrozenTrial(
        number=-1, trial_id=-1, state=state or (TrialState.COMPLETE if values else TrialState.FAIL), value=None,
        values=values, datetime_start=START + timedelta(seconds=start),
        datetime_complete=START + timedelta(seconds=start + seconds), params=params,
        distributions={name: searched[name] for name in params}, user_attrs=facts,
        system_attrs={"retry_history": list(retry_of)} if retry_of else {},
        intermediate_values=dict(enumerate(curve, start=1)),
    )  # fmt: skip


def pruned(value, curve, **more):
    return trial(value, TrialState.PRUNED, curve=curve, **more)


def read_back(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# the table


def test_a_missing_study_is_refused_with_the_closest_name(storage):
    study(storage, name="temperature")
    with pytest.raises(StudyError, match="there is no study 'temprature'; did you mean 'temperature'"):
        Results.of(storage, "temprature")


def test_a_study_of_another_program_is_refused(storage):
    name = next(NAMES)
    optuna.create_study(study_name=name, storage=storage)
    with pytest.raises(StudyError, match="not created by this sweeper"):
        Results.of(storage, name)


def test_a_table_has_a_row_per_trial_and_reads_back(storage):
    results = study(
        storage,
        trial(0.5, epochs=3, planned_epochs=3, run_folder="/runs/a, b/\"0\"", mlflow_run="abc", latency_ms=1.5),
        pruned(0.25, [0.1, 0.25], epochs=2, planned_epochs=3),
        trial(curve=[0.1], failure={"kind": "error", "reason": 'x="1", y\nz'}),
        trial(0.75, lr=0.02, retry_of=[2], epochs=3, planned_epochs=3),
    )  # fmt: skip
    lines = read_back(table(results))
    assert [line["trial"] for line in lines] == ["0", "1", "2", "3"]
    assert [line["state"] for line in lines] == ["complete", "pruned", "fail", "complete"]
    assert [line["val/miou"] for line in lines] == ["0.5", "0.25", "", "0.75"]
    assert [line["lr"] for line in lines] == ["0.01", "0.01", "0.01", "0.02"]
    assert [line["epochs"] for line in lines] == ["3", "2", "1", "3"]
    assert [line["retry_of"] for line in lines] == ["", "", "", "2"]
    assert [line["failure"] for line in lines] == ["", "", 'x="1", y\nz', ""]
    assert (lines[0]["run_folder"], lines[0]["mlflow_run"]) == ('/runs/a, b/"0"', "abc")
    assert (lines[0]["seconds"], lines[0]["student/latency_ms"]) == ("60.0", "1.5")


def test_every_row_has_every_column(storage):
    waiting = optuna.create_trial(state=TrialState.WAITING)
    results = study(storage, trial(0.5), waiting, trial(params={}))
    assert len({tuple(row) for row in rows(results)}) == 1
    assert [row["state"] for row in rows(results)] == ["complete", "waiting", "fail"]


def test_a_retry_names_the_attempt_before_it(storage):
    results = study(storage, trial(), trial(retry_of=[0]), trial(0.5, retry_of=[0, 1]))
    assert [row["retry_of"] for row in rows(results)] == [None, 0, 1]


def test_a_trial_whose_process_died_has_a_reason(storage):
    (row,) = rows(study(storage, trial()))
    assert "worker" in row["failure"]


def test_the_table_of_an_empty_study_has_a_heading():
    empty = Results("none", Space({}, (), {"val/miou": "maximize"}, {}), None, [])
    assert table(empty) == "trial\n"


def test_an_objective_that_is_also_a_figure_is_shown_as_the_objective(storage):
    both = {"val/miou": "maximize", "student/latency_ms": "minimize"}
    results = study(storage, trial((0.5, 2.5)), objectives=both)
    assert rows(results)[0]["student/latency_ms"] == 2.5


# the best


@pytest.mark.parametrize(("direction", "expected"), [("maximize", [2, 1, 3, 0]), ("minimize", [0, 1, 3, 2])])
def test_the_best_come_first_and_the_earlier_on_ties(direction, expected, storage):
    trials = (trial(0.1), trial(0.5), trial(0.9), trial(0.5), pruned(0.95, [0.95]), trial())
    results = study(storage, *trials, objectives={"val/miou": direction})
    assert [best.number for best in results.best] == expected
    assert [done.number for done in results.complete] == [0, 1, 2, 3]


def test_with_several_objectives_the_best_are_the_pareto_front(storage):
    both = {"val/miou": "maximize", "student/latency_ms": "minimize"}
    results = study(storage, trial((0.9, 9.0)), trial((0.5, 1.0)), trial((0.5, 2.0)), trial(), objectives=both)
    assert {best.number for best in results.best} == {0, 1}


@pytest.mark.parametrize("objectives", [{"val/miou": "maximize"}, {"val/miou": "maximize", "val/loss": "minimize"}])
def test_a_study_without_a_complete_trial_has_no_best(objectives, storage):
    assert study(storage, trial(), objectives=objectives).best == []


def test_pruned_trials_are_a_separate_series_of_a_chart(storage):
    results = study(storage, trial(0.5), pruned(0.25, [0.25]), trial(), optuna.create_trial(state=TrialState.WAITING))
    found = points(results.trials, ["val/miou"])
    assert set(found) == {0, 1}
    assert found[0] == {"val/miou": 0.5}
    assert list(found[1].values()) == [0.25]
    assert "val/miou" not in found[1]


# what it took


def test_epochs_are_those_of_finished_trials_and_the_rest_is_lost(storage):
    results = study(
        storage,
        trial(0.5, curve=[0.1] * 8, epochs=8, planned_epochs=8),
        pruned(0.1, [0.1] * 3, epochs=3, planned_epochs=8),
        trial(curve=[0.1] * 5),
        trial(),
    )
    assert results.epochs == (11, 16)
    assert results.lost_epochs == 5


def test_what_a_retry_inherits_is_counted_once(storage):
    """Six epochs, of which the checkpoint held five; four more, and again a failure; the last one ends the ten."""
    results = study(
        storage,
        trial(curve=[0.1] * 6),
        trial(curve=[0.1] * 9, inherited_epochs=5),
        trial(0.5, curve=[0.1] * 10, epochs=10, planned_epochs=10, inherited_epochs=9),
    )
    assert results.epochs == (10, 10)
    assert results.lost_epochs == 6 + 9 - 5 - 9  # the sixth epoch was trained twice


def test_time_is_from_the_first_start_to_the_last_end_and_the_sum_of_trials(storage):
    running = optuna.create_trial(state=TrialState.RUNNING)
    results = study(storage, trial(0.5, start=0, seconds=60), trial(0.5, start=30, seconds=3600), trial(), running)
    assert results.seconds == (3630, 60 + 3600 + 60)


def test_a_study_without_trials_has_no_cost(storage):
    results = study(storage)
    assert (results.epochs, results.lost_epochs, results.seconds) == ((0, 0), 0, (0.0, 0.0))


# what mattered


def test_the_key_that_decides_has_the_largest_importance(storage):
    grid = product((1e-4, 1e-3, 1e-2, 1e-1), SEARCHED["schedule"].choices)
    trials = [trial(-math.log10(lr), lr=lr, schedule=form) for lr, form in grid]
    found = study(storage, *trials).importances
    assert list(found) == ["lr", "schedule"]
    assert found["lr"] > 0.9
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("trials", "more"),
    [
        ([trial(value) for value in (0.1, 0.2, 0.3)], {}),
        ([*[trial(value) for value in (0.1, 0.2, 0.3)], pruned(0.4, [0.4])], {}),
        ([trial(0.5, lr=lr) for lr in (0.01, 0.02, 0.03, 0.04, 0.05)], {}),
        ([trial(value, params={}) for value in (0.1, 0.2, 0.3, 0.4, 0.5)], {"searched": {}}),
        ([trial((v, v)) for v in (0.1, 0.2, 0.3, 0.4)], {"objectives": {"a": "maximize", "b": "minimize"}}),
        ([], {}),
    ],
    ids=["three", "three and a pruned one", "no variance", "nothing searched", "two objectives", "nothing"],
)
def test_a_study_that_is_too_small_has_no_importances(trials, more, storage):
    results = study(storage, *trials, **more)
    assert results.importances == {}


@pytest.mark.parametrize(("best", "trivial"), [(0.5, 0.5), (0.4, 0.5), (0.6, None)])
def test_a_best_trial_at_or_below_trivial_is_no_winner(best, trivial, storage):
    results = study(storage, trial(best, **{"baseline/val/miou": 0.5}), trial(0.1))
    assert results.trivial == trivial
    assert study(storage, trial(best)).trivial is None


def test_every_trial_that_does_not_beat_trivial_is_marked_not_only_the_best(storage):
    results = study(storage, *(trial(value, **{"baseline/val/miou": 0.5}) for value in (0.4, 0.3, 0.6, 0.55)))
    assert [_ending(each, results).partition("  ")[2] for each in results.trials] == [
        "no better than trivial", "no better than trivial", "* best so far", "",
    ]  # fmt: skip


def test_finished_trials_are_the_complete_and_the_pruned(storage):
    assert study(storage, trial(0.5), pruned(0.5, [0.5]), trial()).finished == 2


def test_studies_of_other_programs_are_named_and_left_out(tmp_path):
    storage = Database(f"sqlite:///{tmp_path}/studies.db").open()
    mine = study(storage, trial(0.5), name="mine")
    for name, space in (("other", None), ("odd", {"searched": 5}), ("empty", {})):
        optuna.create_study(study_name=name, storage=storage).set_user_attr("space", space)
    found, others = all_in(storage)
    assert [each.name for each in found] == [mine.name]
    assert sorted(others) == ["empty", "odd", "other"]
    assert ours_in(storage, "other") is ours_in(storage, "nowhere") is None
    with pytest.raises(StudyError, match="not created by this sweeper"):
        Results.of(storage, "odd")
