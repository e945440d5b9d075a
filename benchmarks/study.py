"""A study with the stock sweeper of Hydra, against the project's own, over the same space with the same budget.

The stock one is hydra-optuna-sweeper as it is installed, over the same train.py, without a cache and without pruning:
every trial trains all its epochs, with the teacher live. The teacher is trained beforehand, outside both clocks. Both
have two workers (hydra/launcher=joblib, the cores shared out), which is faster for both than one. Every study begins in
a root of its own, with an empty cache.

Trials are small, so that three seeds take minutes: what each spends beside its epochs (imports, the closing table)
weighs more here than it would in a long training, and makes the ratio smaller than it is there.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import psutil
import yaml

from benchmarks.case import Sizes
from benchmarks.rounds import cpu_of_children, ratios, spread
from kd.config.compose import PROJECT

STUDY = "temperature_unfreeze"
SPACE = yaml.safe_load((PROJECT / "sweeps" / f"{STUDY}.yaml").read_text())["params"]
WITHOUT_CACHE = ("teacher.cache=off", "data.cache=off")
WORKERS = 2
KINDS = ("stock", "ours")


def run(root: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """`python train.py ...` to its end, with `root` as its project root.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, str(PROJECT / "train.py"), *arguments]
    done = subprocess.run(command, env={**os.environ, **env, "KD_ROOT": str(root)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")


def common(sizes: Sizes) -> list[str]:
    """The overrides that both studies share: the job of every trial."""
    side = sizes.trial_side
    return [
        "backbone=tiny", f"data.image_size=[{side},{side}]", f"data.train={sizes.trial_images}",
        f"data.val={max(8, sizes.trial_images // 4)}", "data.test=8", "trainer.batch_size=8",
        f"trainer.epochs={sizes.trial_epochs}", f"teacher.epochs={2 * sizes.trial_epochs}", "tracking=none",
    ]  # fmt: skip


def arguments(kind: str, sizes: Sizes, seed: int, workers: int) -> list[str]:
    """The command line of a study."""
    parallel = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"] if workers > 1 else []
    told = ["-m", *common(sizes), f"seed={seed}", *parallel, f"hydra.sweeper.n_trials={sizes.trials}"]
    told += [f"hydra.sweeper.n_jobs={workers}"]
    if kind == "ours":
        return [*told, f"sweeps={STUDY}"]
    space = [f"{name}={value}" for name, value in SPACE.items()]
    stock = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", f"hydra.sweeper.sampler.seed={seed}"]
    return [*told, *stock, *WITHOUT_CACHE, *space]


def study(kind: str, sizes: Sizes, seed: int, workers: int, teachers: Path) -> dict[str, float]:
    """One study in a root of its own: its wall and CPU time in seconds, its best value, the epochs that it trained."""
    threads = max(1, (psutil.cpu_count() or 1) // workers)
    with TemporaryDirectory() as place:
        root = Path(place)
        shutil.copytree(teachers, root / "runs" / "teachers")
        begun, cpu = time.perf_counter(), cpu_of_children()
        run(root, arguments(kind, sizes, seed, workers), {"OMP_NUM_THREADS": str(threads)})
        seconds, cpu = time.perf_counter() - begun, cpu_of_children() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "best": _best(root), "epochs": _epochs(root)}


def _best(root: Path) -> float:
    """The best value that a study says it found, the stock one's or ours."""
    for file in root.glob("runs/**/optimization_results.yaml"):
        return float(yaml.safe_load(file.read_text())["best_value"])
    url = f"sqlite:///{root / 'runs' / 'studies' / 'studies.db'}"
    return float(optuna.load_study(study_name=STUDY, storage=url).best_value)


def _epochs(root: Path) -> int:
    """Epochs trained by all trials together; each has one line."""
    files = (path for path in root.glob("runs/**/metrics.jsonl") if "teachers" not in path.parts)
    return sum(len(file.read_text().splitlines()) for file in files)


def measured(sizes: Sizes, say: Callable[[str], None]) -> dict[str, Any]:
    """`study_speedup` (stock over ours, seed by seed), and of each study its best value, its time and its epochs."""
    workers = 1 if sizes.quick else WORKERS
    with TemporaryDirectory() as place:
        say("the teacher, outside the clock")
        run(Path(place), [*common(sizes), "trainer.epochs=1", f"teacher.epochs={2 * sizes.trial_epochs}",
                            "unfreeze=all", "data.test=8"], {})  # fmt: skip
        teachers = Path(place) / "runs" / "teachers"

        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for seed in sizes.seeds:
            for kind in KINDS:
                found = study(kind, sizes, seed, workers, teachers)
                say(f"{kind}, seed {seed}: {found['seconds']:.0f} s, best {found['best']:.4f}")
                runs[kind].append(found)
    told = {
        "study_best": "best",
        "study_seconds": "seconds",
        "study_cpu_seconds": "cpu_seconds",
        "study_epochs": "epochs",
    }
    return {
        "study_speedup": spread(ratios(*([run["seconds"] for run in runs[kind]] for kind in KINDS))),
        **{name: {kind: [run[figure] for run in runs[kind]] for kind in KINDS} for name, figure in told.items()},
        "study_sizes": {
            "trials": sizes.trials,
            "seeds": list(sizes.seeds),
            "workers": workers,
            "overrides": common(sizes),
        },
    }
