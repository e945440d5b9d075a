"""A study of thousands of trials by a crowd of workers: does the lock of its claims bear them?

`python -m benchmarks.crowd --workers 64 --trials 5000`. The workers are processes, as jobs of a cluster are; their
trials are fake: some reports and a result in `--seconds`, nothing is trained. `--storage` names a PostgreSQL server;
otherwise it is a sqlite file in a temporary folder. Prints seconds and CPU seconds of a claim, with what a lock bears.
"""

import argparse
import multiprocessing
import random
import statistics
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna import Trial
from optuna.distributions import FloatDistribution, IntDistribution

from kd.study import hydra_options
from kd.study.ledger import Budget, Ledger, NoClaim
from kd.study.space import Space
from kd.study.storage import LOCK_SECONDS, Database, _open

SEARCHED = {
    "schedule.initial": FloatDistribution(2, 10), "schedule.final": FloatDistribution(1, 2),
    "unfreeze.start_epoch": IntDistribution(0, 4), "unfreeze.rate": IntDistribution(1, 4),
    "optimizer.encoder_lr_scale": FloatDistribution(0.03, 1, log=True),
}  # fmt: skip
EPOCHS = 5
NAME = "crowd"


def ledger(url: str, trials: int) -> Ledger:
    """A worker's view of the study."""
    sampler = hydra_options.sampler({"_target_": "optuna.samplers.RandomSampler"}, 0)
    pruner = hydra_options.pruner({"_target_": "optuna.pruners.NopPruner"})
    space = Space(SEARCHED, (), {"val/miou": "maximize"}, {})
    return Ledger(Database(url), NAME, space, sampler, pruner, Budget(trials))


def work(url: str, trials: int, seconds: float, end: Connection) -> None:
    """Claim and end trials until the study is complete; sends of each claim its begin, seconds and CPU seconds."""
    _open.cache_clear()  # of the process that this one was forked from
    own, claims = ledger(url, trials), []
    while True:
        begun, cpu = time.perf_counter(), time.process_time()
        trial = own.claim()
        claims.append((begun, time.perf_counter() - begun, time.process_time() - cpu))
        if trial is NoClaim.DONE:
            break
        if isinstance(trial, Trial):
            _pretend(own, trial, seconds)
        else:
            time.sleep(1)
    end.send(claims)


def _pretend(own: Ledger, trial: Trial, seconds: float) -> None:
    drawn = random.Random(trial.number)
    for name, distribution in SEARCHED.items():
        trial._suggest(name, distribution)
    for epoch in range(1, EPOCHS + 1):
        time.sleep(seconds / EPOCHS)
        trial.report(drawn.random(), epoch)
    own.study.tell(trial.number, drawn.random())


def simulated(url: str, workers: int, trials: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds and CPU seconds of every claim by `workers` processes, in the order in which the claims began."""
    ledger(url, trials)
    _open(Database(url)).engine.dispose()
    ends, processes = [], []
    for _ in range(workers):
        mine, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=partial(work, url, trials, seconds, theirs))
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    found = sorted(claim for end in ends for claim in end.recv())
    for process in processes:
        process.join()
    return [(waited, cpu) for _, waited, cpu in found]


def main() -> None:
    """Simulate what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a trial")
    parser.add_argument("--storage")
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        url = asked.storage or f"sqlite:///{Path(place) / 'studies.db'}"
        begun = time.perf_counter()
        claims = simulated(url, asked.workers, asked.trials, asked.seconds)
        waited, cpu = ([claim[which] for claim in claims] for which in (0, 1))
        late = cpu[-max(1, len(cpu) // 10) :]
        print(f"{asked.trials} trials by {asked.workers} workers in {time.perf_counter() - begun:.0f} s")
        print(
            f"a claim: {statistics.median(waited):.2f} s (median), {max(waited):.2f} s at most ({LOCK_SECONDS} allowed)"
        )
        print(
            f"CPU of a claim: {statistics.median(cpu):.3f} s (median), {statistics.median(late):.3f} s among the last"
        )


if __name__ == "__main__":
    main()
