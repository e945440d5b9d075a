"""What a study found: its table, a recipe that composes to what won, what pruning saved, and who was better."""

import csv
import io
import math
import statistics
from datetime import datetime, timedelta
from itertools import count, product

import optuna
import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from rich.console import Console

from kd.config.compose import CONF, compose, plain
from kd.errors import StudyError
from kd.study import show
from kd.study.hydra_options import overrides_as_values
from kd.study.recipe import WINNER, recipe
from kd.study.results import Results, Spread, over_seeds, points, rows, table, unequal
from kd.study.space import Space
from kd.study.storage import Database

SEARCHED = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "loss": CategoricalDistribution(["hard_only", "hinton"])}
START = datetime(2026, 1, 1)
NAMES = (f"study{number}" for number in count())
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra", "sweeps"}


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


def trial(value=None, state=None, lr=0.01, loss="hinton", curve=(), start=0, seconds=60, params=None,
          searched=SEARCHED, retry_of=(), **facts):  # fmt: skip
    """A trial that began `start` seconds after the first; complete where it has a value, else failed."""
    values = None if value is None else list(value) if isinstance(value, tuple) else [value]
    params = {"lr": lr, "loss": loss} if params is None else params
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


def shown(*parts) -> str:
    """What a wide terminal shows."""
    console = Console(width=200, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


# the table


def test_a_study_that_is_not_there_is_refused_with_its_nearest_name(storage):
    study(storage, name="temperature")
    with pytest.raises(StudyError, match="there is no study 'temprature'; did you mean 'temperature'"):
        Results.of(storage, "temprature")


def test_a_study_of_another_program_is_refused(storage):
    name = next(NAMES)
    optuna.create_study(study_name=name, storage=storage)
    with pytest.raises(StudyError, match="not made by this sweeper"):
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


def test_a_trial_that_died_without_a_word_has_a_reason(storage):
    (row,) = rows(study(storage, trial()))
    assert "worker" in row["failure"]


def test_a_table_of_nothing_has_a_heading():
    empty = Results("none", Space({}, (), {"val/miou": "maximize"}, {}), None, [])
    assert table(empty) == "trial\n"


def test_an_objective_that_is_also_a_figure_is_shown_as_the_objective(storage):
    both = {"val/miou": "maximize", "student/latency_ms": "minimize"}
    results = study(storage, trial((0.5, 2.5)), objectives=both)
    assert rows(results)[0]["student/latency_ms"] == 2.5


# the best


@pytest.mark.parametrize(("direction", "expected"), [("maximize", [2, 1, 3, 0]), ("minimize", [0, 1, 3, 2])])
def test_the_best_come_first_and_of_equals_the_earlier(direction, expected, storage):
    trials = (trial(0.1), trial(0.5), trial(0.9), trial(0.5), pruned(0.95, [0.95]), trial())
    results = study(storage, *trials, objectives={"val/miou": direction})
    assert [best.number for best in results.best] == expected
    assert [done.number for done in results.complete] == [0, 1, 2, 3]


def test_of_several_objectives_the_best_are_those_that_nothing_beats(storage):
    both = {"val/miou": "maximize", "student/latency_ms": "minimize"}
    results = study(storage, trial((0.9, 9.0)), trial((0.5, 1.0)), trial((0.5, 2.0)), trial(), objectives=both)
    assert {best.number for best in results.best} == {0, 1}


@pytest.mark.parametrize("objectives", [{"val/miou": "maximize"}, {"val/miou": "maximize", "val/loss": "minimize"}])
def test_a_study_without_a_complete_trial_has_no_best(objectives, storage):
    assert study(storage, trial(), objectives=objectives).best == []


def test_a_chart_shows_pruned_trials_under_a_name_of_their_own(storage):
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
    (epochs, _) = show.cost(results)
    assert f"11 trained of 16 without pruning: {5 / 16:.0%} saved; 5 more" in epochs


def test_time_is_from_the_first_start_to_the_last_end_and_the_sum_of_trials(storage):
    running = optuna.create_trial(state=TrialState.RUNNING)
    results = study(storage, trial(0.5, start=0, seconds=60), trial(0.5, start=30, seconds=3600), trial(), running)
    assert results.seconds == (3630, 60 + 3600 + 60)
    assert list(show.cost(results)) == ["time     1:00:30 from first to last, 1:02:00 of trials"]


def test_a_study_without_trials_took_nothing(storage):
    results = study(storage)
    assert (results.epochs, results.lost_epochs, results.seconds) == ((0, 0), 0, (0.0, 0.0))
    assert "no trials yet" in show.overview(results)
    assert shown(show.best_trials(results), show.list_studies([results]), *show.cost(results))


# what mattered


def test_what_decides_has_the_largest_importance(storage):
    grid = product((1e-4, 1e-3, 1e-2, 1e-1), SEARCHED["loss"].choices)
    trials = [trial(-math.log10(lr), lr=lr, loss=loss) for lr, loss in grid]
    found = study(storage, *trials).importances()
    assert list(found) == ["lr", "loss"]
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
def test_a_study_too_small_to_say_has_no_importances(trials, more, storage):
    results = study(storage, *trials, **more)
    assert results.importances() == {}
    assert show.importances(results) is None


# spread over seeds

VALUES = st.dictionaries(st.integers(0, 9), st.floats(-1, 1), min_size=1)


@given(one=VALUES, other=VALUES)
def test_a_spread_is_mean_and_sample_deviation_seed_by_seed(one, other):
    spread = Spread(one)
    assert spread.mean == pytest.approx(statistics.mean(one.values()), abs=1e-12)
    assert spread.deviation == (pytest.approx(statistics.stdev(one.values())) if len(one) > 1 else None)
    difference = spread.minus(Spread(other)).by_seed
    assert difference == {seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}


def test_a_spread_is_shown_with_its_number_of_seeds():
    assert show.spread(Spread({1: 0.5, 2: 0.7})) == f"0.6000 ± {math.sqrt(0.02):.4f} (2)"
    assert show.spread(Spread({1: 0.5}), "+") == "+0.5000 (1)"
    assert show.spread(Spread({})) == "no seed in common"


def seeds(storage, figures: dict) -> Results:
    """A winner trained again: seed -> its test/miou."""
    searched = {"seed": IntDistribution(1, 5)}
    trials = [
        trial(0.5, params={"seed": seed}, searched=searched, **{"test/miou": value, "val/miou": value + 0.1})
        for seed, value in figures.items()
    ]
    return study(storage, *trials, trial(params={"seed": 5}, searched=searched), searched=searched)


def test_figures_over_seeds_are_those_of_complete_trials(storage):
    found = over_seeds(seeds(storage, {3: 0.25, 1: 0.5}))
    assert found["test/miou"].by_seed == {1: 0.5, 3: 0.25}
    assert found["val/miou"].by_seed == {1: 0.6, 3: 0.35}
    assert over_seeds(study(storage, trial(0.5))) == {}


def test_winners_are_compared_seed_by_seed(storage):
    """A difference with the same sign at every seed is seen, however far the seeds are apart."""
    one, other = seeds(storage, {1: 0.25, 2: 0.75, 3: 0.5}), seeds(storage, {1: 0.125, 2: 0.625})
    text = shown(*show.winners(one, other))
    assert f"{0.125:+.4f} ± {0:.4f} (2)" in text
    assert list(show.winners(one, study(storage, trial(0.5)))) == []


# one study against another

EQUAL = {"data.train": 16, "data.fingerprint": "a", "trainer.epochs": 8, "trainer.batch_size": 4, "seed": 0,
         "backbone.student.encoder": "x", "augment.transforms": [], "loss.alpha": 0.3, "optimizer.lr": 1.0}  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"loss.alpha": 0.0}, {"optimizer.lr": 2.0}, {"teacher.lr": 2.0}])
