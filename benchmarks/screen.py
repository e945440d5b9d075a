"""Arms over paired seeds on real data: what each loss brings against the student alone.

    python -m benchmarks.screen nuclei=DIR camvid=DIR            one run after the other; repeat the command to resume
    python -m benchmarks.screen --table                          what is known so far

Each finished run is a line of benchmarks/screen.jsonl. All arms have the same student, plan, task loss and steps; one
teacher for each data set and number of masks, and one seed's batches and views for all arms.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.config.compose import PROJECT
from kd.study.comparison import Spread

FILE = Path(__file__).with_name("screen.jsonl")
DATA = {
    "nuclei": ["data=folder", "data.image_size=[64,64]"],
    "camvid": ["data=camvid", "data.image_size=[96,128]"],
}
#: A third of the masks, and as many steps as with all of them; the other pictures are left out, or come without masks.
THIRD = ["data.labelled=0.33", "trainer.epochs=60", "teacher.epochs=90", "data.unlabelled_share=0"]
ARMS = {
    "alone": ["loss=hard_only"],
    "soft_targets": ["loss=soft_targets"],
    "composite": ["loss=composite"],
    "t1": ["loss=soft_targets", "schedule=constant", "schedule.initial=1"],
    "cwd": ["loss=cwd"],
    "dist": ["loss=dist"],
    "standardised": ["loss=standardised"],
    "dkd": ["loss=dkd"],
    "features": ["loss=features"],
    "third": ["loss=hard_only", *THIRD],
    "third_soft_targets": ["loss=soft_targets", *THIRD],
    "third_and_pictures": ["loss=soft_targets", *THIRD, "data.unlabelled_share=0.5"],
}
#: Arms that need three classes or more.
MANY_CLASSES = ("dist", "standardised", "dkd")
BINARY = ("nuclei",)
#: A random student that learns everything from the start, far below its teacher.
PLAN = [
    "backbone=mobile_from_lite2", "unfreeze=all", "optimizer.encoder_lr_scale=1.0", "trainer.epochs=20",
    "teacher.epochs=30", "augment.views=10", "tracking=none", "pictures=false",
]  # fmt: skip


def jobs(places: Mapping[str, str], arms: Sequence[str], seeds: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Every run, named, with its overrides; all arms of a seed before the next."""
    for seed in range(seeds):
        for data, place in places.items():
            for arm in arms:
                if data not in BINARY or arm not in MANY_CLASSES:
                    yield {"data": data, "arm": arm, "seed": seed}, [
                        *PLAN, *DATA[data], f"data.root={place}", f"seed={seed}", *ARMS[arm]
                    ]  # fmt: skip


def known(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(overrides: Sequence[str], root: Path) -> dict[str, Any]:
    """Train one arm; returns the quality of its student and teacher."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        command = [sys.executable, str(PROJECT / "train.py"), *overrides, f"root={root}", f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    found = {who: summary.get(who, {}) for who in ("student", "teacher", "baseline")}
    return {who: {f"{s}/miou": figures.get(f"{s}/miou") for s in ("val", "test")} for who, figures in found.items()}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each data set and arm: test mIoU over seeds, and the paired gain over the student alone."""
    rows = ["| data | arm | seeds | test mIoU | gain over alone (same masks), 95 % interval |", "|---|---|---|---|---|"]
    for data in dict.fromkeys(line["data"] for line in lines):
        spreads = {arm: _spread(lines, data, arm) for arm in ARMS}
        for arm, spread in spreads.items():
            if not spread.by_seed:
                continue
            gain = spread.minus(spreads[_untaught(arm)])
            spanned = " ({:+.4f} to {:+.4f})".format(*gain.interval) if gain.interval else ", one seed"
            shown = "" if arm == _untaught(arm) or not gain.by_seed else f"{gain.mean:+.4f}{spanned}"
            deviation = f" ± {spread.deviation:.4f}" if spread.deviation is not None else ""
            rows.append(f"| {data} | {arm} | {len(spread.by_seed)} | {spread.mean:.4f}{deviation} | {shown} |")
    return "\n".join(rows)


def _untaught(arm: str) -> str:
    """The arm without a teacher that has the same masks."""
    return "third" if arm.startswith("third") else "alone"


def _spread(lines: Sequence[Mapping[str, Any]], data: str, arm: str) -> Spread:
    found = (line for line in lines if (line["data"], line["arm"]) == (data, arm))
    return Spread({line["seed"]: line["student"]["test/miou"] for line in found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", metavar="DATA=DIR", help="nuclei=DIR, camvid=DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--root", type=Path, default=PROJECT / "runs" / "screen", help="for teachers and cached logits")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        arguments.root.mkdir(parents=True, exist_ok=True)
        places = dict(place.split("=", 1) for place in arguments.places)
        done = [{name: line[name] for name in ("data", "arm", "seed")} for line in known(FILE)]
        for name, overrides in jobs(places, arguments.arms, arguments.seeds):
            if name not in done:
                line = name | run(overrides, arguments.root)
                with FILE.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(known(FILE)))


if __name__ == "__main__":
    main()
