"""The options of hydra.sweeper as parts of a study, and suggestions that depend on no process and no interruption."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import count

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner

from kd.config.compose import CONF
from kd.errors import ConfigError
from kd.study import hydra_options
from kd.study.address import default_url
from kd.study.hydra_options import TrialJob, check_name, is_grid, overrides_as_values
from kd.study.ledger import Budget, Ledger, NoClaim
from kd.study.space import Space
from kd.study.storage import Database

NUMBERS = {"x": FloatDistribution(0, 1), "y": FloatDistribution(1e-3, 1, log=True), "z": IntDistribution(0, 50)}
MIXED = {**NUMBERS, "c": CategoricalDistribution(["one", "two", "three"])}
SAMPLERS = {
    "tpe": ["n_startup_trials=2"],
    "random": [],
    "gp": ["n_startup_trials=2"],
    "qmc": ["scramble=true"],
    "nsgaii": ["population_size=3"],
    "cmaes": ["popsize=3"],
}
NAMES = (f"study{number}" for number in count())
RANDOM = {"_target_": "optuna.samplers.RandomSampler"}


def composed(*overrides: str) -> dict:
    """hydra.sweeper as plain containers."""
    with initialize_config_dir(str(CONF)):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    return OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)


def node(option: str, *more: str) -> dict:
    """A sampler as `hydra/sweeper/sampler=<option>` describes it."""
    return composed(
        f"hydra/sweeper/sampler={option}", "hydra.sweeper.study_name=s", *(f"hydra.sweeper.sampler.{m}" for m in more)
    )["sampler"]


def ledger_of(database, name, sampler, seed=0, searched=NUMBERS, target=8) -> Ledger:
    space = Space(searched, (), {"figure": "maximize"}, {})
    return Ledger(database, name, space, hydra_options.sampler(sampler, seed), NopPruner(), Budget(target))


def suggest(ledger: Ledger, trial) -> dict:
    return {name: trial._suggest(name, distribution) for name, distribution in ledger.space.searched.items()}


def figure(params: dict) -> float:
    return -((params["x"] - 0.3) ** 2) - (params["z"] - 20) ** 2 / 900


def one(ledger: Ledger) -> dict:
    """Run the next trial; its parameters."""
    trial = ledger.claim()
    params = suggest(ledger, trial)
    ledger.study.tell(trial.number, figure(params))
    return params


def study(database, sampler: dict, seed=0, restart=False, target=6, searched=NUMBERS) -> list[dict]:
    """The parameters that a study suggests; where it is restarted, by another command for each trial."""
    name = next(NAMES)
    ledger, found = ledger_of(database, name, sampler, seed, searched, target), []
    for _ in range(target):
        found.append(one(ledger))
        ledger = ledger_of(database, name, sampler, seed, searched, target) if restart else ledger
    assert ledger.claim() is NoClaim.DONE
    return found


def different(found: list[dict]) -> bool:
    """Whether no two suggestions are alike."""
    return len({tuple(params.values()) for params in found}) == len(found)


# suggestions


@pytest.mark.parametrize("option", SAMPLERS)
def test_suggestions_follow_from_the_seed_and_the_history_alone(option, database):
    """Not from how often the study was interrupted; and none is made twice."""
    sampler = node(option, *SAMPLERS[option])
    target = 5 if option == "gp" else 6  # gp is slow; two generations of the others
    straight = study(database, sampler, target=target)
    assert study(database, sampler, target=target, restart=True) == straight
    assert different(straight[:3] if option == "nsgaii" else straight)  # a child may be its parent's copy
    assert study(database, sampler, target=1, seed=1)[0] not in straight


def in_process(url: str, number: str) -> None:
    """A command that runs a few trials of a study and ends: prints their parameters."""
    ledger = ledger_of(Database(url), "shared", node("tpe", *SAMPLERS["tpe"]))
    print(json.dumps([one(ledger) for _ in range(int(number))]))


@pytest.mark.slow
def test_a_study_in_several_processes_suggests_the_same_points(database, tmp_path):
    url, found = f"sqlite:///{tmp_path}/studies.db", []
    for number in ("3", "5"):
        command = [sys.executable, __file__, url, number]
        found += json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found == study(database, node("tpe", *SAMPLERS["tpe"]), target=8)


@pytest.mark.parametrize("option", ["tpe", "random", "qmc"])
def test_trials_that_are_claimed_together_differ(option, database):
    ledger = ledger_of(database, next(NAMES), node(option, *SAMPLERS[option]))
    for _ in range(3):
        one(ledger)
    trials = [ledger.claim() for _ in range(4)]
    assert different([suggest(ledger, trial) for trial in trials])


@pytest.mark.parametrize("option", ["tpe", "random", "qmc"])
def test_a_failed_trial_repeats_no_suggestion(option, database):
    name, sampler = next(NAMES), node(option, *SAMPLERS[option])
    found = []
    for number in range(6):
        ledger = ledger_of(database, name, sampler)
        trial = ledger.claim()
        params = suggest(ledger, trial)
        if number in (1, 4):
            trial.set_user_attr("failure", {"kind": "interrupted", "reason": ""})
            ledger.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        else:
            ledger.study.tell(trial.number, figure(params))
            found.append(params)
    assert len(found) == 4
    assert different(found)


@pytest.mark.parametrize("option", ["qmc", "tpe", "nsgaii", "random"])
def test_quasi_random_samplers_vary_their_choices(option, database):
    found = study(database, node(option, *SAMPLERS[option]), target=10, searched=MIXED)
    assert len({params["c"] for params in found[1:]}) > 1


@pytest.mark.parametrize("scramble", ["true", "false"])
def test_a_quasi_random_sequence_continues_after_a_restart(scramble, database):
    sampler = node("qmc", f"scramble={scramble}")
    assert study(database, sampler, restart=True, searched=MIXED) == study(database, sampler, searched=MIXED)


def test_the_samplers_seed_overrides_the_studys(database):
    fixed = [study(database, {**RANDOM, "seed": 7}, seed=seed, target=2) for seed in (0, 1)]
    assert fixed[0] == fixed[1] == study(database, RANDOM, seed=7, target=2)


# samplers and pruners


@pytest.mark.parametrize("option", [*SAMPLERS, "nsgaiii"])
def test_every_sampler_is_built(option):
    built = hydra_options.sampler(node(option), 0)(3)
    assert isinstance(built, optuna.samplers.BaseSampler)
    assert type(built).__name__.lower().startswith(option)


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "hydra" / "sweeper" / "pruner").glob("*.yaml")))
def test_every_pruner_is_built(option):
    conf = composed(f"hydra/sweeper/pruner={option}", "trainer.epochs=9")["pruner"]
    assert type(hydra_options.pruner(conf)).__name__ == conf["_target_"].rpartition(".")[2]


def test_hyperband_gets_the_number_of_epochs():
    assert composed("hydra/sweeper/pruner=hyperband", "trainer.epochs=81")["pruner"]["max_resource"] == 81


def test_a_grid_is_not_a_suggesting_sampler():
    assert is_grid(node("grid"))
    assert is_grid({"_target_": "optuna.samplers.BruteForceSampler"})
    assert not any(is_grid(node(option)) for option in SAMPLERS)


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ({"_target_": "optuna.pruners.NoSuchPruner"}, "NoSuchPruner"),
        ({"_target_": "optuna.pruners.MedianPruner", "wormup": 3}, "wormup"),
        ({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": -1}, "-1"),
        ({"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 0}, "min_resource"),
        ({}, "hydra/sweeper/pruner=<name>"),
        (None, "hydra/sweeper/pruner=<name>"),
        ("median", "hydra/sweeper/pruner=<name>"),
        ({"min_resource": 3}, "hydra/sweeper/pruner=<name>"),
    ],
)
def test_a_wrong_pruner_is_refused_by_its_key(conf, reason):
    with pytest.raises(ConfigError) as error:
        hydra_options.pruner(conf)
    assert str(error.value).startswith("hydra.sweeper.pruner")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ({"_target_": "optuna.samplers.NoSuchSampler"}, "NoSuchSampler"),
        ({**RANDOM, "wormup": 3}, "wormup"),
        ({"_target_": "optuna.samplers.NSGAIISampler", "population_size": 1}, "population_size"),
        ({"_target_": "optuna.samplers.QMCSampler", "qmc_type": "lattice"}, "lattice"),
    ],
)
def test_a_wrong_sampler_is_refused_by_its_key(conf, reason):
    make = hydra_options.sampler(conf, 0)
    with pytest.raises(ConfigError) as error:
        make(0)
    assert str(error.value).startswith("hydra.sweeper.sampler")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sampler_that_optuna_removed_is_refused():
    make = hydra_options.sampler(node("motpe"), 0)
    with pytest.raises(ConfigError, match="removed"):
        make(0)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "seven"])
def test_a_seed_out_of_range_is_refused(seed):
    for conf, of_study in (({**RANDOM, "seed": seed}, 0), (RANDOM, seed)):
        with pytest.raises(ConfigError, match=r"hydra\.sweeper\.sampler\.seed="):
            hydra_options.sampler(conf, of_study)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.parametrize("option", SAMPLERS)
def test_the_ends_of_the_range_of_seeds_are_allowed(option, seed):
    assert hydra_options.sampler(node(option), seed)(0) is not None


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "subprocess.call", "optuna.create_study"])
def test_nothing_but_samplers_and_pruners_is_built(target, tmp_path):
    conf = {"_target_": target, "_args_": [f"touch {tmp_path / 'made'}"]}
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.pruner"):
        hydra_options.pruner(conf)
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.sampler"):
        hydra_options.sampler({"_target_": target, "command": f"touch {tmp_path / 'made'}"}, 0)(0)
    assert not (tmp_path / "made").exists()


def test_a_sampler_is_not_accepted_as_a_pruner():
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.pruner"):
        hydra_options.pruner(RANDOM)


# names, databases, jobs


@pytest.mark.parametrize("name", ["a", "_", "7", "temperature_unfreeze", "a.b-c_d", "x" * 80])
def test_a_valid_folder_name_is_a_valid_study_name(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-n", "a/b", "a b", "a\n", "\na", "über", "x" * 81, "a:b", "a\\b", None, 7]
)
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(ConfigError) as error:
        check_name(name)
    assert str(error.value).startswith(f"hydra.sweeper.study_name={name!r}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("grace", "expected"), [(None, 20), (7, 7)])
def test_the_grace_period_is_four_heartbeats_unless_set(grace, expected, root):
    conf = {"storage": None, "heartbeat_interval": 5, "grace_period": grace}
    assert hydra_options.database(conf, root) == Database(default_url(root), 5, expected)


def test_a_storage_overrides_the_default_database(root):
    conf = {"storage": "sqlite:///elsewhere.db", "heartbeat_interval": 5, "grace_period": None}
    assert hydra_options.database(conf, root).url == "sqlite:///elsewhere.db"


def test_a_jobs_ticket_is_that_of_its_sweeper(root):
    conf = composed("hydra.sweeper.study_name=mine", "hydra/sweeper/pruner=median", "hydra.sweeper.grace_period=99")
    shown = hydra_options.ticket(TrialJob(4, root, conf))
    assert (shown.study, shown.number, shown.database.grace) == ("mine", 4, 99)
    assert isinstance(shown.pruner, optuna.pruners.MedianPruner)
    assert hydra_options.ticket(None) is None


def test_a_job_does_not_show_its_password(root):
    conf = {**composed("hydra.sweeper.study_name=mine"), "storage": "postgresql://me:secret@host/db"}
    job = TrialJob(4, root, conf)
    assert "secret" not in repr(job)
    assert "secret" not in repr(replace(job, number=5))
    assert "secret" not in repr(hydra_options.ticket(job))


# overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a.b=1.5e-3", ("a.b", 0.0015)),
        ("a=true", ("a", True)),
        ("a=null", ("a", None)),
        ("a=plain words", ("a", "plain words")),
        ("a='x=1, y: 2'", ("a", "x=1, y: 2")),
        ('a="1"', ("a", "1")),
        ("a=''", ("a", "")),
        ("a=", ("a", "")),
        ("a=[1,'b c',[null]]", ("a", [1, "b c", [None]])),
        ("a={b:1,c:{d:'e'}}", ("a", {"b": 1, "c": {"d": "e"}})),
        ("a={b:['c']}", ("a", {"b": ["c"]})),
        ("+a.b=1", ("a.b", 1)),
        ("++a.b=1", ("a.b", 1)),
        ("loss=hinton", ("loss", "hinton")),
        ("a=${b}", ("a", "${b}")),
    ],
)
def test_an_override_is_a_key_and_a_value(override, expected):
    ((key, value),) = overrides_as_values([override])
    assert (key, value) == expected
    assert type(value) is type(expected[1])


def test_overrides_keep_their_order_and_deletions_are_left_out():
    assert overrides_as_values(["b=1", "~c", "a=2", "~d=3"]) == [("b", 1), ("a", 2)]


def test_values_are_read_as_hydra_reads_them():
    """Quoted text in lists and dicts is the text alone, as it is in a composed configuration."""
    override = "augment.transforms=[{_target_: 'a.B', p: 0.5, names: ['x y', \"z\"]}]"
    with initialize_config_dir(str(CONF)):
        cfg = compose("config", [override])
    assert overrides_as_values([override]) == [
        ("augment.transforms", OmegaConf.to_container(cfg.augment.transforms))
    ]  # fmt: skip
    assert OverridesParser.create().parse_override(override).key_or_group == "augment.transforms"


if __name__ == "__main__":
    os.environ.setdefault("KD_ROOT", os.path.dirname(sys.argv[1].removeprefix("sqlite:///")))
    in_process(*sys.argv[1:])


@pytest.mark.parametrize("kind", ["sampler", "pruner"])
def test_an_argument_that_a_constructor_lacks_is_answered_with_the_nearest(kind):
    build = {"sampler": lambda node: hydra_options.sampler(node, 0)(0), "pruner": hydra_options.pruner}[kind]
    target, near = {"sampler": ("TPESampler", "n_startup_trials"), "pruner": ("MedianPruner", "n_startup_trials")}[kind]
    with pytest.raises(ConfigError, match=rf"{kind}\.n_startup is not an .*did you mean '.*\.{near}'\?"):
        build({"_target_": f"optuna.{kind}s.{target}", "n_startup": 3})
