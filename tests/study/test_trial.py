"""A trial as its job sees it: pruned if others are better, and its end reported exactly once."""

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.distributions import IntDistribution
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from sqlalchemy import text
from waiting import until

from kd.config.compose import CONF
from kd.errors import ConfigError, StudyError, Superseded
from kd.study import hydra_options
from kd.study.ledger import Budget, Ledger, NoClaim
from kd.study.space import Space
from kd.study.storage import Database
from kd.study.trial import StudyTrial, Ticket, attach

EPOCHS, TRIALS, TAU = 6, 27, 2.0
PRUNERS = ["asha", "hyperband", "median", "wilcoxon"]
NAMES = (f"study{number}" for number in count())


def pruner_of(option: str):
    """A pruner as conf/ describes it, for a training of EPOCHS."""
    with initialize_config_dir(str(CONF)):
        overrides = [f"hydra/sweeper/pruner={option}", f"trainer.epochs={EPOCHS}"]
        cfg = compose("config", overrides, return_hydra_config=True)
    return hydra_options.pruner(OmegaConf.to_container(cfg.hydra.sweeper.pruner, resolve=True))


def begin(database, objectives=("figure",), pruner=None, target=1, direction="maximize") -> Ledger:
    """A study of one run per x, the first `target` of them."""
    space = Space({"x": IntDistribution(0, TRIALS - 1)}, (), dict.fromkeys(objectives, direction), {})
    return Ledger(database, next(NAMES), space, RandomSampler, pruner or NopPruner(), Budget(target, grid=True))


def claim(ledger: Ledger) -> tuple[Ticket, int]:
    """The next trial, and its x."""
    trial = ledger.claim()
    x = trial._suggest("x", ledger.space.searched["x"])
    return Ticket(ledger.database, ledger.name, trial.number, ledger.pruner), x


def asymptote(x: int) -> float:
    """Where the curve of x ends; neighbours differ, and every x has a value of its own."""
    return 1 - ((x * 10 + 3) % TRIALS) / 40


def curve(x: int, epoch: int) -> float:
    """A learning curve that is above the others' at one epoch if it is at every epoch."""
    return asymptote(x) * (1 - math.exp(-epoch / TAU))


def learn(ledger: Ledger, folder: Path, sign: int = 1) -> None:
    """Run a study to its end, each trial as a job would."""
    for _ in range(ledger.budget.trials):
        ticket, x = claim(ledger)
        with attach(ticket, folder) as trial:
            for epoch in range(1, EPOCHS + 1):
                if trial.report(sign * curve(x, epoch), epoch, EPOCHS):
                    break
            trial.finish({"figure": sign * curve(x, epoch)})
    assert ledger.claim() is NoClaim.DONE


def job(ticket: Ticket, folder: Path, *steps: Callable) -> None:
    """A job that does one thing after another to its trial."""
    with attach(ticket, folder) as trial:
        for step in steps:
            step(trial)


def throw(error: BaseException) -> Callable:
    """A step that goes wrong."""

    def step(_):
        raise error

    return step


def epochs(ledger: Ledger) -> int:
    """The epochs that were trained, as the database knows them."""
    return sum(len(trial.intermediate_values) for trial in ledger.trials())


def stale(ledger: Ledger) -> list[int]:
    """The trials whose last heartbeat is older than the grace period."""
    return ledger.storage._get_stale_trial_ids(ledger.study._study_id)


def state(ticket: Ticket):
    """The trial of a ticket as the database has it."""
    storage = ticket.database.open()
    study = storage.get_study_id_from_name(ticket.study)
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study, ticket.number))


def take(ticket: Ticket) -> None:
    """Give a running trial to another worker, as happens to one that was silent for too long."""
    ticket.database.open().set_trial_state_values(state(ticket)._trial_id, TrialState.FAIL)


# pruning


@pytest.fixture(scope="module")
def unpruned(database, tmp_path_factory):
    """The study with every trial run to its end."""
    ledger = begin(database, pruner=pruner_of("none"), target=TRIALS)
    learn(ledger, tmp_path_factory.mktemp("run"))
    return ledger


