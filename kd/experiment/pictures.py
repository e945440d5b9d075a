"""How many training pictures a run has, with masks and without, and what it does with the latter, in words."""

from kd.settings import Settings


def counts(settings: Settings) -> dict[str, int]:
    """Training pictures with masks and without, and how many of the latter come beside each batch."""
    data = settings.data
    return {
        "labelled": data.size("train"),
        "unlabelled": data.unlabelled_size(),
        "unlabelled_per_batch": settings.unlabelled_per_batch,
    }


def lines(settings: Settings) -> list[str]:
    """What the run does with the pictures without masks, in one line; empty if there are none."""
    labelled, unlabelled, beside = counts(settings).values()
    if not unlabelled:
        return []
    if not beside:
        return [
            f"data     {unlabelled} pictures without masks are not used: no term of the loss can learn from them "
            "(loss=soft_targets has one that can)"
        ]
    size = min(settings.trainer.batch_size, labelled)
    return [
        f"data     {labelled} pictures with masks, {unlabelled} without: each batch has {size} with and {beside} "
        "without, which learn from the teacher alone"
    ]
