"""Studies on a PostgreSQL server: shared by processes that start together, killed, restarted under, and discreet."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import program
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState
from postgres import PASSWORD, TOKEN, address, connect, control, free_port, fresh_database, running_server
from program import Program

from kd.cli import main as kd
from kd.config.compose import PROJECT
from kd.errors import DataError, StudyError
from kd.study import worker
from kd.study.address import holds_password
from kd.study.ledger import FINISHED, Budget, Ledger, NoClaim, failure, history
from kd.study.space import Space
from kd.study.storage import Database
from kd.study.trial import Ticket, attach

STUDY = "shared"
SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=16", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.device=cpu", "loss=hard_only", "schedule=cosine", "schedule.initial=4", "schedule.final=1",
    "unfreeze.start_epoch=0", "unfreeze.rate=1", "optimizer.encoder_lr_scale=interval(0.1,1)",
    "hydra/sweeper/pruner=none", f"hydra.sweeper.study_name={STUDY}", "pictures=false",
    "loss.gamma=0.5", "optimizer.lr=0.001", "optimizer.weight_decay=0.01",
]  # fmt: skip
TARGET = 8  # trials of the toy study
GATE: Any = None


# parts


def environment(root: Path, **more: str) -> dict[str, str]:
    """What a worker sees: nothing of the caller's own PostgreSQL, and `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "KD_", "MLFLOW_"))}
    return {**kept, "KD_ROOT": str(root), "PGPASSFILE": str(root / "no-such-file"), **more}


def start(root: Path, *overrides: str, **more: str) -> Program:
    return program.begin(root, "-m", *SMALL, *overrides, env=environment(root, **more), cwd=root)


@contextmanager
def started(root: Path, *overrides: str, **more: str):
    """A worker that does not outlive the block."""
    process = start(root, *overrides, **more)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ended(process: Program) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a worker that comes to its end by itself."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def train(root: Path, *overrides: str, **more: str) -> tuple[int, str, str]:
    with started(root, *overrides, **more) as process:
        return ended(process)


