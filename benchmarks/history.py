"""What thousands of earlier runs cost a command, and MLflow's pages.

`python -m benchmarks.history --runs 10000`. One small run is trained; its folder and its rows in MLflow's sqlite store
are copied under new names, and every command that looks at earlier runs is timed with one run and with all. Prints a
table in Markdown; seconds are those of whole processes, the least of three.
"""

import argparse
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import study

TINY = (
    "backbone=tiny data.image_size=[32,32] data.train=16 data.val=8 data.test=8 trainer.batch_size=8 trainer.epochs=5 "
    "trainer.device=cpu unfreeze.start_epoch=1 unfreeze.rate=1 teacher.epochs=1 pictures=false"
).split()
LARGE = (".safetensors", ".onnx")  # linked, not copied
ROUNDS = 3
THREADS = {"OMP_NUM_THREADS": "1"}
KD = str(Path(sys.executable).with_name("kd"))


def trained(root: Path) -> Path:
    """The folder of a small run under `root`."""
    _train(root)
    return next(root.glob("runs/*/*/config.yaml")).parent


def copied(root: Path, run: Path, runs: int) -> None:
    """Make `runs` runs of one, in files and in MLflow."""
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as database:
        original = json.loads((run / "run.json").read_text())["tracking"]["run_id"]
        database.create_function("fresh", 0, lambda: uuid.uuid4().hex)
        database.execute("CREATE TEMP TABLE copies AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
                         "WHERE i < ?) SELECT i, fresh() AS id FROM n", (runs - 1,))  # fmt: skip
        for table in ("runs", "params", "tags", "latest_metrics", "metrics"):
            _copy_rows(database, table, original)
        copies = database.execute("SELECT i, id FROM copies").fetchall()
        database.commit()
    for number, identity in copies:
        folder = run.parent.parent / f"2020-01-{1 + number % 28:02}" / f"{number:06}"
        _copy_folder(run, folder, original, identity)


def _copy_rows(database: sqlite3.Connection, table: str, original: str) -> None:
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    taken = ", ".join("copies.id" if column == "run_uuid" else f"old.{column}" for column in columns)
    database.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {taken} FROM {table} old, copies WHERE old.run_uuid = ?",
        (original,),
    )


def _copy_folder(run: Path, folder: Path, original: str, identity: str) -> None:
    folder.mkdir(parents=True)
    for path in run.iterdir():
        if path.suffix in LARGE:
            os.link(path, folder / path.name)
        elif path.name == "run.json":
            own = json.loads(path.read_text().replace(original, identity).replace(str(run), str(folder)))
            (folder / path.name).write_text(json.dumps(own | {"id": uuid.uuid4().hex}))
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)


def measured(root: Path, run: Path) -> dict[str, float]:
    """Seconds of each command and page."""
    commands: Mapping[str, Callable[[], None]] = {
        "`python train.py ...`, a run of some seconds": lambda: _train(root, "trainer.epochs=2"),
        "`python train.py resume=auto ...`, with nothing to resume": lambda: _train(root, "resume=auto"),
        "`kd report RUN`": lambda: _run(root, KD, "report", str(run)),
        "`kd sync RUN`": lambda: _run(root, KD, "sync", str(run)),
        "`kd cache`": lambda: _run(root, KD, "cache"),
        "`kd cache prune --keep-gb 10`": lambda: _run(root, KD, "cache", "prune", "--keep-gb", "10"),
    }
    found = {name: min(_seconds(command) for _ in range(ROUNDS)) for name, command in commands.items()}
    with _ui(root) as address:
        experiment = _experiment(address)
        pages = {
            "MLflow: the first 100 runs of the experiment": {"order_by": ["attributes.start_time DESC"]},
            "MLflow: the 100 best, sorted by a metric": {"order_by": ["metrics.`test/miou` DESC"]},
            "MLflow: a filter by a parameter": {"filter": "params.`schedule.initial` = '4.0'"},
        }
        for name, page in pages.items():
            asked = {"experiment_ids": [experiment], "max_results": 100, **page}
            found[name] = min(_seconds(lambda: _ask(address, "runs/search", asked)) for _ in range(ROUNDS))  # noqa: B023
    return found


@contextmanager
def _ui(root: Path) -> Iterator[str]:
    """MLflow's server as `kd ui` starts it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([KD, "ui", "--no-open", "--port", str(port)], env=_env(root),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _experiment(address: str) -> str:
    found = _ask(address, "experiments/search", {"max_results": 10, "filter": "name = 'kd-sweeper'"})
    return str(found["experiments"][0]["experiment_id"])


def _ask(address: str, what: str, asked: Mapping[str, object]) -> dict[str, list[dict[str, str]]]:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{what}", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return dict(json.load(answer))


def _train(root: Path, *overrides: str) -> None:
    study.run(root, [*TINY, *overrides], THREADS)


def _run(root: Path, *command: str) -> None:
    done = subprocess.run(command, env=_env(root), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _env(root: Path) -> dict[str, str]:
    return {**os.environ, **THREADS, "KD_ROOT": str(root)}


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    """Measure with one run and with all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000)
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        root = Path(place)
        run = trained(root)
        few = measured(root, run)
        copied(root, run, asked.runs)
        many = measured(root, run)
    print(f"| seconds of | with one run | with {asked.runs:,} |\n|---|---:|---:|")
    for name, seconds in many.items():
        print(f"| {name} | {few[name]:.2f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
