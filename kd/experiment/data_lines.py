"""How many training pictures a run has, with masks and without, what it does with the latter, and what may be wrong."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from kd.data.layout.split_folders import Fault
from kd.data.masks.class_balance import ClassBalance, repeat_line, weight_line
from kd.data.measuring import line as statistics_line
from kd.errors import shown
from kd.settings import Settings

MAX_NAMED = 3  # files named in one warning, beside the first


def counts(settings: Settings) -> dict[str, int]:
    """Training pictures with masks and without, how many of the latter come beside each batch, and the other splits."""
    data = settings.data
    return {
        "labelled": data.size("train"),
        "unlabelled": data.unlabelled_size(),
        "unlabelled_per_batch": settings.unlabelled_per_batch,
        "val": data.size("val"),
        "test": data.size("test"),
    }


def lines(settings: Settings) -> list[str]:
    """What the run does with the pictures: their channels, unless they are RGB, and those without masks."""
    return [*filter(None, [statistics_line(settings.data)]), *_without_masks(settings)]


def _without_masks(settings: Settings) -> list[str]:
    """What the run does with the pictures without masks, in one line; empty for data without any."""
    labelled, unlabelled, beside, *_ = counts(settings).values()
    if not unlabelled:
        return []
    if not beside:
        return [
            f"data     {unlabelled} pictures without masks are not used: no term of the loss can learn from them "
            "(loss=cwd has one that can)"
        ]
    size = min(settings.trainer.batch_size, labelled)
    return [
        f"data     {labelled} pictures with masks, {unlabelled} without: each batch has {size} with and {beside} "
        "without, which learn from the teacher alone"
    ]


def balance_lines(settings: Settings, balance: Callable[[], ClassBalance]) -> list[str]:
    """What is done for rare classes, one line each; `balance` counts pixels and is only called if anything is."""
    found, share = [], settings.trainer.oversample
    if settings.loss.class_weights == "auto":
        found.append(f"classes  {weight_line(balance(), balance().weights())}")
    if share:
        found.append(f"classes  {repeat_line(balance(), share)}")
    return found


def warnings(settings: Settings) -> list[str]:
    """What a person should look at before a long training, one line for each kind of warning."""
    by_kind = groupby(settings.data.survey().warnings, key=lambda fault: fault.kind)
    found = [_together(list(faults)) for _, faults in by_kind]
    return [f"warning  {each}" for each in (*found, *_leaks(settings.data.in_two_splits()))]


def _leaks(copies: Sequence[tuple[Path, Path]]) -> Iterator[str]:
    if copies:
        one, other = copies[0]
        yield (
            f"pictures that stand in two splits: {len(copies)}; what is measured there is too good ({shown(one)} is "
            f"{shown(other)}): remove one of each; kd check lists all"
        )


def _together(faults: Sequence[Fault]) -> str:
    """The first message, and the names of some other files that it applies to."""
    others = [shown(fault.file.name) for fault in faults[1:]]
    if not others:
        return str(faults[0].error)
    named = ", ".join(others[:MAX_NAMED]) + (", ..." if len(others) > MAX_NAMED else "")
    return f"{faults[0].error} (and {len(others)} more: {named}; kd check lists all)"
