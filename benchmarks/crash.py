"""`make crash`: kill trainings at random moments, go on, and compare with a training that was never killed.

A run (a teacher is trained first, then a student) or a study of a few trials is started over and over; each start is
killed after a random time (SIGKILL, now and then SIGTERM or SIGINT) until one comes to its end. What is left must be
what an undisturbed one left: the same weights byte for byte, the same epochs, the same best epoch, the same objective.

    python benchmarks/crash.py --kills 50 --seed 0
"""

import argparse
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

PROJECT = Path(__file__).resolve().parent.parent
SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=64", "data.val=8", "data.test=8", "trainer.batch_size=4",
    "trainer.epochs=4", "trainer.device=cpu", "trainer.checkpoint_minutes=0.02", "teacher.epochs=3",
    "unfreeze.start_epoch=1", "unfreeze.rate=1", "tracking=none",
]  # fmt: skip
RUN = [*SMALL, "resume=auto"]
STUDY = [
    "-m", *SMALL, "schedule=cosine", "schedule.final=1.0", "optimizer.encoder_lr_scale=0.3",
    "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=2",
]  # fmt: skip
TIMES = ("time", "seconds", "seconds_waiting", "images_per_second")


def start(root: Path, arguments: list[str]) -> subprocess.Popen:
    env = {**os.environ, "KD_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "train.py"), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def to_the_end(root: Path, arguments: list[str]) -> float:
    """Run a command undisturbed; how long it took, in seconds."""
    begun = time.monotonic()
    process = start(root, arguments)
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {err}")
    return time.monotonic() - begun


def killed(root: Path, arguments: list[str], seconds: float, how: signal.Signals) -> tuple[bool, str]:
    """Run a command for at most so long; whether it had to be killed, and what was wrong with its end."""
    process = start(root, arguments)
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        _, err = process.communicate()
        expected = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}[how] | {0}
        wrong = "" if process.returncode in expected else f"exit code {process.returncode} after {how.name}: {err}"
        return process.returncode != 0, wrong
    return False, "" if process.returncode == 0 else f"exit code {process.returncode}: {err}"


def weights(file: Path) -> str:
    digest = hashlib.blake2b()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def outcome(folder: Path) -> dict[str, object]:
    """What a run folder says, without what the clock says."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": [weights(file) for file in sorted(folder.glob("*.safetensors"))],
        "epochs": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
        "best epoch": summary["best_epoch"],
        "objective": summary.get("objective"),
    }


def result(root: Path) -> dict[str, object]:
    """What a root holds: its teachers, and its runs, a study's by what they searched."""
    runs = [path.parent for path in root.rglob("summary.json")]
    return {_name(folder): outcome(folder) for folder in runs}


def _name(folder: Path) -> str:
    if "teachers" in folder.parts:
        return "teacher"
    table = folder.parent / "trials.csv"
    if not table.exists():
        return "student"
    with table.open() as file:
        row = next(row for row in csv.DictReader(file) if row["trial"] == folder.name)
    return f"trial with initial temperature {row['schedule.initial']}"


def crash(arguments: list[str], kills: int, dice: random.Random) -> tuple[int, int, list[str]]:
    """(kills, trainings that came to their end, what went wrong) until at least `kills` processes were killed."""
    with tempfile.TemporaryDirectory() as place:
        seconds = to_the_end(Path(place), arguments)
        expected = result(Path(place))
    done, ends, wrong = 0, 0, []
    while done < kills:
        with tempfile.TemporaryDirectory() as place:
            begun = True
            while begun:
                how = dice.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [3, 1, 1])[0]
                begun, said = killed(Path(place), arguments, dice.uniform(0.2, 0.9) * seconds, how)
                done += begun
                wrong += [said] if said else []
            found, ends = result(Path(place)), ends + 1
            wrong += [f"{name}: {', '.join(differing(expected[name], found.get(name, {})))}" for name in expected
                      if found.get(name) != expected[name]]  # fmt: skip
            print(f"  {done} kills, {ends} trainings came to their end, {len(wrong)} differences", flush=True)
    return done, ends, wrong


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return [name for name in one if one[name] != other.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="at least so many processes are killed, half in studies")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    dice, kills, ends, wrong = random.Random(asked.seed), 0, 0, []
    for name, arguments in (("run", RUN), ("study", STUDY)):
        print(f"{name}: python train.py {' '.join(arguments)}", flush=True)
        parts = crash(arguments, (asked.kills + 1) // 2, dice)
        kills, ends, wrong = kills + parts[0], ends + parts[1], [*wrong, *parts[2]]
    print(f"{kills} kills in {ends} trainings; {ends - len(wrong)} of {ends} ended as if nothing had happened")
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
