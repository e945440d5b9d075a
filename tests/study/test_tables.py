"""A study's results as tables and lines for a terminal."""

import io
import math

import pytest
from rich.console import Console

from kd.study import tables
from kd.study.comparison import Arm, Spread
from kd.study.storage import Database
from tests.study.test_comparison import EQUAL, TAUGHT, seeds
from tests.study.test_results import pruned, study, trial


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return Database(f"sqlite:///{tmp_path_factory.mktemp('database')}/studies.db").open()


def shown(*parts) -> str:
    """What a wide terminal shows."""
    console = Console(width=200, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


# one study


def test_the_best_trials_are_shown_best_first_with_what_was_searched(storage):
    results = study(
        storage, trial(0.5, lr=0.01, epochs=7), trial(0.75, lr=0.02, schedule="linear", **{"test/miou": 0.625}), trial()
    )
    lines = [line.strip("│┃ ").split() for line in shown(tables.best_trials(results)).splitlines()]
    table = {line[0]: [cell for cell in line[1:] if cell not in "│┃"] for line in lines if len(line) > 1}
    assert table["trial"] == ["1", "0"]
    assert table["val/miou"] == ["0.7500", "0.5000"]
    assert table["test/miou"] == ["0.6250", "-"]
    assert table["epochs"] == ["-", "7"]
    assert table["lr"] == ["0.02", "0.01"]
    assert table["schedule"] == ["linear", "cosine"]
    assert tables.overview(results).endswith("val/miou (maximize); 2 complete, 1 fail")


def test_all_studies_are_listed_with_their_best(storage):
    one, other = study(storage, trial(0.5), pruned(0.25, [0.25]), trial()), study(storage)
    lines = [line.replace("│", " ").split() for line in shown(tables.list_studies([one, other])).splitlines()]
    assert [one.name, "2", "0", "1", "0.5000"] in lines
    assert [other.name, "0", "0", "0", "-"] in lines


def test_a_study_without_trials_is_shown(storage):
    results = study(storage)
    assert "no trials yet" in tables.overview(results)
    assert shown(tables.best_trials(results), tables.list_studies([results]), *tables.cost(results))


def test_cost_names_the_epochs_that_pruning_saved_and_those_of_failed_trials(storage):
    results = study(
        storage, trial(0.5, curve=[0.1] * 8, epochs=8, planned_epochs=8),
        pruned(0.1, [0.1] * 3, epochs=3, planned_epochs=8), trial(curve=[0.1] * 5), trial(),
    )  # fmt: skip
    (epochs, _) = tables.cost(results)
    assert f"11 trained of 16 without pruning: {5 / 16:.0%} saved; 5 more" in epochs


def test_cost_shows_wall_time_and_the_sum_over_trials(storage):
    trials = [trial(0.5, start=0, seconds=60), trial(0.5, start=30, seconds=3600), trial()]
    results = study(storage, *trials)
    assert list(tables.cost(results)) == ["time     1:00:30 from first to last trial, 1:02:00 summed over trials"]


def test_importances_are_shown_largest_first(storage):
    results = study(storage, *[trial(-math.log10(lr), lr=lr) for lr in (1e-4, 1e-3, 1e-2, 1e-1)])
    lines = shown(tables.importances(results)).splitlines()
    assert [line.split()[1] for line in lines if " lr " in line or " schedule " in line] == ["lr", "schedule"]


def test_importances_of_many_trials_are_of_some_at_even_intervals_and_say_so(storage, monkeypatch):
    monkeypatch.setattr("kd.study.results.MOST_EXPLAINED", 4)
    results = study(storage, *[trial(-math.log10(lr), lr=lr) for lr in (1e-4, 1e-3, 1e-2, 1e-1) for _ in range(2)])
    assert [found.number for found in results.explained] == [0, 2, 4, 6]
    assert "fANOVA over 4 of 8 trials" in " ".join(shown(tables.importances(results)).split())


def test_importances_of_a_study_that_is_too_small_are_not_shown(storage):
    assert tables.importances(study(storage, trial(0.1), trial(0.2), trial(0.3))) is None


def test_a_study_that_is_too_small_for_importances_says_how_many_trials_they_need(storage):
    reason = tables.no_importances(study(storage, trial(0.1), trial(0.2), trial(0.3)))
    assert reason == "the importance of each parameter needs 4 complete trials; so far 3"
    assert tables.no_importances(study(storage, *(trial(number / 10) for number in range(4)))) is None


# one study against another


def test_a_spread_is_shown_with_its_number_of_seeds():
    assert tables.spread(Spread({1: 0.5, 2: 0.7})) == f"0.6000 ± {math.sqrt(0.02):.4f} (2)"
    assert tables.spread(Spread({1: 0.5}), "+") == "+0.5000 (1)"
    assert tables.spread(Spread({})) == "no common seed"


def test_winners_are_compared_seed_by_seed(storage):
    """A difference with the same sign at every seed is seen, however far the seeds are apart."""
    one, other = seeds(storage, {1: 0.25, 2: 0.75, 3: 0.5}), seeds(storage, {1: 0.125, 2: 0.625})
    taught = study(storage, trial(0.5), config=TAUGHT)
    text = shown(*tables.against(Arm(taught, one), Arm(study(storage, trial(0.5), config=EQUAL), other)))
    assert f"{0.125:+.4f} ± {0:.4f} (2)" in text
    assert "verdict  helped: test/miou +0.1250" in text
    assert "winners over seeds" not in shown(*tables.against(Arm(taught), Arm(taught)))


def test_a_study_whose_best_trial_is_trivial_has_no_winner(storage):
    found = {"baseline/val/miou": 0.5, "val/iou/cell": 0.0}
    line = tables.useless(study(storage, trial(0.5, **found)))
    assert line.startswith("there is no winner: the best trial, 0, does not beat a trivial prediction (val/miou 0.5000")
    assert "objective=val/iou/cell" in line
    assert tables.useless(study(storage, trial(0.6, **found))) == ""


def test_two_studies_are_compared_with_what_is_unfair(storage):
    one = study(storage, trial(0.75, **{"test/miou": 0.5}), trial(0.25), config=EQUAL)
    other = study(storage, trial(0.5, **{"test/miou": 0.75}), config={**EQUAL, "trainer.epochs": 9})
    text = shown(*tables.against(Arm(one), Arm(other)))
    for expected in ("+0.2500", "-0.2500", "differs  trainer.epochs: 8 against 9", "differs  finished trials"):
        assert expected in text


def test_a_study_without_a_complete_trial_can_be_compared(storage):
    assert "finished trials" in shown(*tables.against(Arm(study(storage, trial(0.5))), Arm(study(storage, trial()))))
