"""`quick=true` shortens a run, whatever its options, to one that is valid and touches everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.config.compose import CONF, compose, plain
from kd.config.quick import MOST, STEPS, shortened
from kd.config.read import read
from kd.settings import flat

PLANS = sorted(path.stem for path in (CONF / "unfreeze").glob("*.yaml"))


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_is_shortened_to_a_valid_one(plan):
    settings = read(compose(["quick=true", f"unfreeze={plan}"]))
    assert settings.trainer.epochs == MOST["trainer.epochs"]
    assert settings.data.limit == STEPS * settings.trainer.batch_size
    first = settings.unfreeze.first_epoch
    assert first is None or first < settings.trainer.epochs


def test_what_is_shorter_already_stays():
    found = plain(compose(["quick=true", "trainer.epochs=2", "teacher.epochs=1", "data.limit=4", "unfreeze=all"]))
    assert (found["trainer"]["epochs"], found["teacher"]["epochs"], found["data"]["limit"]) == (2, 1, 4)


def test_without_it_nothing_changes():
    config = plain(compose([]))
    assert shortened(config) == config
    assert config["quick"] is False


@given(st.integers(1, 1000), st.integers(1, 200), st.integers(0, 50))
def test_twice_is_as_once_and_nothing_else_changes(epochs, batch, start):
    config = {
        "quick": True,
        "trainer": {"epochs": epochs, "batch_size": batch},
        "teacher": {"path": "a"},
        "unfreeze": {"start_epoch": start},
        "optimizer": {"lr": 0.1},
        "data": {"limit": None},
    }
    once = shortened(config)
    assert shortened(once) == once
    before, after = dict(flat(config)), dict(flat(once))
    assert {key for key in before if before[key] != after[key]} <= {*MOST, "data.limit"}
    assert config["trainer"]["epochs"] == epochs  # the argument is left alone


@pytest.mark.parametrize("value", ["abc", "true", "0"])
def test_a_wrong_number_is_refused_as_without_it(value):
    with pytest.raises(Exception, match=r"trainer\.epochs"):
        read(compose(["quick=true", f"trainer.epochs={value}"]))
