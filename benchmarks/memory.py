"""Peak memory of one way to train, in a process of its own: `python -m benchmarks.memory live <sizes> <overrides>`."""

import resource
import sys
from pathlib import Path

from benchmarks.cache import kept, warm_epoch
from benchmarks.case import SIZES, Case

WAYS = ("student", "live", "cold", "warm")  # in this order: the third leaves what the fourth finds


def main(who: str, sizes: str, *overrides: str) -> None:
    case = Case.of(SIZES[sizes], list(overrides))
    if who == "cold":
        kept(case)
    elif who == "warm":
        epochs = warm_epoch(case, "unfrozen", kept(case))
    else:
        epochs = case.fit(case.loader(), case.live() if who == "live" else None, "unfrozen")
    for _ in range(0 if who == "cold" else 2):
        next(epochs)
    print(peak_mib())


def peak_mib() -> float:
    """The most memory that this process had resident, in MiB; getrusage would count in its parent's at the fork."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):  # not Linux
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 2**20 if sys.platform == "darwin" else most / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
