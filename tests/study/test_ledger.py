"""Handing out trials: exactly as many finish as asked for, whatever fails, dies or is restarted in between."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from itertools import count, pairwise

import optuna
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from sqlalchemy import text
from waiting import LIMIT

from kd.config.compose import PROJECT
from kd.errors import StudyError
from kd.study import hydra_options, worker
from kd.study.ledger import FINISHED, LOST_RETRIES, Budget, Ledger, NoClaim, Tally, failure, history
from kd.study.space import Space
from kd.study.storage import Database
from kd.study.sweep import _kill_silent_workers

LINE = {"x": FloatDistribution(0, 1), "y": IntDistribution(0, 9)}
GRID = {"a": CategoricalDistribution(["one", "two"]), "b": IntDistribution(0, 4, step=2)}
NAMES = (f"study{number}" for number in count())
FAILURES = ("error", "nan", "interrupted")


def begin(database, trials=4, name=None, searched=LINE, **limits) -> Ledger:
    """A study of random search, or of a grid."""
    space = Space(searched, (), {"figure": "maximize"}, {})
    sampler = hydra_options.sampler({"_target_": "optuna.samplers.RandomSampler"}, 0)
    return Ledger(database, name or next(NAMES), space, sampler, NopPruner(), Budget(trials, **limits))


def again(ledger: Ledger, **limits) -> Ledger:
    """The same command once more."""
    budget = {**asdict(ledger.budget), **limits}
    return begin(ledger.database, name=ledger.name, searched=ledger.space.searched, **budget)


def failed_as_dead(ledger: Ledger, trial) -> list[int]:
    """The trial's number, if its worker counts as dead."""
    ledger.fail_dead_trials()
    return [lost.number for lost in ledger.lost([trial._trial_id])]


def suggest(ledger: Ledger, trial) -> dict:
    """What a trial is to train, as the sweeper asks for it."""
    return {name: trial._suggest(name, distribution) for name, distribution in ledger.space.searched.items()}


def end(ledger: Ledger, trial, outcome: str) -> None:
    """What becomes of a trial."""
    if outcome == "complete":
        ledger.study.tell(trial.number, 0.5)
    elif outcome == "pruned":
        trial.report(0.25, 1)
        ledger.study.tell(trial.number, state=TrialState.PRUNED)
    elif outcome == "lost":
        trial.set_user_attr("worker", {**worker.this_process(), "started": 0.0})  # another process with this pid
    else:
        trial.set_user_attr("failure", {"kind": outcome, "reason": f"an {outcome} in trial {trial.number}"})
        ledger.study.tell(trial.number, state=TrialState.FAIL)


def one(ledger: Ledger, outcome: str = "complete") -> dict:
    """Claim a trial and let it end so; returns its parameters."""
    trial = ledger.claim()
    params = suggest(ledger, trial)
    end(ledger, trial, outcome)
    return params