def test_studies_of_equal_data_and_budget_are_equals(change, storage):
    one = study(storage, trial(0.5), config=EQUAL)
    other = study(storage, pruned(0.5, [0.5]), config={**EQUAL, **change})
    assert unequal(one, other) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.train", 32), ("data.fingerprint", "b"), ("trainer.epochs", 9), ("trainer.batch_size", 8), ("seed", 1),
        ("backbone.student.encoder", "y"), ("augment.transforms", ["flip"]), ("data.new", 1),
    ],
)  # fmt: skip
def test_what_keeps_studies_from_being_equals_is_named(key, value, storage):
    one, other = study(storage, config=EQUAL), study(storage, config={**EQUAL, key: value})
    assert unequal(one, other) == [f"{key}: {EQUAL.get(key)} against {value}"]
    assert unequal(other, one) == [f"{key}: {value} against {EQUAL.get(key)}"]


def test_what_a_study_searches_is_no_difference(storage):
    searching = study(storage, searched={"data.train": IntDistribution(8, 16)}, config={**EQUAL, "data.train": 8})
    assert unequal(study(storage, config=EQUAL), searching) == []


def test_objectives_and_numbers_of_finished_trials_are_compared(storage):
    one = study(storage, trial(0.5), pruned(0.5, [0.5]), trial())
    other = study(storage, trial(0.5), objectives={"val/dice": "maximize"})
    assert unequal(one, other) == ["objective: val/miou against val/dice", "finished trials: 2 against 1"]


