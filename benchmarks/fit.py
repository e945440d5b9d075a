"""Pictures squeezed to one size, letterboxed, or cropped at their own resolution: which student is better on them?

    python -m benchmarks.fit DIR            nuclei as data=folder; repeat the command to resume
    python -m benchmarks.fit --table        what is known so far

All have the same student without a teacher, sides in pixels, steps and seeds, and are measured on the test pictures at
their own size. Each finished run is a line of benchmarks/fit.jsonl, and the table of docs/your-data.md follows it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.screen import certain, known, row, trained
from kd.config.compose import PROJECT
from kd.study.comparison import Spread

FILE = Path(__file__).with_name("fit.jsonl")
PAGE = PROJECT / "docs" / "your-data.md"
PLAN = [
    "data=folder", "data.image_size=[96,96]", "backbone=mobile_from_lite2", "loss=hard_only", "unfreeze=all",
    "optimizer.encoder_lr_scale=1.0", "trainer.epochs=20", "augment.views=10", "tracking=none", "pictures=false",
]  # fmt: skip
FITS = ("resize", "letterbox", "crop")


def run(place: str, fit: str, seed: int) -> dict[str, Any]:
    """Train one student; its quality on the test pictures at their own size, and the seconds of its epochs."""
    overrides = [*PLAN, f"data.root={place}", f"data.fit={fit}", f"seed={seed}"]
    with tempfile.TemporaryDirectory() as root, trained(overrides, Path(root)) as folder:
        command = [Path(sys.executable).with_name("kd"), "evaluate", folder, "--native", "--json"]
        native = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        seconds = [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"fit": fit, "seed": seed, "native": native["student"], "seconds": sum(seconds)}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each fit: mIoU on test at native resolution, and the gain over squeezed pictures, paired by seed."""
    spreads = {fit: Spread({e["seed"]: e["native"]["test/miou"] for e in lines if e["fit"] == fit}) for fit in FITS}
    rows = [
        "| `data.fit` | seeds | mIoU on test, native size | gain over `resize`, 95 % interval |",
        "|---|---:|---:|---:|",
    ]
    gains = {fit: spread.minus(spreads["resize"]) for fit, spread in spreads.items() if fit != "resize"}
    sure = certain(gains)
    for fit, spread in spreads.items():
        if spread.by_seed:
            rows.append(f"| {row(f'`{fit}`', spread, gains.get(fit), fit in sure)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", nargs="?", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    done = {(line["fit"], line["seed"]) for line in known(FILE)}
    wanted = [] if arguments.table else [(fit, seed) for seed in range(arguments.seeds) for fit in FITS]
    for fit, seed in wanted:
        if (fit, seed) not in done:
            line = run(arguments.place, fit, seed)
            with FILE.open("a") as file:
                file.write(json.dumps(line) + "\n")
    report.write_readme(PAGE, "fit", table(known(FILE)))


if __name__ == "__main__":
    main()