def cut_off(ledger: Ledger) -> None:
    """A claim that is killed when the trial is running already and has no worker yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.study.ledger.worker.this_process", lambda: next(iter([])))
        with pytest.raises(StopIteration):
            ledger.claim()


def states(ledger: Ledger) -> list[str]:
    return [trial.state.name for trial in ledger.trials()]


def finish(ledger: Ledger) -> None:
    """Complete what is missing."""
    while (trial := ledger.claim()) is not NoClaim.DONE:
        suggest(ledger, trial)
        end(ledger, trial, "complete")


# where a study starts


def test_the_first_trial_is_the_recipe_as_it_stands_however_often_the_study_is_opened(database):
    sampler = hydra_options.sampler({"_target_": "optuna.samplers.RandomSampler"}, 0)
    space = Space(LINE, (), {"figure": "maximize"}, {}, start={"x": 0.25})
    ledgers = [Ledger(database, "started", space, sampler, NopPruner(), Budget(3)) for _ in range(2)]
    found = [one(ledger) for ledger in (*ledgers, ledgers[0])]
    assert [params["x"] == 0.25 for params in found] == [True, False, False]
    assert ledgers[1].claim() is NoClaim.DONE


# counting


def frozen(number: int, state: TrialState, kind: str | None = None, before=()):
    """A trial as the database would show it."""
    attributes = {"failure": {"kind": kind, "reason": kind}} if kind else {}
    trial = optuna.create_trial(
        state=state, value=1.0 if state == TrialState.COMPLETE else None, user_attrs=attributes,
        system_attrs={"retry_history": list(before)} if before else {},
    )  # fmt: skip
    trial.number = number
    return trial


def chain(*kinds: str) -> list:
    """One trial that failed again and again."""
    return [frozen(number, TrialState.FAIL, kind, range(number)) for number, kind in enumerate(kinds)]


def test_epochs_of_trials_that_are_given_up_are_spent_and_those_of_an_attempt_count_in_its_retry():
    lost, diverged, retry = (
        chain("lost")[0],
        frozen(1, TrialState.FAIL, "nan"),
        frozen(2, TrialState.COMPLETE, before=[0]),
    )
    for trial, epochs in ((lost, 6), (diverged, 9), (retry, 10)):
        trial.intermediate_values = dict.fromkeys(range(1, epochs + 1), 0.5)
    assert Budget(9, epochs=19).is_spent([lost, diverged, retry])
    assert not Budget(9, epochs=20).is_spent([lost, diverged, retry])
    assert not Budget(9).is_spent([lost, diverged, retry])


def test_when_the_epochs_are_spent_all_trials_that_were_lost_together_are_retried_and_no_other_starts(database):
    ledger = begin(database, trials=9, epochs=10)
    whole, *lost = (ledger.claim() for _ in range(3))
    whole.set_user_attr("epochs", 10)
    end(ledger, whole, "complete")
    for trial in lost:
        end(ledger, trial, "lost")
    retried = [ledger.claim() for _ in lost]
    assert [ledger.trials()[trial.number].system_attrs["retry_history"] for trial in retried] == [[1], [2]]
    assert ledger.claim() is NoClaim.DONE


def counted(trials, max_retries=2) -> tuple[list[int], list[int]]:
    tally = Tally.of(trials, max_retries)
    return [trial.number for trial in tally.to_retry], [trial.number for trial in tally.given_up]


def test_a_tally_counts_states():
    every = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.RUNNING]
    tally = Tally.of([frozen(number, state) for number, state in enumerate(every)], 2)
    assert (tally.finished, tally.running, tally.waiting) == (2, 2, 1)
    assert tally.to_retry == tally.given_up == ()


def test_the_tally_of_no_trials_is_zero():
    assert Tally.of([], 2) == Tally(0, 0, 0, (), ())


@pytest.mark.parametrize("max_retries", [0, 1, 2, 5])
def test_an_error_is_retried_max_retries_times(max_retries):
    for tries in range(1, max_retries + 4):
        last = [tries - 1]
        expected = (last, []) if tries <= max_retries else ([], last)
        assert counted(chain(*["error"] * tries), max_retries) == expected


def test_a_trial_without_a_reported_failure_is_lost_and_retried_a_limited_number_of_times():
    assert failure(frozen(0, TrialState.FAIL))["kind"] == "lost"
    assert counted(chain(*[None] * LOST_RETRIES), 0) == ([LOST_RETRIES - 1], [])
    assert counted(chain(*[None] * (LOST_RETRIES + 1)), 0) == ([], [LOST_RETRIES])


def test_nan_is_never_retried():
    assert counted(chain("nan"), 9) == ([], [0])


def test_an_interrupted_trial_is_always_retried():
    assert counted(chain(*["interrupted"] * 50), 0) == ([49], [])


def test_kinds_of_failure_are_counted_apart():
    assert counted(chain("error", "interrupted", "interrupted", "error"), 2) == ([3], [])
    assert counted(chain("error", None, "error", "interrupted", "error"), 2) == ([], [4])
    assert counted(chain("error", "error", "error", "interrupted"), 2) == ([3], [])


@pytest.mark.parametrize("state", [s for s in TrialState if s != TrialState.FAIL])
def test_a_trial_is_not_queued_twice(state):
    assert counted([frozen(0, TrialState.FAIL, "error"), frozen(1, state, before=[0])]) == ([], [])


# exactly as many as asked for

OUTCOMES = st.sampled_from(["complete", "pruned", "error", "nan", "lost", "interrupted", "cut off"])


def check_chains(ledger: Ledger) -> None:
    """Every failed trial was tried again as often as its failures allow, with the same parameters."""
    trials = ledger.trials()
    retried = {number for trial in trials for number in history(trial)}
    for last in trials:
        if last.number in retried:
            continue
        attempts = [trials[number] for number in (*history(last), last.number)]
        kinds = Counter(failure(trial)["kind"] for trial in attempts if trial.state == TrialState.FAIL)
        assert kinds["error"] <= ledger.budget.max_retries + 1
        assert kinds["nan"] <= 1
        if last.state == TrialState.FAIL:
            assert (
                kinds["nan"] == 1
                or kinds["error"] == ledger.budget.max_retries + 1
                or kinds["lost"] == LOST_RETRIES + 1
            )
        for before, after in pairwise(attempts):
            assert before.state == TrialState.FAIL
            assert failure(before)["kind"] != "nan"
            assert after.system_attrs["failed_trial"] == attempts[0].number
            assert {name: after.params[name] for name in before.params} == before.params


@settings(max_examples=15, deadline=None)
@given(
    target=st.integers(1, 4),
    max_retries=st.integers(0, 2),
    story=st.lists(st.tuples(OUTCOMES, st.booleans()), max_size=12),
)
def test_a_study_ends_at_exactly_its_number_of_finished_trials(database, target, max_retries, story):
    """Whatever becomes of each trial, and however often the command is started again."""
    ledger = begin(database, target, max_retries=max_retries)
    story, numbers = iter(story), []
    while True:
        outcome, restart = next(story, ("complete", False))
        if restart:
            ledger = again(ledger)
        try:
            if outcome == "cut off" and ledger.tally().finished < target:
                cut_off(ledger)
                continue
            trial = ledger.claim()
        except StudyError:
            ledger = again(ledger)
            continue
        if trial is NoClaim.DONE:
            break
        numbers.append(trial.number)
        suggest(ledger, trial)
        end(ledger, trial, outcome if outcome != "cut off" else "complete")
    assert len(numbers) == len(set(numbers))
    assert set(states(ledger)) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert sum(trial.state in FINISHED for trial in ledger.trials()) == target
    check_chains(ledger)


def test_a_complete_study_hands_out_no_trial(database):
    ledger = begin(database, trials=2)
    finish(ledger)
    assert again(ledger).claim() is NoClaim.DONE
    assert again(ledger, trials=1).claim() is NoClaim.DONE
    assert states(ledger) == ["COMPLETE"] * 2


def test_a_study_continues_to_a_higher_number_of_trials(database):
    ledger = begin(database, trials=2)
    finish(ledger)
    finish(again(ledger, trials=5))
    assert states(ledger) == ["COMPLETE"] * 5


def test_no_more_trials_run_than_are_missing(database):
    ledger = begin(database, trials=3)
    one(ledger)
    first, second = ledger.claim(), ledger.claim()
    assert ledger.claim() is NoClaim.WAIT
    end(ledger, first, "error")
    third = ledger.claim()
    assert ledger.claim() is NoClaim.WAIT
    end(ledger, second, "complete")
    assert ledger.claim() is NoClaim.WAIT
    end(ledger, third, "pruned")
    assert ledger.claim() is NoClaim.DONE


@pytest.mark.parametrize("kind", ["error", "lost", "interrupted"])
def test_a_failed_trial_comes_next_with_its_parameters(kind, database):
    ledger = begin(database)
    first = one(ledger, kind)
    assert one(ledger) == first
    assert one(ledger) != first
    retry = ledger.trials()[1]
    assert history(retry) == [0]
    assert retry.system_attrs["failed_trial"] == 0


# who is dead


def test_a_claim_records_its_process_as_the_worker(database):
    trial = begin(database).claim()
    stored = database.open().get_trial(trial._trial_id)
    assert stored.state == TrialState.RUNNING
    assert stored.user_attrs["worker"] == worker.this_process()


def test_an_interrupted_claim_is_freed_by_the_next(database):
    ledger = begin(database, trials=1)
    cut_off(ledger)
    assert states(ledger) == ["RUNNING"]
    trial = ledger.claim()
    assert states(ledger) == ["FAIL", "RUNNING"]
    assert history(ledger.trials()[trial.number]) == [0]


def test_an_interrupted_claim_does_not_repeat_a_suggestion(database):
    ledger = begin(database)
    cut_off(ledger)
    seen = [tuple(one(ledger).values()) for _ in range(3)]
    assert len(set(seen)) == len(seen)


def test_the_trial_of_a_dead_process_is_freed_at_once(database):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    runs = {**worker.this_process(), "pid": process.pid, "started": worker._started(psutil.Process(process.pid))}
    ledger = begin(database, trials=1)
    trial = ledger.claim()
    trial.set_user_attr("worker", runs)
    assert failed_as_dead(ledger, trial) == []
    assert ledger.claim() is NoClaim.WAIT
    process.communicate(b"\n")
    assert failed_as_dead(ledger, trial) == [trial.number]
    freed = ledger.claim()
    assert history(ledger.trials()[freed.number]) == [trial.number]


def test_the_trial_of_another_host_is_freed_only_after_the_grace_period(tmp_path, monkeypatch):
    ledger = begin(Database(f"sqlite:///{tmp_path}/studies.db", grace=3600), trials=1)
    monkeypatch.setattr(worker, "_host", lambda: "elsewhere")
    trial = ledger.claim()
    trial.set_user_attr("worker", {**worker.this_process(), "pid": 2**22 + 1})  # a number that no process here has
    monkeypatch.undo()
    assert ledger.claim() is NoClaim.WAIT
    assert failed_as_dead(ledger, trial) == []
    with ledger.storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-2 hours')"))
    freed = ledger.claim()
    assert history(ledger.trials()[freed.number]) == [trial.number]
    assert failure(ledger.trials()[trial.number])["kind"] == "lost"


def test_a_silent_worker_is_killed_whichever_process_found_its_trial_lost(tmp_path):
    """Also if another claim was first: its thread would wait for it forever."""
    ledger = begin(Database(f"sqlite:///{tmp_path}/studies.db", grace=3600), trials=2)
    silent, well = ledger.claim(), ledger.claim()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    runs = {**worker.this_process(), "pid": process.pid, "started": worker._started(psutil.Process(process.pid))}
    silent.set_user_attr("worker", runs)
    with ledger.storage.engine.begin() as connection:
        old = "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-2 hours') WHERE trial_id = :id"
        connection.execute(text(old), {"id": silent._trial_id})
    again(ledger).claim()
    launched = [silent._trial_id, well._trial_id]
    assert [trial.number for trial in ledger.lost(launched)] == [silent.number]
    _kill_silent_workers(ledger, launched)
    assert process.wait(LIMIT) == -signal.SIGKILL


def test_only_trials_with_a_dead_or_silent_worker_are_failed(database, monkeypatch):
    """Not one that told its own failure in the same moment: its worker lives, and would be killed for it."""
    ledger = begin(database)
    trial = ledger.claim()
    monkeypatch.setattr(optuna.storages, "fail_stale_trials", lambda study: end(ledger, trial, "error"))
    assert failed_as_dead(ledger, trial) == []


# planned studies


def test_a_grid_runs_every_cell_once_in_order(database):
    ledger = begin(database, trials=6, searched=GRID, grid=True)
    assert [one(ledger) for _ in range(6)] == ledger.space.cells()
    assert ledger.claim() is NoClaim.DONE


@pytest.mark.parametrize("kind", ["error", "lost", "interrupted", "cut off"])
def test_a_restarted_grid_runs_every_cell_once(kind, database):
    ledger = begin(database, trials=6, searched=GRID, grid=True)
    one(ledger)
    cut_off(ledger) if kind == "cut off" else one(ledger, kind)
    ledger = again(ledger)
    one(again(ledger))
    finish(again(ledger))
    done = [trial.params for trial in ledger.trials() if trial.state == TrialState.COMPLETE]
    assert sorted(done, key=str) == sorted(ledger.space.cells(), key=str)
    assert states(ledger).count("FAIL") == 1


def test_a_half_written_grid_is_completed(database, monkeypatch):
    real, name = optuna.Study.enqueue_trial, next(NAMES)

    def enqueue(study, cell):
        if cell == {"a": "two", "b": 0}:
            raise KeyboardInterrupt
        real(study, cell)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", enqueue)
    with pytest.raises(KeyboardInterrupt):
        begin(database, trials=6, name=name, searched=GRID, grid=True)
    monkeypatch.undo()
    ledger = begin(database, trials=6, name=name, searched=GRID, grid=True)
    assert [one(ledger) for _ in range(6)] == ledger.space.cells()


def test_a_grid_may_stop_before_its_last_cell(database):
    ledger = begin(database, trials=2, searched=GRID, grid=True)
    finish(ledger)
    assert [trial.params for trial in ledger.trials() if trial.value is not None] == ledger.space.cells()[:2]


def test_a_grid_ends_without_the_cells_that_failed_for_good(database):
    ledger = begin(database, trials=6, searched=GRID, grid=True)
    one(ledger, "nan")
    finish(ledger)
    assert Counter(states(ledger)) == {"FAIL": 1, "COMPLETE": 5}


def test_a_grid_waits_for_its_last_cells(database):
    ledger = begin(database, trials=6, searched=GRID, grid=True)
    trials = [ledger.claim() for _ in range(6)]
    assert ledger.claim() is NoClaim.WAIT
    for trial in trials[1:]:
        end(ledger, trial, "complete")
    end(ledger, trials[0], "nan")
    assert ledger.claim() is NoClaim.DONE


def test_a_cell_with_a_fraction_is_retried_with_the_same_value(database):
    searched = {"x": FloatDistribution(0.0, 0.3, step=0.1)}
    ledger = begin(database, trials=4, searched=searched, grid=True)
    for _ in range(3):
        one(ledger)
    failed = one(ledger, "interrupted")
    assert one(ledger) == failed
    assert ledger.claim() is NoClaim.DONE


# when to stop


def test_a_study_in_which_nothing_works_stops_and_says_why(database):
    ledger = begin(database, trials=20)
    for _ in range(3):
        one(ledger, "nan")
    with pytest.raises(StudyError, match=rf"study {ledger.name} stops: 3 .* trial 2: an nan in trial 2; fix"):
        ledger.claim()


def test_a_study_stops_when_too_large_a_share_failed_for_good(database):
    ledger = begin(database, trials=10, max_failure_rate=0.3)
    one(ledger)
    for _ in range(3):
        one(ledger, "nan")
    one(ledger, "nan")
    with pytest.raises(StudyError, match="4 trials failed for good"):
        ledger.claim()


def test_a_retried_trial_does_not_count_as_failed_for_good(database):
    ledger = begin(database, trials=2, max_failure_rate=0.0, max_retries=2)
    for _ in range(2):
        for outcome in ("error", "error", "interrupted", "complete"):
            one(ledger, outcome)
    assert ledger.claim() is NoClaim.DONE


def test_a_stopped_study_continues_when_the_command_is_repeated(database):
    ledger = begin(database, trials=4)
    for _ in range(3):
        one(ledger, "nan")
    with pytest.raises(StudyError):
        ledger.claim()
    ledger = again(ledger)
    one(ledger, "nan")
    finish(ledger)
    assert Counter(states(ledger)) == {"FAIL": 4, "COMPLETE": 4}


# beginning


def test_a_study_with_another_space_is_refused(database):
    ledger = begin(database)
    with pytest.raises(StudyError, match=f"study {ledger.name} began with"):
        begin(database, name=ledger.name, searched=GRID)
    assert again(ledger).claim().number == 0


def test_a_study_of_another_program_cannot_be_continued(database):
    study = optuna.create_study(study_name=next(NAMES), storage=database.open())
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(StudyError, match="not created by this sweeper"):
        begin(database, name=study.study_name)


def test_a_study_whose_creation_was_interrupted_is_created(database, monkeypatch):
    name = next(NAMES)
    monkeypatch.setattr(Space, "write", lambda space, study: next(iter([])))
    with pytest.raises(StopIteration):
        begin(database, name=name)
    monkeypatch.undo()
    ledger = begin(database, name=name)
    assert Space.read(ledger.study) == ledger.space


# many at once


def work(ledger: Ledger, numbers: list[int]) -> None:
    """What a worker does; every fourth trial fails at first."""
    while (trial := ledger.claim()) is not NoClaim.DONE:
        if trial is NoClaim.WAIT:
            time.sleep(0.02)
            continue
        numbers.append(trial.number)
        suggest(ledger, trial)
        first = "failed_trial" not in ledger.storage.get_trial(trial._trial_id).system_attrs
        end(ledger, trial, "error" if first and trial.number % 4 == 0 else "complete")


@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_a_study(shared, database):
    ledger, numbers = begin(database, trials=8), []
    threads = [
        threading.Thread(target=work, args=(ledger if shared else again(ledger), numbers), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=LIMIT)
    assert sorted(numbers) == list(range(len(ledger.trials())))
    assert Counter(states(ledger))["COMPLETE"] == 8
    assert set(states(ledger)) == {"COMPLETE", "FAIL"}
    check_chains(ledger)


def as_process(url: str) -> None:
    """A worker in a process of its own: prints the numbers of its trials."""
    numbers: list[int] = []
    work(begin(Database(url), trials=8, name="shared"), numbers)
    print(json.dumps(numbers))


@pytest.mark.slow
def test_processes_that_start_together_share_a_new_study(tmp_path):
    url = f"sqlite:///{tmp_path}/deep/studies.db"
    command, shared = [sys.executable, __file__, url], os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": shared}}
    processes = [subprocess.Popen(command, text=True, **options) for _ in range(4)]
    done = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, done
    numbers = [number for out, _ in done for number in json.loads(out)]
    ledger = begin(Database(url), trials=8, name="shared")
    assert sorted(numbers) == list(range(len(ledger.trials())))
    assert states(ledger).count("COMPLETE") == 8
    check_chains(ledger)
    assert [summary.study_name for summary in optuna.get_all_study_summaries(url)] == ["shared"]


if __name__ == "__main__":
    as_process(sys.argv[1])
