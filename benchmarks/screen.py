"""Arms over paired seeds on real data: what each loss brings against the student alone.

    python -m benchmarks.screen nuclei=DIR camvid=DIR            one run after the other; repeat the command to resume
    python -m benchmarks.screen --table                          what is known so far

Each finished run is a line of benchmarks/screen.jsonl, and the README's table follows it. All arms have the same
student, plan, task loss and steps; one teacher for each data set and number of masks, and one seed's batches and views
for all arms.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scipy import stats

from benchmarks import report
from kd.config.compose import PROJECT
from kd.study.comparison import Spread

Name = TypeVar("Name")
FILE = Path(__file__).with_name("screen.jsonl")
DATA = {
    "nuclei": ["data=folder", "data.image_size=[64,64]"],
    "camvid": ["data=camvid", "data.image_size=[96,128]"],
}
TEMPERATURE = ["loss=soft_targets", "schedule=constant"]
#: Three times as long.
LONG = ["trainer.epochs=60"]
#: Students with ImageNet weights, whose encoders learn at a third of the decoder's rate.
PRETRAINED = ["loss=hard_only", "backbone=lite0_from_lite2", "optimizer.encoder_lr_scale=0.3"]
#: A third of the masks, and as many steps as with all of them; the other pictures are left out, or come without masks.
THIRD = ["data.labelled=0.33", "trainer.epochs=60", "teacher.epochs=90", "data.unlabelled_share=0"]
ARMS = {
    "alone": ["loss=hard_only"],
    "soft_targets": ["loss=soft_targets"],
    "composite": ["loss=composite"],
    "t1": [*TEMPERATURE, "schedule.initial=1"],
    "t2": [*TEMPERATURE, "schedule.initial=2"],
    "t4": [*TEMPERATURE, "schedule.initial=4"],
    "cwd": ["loss=cwd"],
    "cwd_falling": ["loss=cwd", "loss.cwd_temperature=null"],
    "cwd_1": ["loss=cwd", "loss.cwd=1"],
    "cwd_0.3": ["loss=cwd", "loss.cwd=0.3"],
    "dist": ["loss=dist"],
    "standardised": ["loss=standardised"],
    "dkd": ["loss=dkd"],
    "features": ["loss=features"],
    "both": ["loss=soft_targets", "loss.cwd=3"],
    "both_0.3": ["loss=soft_targets_cwd"],
    "both_0.3_int8": ["loss=soft_targets_cwd", "teacher.stored=int8"],
    "long": ["loss=hard_only", *LONG],
    "long_soft_targets": ["loss=soft_targets", *LONG],
    "long_cwd": ["loss=cwd", *LONG],
    "long_dist": ["loss=dist", *LONG],
    "long_both_0.3": ["loss=soft_targets_cwd", *LONG],
    "third": ["loss=hard_only", *THIRD],
    "third_soft_targets": ["loss=soft_targets", *THIRD],
    "third_and_pictures": ["loss=soft_targets", *THIRD, "data.unlabelled_share=0.5"],
    "unfreeze": [*PRETRAINED, "unfreeze=all"],
    "unfreeze_progressive": [*PRETRAINED, "unfreeze=progressive", "unfreeze.start_epoch=2", "unfreeze.rate=2"],
    "unfreeze_frozen": [*PRETRAINED, "unfreeze=frozen"],
}
#: The arms that others are compared with; an arm belongs to the one that its name begins with, else to "alone".
REFERENCES = ("third", "long", "unfreeze")
LABELS = {
    "alone": "no teacher",
    **{f"t{t}": f"`loss=soft_targets`, constant temperature {t}" for t in (1, 2, 4)},
    "cwd_falling": "`loss=cwd`, temperature falling from 4 to 1",
    **{f"cwd_{weight}": f"`loss=cwd loss.cwd={weight}`" for weight in ("1", "0.3")},
    "both": "`loss=soft_targets loss.cwd=3`",
    "both_0.3": "`loss=soft_targets_cwd`: soft targets, and channel-wise at 0.3; the default",
    "both_0.3_int8": "the default, `teacher.stored=int8`",
    "long": "60 epochs: no teacher",
    "long_soft_targets": "60 epochs: `loss=soft_targets`",
    "long_cwd": "60 epochs: `loss=cwd`",
    "long_dist": "60 epochs: `loss=dist`",
    "long_both_0.3": "60 epochs: `loss=soft_targets_cwd`",
    "unfreeze": "Lite0 with ImageNet weights, no teacher: `unfreeze=all`",
    "unfreeze_progressive": "Lite0 with ImageNet weights, no teacher: `unfreeze=progressive`",
    "unfreeze_frozen": "Lite0 with ImageNet weights, no teacher: `unfreeze=frozen`",
    "third": "a third of the masks: no teacher",
    "third_soft_targets": "a third of the masks: `loss=soft_targets`",
    "third_and_pictures": "a third of the masks: `loss=soft_targets`, the other pictures without masks",
}
#: Arms that need three classes or more.
MANY_CLASSES = ("dist", "standardised", "dkd", "long_dist")
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


@contextmanager
def trained(overrides: Sequence[str], root: Path) -> Iterator[Path]:
    """The run folder of a training, for the length of a block; teachers and cached logits stay below `root`."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        command = [sys.executable, str(PROJECT / "train.py"), *overrides, f"root={root}", f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True)
        yield Path(folder) / "run"