def test_two_studies_are_set_side_by_side_with_what_is_unequal(storage):
    one = study(storage, trial(0.75, **{"test/miou": 0.5}), trial(0.25), config=EQUAL)
    other = study(storage, trial(0.5, **{"test/miou": 0.75}), config={**EQUAL, "trainer.epochs": 9})
    text = shown(*show.against(one, other))
    for expected in ("+0.2500", "-0.2500", "not equal: trainer.epochs: 8 against 9", "not equal: finished trials"):
        assert expected in text


def test_a_study_without_a_winner_can_be_set_beside_another(storage):
    assert "trials finished" in shown(*show.against(study(storage, trial(0.5)), study(storage, trial())))


# tables for a terminal


def test_the_best_trials_are_shown_best_first_with_what_was_searched(storage):
    results = study(
        storage, trial(0.5, lr=0.01, epochs=7), trial(0.75, lr=0.02, loss="hard_only", **{"test/miou": 0.625}), trial()
    )
    lines = [line.strip("│┃ ").split() for line in shown(show.best_trials(results)).splitlines()]
    table = {line[0]: [cell for cell in line[1:] if cell not in "│┃"] for line in lines if len(line) > 1}
    assert table["trial"] == ["1", "0"]
    assert table["val/miou"] == ["0.7500", "0.5000"]
    assert table["test/miou"] == ["0.6250", "-"]
    assert table["epochs"] == ["-", "7"]
    assert table["lr"] == ["0.02", "0.01"]
    assert table["loss"] == ["hard_only", "hinton"]
    assert show.overview(results).endswith("val/miou (maximize); 2 complete, 1 fail")


def test_all_studies_are_listed_with_their_best(storage):
    one, other = study(storage, trial(0.5), pruned(0.25, [0.25]), trial()), study(storage)
    lines = [line.replace("│", " ").split() for line in shown(show.list_studies([one, other])).splitlines()]
    assert [one.name, "2", "0", "1", "0.5000"] in lines
    assert [other.name, "0", "0", "0", "-"] in lines


# the recipe