def test_without_a_pruner_every_epoch_is_trained(unpruned):
    assert {trial.state for trial in unpruned.trials()} == {TrialState.COMPLETE}
    assert epochs(unpruned) == TRIALS * EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "sign"),
    [*((option, 1) for option in PRUNERS), ("asha", -1)],
)
def test_a_pruner_saves_epochs_and_finds_the_same_winner(option, sign, database, unpruned, tmp_path):
    direction = "maximize" if sign > 0 else "minimize"
    ledger = begin(database, pruner=pruner_of(option), target=TRIALS, direction=direction)
    learn(ledger, tmp_path, sign)
    trials = ledger.trials()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert pruned
    assert len(pruned) + len(complete) == len(trials) == TRIALS
    assert all(len(trial.intermediate_values) < EPOCHS for trial in pruned)
    assert all(len(trial.intermediate_values) == EPOCHS for trial in complete)
    assert epochs(ledger) < epochs(unpruned)
    assert ledger.study.best_params == unpruned.study.best_params
    assert sign * ledger.study.best_value == unpruned.study.best_value
    for trial in trials:
        assert trial.value == sign * curve(trial.params["x"], len(trial.intermediate_values))


@pytest.mark.parametrize("lost", [1, 3])
def test_attempts_that_were_lost_prune_no_other_trial(lost, database):
    """A halving compares with all that reached a rung: an attempt would count beside its retry."""
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)

    def kept(losses: int) -> list[float]:
        """The values of the trials that are not pruned."""
        space = Space({"x": IntDistribution(0, 999)}, (), {"figure": "maximize"}, {})
        ledger = Ledger(database, next(NAMES), space, RandomSampler, pruner, Budget(6))
        left, found, values = losses, [], iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.85])
        known: dict[int, float] = {}
        while (claimed := ledger.claim()) is not NoClaim.DONE:
            x = claimed._suggest("x", ledger.space.searched["x"])
            one = StudyTrial(Ticket(database, ledger.name, claimed.number, pruner))
            if x not in known:
                known[x] = next(values)
            value = known[x]
            stopped = one.report(value, 1, 9)
            if value == 0.9 and left:
                left -= 1
                ledger.study.tell(claimed.number, state=TrialState.FAIL)
                continue
            found += [] if stopped or one.report(value, 9, 9) else [value]
            one.finish({"figure": value})
        return found

    assert kept(lost) == kept(0) == [0.9, 0.85]


def test_the_last_epoch_is_never_pruned(database, tmp_path):
    """A median of one trial, which the second does not reach at any epoch."""
    from optuna.pruners import MedianPruner

    ledger = begin(database, pruner=MedianPruner(n_startup_trials=1, n_warmup_steps=1), target=2)
    for value, expected in ((1.0, [False, False]), (0.0, [True, False])):
        ticket, _ = claim(ledger)
        with attach(ticket, tmp_path) as trial:
            assert [trial.report(value, 2, 3), trial.report(value, 3, 3)] == expected
            trial.finish({"figure": value})
    assert state(ticket).state == TrialState.COMPLETE


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_is_not_a_number_is_not_reported(value, database, tmp_path):
    ticket, _ = claim(begin(database))
    with attach(ticket, tmp_path) as trial:
        assert trial.report(value, 1, 3) is False
        assert trial.report(0.5, 2, 3) is False
        trial.finish({"figure": 0.5})
    assert state(ticket).intermediate_values == {2: 0.5}


def test_several_objectives_are_not_reported_for_pruning(database, tmp_path):
    ticket, _ = claim(begin(database, objectives=("figure", "cost")))
    with attach(ticket, tmp_path) as trial:
        assert trial.report(0.5, 1, 3) is False
        trial.finish({"figure": 0.5, "cost": 2.0})
    assert state(ticket).intermediate_values == {}
    assert state(ticket).values == [0.5, 2.0]
    assert state(ticket).state == TrialState.COMPLETE


# how a trial ends


def test_a_job_records_its_process_and_its_run_folder(database, tmp_path):
    ticket, _ = claim(begin(database))
    with attach(ticket, tmp_path / "run") as trial:
        assert trial.tags == {"study": ticket.study, "trial": str(ticket.number)}
        trial.note({"epochs": 3})
        trial.finish({"figure": 1.0})
    facts = state(ticket).user_attrs
    assert facts["run_folder"] == str(tmp_path / "run")
    assert facts["epochs"] == 3