def run(overrides: Sequence[str], root: Path) -> dict[str, Any]:
    """Train one arm; returns the quality of its student and teacher."""
    with trained(overrides, root) as folder:
        summary = json.loads((folder / "summary.json").read_text())
    found = {who: summary.get(who, {}) for who in ("student", "teacher", "baseline")}
    return {who: {f"{s}/miou": figures.get(f"{s}/miou") for s in ("val", "test")} for who, figures in found.items()}


def table(lines: Sequence[Mapping[str, Any]], least: int = 1) -> str:
    """A row for each data set and arm of at least so many seeds: mIoU on test, and the paired gain over its reference.

    A gain that is certain among all of the table (`certain`) is in bold.
    """
    header = "| data | recipe | seeds | mIoU on test | gain, 95 % interval |"
    rows = [header, "|---|---|---:|---:|---:|"]
    names = dict.fromkeys(line["data"] for line in lines)
    found = {(data, arm): spread for data in names for arm in ARMS if (spread := _spread(lines, data, arm)).by_seed}
    shown = [each for each, spread in found.items() if len(spread.by_seed) >= least]
    gains = {
        (data, arm): found[data, arm].minus(found[data, reference])
        for data, arm in shown
        if arm != (reference := _reference(arm)) and (data, reference) in found
    }
    sure = certain(gains)
    for data in names:
        for each in shown:
            if each[0] == data:
                label = LABELS.get(each[1], f"`loss={each[1]}`")
                rows.append(f"| {data} | {row(label, found[each], gains.get(each), each in sure)} |")
        figures = (line.get("teacher", {}).get("test/miou") for line in lines if line["data"] == data)
        if teachers := [figure for figure in figures if figure is not None]:
            rows.append(f"| {data} | *the teacher* | | {max(teachers):.4f} | |")
    return "\n".join(rows)


def certain(gains: Mapping[Name, Spread], level: float = 0.05) -> set[Name]:
    """Those paired gains that are not 0, so that the chance of one false claim among all of them is at most `level`.

    Student's t-test of each with the correction of Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics, 1979.
    """
    tested = {name: _p_value(gain) for name, gain in gains.items() if len(gain.by_seed) > 1}
    found: set[Name] = set()
    for rank, name in enumerate(sorted(tested, key=tested.__getitem__)):
        if tested[name] * (len(tested) - rank) > level:
            break
        found.add(name)
    return found


def _p_value(gain: Spread) -> float:
    if not gain.deviation:
        return float(gain.mean == 0)
    return float(stats.ttest_1samp(list(gain.by_seed.values()), 0).pvalue)


def row(name: str, spread: Spread, gain: Spread | None = None, sure: bool = False) -> str:
    """What was reached over how many seeds, and the paired gain over a reference, in bold if it is sure."""
    deviation = f" ± {spread.deviation:.4f}" if spread.deviation is not None else ""
    shown = _gain(gain) if gain and gain.by_seed else ""
    shown = f"**{shown}**" if sure else shown
    return f"{name} | {len(spread.by_seed)} | {spread.mean:.4f}{deviation} | {shown}"


def in_readme(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table of the README: three seeds or more."""
    return table(lines, least=3) + "\n"


def _gain(gain: Spread) -> str:
    if gain.interval is None:
        return f"{gain.mean:+.4f}, one seed"
    low, high = gain.interval
    return f"{gain.mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _reference(arm: str) -> str:
    """The arm without a teacher that has the same masks, epochs and student; the one that learns all from the start."""
    return next((reference for reference in REFERENCES if arm.startswith(reference)), "alone")


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
    report.write_readme(PROJECT / "README.md", "screen", in_readme(known(FILE)))
    print(table(known(FILE)))


if __name__ == "__main__":
    main()
