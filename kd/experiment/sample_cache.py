"""The memory for decoded samples: one for all processes of a machine, and a line where it does not hold them all."""

import multiprocessing

from kd.data.cache import GB, share
from kd.data.layout.naming import SPLITS, UNLABELLED
from kd.experiment.context import RunContext
from kd.run import console


def share_samples(context: RunContext) -> None:
    """Make room for decoded samples in memory, and print what the reader may not expect of it. A collective."""
    if context.data.cache != "ram":
        return
    shared = share(context.data, context.world)
    if context.world.is_main:
        console.say(*_room(context), *_not_shared(context, shared))


def _room(context: RunContext) -> list[str]:
    """How many samples fit, in one line; none if all do."""
    data, splits = context.data, list(SPLITS)
    count = sum(data.size(split) for split in SPLITS)
    if context.settings.unlabelled_per_batch:
        splits, count = [*splits, UNLABELLED], count + data.unlabelled_size()
    sizes = [size for split in splits for size in context.samples.cached_bytes(split)]
    if len(sizes) == count:
        return []
    remedy = "" if data.sizing.crops else " (data.cache=disk keeps it)"
    return [
        f"data     {len(sizes)} of {count} samples fit into memory, {sum(sizes) / GB:.2g} GB: data.cache_gb="
        f"{data.cache_gb:g}, and at most half of what is free; the rest is decoded again in each epoch{remedy}"
    ]


def _not_shared(context: RunContext, shared: bool) -> list[str]:
    """Which processes decode samples that another one has in memory, a line for each kind."""
    found = []
    if not shared:
        found.append("data     the processes of a machine cannot open each other's memory: each decodes for itself")
    forked = multiprocessing.get_context().get_start_method() == "fork"
    if context.workers and not forked and not context.samples.for_any_process:
        found.append("data     loader processes cannot open this one's memory: they decode anew in each epoch")
    return found
