"""A study's space: it loads as it was stored, and the study accepts no other."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from kd.errors import StudyError
from kd.settings import RESULT_NEUTRAL
from kd.study.hydra_options import overrides_as_values, search_space
from kd.study.space import Space, describe

SEARCHED = {
    "a": IntDistribution(0, 4),
    "b": FloatDistribution(1e-4, 1e-1, log=True),
    "c": CategoricalDistribution(["one", "two", "three"]),
}
CONFIG = {"seed": 0, "data.train": 16, "objective": ["val/miou"], "optimizer.clip_norm": None, "tracking.uri": None}


def space(searched=SEARCHED, objectives=None, **changes) -> Space:
    """The usual question, with changes to its fixed configuration."""
    config = {**CONFIG, **{name.replace("__", "."): value for name, value in changes.items()}}
    return Space(searched, ("seed=0",), objectives or {"val/miou": "maximize"}, config)


def written(question: Space) -> optuna.Study:
    study = optuna.create_study(study_name="mine")
    question.write(study)
    return study


def complaint(before: Space, now: Space) -> str:
    """The error that refuses to continue with another space."""
    with pytest.raises(StudyError) as error:
        now.check_same(written(before))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("study mine began with ")
    return str(error.value)


def fixed(name: str, value) -> Space:
    """The usual question with a searched key held at a value instead."""
    question = space({key: item for key, item in SEARCHED.items() if key != name})
    return Space(question.searched, (*question.fixed, f"{name}={value}"), question.objectives,
                 {**question.config, name: value})  # fmt: skip


def swept(*overrides: str) -> dict:
    """What overrides search."""
    return search_space(list(overrides))[0]


def told(override: str) -> list:
    """What the trials at the corners of a single range or choice read."""
    question = Space(swept(override), (), {}, {})
    return [overrides_as_values(question.overrides(corner))[0][1] for corner in question.corners()]


# kept


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(1, 9),
        IntDistribution(1, 9, step=2),
        IntDistribution(1, 64, log=True),
        FloatDistribution(-1.5, 2),
        FloatDistribution(1e-5, 1e-2, log=True),
        FloatDistribution(0, 1, step=0.25),
        CategoricalDistribution([None, True, 1, 2.5, "x=1, 'y'"]),
    ],
    ids=describe,
)
def test_a_stored_space_loads_unchanged(distribution):
    question = space({"key": distribution}, {"val/miou": "maximize", "val/loss": "minimize"})
    read = Space.read(written(question))
    assert (read.searched, read.fixed, read.objectives) == (question.searched, question.fixed, question.objectives)
    assert read.config == {name: value for name, value in question.config.items() if name != "tracking.uri"}


@pytest.mark.parametrize("key", ["root", "tracking", "tracking.uri"])
@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_root_and_tracking_are_not_stored(key, sign):
    question = space(**{key.replace(".", "__"): "secret"})
    question = Space(question.searched, (f"{sign}{key}=secret", "seed=0"), question.objectives, question.config)
    study = written(question)
    assert "secret" not in str(study.user_attrs)
    assert Space.read(study).fixed == ("seed=0",)


def test_the_same_space_is_accepted():
    space().check_same(written(space()))


def test_the_directions_are_those_of_the_objectives_in_order():
    objectives = {"val/miou": "maximize", "student/latency_ms": "minimize"}
    assert space(objectives=objectives).directions == ["maximize", "minimize"]


def test_a_study_of_another_program_has_no_space():
    with pytest.raises(StudyError, match="study mine was not created by this sweeper"):
        Space.read(optuna.create_study(study_name="mine"))


# the same


@pytest.mark.parametrize(
    ("key", "now", "message"),
    [
        ("a", IntDistribution(0, 5), "a=0..4, now 0..5"),
        ("a", IntDistribution(1, 4), "a=0..4, now 1..4"),
        ("a", IntDistribution(0, 4, step=2), "a=0..4, now 0..4 by 2"),
        ("a", CategoricalDistribution([0, 4]), "a=0..4, now choice(0,4)"),
        ("b", FloatDistribution(1e-4, 1e-1), "b=0.0001..0.1 (log), now 0.0001..0.1"),
        ("c", CategoricalDistribution(["one", "two"]), "c=choice(one,two,three), now choice(one,two)"),
        ("d", IntDistribution(0, 1), "d=nothing, now 0..1"),
    ],
)
def test_another_range_is_refused_with_both_values(key, now, message):
    assert message in complaint(space(), space({**SEARCHED, key: now}))


@pytest.mark.parametrize("step", [0.5, 1.0])
def test_a_range_that_got_steps_is_refused(step):
    before = space({"x": FloatDistribution(0.0, 4.0)})
    assert "x=" in complaint(before, space({"x": FloatDistribution(0.0, 4.0, step=step)}))


def test_a_choice_of_strings_is_not_one_of_numbers():
    assert "x=" in complaint(space(swept("x=choice(1,2)")), space(swept("x=choice('1','2')")))


def test_a_range_that_is_fixed_now_is_refused():
    assert "a=0..4, now 3" in complaint(space(), fixed("a", 3))


def test_a_fixed_key_that_is_searched_now_is_refused():
    assert "a=3, now 0..4" in complaint(fixed("a", 3), space())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=0, now 1"),
        ({"data__train": 32}, "data.train=16, now 32"),
        ({"optimizer__clip_norm": 5.0}, "optimizer.clip_norm=None, now 5.0"),
        ({"objective": ["val/dice"]}, "objective=['val/miou'], now ['val/dice']"),
        ({"new__key": 7}, "new.key=nothing, now 7"),
        ({"data__fingerprint": "b"}, "data.fingerprint=nothing, now b"),
    ],
)
def test_a_fixed_key_that_changed_is_refused(change, message):
    assert message in complaint(space(), space(**change))


def test_a_missing_key_is_refused():
    assert "new.key=7, now nothing" in complaint(space(new__key=7), space())


@pytest.mark.parametrize(
    "objectives",
    [{"val/dice": "maximize"}, {"val/miou": "minimize"}, {"val/miou": "maximize", "val/loss": "minimize"}],
)
def test_another_objective_is_refused(objectives):
    assert "val/" in complaint(space(), space(objectives=objectives))


def test_many_differences_are_counted_not_listed():
    changes = {f"new__key{number}": number for number in range(5)}
    message = complaint(space(), space(**changes))
    assert "new.key2=nothing, now 2 (and 2 more)" in message
    assert "key3" not in message


@pytest.mark.parametrize("key", [*RESULT_NEUTRAL, "tracking.uri", "tracking.enabled"])
def test_a_key_that_changes_no_result_may_change(key):
    name = key.replace(".", "__")
    space(**{name: "now"}).check_same(written(space(**{name: "then"})))


@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cuda", "cuda:1"), ("auto", "cuda:0"), ("cpu", "auto")])
def test_another_device_of_the_same_kind_is_accepted(devices):
    before, now = (space(trainer__device=device) for device in devices)
    now.check_same(written(before))


def test_another_kind_of_device_is_refused():
    """Latency may be an objective, and results differ in their last digits."""
    assert "trainer.device=cpu, now cuda:0" in complaint(space(trainer__device="cpu"), space(trainer__device="cuda:0"))


@pytest.mark.parametrize("key", ["trainer.devices", "trainer", "trackings.uri", "data.rooted", "data", "x.root"])
def test_a_key_that_only_resembles_a_result_neutral_one_may_not_change(key):
    name = key.replace(".", "__")
    assert f"{key}=then, now now" in complaint(space(**{name: "then"}), space(**{name: "now"}))


def test_a_result_neutral_key_that_is_searched_may_not_change_its_range():
    before = space({"tracking.x": IntDistribution(0, 1)})
    assert "tracking.x=0..1, now 0..2" in complaint(before, space({"tracking.x": IntDistribution(0, 2)}))


# corners and cells

DISTRIBUTIONS = st.one_of(
    st.builds(lambda low, more: IntDistribution(low, low + more), st.integers(-9, 9), st.integers(0, 9)),
    st.builds(lambda low, more: FloatDistribution(low, low + more), st.integers(-9, 9), st.integers(0, 9)),
    st.builds(
        CategoricalDistribution, st.lists(st.sampled_from(["a", "b", "c", 1, 2.5, True]), min_size=1, unique_by=repr)
    ),
)


def extremes(distribution) -> list:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return sorted({distribution.low, distribution.high})


@given(searched=st.dictionaries(st.sampled_from("uvwxyz"), DISTRIBUTIONS))
def test_corners_take_every_choice_and_both_ends_and_no_more(searched):
    corners = list(Space(searched, (), {}, {}).corners())
    assert all(list(corner) == list(searched) for corner in corners)
    for name, distribution in searched.items():
        assert {repr(corner[name]) for corner in corners} == {repr(value) for value in extremes(distribution)}
    assert len(corners) == 1 + sum(len(extremes(distribution)) - 1 for distribution in searched.values())


def test_cells_are_every_combination_the_last_key_changing_fastest():
    question = space({"a": IntDistribution(1, 5, step=2), "c": CategoricalDistribution(["x", "y"])})
    assert question.cells() == [
        {"a": 1, "c": "x"}, {"a": 1, "c": "y"}, {"a": 3, "c": "x"}, {"a": 3, "c": "y"}, {"a": 5, "c": "x"},
        {"a": 5, "c": "y"},
    ]  # fmt: skip


def test_an_empty_space_has_one_cell():
    assert space({}).cells() == [{}]
    assert list(space({}).corners()) == [{}]


@pytest.mark.parametrize("sweep", ["range(0,1,0.1)", "range(0.0,0.4,0.1)", "range(0.7,2,0.1)", "range(1,10,3)"])
def test_the_cells_of_a_range_are_those_of_hydra(sweep):
    distribution = swept(f"x={sweep}")["x"]
    cells = [cell["x"] for cell in space({"x": distribution}).cells()]
    assert cells == pytest.approx([distribution.low + i * (cells[1] - cells[0]) for i in range(len(cells))])
    assert cells[0] == distribution.low
    assert cells[-1] == distribution.high
    assert all(distribution._contains(value) for value in cells)


@pytest.mark.parametrize(
    "distribution", [FloatDistribution(0, 1), FloatDistribution(1, 2, log=True), IntDistribution(1, 9, log=True)]
)
def test_a_continuous_range_has_no_cells(distribution):
    with pytest.raises(StudyError) as error:
        space({"some.key": distribution}).cells()
    assert str(error.value).startswith(f"some.key takes any value from {distribution.low} to {distribution.high}")
    assert "\n" not in str(error.value)


# overrides


def test_a_trials_overrides_are_the_fixed_ones_then_the_searched_ones():
    assert space().overrides({"a": 3, "c": "two"}) == ["seed=0", "a=3", "c=two"]


@given(value=st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False)))
def test_a_number_reaches_a_trial_as_it_was_suggested(value):
    ((_, read),) = overrides_as_values(Space({}, (), {}, {}).overrides({"a.b": value}))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "typed", ["plain", "a-b/c.d", "'two words'", "true", "7", "1.5", "1e-05", "[1,2]", "['a b',c]", "{a:1}", "'7'",
              "'true'", "'null'", "'x=1, y'", '"it\'s"', "''", "'[1,2]'", "'${seed}'"]
)  # fmt: skip
def test_a_choice_reaches_a_trial_as_it_was_typed(typed):
    assert told(f"x=choice(other,{typed})") == ["other", overrides_as_values([f"x={typed}"])[0][1]]
    assert told(f"x=other,{typed}") == ["other", overrides_as_values([f"x={typed}"])[0][1]]


def test_null_is_a_choice():
    assert told("x=null,1") == [None, 1]


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        (IntDistribution(0, 4), "0..4"),
        (IntDistribution(0, 4, step=2), "0..4 by 2"),
        (FloatDistribution(0, 1, step=0.25), "0.0..1.0 by 0.25"),
        (FloatDistribution(0.5, 2, log=True), "0.5..2.0 (log)"),
        (CategoricalDistribution(["a", 1]), "choice(a,1)"),
    ],
)
def test_a_distribution_is_described_as_text(distribution, words):
    assert describe(distribution) == words
