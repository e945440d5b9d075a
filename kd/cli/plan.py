"""`kd preview`: the plan of a run before it starts."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.cli.verb import add_overrides, add_verb, composed
from kd.plan.timeline import in_epochs

if TYPE_CHECKING:
    from kd.plan.timeline import EpochPlan, Timeline
    from kd.settings import Optimizer, Settings


def add_preview(verbs: Any) -> None:
    preview = add_verb(
        verbs, "preview", _preview,
        help="print the plan of a run, epoch by epoch",
        description="Print the plan of a run: temperature, unfrozen encoder blocks and learning rates of each epoch.",
        epilog="example: kd preview schedule=cosine unfreeze.rate=3 trainer.epochs=50",
    )  # fmt: skip
    add_overrides(preview, "as for kd train: schedule=cosine unfreeze.rate=3")
    preview.add_argument("--json", action="store_true", help="print a list with one object per epoch")
    preview.add_argument("--png", type=Path, metavar="FILE", help="plot the plan")


def _preview(arguments: argparse.Namespace) -> None:
    from kd.config.read import block_count, read

    settings = read(composed(arguments), look_at_data=False)
    timeline = settings.timeline(block_count(settings.backbone.student))
    if arguments.png:
        from kd.run.plots import draw_timeline  # heavy: matplotlib

        draw_timeline(timeline, arguments.png)
    if arguments.json:
        json.dump([_as_json(plan) for plan in timeline], sys.stdout, indent=2)
        print()
    else:
        _print_table(timeline)
        if timeline.schedule is None:
            print("nothing is distilled (no term of the loss needs a teacher), so there is no temperature")
        for line in _recipe(settings.optimizer):
            print(line)
        if settings.data.may_have_unlabelled() and settings.loss.teaches_without_masks:
            print(_batch(settings))


def _recipe(optimizer: "Optimizer") -> list[str]:
    """What the optimiser does besides the usual, AdamW with a half cosine, a line each."""
    found, momentum = [], f"momentum {optimizer.momentum:g}{', nesterov' if optimizer.nesterov else ''}"
    if optimizer.algorithm == "sgd":
        found.append(f"optimizer  SGD, {momentum}, weight decay {optimizer.weight_decay:g}")
    decay = f"polynomial decay, power {optimizer.power:g}" if optimizer.decay == "polynomial" else "cosine decay"
    if optimizer.decay != "cosine" or optimizer.warmup:
        warmup = f", after {in_epochs(optimizer.warmup)} of warm-up" if optimizer.warmup else ""
        found.append(f"rates      {decay}{warmup}; constant within an epoch")
    if optimizer.ema:
        saves = {"better": "the better of the two is saved", "average": "it is saved", "raw": "the latter are saved"}
        found.append(
            f"weights    their average over the steps (decay {optimizer.ema:g}) is measured beside the raw ones; "
            f"{saves[optimizer.ema_saves]}"
        )
    return found


def _batch(settings: "Settings") -> str:
    """What a batch has if there are pictures without masks, in a line; preview does not look at the data."""
    from kd.data.layout.labelled import pictures_per_batch

    labelled, share = settings.trainer.batch_size, settings.data.unlabelled_share
    beside = pictures_per_batch(labelled, share)
    return (
        f"batch   {labelled} pictures with masks and, if the data has pictures without, {beside} of those "
        f"(data.unlabelled_share={share:g}); the number of steps is that of the pictures with masks"
    )


def _as_json(plan: "EpochPlan") -> dict[str, object]:
    return {
        "epoch": plan.epoch,
        "temperature": plan.temperature,
        "unfrozen_blocks": plan.unfrozen_blocks,
        "lr": {"decoder": plan.lr_decoder, "encoder": plan.lr_encoder if plan.unfrozen_blocks else None},
    }


def _print_table(timeline: "Timeline") -> None:
    """Print a row for each phase; epochs are counted from 1 here, and from 0 in JSON."""
    heat = timeline.schedule is not None
    rows = [("epochs", *(["temperature"] if heat else []), "unfrozen", "what trains", "lr decoder", "lr encoder")]
    for phase in timeline.phases():
        first, last = phase[0], phase[-1]
        unfrozen = first.unfrozen_blocks
        rows.append(
            (
                _span(f"{first.epoch + 1}", f"{last.epoch + 1}", "-"),
                *([_span(f"{first.temperature:.2f}", f"{last.temperature:.2f}")] if heat else []),
                f"{unfrozen} of {timeline.blocks}",
                _what_trains(unfrozen, timeline.blocks),
                _span(f"{first.lr_decoder:.1e}", f"{last.lr_decoder:.1e}"),
                _span(f"{first.lr_encoder:.1e}", f"{last.lr_encoder:.1e}") if unfrozen else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _span(first: str, last: str, between: str = " -> ") -> str:
    return first if first == last else f"{first}{between}{last}"


def _what_trains(unfrozen: int, blocks: int) -> str:
    if unfrozen == 0:
        return "decoder"
    if unfrozen == blocks:
        return "everything"
    return "decoder + deepest block" if unfrozen == 1 else f"decoder + {unfrozen} deepest blocks"