def test_a_job_knows_the_parent_of_its_mirror(database, tmp_path):
    ledger = begin(database)
    ledger.study.set_user_attr("mlflow_run", "abc")
    with attach(claim(ledger)[0], tmp_path) as trial:
        assert trial.tags["mlflow.parentRunId"] == "abc"


def test_a_bug_fails_the_trial_and_leaves_its_traceback(database, tmp_path):
    ticket, _ = claim(begin(database))
    with pytest.raises(ZeroDivisionError):
        job(ticket, tmp_path / "run", throw(ZeroDivisionError("division by zero")))
    assert state(ticket).state == TrialState.FAIL
    assert state(ticket).user_attrs["failure"] == {"kind": "error", "reason": "ZeroDivisionError: division by zero"}
    text = (tmp_path / "run" / "error.txt").read_text()
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: division by zero\n")


def test_a_bug_is_reported_even_if_its_traceback_cannot_be_written(database, tmp_path):
    ticket, _ = claim(begin(database))
    (tmp_path / "a file").touch()
    with pytest.raises(ZeroDivisionError):
        job(ticket, tmp_path / "a file", throw(ZeroDivisionError("division by zero")))
    assert state(ticket).user_attrs["failure"]["kind"] == "error"


def test_a_user_error_fails_the_trial_without_a_traceback(database, tmp_path):
    ticket, _ = claim(begin(database))
    with pytest.raises(ConfigError):
        job(ticket, tmp_path, throw(ConfigError("x=1: too\nlittle")))
    assert state(ticket).state == TrialState.FAIL
    assert state(ticket).user_attrs["failure"] == {"kind": "error", "reason": "x=1: too little"}
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize("text", ["", "first\nsecond", "x" * 5000], ids=["empty", "two lines", "long"])
def test_the_reason_of_a_failure_is_one_line_of_bounded_length(text, database, tmp_path):
    ticket, _ = claim(begin(database))
    with pytest.raises(RuntimeError):
        job(ticket, tmp_path, throw(RuntimeError(text)))
    reason = state(ticket).user_attrs["failure"]["reason"]
    assert reason.startswith("RuntimeError:")
    assert len(reason) <= 500
    assert "second" not in reason
    assert "\n" not in reason


def test_an_interrupted_job_fails_its_trial_as_interrupted(database, tmp_path):
    ticket, _ = claim(begin(database))
    with pytest.raises(KeyboardInterrupt):
        job(ticket, tmp_path, throw(KeyboardInterrupt()))
    assert state(ticket).state == TrialState.FAIL
    assert state(ticket).user_attrs["failure"]["kind"] == "interrupted"
    assert not (tmp_path / "error.txt").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pruned", [False, True])
def test_an_objective_that_is_not_finite_fails_the_trial_as_nan(value, pruned, database, tmp_path):
    ticket, _ = claim(begin(database))
    steps = (lambda trial: setattr(trial, "pruned", pruned), lambda trial: trial.finish({"figure": value}))
    with pytest.raises(StudyError, match=f"figure={value} is not a number"):
        job(ticket, tmp_path, *steps)
    assert state(ticket).state == TrialState.FAIL
    assert state(ticket).user_attrs["failure"]["kind"] == "nan"
    assert str(value) in state(ticket).user_attrs["failure"]["reason"]


def test_an_error_after_the_result_does_not_undo_it(database, tmp_path):
    ticket, _ = claim(begin(database))
    with pytest.raises(RuntimeError):
        job(ticket, tmp_path, lambda trial: trial.finish({"figure": 0.5}), throw(RuntimeError("disk full")))
    assert state(ticket).state == TrialState.COMPLETE
    assert state(ticket).value == 0.5
    assert "failure" not in state(ticket).user_attrs


# a trial that was given to another


