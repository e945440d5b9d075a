"""Two studies compared: what is unfair, the winners over seeds, and the verdict with its interval."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from kd.study.comparison import LEAST_GAIN, Arm, Spread, Verdict, has_teacher, partner, unequal
from kd.study.recipe import winner_name
from kd.study.results import Results
from kd.study.space import PICTURES
from kd.study.storage import Database
from tests.study.test_results import pruned, study, trial

VALUES = st.dictionaries(st.integers(0, 9), st.floats(-1, 1), min_size=1)
EQUAL = {"data.train": 16, "data.fingerprint": "a", "trainer.epochs": 8, "trainer.batch_size": 4, "seed": 0,
         "backbone.student.encoder": "x", "augment.transforms": [], "loss.alpha": 0, "loss.beta": 0, "loss.gamma": 0.5,
         "loss.delta": 1.0, "optimizer.lr": 1.0, "unfreeze.rate": 2}  # fmt: skip
TAUGHT = {**EQUAL, "loss.alpha": 0.3}


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return Database(f"sqlite:///{tmp_path_factory.mktemp('database')}/studies.db").open()


# spreads


@given(one=VALUES, other=VALUES)
def test_a_spread_is_mean_and_sample_deviation_seed_by_seed(one, other):
    spread = Spread(one)
    assert spread.mean == pytest.approx(statistics.mean(one.values()), abs=1e-12)
    assert spread.deviation == (pytest.approx(statistics.stdev(one.values())) if len(one) > 1 else None)
    difference = spread.minus(Spread(other)).by_seed
    assert difference == {seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9).filter(lambda values: statistics.stdev(values) > 1e-6))
def test_the_interval_is_that_of_the_paired_t_test(values):
    """The interval excludes 0 exactly where scipy's paired t-test rejects 0 at 5 %."""
    low, high = Spread(dict(enumerate(values))).interval
    test = stats.ttest_1samp(values, 0.0)
    reference = test.confidence_interval(0.95)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    if abs(test.pvalue - 0.05) > 1e-9:
        assert (low > 0 or high < 0) == (test.pvalue < 0.05)


def test_a_single_seed_has_no_interval():
    assert Spread({0: 0.5}).interval is None


# arms


def seeds(storage, figures: dict, config=None) -> Results:
    """A winner trained again: seed -> its test/miou."""
    searched = {"seed": IntDistribution(1, 5)}
    trials = [
        trial(value + 0.1, params={"seed": seed}, searched=searched, **{"test/miou": value})
        for seed, value in figures.items()
    ]
    return study(storage, *trials, trial(params={"seed": 5}, searched=searched), searched=searched, config=config or {})


def test_the_trial_that_won_is_the_first_seed(storage):
    one = study(storage, trial(0.2), trial(0.9, **{"test/miou": 0.8}), config=EQUAL)
    found = Arm(one, seeds(storage, {3: 0.25, 1: 0.5})).over_seeds()
    assert found["test/miou"].by_seed == {0: 0.8, 1: 0.5, 3: 0.25}
    assert found["val/miou"].by_seed == {0: 0.9, 1: 0.6, 3: 0.35}
    assert Arm(one).over_seeds()["test/miou"].by_seed == {0: 0.8}


def test_a_winner_that_was_overtaken_is_not_counted_with_the_seeds_of_another(storage):
    config = {"lr": 0.01, "schedule": "cosine"}
    overtaken = Arm(study(storage, trial(0.9, lr=0.02), config=EQUAL), seeds(storage, {1: 0.5}, config))
    assert overtaken.outdated
    assert overtaken.over_seeds()["val/miou"].by_seed == {1: 0.6}
    assert not Arm(study(storage, trial(0.9, lr=0.01), config=EQUAL), seeds(storage, {1: 0.5}, config)).outdated


@pytest.mark.parametrize("other", [False, True])
def test_an_overtaken_choice_of_a_group_is_noticed_by_what_it_trains(storage, other):
    """The name of a group is no key of a flat configuration."""
    searched = {"schedule": CategoricalDistribution(["linear", "cosine"])}
    best = trial(0.9, params={"schedule": "cosine"}, searched=searched, recipe="b")
    seed = {"seed": IntDistribution(1, 5)}
    again = study(storage, trial(0.6, params={"seed": 1}, searched=seed, recipe="a" if other else "b"), searched=seed,
                  config=EQUAL)  # fmt: skip
    assert Arm(study(storage, best, searched=searched, config=EQUAL), again).outdated is other