RECIPES = [
    ["seed=3"],
    ["optimizer.lr=0.00012345", "optimizer.weight_decay=1e-05", "optimizer.clip_norm=null", "seed=7"],
    ["loss=hard_only", "loss.gamma=0.5"],
    ["schedule=linear", "schedule.initial=3.5", "unfreeze.start_epoch=2", "unfreeze.rate=1"],
    ["schedule.initial=3.5", "schedule=linear"],
    ["backbone=tiny", "backbone.teacher.encoder=resnet34", "backbone.student.arch=fpn"],
    ["experiment=arm_both"],
    ["experiment=arm_hard_only", "loss.gamma=0.25", "trainer.epochs=3"],
    ["experiment=t10_curriculum", "augment=none", "schedule.temperatures=[9.0,5.0,2.0,1.0]"],
    ["experiment=arm_both", "schedule=linear"],
    ["loss=hinton", "experiment=arm_both"],
    ["experiment=[small_data,arm_both]"],
    ["data.image_size=[64,96]", "objective=[val/miou,student/latency_ms]"],
    ["objective=val/iou/foreground"],
    ["trainer.precision=bf16", "trainer.device=cpu"],
    ["tracking.run_name='a: b, #c = [d] {e}'"],
    ["tracking.run_name='it\\'s \"quoted\" über %s \\\\ / @'"],
    ["tracking.run_name='1e5'"],
    ["tracking.run_name='0x1F'"],
    ["tracking.run_name='1_000'"],
    ["tracking.run_name='true'"],
    ["tracking.run_name='null'"],
    ["tracking.run_name='2024-01-01'"],
    ["tracking.run_name=''"],
    ["tracking.run_name=' spaces '"],
    ["tracking.run_name='12:30'"],
    ["tracking.run_name='.5'"],
    ["tracking.run_name='~'"],
    ["tracking.run_name=no"],
    ["tracking.run_name=${objective}"],
    ["tracking=none"],
    ["augment.transforms=[{_target_: albumentations.HorizontalFlip, p: 0.5}]"],
    ["augment.transforms=[]"],
    ["loss={alpha:0.25,beta:0}"],
    ["loss=hinton", "loss={alpha:0.25}"],
    ["data.class_names=['a b','c: d']", "data.classes=2"],
    ["++optimizer.lr=0.5"],
    ["optimizer.betas=[0.5,0.75]"],
]


def from_recipe(text: str, folder) -> dict:
    """What `experiment=best` composes to."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "best.yaml").write_text(text, encoding="utf-8")
    with initialize_config_dir(str(CONF)):
        return plain(hydra_compose("config", [f"hydra.searchpath=[file://{folder}]", "experiment=best"]))


@pytest.mark.parametrize("overrides", RECIPES, ids=lambda lines: " ".join(lines))
def test_a_recipe_composes_to_what_its_overrides_do(overrides, tmp_path):
    text = recipe("The best.", overrides_as_values(overrides), GROUPS)
    assert from_recipe(text, tmp_path) == plain(compose(overrides))


def test_what_is_typed_goes_before_a_recipe(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "best.yaml").write_text(recipe("The best.", [("seed", 3), ("loss", "hinton")], GROUPS))
    with initialize_config_dir(str(CONF)):
        found = hydra_compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=best", "seed=4"])
    assert found.seed == 4
    assert plain(found) == plain(compose(["seed=4", "loss=hinton"]))


def test_a_recipe_says_what_it_is_in_its_first_lines():
    first, second, *rest = recipe("Trial 3 of study mine: val/miou 0.5.", [("seed", 1)], GROUPS).splitlines()
    assert first == "# @package _global_"
    assert second == "# Trial 3 of study mine: val/miou 0.5."
    assert yaml.safe_load("\n".join(rest))["seed"] == 1


def test_a_winner_is_trained_over_seeds_by_a_study_of_its_own(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "winner.yaml").write_text(WINNER.format(study="mine", folder=tmp_path))
    with initialize_config_dir(str(CONF)):
        cfg = hydra_compose(
            "config", [f"hydra.searchpath=[file://{tmp_path}]", "sweeps=winner"], return_hydra_config=True
        )
    sweeper = cfg.hydra.sweeper
    assert sweeper.study_name == "mine-winner"
    assert sweeper.sampler._target_.endswith("GridSampler")
    assert sweeper.pruner._target_.endswith("NopPruner")
    assert dict(sweeper.params) == {"experiment": "best", "seed": "range(1, 4)"}
    assert sweeper.n_trials == 3