@pytest.mark.parametrize(
    "do",
    [
        lambda trial: trial.report(0.9, 2, EPOCHS),
        lambda trial: trial.report(None, 2, EPOCHS),
        lambda trial: trial.note({"epochs": 2}),
        lambda trial: trial.finish({"figure": 0.9}),
        lambda trial: (setattr(trial, "pruned", True), trial.finish({"figure": 0.9})),
    ],
    ids=["report", "report nothing", "note", "finish", "finish pruned"],
)
def test_a_job_that_lost_its_trial_is_told_and_changes_nothing(do, database, tmp_path):
    ticket, _ = claim(begin(database))
    before = []
    lose = (lambda _: take(ticket), lambda _: before.append(state(ticket)))
    with pytest.raises(Superseded, match="given to another"):
        job(ticket, tmp_path, lambda trial: trial.report(0.5, 1, EPOCHS), *lose, do)
    assert before == [state(ticket)]
    assert before[0].state == TrialState.FAIL
    assert "failure" not in before[0].user_attrs


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ConfigError])
def test_a_job_that_lost_its_trial_does_not_fail_it_again(error, database, tmp_path):
    ticket, _ = claim(begin(database))
    before = []
    with pytest.raises(error):
        job(ticket, tmp_path, lambda _: take(ticket), lambda _: before.append(state(ticket)), throw(error("late")))
    assert before == [state(ticket)]


def test_a_trial_may_be_lost_between_a_check_and_a_report(database, tmp_path, monkeypatch):
    ticket, _ = claim(begin(database))
    real = type(database.open()).get_trial

    def look_and_lose(storage, number):
        found = real(storage, number)
        if found.state == TrialState.RUNNING:
            storage.set_trial_state_values(number, TrialState.FAIL)
        return found

    def report(trial):
        monkeypatch.setattr(type(database.open()), "get_trial", look_and_lose)
        trial.report(0.5, 1, EPOCHS)

    with pytest.raises(Superseded):
        job(ticket, tmp_path, report)
    assert state(ticket).intermediate_values == {}


@pytest.mark.parametrize("end", [TrialState.COMPLETE, TrialState.FAIL])
def test_a_trial_that_has_ended_cannot_be_attached_to(end, database, tmp_path):
    ticket, _ = claim(begin(database))
    values = [1.0] if end == TrialState.COMPLETE else None
    ticket.database.open().set_trial_state_values(state(ticket)._trial_id, end, values)
    before = state(ticket)
    with pytest.raises(Superseded, match=f"trial {ticket.number} of study {ticket.study} has ended"):
        attach(ticket, tmp_path).__enter__()
    assert state(ticket) == before


def test_a_job_sends_heartbeats_while_its_block_lasts(tmp_path):
    """Its last heartbeat would be older than the grace period, if no other followed."""
    database = Database(f"sqlite:///{tmp_path}/studies.db", heartbeat=1, grace=3600)
    ledger = begin(database)
    ticket, _ = claim(ledger)
    with attach(ticket, tmp_path) as trial:
        with ledger.storage.engine.begin() as connection:
            connection.execute(text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-2 hours')"))
        until(lambda: not stale(ledger), "the next heartbeat")
        ledger.fail_dead_trials()
        assert ledger.lost([state(ticket)._trial_id]) == []
        trial.finish({"figure": 1.0})
    assert state(ticket).state == TrialState.COMPLETE


# put in line again


def test_a_requeued_job_resumes_its_trial(database, tmp_path, recwarn):
    """As schedulers do that take a machine away: the process exits, and starts again in the same folder."""
    ledger = begin(database)
    ticket, _ = claim(ledger)
    with pytest.raises(SystemExit):
        job(ticket, tmp_path, lambda trial: trial.report(0.5, 1, 3), throw(SystemExit(-1)))
    assert state(ticket).state == TrialState.RUNNING
    with attach(ticket, tmp_path) as trial:
        assert trial.predecessor is None
        for epoch, value in enumerate((0.5, 0.6, 0.7), 1):
            trial.report(value, epoch, 3)
        trial.finish({"figure": 0.7})
    assert (state(ticket).state, state(ticket).value) == (TrialState.COMPLETE, 0.7)
    assert state(ticket).intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}
    assert not [warning for warning in recwarn if "already reported" in str(warning.message)]


def test_a_retried_trial_knows_the_folder_of_the_interrupted_attempt(database, tmp_path):
    ledger = begin(database, target=2)
    first, x = claim(ledger)
    with pytest.raises(KeyboardInterrupt):
        job(first, tmp_path / "0", throw(KeyboardInterrupt()))
    others = [claim(ledger) for _ in range(2)]
    (again,) = [ticket for ticket, point in others if point == x]
    with attach(again, tmp_path / "1") as trial:
        assert trial.predecessor == tmp_path / "0"
    with attach(others[0][0], tmp_path / "2") as trial:
        assert trial.predecessor is None