def until(true: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Wait for a condition; its value."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)
    return value


def at(storage: str) -> str:
    return f"hydra.sweeper.storage='{storage}'"


def trials(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=STUDY, storage=Database(url).open()).get_trials()


def count(found: list[FrozenTrial], *states: TrialState) -> int:
    return sum(trial.state in states for trial in found)


def stop_in_mid_trial(process: Program, root: Path, url: str) -> FrozenTrial:
    """Halt a worker (SIGSTOP) while it trains: an epoch is reported and the trial is not over."""
    folder = root / "runs" / "studies" / STUDY

    def caught() -> FrozenTrial | None:
        assert process.poll() is None, process.communicate()
        if not list(folder.glob("*/metrics.jsonl")):
            return None
        for trial in (found for found in trials(url) if (folder / str(found.number) / "metrics.jsonl").exists()):
            if trial.state == TrialState.RUNNING and trial.user_attrs["worker"]["pid"] == process.pid:
                os.kill(process.pid, signal.SIGSTOP)
                now = trials(url)[trial.number]
                if now.state == TrialState.RUNNING and now.intermediate_values:
                    return now
                os.kill(process.pid, signal.SIGCONT)
        return None

    return until(caught, "a trial in the middle of its training")


def who_tells(root: Path, token: str = TOKEN) -> list[str]:
    """The files under a root that have a secret in them."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [str(path.relative_to(root)) for path in files if token.encode() in path.read_bytes()]


def waiting_for_a_lock(server, database: str) -> int:
    with connect(server) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'advisory'"
        return connection.execute(query, (database,)).fetchone()[0]


# the server


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        yield server


@pytest.fixture(autouse=True)
def environment_of_this_process(monkeypatch, tmp_path):
    for name in environment(tmp_path).keys() ^ os.environ.keys():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KD_ROOT", str(tmp_path))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def database(server):
    return fresh_database(server)


@pytest.fixture
def url(server, database):
    return address(server, database)


# the ledger, with a toy objective


def toy_space(grid: bool) -> Space:
    distribution = CategoricalDistribution(tuple(range(TARGET))) if grid else FloatDistribution(0, 1)
    return Space({"x": distribution}, (), {"val/miou": "maximize"}, {"data": "toy"})


def toy_ledger(url: str, grid: bool = False, target: int = TARGET) -> Ledger:
    return Ledger(Database(url), STUDY, toy_space(grid), RandomSampler, NopPruner(), Budget(target, grid=grid))


def work(url: str, folder: Path, grid: bool, target: int = TARGET) -> list[tuple[int, bool]]:
    """Run trials until there are enough, every third one failing at its first try: (number, whether it finished)."""
    if GATE is not None:
        GATE.wait(120)
    ledger, done = toy_ledger(url, grid, target), []
    while (claimed := ledger.claim()) is not NoClaim.DONE:
        if claimed is NoClaim.WAIT:
            time.sleep(0.1)
            continue
        x = claimed._suggest("x", ledger.space.searched["x"])
        try:
            with attach(Ticket(ledger.database, STUDY, claimed.number, NopPruner()), folder) as trial:
                if claimed.number % 3 == 0 and not history(ledger.storage.get_trial(claimed._trial_id)):
                    raise DataError("a first try")
                trial.report(float(x), 1, 2)
                trial.finish({"val/miou": float(x)})
            done.append((claimed.number, True))
        except DataError:
            done.append((claimed.number, False))
    return done


def set_gate(gate: Any) -> None:
    global GATE
    GATE = gate


def check_complete(url: str, done: list[tuple[int, bool]], grid: bool, target: int = TARGET) -> None:
    found = trials(url)
    numbers = [number for number, _ in done]
    assert sorted(numbers) == [trial.number for trial in found]
    assert {number for number, fine in done if fine} == {t.number for t in found if t.state == TrialState.COMPLETE}
    assert count(found, TrialState.COMPLETE) == target
    failed = [trial for trial in found if trial.state == TrialState.FAIL]
    assert failed
    assert sorted(history(trial)[0] for trial in found if history(trial)) == [trial.number for trial in failed]
    if grid:
        assert sorted(t.params["x"] for t in found if t.state == TrialState.COMPLETE) == list(range(target))


def test_one_process_finishes_exactly_what_was_asked_for(url, tmp_path):
    check_complete(url, work(url, tmp_path, grid=False), grid=False)


@pytest.mark.slow
def test_processes_that_start_together_on_an_empty_database_share_one_study(server, database, url, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, spawn, initializer=set_gate, initargs=(spawn.Barrier(4),)) as pool:
        parts = [job.result(timeout=120) for job in [pool.submit(work, url, tmp_path, True) for _ in range(4)]]
    check_complete(url, [entry for part in parts for entry in part], grid=True)
    with connect(server, database) as connection:
        for table in ("alembic_version", "version_info", "studies"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)


def test_a_study_on_a_server_continues_to_more_trials(url, tmp_path):
    work(url, tmp_path, grid=False, target=2)
    assert toy_ledger(url, target=2).claim() is NoClaim.DONE
    assert toy_ledger(url, target=3).claim().number == len(trials(url)) - 1


# the lock


def take(url: str, what: str, taken: list[str], name: str) -> threading.Thread:
    """A thread that takes the lock over a connection of its own, notes it, and lets go."""

    def run() -> None:
        with Database(url).lock(what):
            taken.append(name)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_the_lock_has_one_holder(server, database, url):
    taken: list[str] = []
    with Database(url).lock("study a"):
        other = take(url, "study a", taken, "other")
        until(lambda: waiting_for_a_lock(server, database) == 1, "the second waits")
        assert taken == []
        taken.append("first")
    other.join(timeout=120)
    assert taken == ["first", "other"]


def test_locks_with_two_names_are_independent(url):
    taken: list[str] = []
    with Database(url).lock("study a"):
        take(url, "study b", taken, "other").join(timeout=120)
        assert taken == ["other"]


def test_an_error_under_the_lock_releases_it(url):
    taken: list[str] = []
    with pytest.raises(ZeroDivisionError), Database(url).lock("study a"):
        raise ZeroDivisionError
    take(url, "study a", taken, "other").join(timeout=120)
    assert taken == ["other"]


def test_a_killed_holder_loses_the_lock(server, database, url, tmp_path):
    code = (
        "import sys, signal; from kd.study.storage import Database\n"
        "with Database(sys.argv[1]).lock('study a'): print('held', flush=True); signal.pause()"
    )
    env = environment(tmp_path, PGPASSWORD=PASSWORD)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True, env=env, cwd=PROJECT
    )
    try:
        assert holder.stdout.readline() == "held\n"
        taken: list[str] = []
        other = take(url, "study a", taken, "other")
        until(lambda: waiting_for_a_lock(server, database) == 1, "the second waits")
        assert taken == []
    finally:
        holder.kill()
        holder.communicate()
    other.join(timeout=120)
    assert taken == ["other"]


# three workers, one of them killed


@pytest.fixture(scope="module")
def shared(server, tmp_path_factory):
    """A study of three workers on an empty database, one killed in mid-trial: root, address, lost trial, ends."""
    root, url = tmp_path_factory.mktemp("three"), address(server, fresh_database(server))
    overrides = (at(url), "hydra.sweeper.n_trials=3", "trainer.epochs=4", "tracking=none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        with (
            started(root, *overrides, PGPASSWORD=PASSWORD) as victim,
            started(root, *overrides, PGPASSWORD=PASSWORD) as second,
            started(root, *overrides, PGPASSWORD=PASSWORD) as third,
        ):
            lost = stop_in_mid_trial(victim, root, url)
            victim.kill()
            victim.communicate()
            ends = [ended(second), ended(third)]
    return root, url, lost, ends


def test_workers_continue_without_a_killed_one(shared):
    _, url, _, ends = shared
    assert [code for code, _, _ in ends] == [0, 0], ends
    found = trials(url)
    assert count(found, *FINISHED) == 3
    assert count(found, TrialState.RUNNING, TrialState.WAITING) == 0


def test_the_trial_of_a_killed_worker_is_retried_by_another(shared):
    _, url, lost, _ = shared
    found = trials(url)
    assert [trial.number for trial in found if trial.state == TrialState.FAIL] == [lost.number]
    assert failure(found[lost.number])["kind"] == "lost"
    (again,) = [trial for trial in found if history(trial) == [lost.number]]
    assert again.state in FINISHED
    assert again.params == lost.params
    assert again.user_attrs["worker"]["pid"] != lost.user_attrs["worker"]["pid"]


def test_every_trial_has_the_run_folder_of_its_number(shared):
    root, url, _, _ = shared
    folders = [trial.user_attrs["run_folder"] for trial in trials(url)]
    assert folders == [str(root / "runs" / "studies" / STUDY / str(number)) for number in range(len(folders))]


def test_no_sqlite_database_is_created_beside_a_server(shared):
    assert not list(shared[0].rglob("*.db"))


def test_kd_study_shows_a_study_of_the_server(shared, monkeypatch, capsys):
    root, url, _, _ = shared
    monkeypatch.setenv("KD_ROOT", str(root))
    kd(["study", STUDY, "--storage", url, "--no-files"])
    shown = capsys.readouterr().out
    best = max(trial.value for trial in trials(url) if trial.state == TrialState.COMPLETE)
    assert "3 complete, 1 fail" in shown
    assert f"{best:.4f}" in shown


def test_kd_study_lists_the_studies_of_kd_storage_without_its_password(server, shared, monkeypatch, capsys):
    database = shared[1].rpartition("/")[2]
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("KD_STORAGE", address(server, database, PASSWORD))
    kd(["study"])
    out, err = capsys.readouterr()
    assert STUDY in out
    assert TOKEN not in out + err


def test_optuna_itself_opens_the_study(server, shared):
    database = shared[1].rpartition("/")[2]
    code = (
        "import sys, optuna; study = optuna.load_study(study_name=sys.argv[1], storage=sys.argv[2]);"
        "print(*[trial.value for trial in study.trials])"
    )
    command = [sys.executable, "-c", code, STUDY, address(server, database, PASSWORD)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(shared[0]))
    assert done.stdout.split() == [str(trial.value) for trial in trials(shared[1])]


def test_the_password_of_pgpassword_is_nowhere(shared):
    root, _, _, ends = shared
    assert who_tells(root) == []
    assert not [end for end in ends if TOKEN in end[1] + end[2]]


@pytest.mark.skipif(sys.platform != "linux", reason="psutil adds the time of boot to a process's start on Linux only")
def test_a_step_of_the_clock_fails_no_running_trial(monkeypatch):
    before = worker.this_process()
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 5)
    assert not worker.has_ended(before)


# the password


@pytest.mark.slow
def test_the_password_of_an_interpolated_address_is_nowhere(server, database, url, tmp_path):
    overrides = ("hydra.sweeper.n_trials=1", "trainer.epochs=1", at("${oc.env:KD_STORAGE}"))
    code, out, err = train(tmp_path, *overrides, KD_STORAGE=address(server, database, PASSWORD))
    assert code == 0, err
    assert count(trials(url), TrialState.COMPLETE) == 1
    assert (tmp_path / "mlruns" / "mlflow.db").exists()
    assert (tmp_path / "runs" / "studies" / STUDY / "0" / ".hydra" / "overrides.yaml").exists()
    assert who_tells(tmp_path) == []
    assert TOKEN not in out + err


def check_refused(out: str, err: str, beginning: str) -> None:
    """One line on stderr, and the password on neither."""
    assert err.startswith(f"error: {beginning}")
    assert err.count("\n") == 1
    assert TOKEN not in out + err


def test_a_study_whose_server_is_down_ends_in_one_line_and_leaves_nothing(server, database, tmp_path):
    code, out, err = train(tmp_path, KD_STORAGE=address(server, database, PASSWORD, port=free_port()))
    assert code == 1
    check_refused(out, err, "the study database ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_study_with_a_wrong_password_ends_in_one_line_and_leaves_nothing(server, database, tmp_path):
    code, out, err = train(tmp_path, at(address(server, database)), PGPASSWORD=f"not-{PASSWORD}")
    assert code == 1
    check_refused(out, err, "the study database ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("wrong", ["port", "password", "database"])
def test_kd_study_reports_an_unusable_database_in_one_line(server, database, capsys, tmp_path, wrong):
    password = f"not-{PASSWORD}" if wrong == "password" else PASSWORD
    port = free_port() if wrong == "port" else server.port
    with pytest.raises(SystemExit) as end:
        kd(["study", "--storage", address(server, "nowhere" if wrong == "database" else database, password, port)])
    assert end.value.code == 1
    check_refused(*capsys.readouterr(), "the study database ")
    assert list(tmp_path.iterdir()) == []


def test_a_typed_password_is_refused_before_anything_is_written(tmp_path):
    code, out, err = train(tmp_path, at(f"postgresql://learner:{TOKEN}@127.0.0.1:1/studies"))
    assert code == 2
    check_refused(out, err, "hydra.sweeper.storage holds a password")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


SECRETS = {
    "usual": f"postgresql://learner:{TOKEN}@host/studies",
    "driver": f"postgresql+psycopg://learner:{TOKEN}@host/studies",
    "no user": f"postgresql://:{TOKEN}@host/studies",
    "slash": f"postgresql://learner:{TOKEN}/horse@host/studies",
    "escaped": f"postgresql://learner:{TOKEN}%40horse@host/studies",
    "query": f"postgresql://host/studies?user=learner&password={TOKEN}",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_password_in_an_address_is_detected_and_not_shown(secret):
    assert holds_password(secret)
    assert TOKEN not in f"{Database(secret)} {Database(secret)!r}"


@pytest.mark.parametrize("plain", ["postgresql://learner@host:5432/studies", "sqlite:////runs/a:b@c.db", "${oc.env:A}"])
def test_an_address_without_a_password_has_none(plain):
    assert not holds_password(plain)


# a server that goes and comes back


@contextmanager
def halted(root: Path, url: str, *overrides: str, **more: str):
    """A worker that is stopped in the middle of its first trial, in a study of two."""
    with started(root, "hydra.sweeper.n_trials=2", "trainer.epochs=4", *overrides, **more) as process:
        stop_in_mid_trial(process, root, url)
        yield process


def refuse_one_connection(port: int) -> None:
    """Stand where the server stood until somebody asks for it, and hang up."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(120)
        caller, _ = listener.accept()
        caller.close()


@pytest.mark.slow
def test_a_restart_of_the_server_between_two_epochs_costs_nothing(server, database, url, tmp_path):
    with halted(tmp_path, url, KD_STORAGE=address(server, database, PASSWORD)) as process:
        control(server, "restart", "-m", "fast")
        os.kill(process.pid, signal.SIGCONT)
        code, out, err = ended(process)
    assert code == 0, err
    assert [trial.state for trial in trials(url)] == [TrialState.COMPLETE] * 2
    assert (tmp_path / "mlruns" / "mlflow.db").exists()
    assert who_tells(tmp_path) == []
    assert TOKEN not in out + err


@pytest.mark.slow
def test_an_outage_of_the_server_costs_one_trial_at_most(server, database, url, tmp_path):
    with halted(tmp_path, url, "tracking=none", KD_STORAGE=address(server, database, PASSWORD)) as process:
        control(server, "stop", "-m", "fast")
        try:
            os.kill(process.pid, signal.SIGCONT)
            refuse_one_connection(server.port)
        finally:
            control(server, "start")
        code, out, err = ended(process)
    assert who_tells(tmp_path) == []
    assert TOKEN not in out + err
    assert code == 0, err
    found = trials(url)
    assert count(found, *FINISHED) == 2
    assert count(found, TrialState.RUNNING, TrialState.WAITING) == 0
    assert count(found, TrialState.FAIL) <= 1


@pytest.mark.parametrize("waits", [False, True], ids=["holds", "waits for"])
def test_a_restart_of_the_server_during_a_lock_is_an_error_in_one_line(server, database, url, waits):
    errors: list[Exception] = []

    def take_and(then: Callable[[], Any]) -> None:
        try:
            with Database(url).lock("study a"):
                then()
        except Exception as error:
            errors.append(error)

    def restart() -> None:
        control(server, "restart", "-m", "fast")

    def while_another_waits() -> None:
        other = threading.Thread(target=take_and, args=(lambda: None,), daemon=True)
        other.start()
        until(lambda: waiting_for_a_lock(server, database) == 1, "the second waits")
        restart()
        other.join(timeout=120)

    take_and(while_another_waits if waits else restart)
    assert len(errors) == 1 + waits
    assert all(isinstance(error, StudyError) for error in errors), errors


def test_a_lock_that_is_held_too_long_is_an_error_in_one_line(url, monkeypatch):
    monkeypatch.setattr("kd.study.storage.LOCK_SECONDS", 1)
    errors: list[Exception] = []

    def run() -> None:
        try:
            with Database(url).lock("study a"):
                pass
        except Exception as error:
            errors.append(error)

    with Database(url).lock("study a"):
        other = threading.Thread(target=run, daemon=True)
        other.start()
        other.join(timeout=120)
    other.join(timeout=120)
    assert [type(error) for error in errors] == [StudyError]