def test_an_arm_is_found_in_the_database_with_its_winner_over_seeds(storage):
    one = study(storage, trial(0.5))
    assert Arm.of(storage, one).winners is None
    again = study(storage, trial(0.5), name=winner_name(one.name))
    assert Arm.of(storage, one).winners.name == again.name


def test_an_arm_costs_the_epochs_of_its_study_and_of_its_seeds_those_of_failed_trials_too(storage):
    one = study(storage, trial(0.5, epochs=4, planned_epochs=8), trial(curve=[0.1, 0.2]))
    assert Arm(one).epochs == 6
    assert Arm(one, study(storage, trial(0.5, epochs=8, planned_epochs=8))).epochs == 14


def test_the_partner_of_a_distilled_study_is_the_one_alone():
    assert partner("nuclei-distilled") == "nuclei-alone"
    assert partner("temperature_unfreeze") == "no_teacher"


@pytest.mark.parametrize(
    ("config", "searched", "expected"),
    [
        ({"loss.alpha": 0, "loss.beta": 0}, {}, False),
        ({"loss.alpha": 0.3, "loss.beta": 0}, {}, True),
        ({"loss.alpha": 0, "loss.beta": 0.5}, {}, True),
        ({"loss.alpha": 0, "loss.beta": 0, "loss.cwd": 3.0}, {}, True),
        ({"loss.alpha": 0, "loss.beta": 0}, {"loss.alpha": FloatDistribution(0, 1)}, True),
        ({}, {"loss": CategoricalDistribution(["hinton", "composite"])}, True),
    ],
)
def test_a_study_has_a_teacher_if_any_term_of_its_loss_needs_one(config, searched, expected, storage):
    assert has_teacher(study(storage, searched=searched, config=config)) == expected


# what is unfair


def taught_and_alone(storage, one=(), other=(), change=None, **more):
    """The reasons against comparing a study with a teacher and one without, which differs by `change` as well."""
    alone = study(storage, *other, config={**EQUAL, **(change or {})}, **more)
    return unequal(study(storage, *one, config=TAUGHT), alone)


@pytest.mark.parametrize(
    "change",
    [{}, {"teacher.lr": 2.0}, {"schedule.initial": 1.0}, {"backbone.teacher.encoder": "z"}, {"data.root": "x"},
     {"data.cache": "off"}],
)  # fmt: skip
def test_arms_may_differ_in_what_concerns_the_teacher_and_in_what_changes_no_result(change, storage):
    assert taught_and_alone(storage, [trial(0.5)], [pruned(0.5, [0.5])], change) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.train", 32), ("data.fingerprint", "b"), ("trainer.epochs", 9), ("trainer.batch_size", 8), ("seed", 1),
        ("backbone.student.encoder", "y"), ("augment.transforms", ["flip"]), ("data.new", 1), ("optimizer.lr", 2.0),
        ("unfreeze.rate", 3), ("loss.gamma", 0.7), ("loss.delta", 0.0),
    ],
)  # fmt: skip
def test_any_other_difference_is_named(key, value, storage):
    assert taught_and_alone(storage, change={key: value}) == [f"{key}: {EQUAL.get(key)} against {value}"]


def test_pictures_without_masks_which_only_a_teacher_can_use_are_named_in_one_sentence(storage):
    pictures = {PICTURES: 300, f"{PICTURES}.fingerprint": "p"}
    taught, alone = (study(storage, config={**config, **pictures}) for config in (TAUGHT, EQUAL))
    (reason,) = unequal(taught, alone)
    assert reason.startswith("pictures: the student with a teacher also learns from 300 pictures without masks")
    assert not any("pictures" in reason for reason in unequal(taught, taught))


def test_a_key_that_only_one_arm_searches_or_over_another_range_is_named(storage):
    lr, wide = {"optimizer.lr": FloatDistribution(0.1, 1.0)}, {"optimizer.lr": FloatDistribution(0.1, 2.0)}
    one, other = study(storage, config=TAUGHT, searched=lr), study(storage, config=EQUAL, searched=wide)
    assert unequal(one, study(storage, config=EQUAL, searched=lr)) == []
    assert unequal(one, study(storage, config=EQUAL, searched={})) == ["optimizer.lr: searched in 0.1..1.0 against 1.0"]
    assert unequal(one, other) == ["optimizer.lr: searched in 0.1..1.0 against searched in 0.1..2.0"]


def test_what_only_concerns_the_teacher_may_be_searched(storage):
    searched = {"schedule.initial": FloatDistribution(2, 10), "schedule": CategoricalDistribution(["linear", "cosine"])}
    assert unequal(study(storage, config=TAUGHT, searched=searched), study(storage, config=EQUAL, searched={})) == []


def test_objectives_are_compared(storage):
    more = {"objectives": {"val/dice": "maximize"}}
    assert taught_and_alone(storage, **more) == ["objective: val/miou against val/dice"]


def test_budgets_are_equal_by_trials_or_by_epochs(storage):
    def trained(*epochs):
        return [trial(0.5, epochs=count, planned_epochs=8) for count in epochs]

    assert taught_and_alone(storage, trained(8, 8), trained(8)) == []  # within one training
    assert taught_and_alone(storage, trained(8, 1, 1, 1), trained(8)) == []
    assert taught_and_alone(storage, trained(8, 8, 8), trained(8)) == ["finished trials: 3 against 1"]
    assert taught_and_alone(storage, trained(8, 8, 8), trained(1, 1, 1)) == []


def test_two_arms_with_or_without_a_teacher_are_no_comparison(storage):
    taught, alone = study(storage, config=TAUGHT), study(storage, config=EQUAL)
    assert unequal(taught, taught) == ["teacher: both studies have one, so neither is the baseline"]
    assert "neither study has one" in unequal(alone, alone)[0]


# the verdict


def verdict(gains, **more) -> Verdict:
    alone = {seed: 0.5 for seed in range(len(gains))}
    return Verdict("test/miou", Spread({seed: 0.5 + gain for seed, gain in enumerate(gains)}), Spread(alone), **more)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ([0.02, 0.03, 0.025], "helped"),
        ([0.001, 0.0012, 0.0008, 0.001], "helped by less than is worth a teacher"),
        ([-0.02, -0.03, -0.025], "did not help"),
        ([0.0, 0.001, -0.001, 0.0005], "did not help"),  # a gain below what is worth a teacher
        ([0.1, -0.1, 0.05], "cannot tell"),
        ([0.1], "cannot tell"),
        ([], "cannot tell"),
    ],
)
def test_the_outcome_follows_from_the_interval(gains, outcome):
    assert verdict(gains).outcome == outcome
    assert verdict(gains).line().startswith(outcome)


@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=8))
def test_no_verdict_says_helped_where_zero_is_in_the_interval(gains):
    made = verdict(gains)
    low, high = made.gain.interval
    assert made.outcome.startswith("helped") == (low > 0)
    assert made.outcome.endswith("than is worth a teacher") == (0 < low <= high < LEAST_GAIN)
    assert (made.outcome == "did not help") == (low <= 0 and high < LEAST_GAIN)


@given(st.floats(0.001, 0.05), st.floats(0.001, 0.02))
def test_so_many_more_seeds_with_the_same_spread_would_decide_and_one_fewer_would_not(mean, spread):
    """Gains that alternate around their mean: with n of them the deviation is nearly `spread`, whatever n is."""
    gains = [mean + spread, mean - spread]
    made = verdict(gains)
    if made.outcome != "cannot tell" or made.more_seeds is None:
        return
    deviation, needed = made.gain.deviation, max(mean, LEAST_GAIN - mean)

    def half(count):
        return stats.t.ppf(0.975, count - 1) * deviation / math.sqrt(count)

    total = len(gains) + made.more_seeds
    assert half(total) < needed <= half(total - 1)


def test_one_more_seed_is_said_in_the_singular():
    assert verdict([0.0305, 0.0214]).line().endswith("2 paired seeds); about 1 more seed would decide")


def test_a_lower_loss_is_a_gain():
    made = Verdict("test/loss", Spread({0: 0.3, 1: 0.31}), Spread({0: 0.5, 1: 0.52}))
    assert made.gain.by_seed == pytest.approx({0: 0.2, 1: 0.21})


def test_only_seeds_that_both_arms_have_count():
    made = Verdict("test/miou", Spread({0: 0.5, 1: 0.6}), Spread({1: 0.5, 2: 0.1}))
    assert made.gain.by_seed == pytest.approx({1: 0.1})


def test_the_line_names_gain_interval_and_seeds():
    assert verdict([0.02, 0.03, 0.025]).line() == (
        "helped: test/miou +0.0250 (95 % interval +0.0126 to +0.0374, 3 paired seeds)"
    )
    assert "about" in verdict([0.02, -0.01, 0.025]).line()
    assert "which have no spread" in verdict([0.02]).line()


def test_the_decisive_metric_is_the_objective_on_test_if_both_arms_have_it(storage):
    with_test, without = trial(0.9, **{"test/miou": 0.8}), trial(0.9)
    one, other = (study(storage, each, config=EQUAL) for each in (with_test, without))
    assert Verdict.of(Arm(one), Arm(one)).metric == "test/miou"
    assert Verdict.of(Arm(one), Arm(other)).metric == "val/miou"
