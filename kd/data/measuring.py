"""The statistics of a data set's channels: those that a configuration states, or measured on its training pictures."""

from kd.data.source import Source, spaced
from kd.data.statistics import Statistics, combined, moments
from kd.errors import DataError

SAMPLE = 512  # training pictures, at most, that statistics are measured on before a training

_known: dict[str, Statistics] = {}  # of each data set that this process has measured, by its fingerprint


def stated(source: Source) -> Statistics | None:
    """The statistics that a configuration states; None if it states none."""
    return None if source.mean is None or source.std is None else Statistics(tuple(source.mean), tuple(source.std))


def statistics(source: Source) -> Statistics | None:
    """The stated statistics, else measured ones; None of RGB of 8 bits, whose weights say how it is normalised.

    Raises:
        DataError: a picture cannot be read, or a channel is the same everywhere.
    """
    found = stated(source)
    if found is not None or source.pixels.usual:
        return found
    key = source.fingerprint()
    if key not in _known:
        indices = spaced(source.size("train"), SAMPLE)
        measured = combined(moments(source.image("train", index)) for index in indices)
        assert measured is not None  # train is never empty
        _known[key] = checked(measured)
    return _known[key]


def checked(found: Statistics) -> Statistics:
    """Statistics that can normalise; raises DataError if a channel is the same everywhere."""
    constant = [channel for channel, value in enumerate(found.std) if not value > 0]
    if constant:
        raise DataError(
            f"channel {constant[0]} (from 0) is {found.mean[constant[0]]:g} in all of train, so it shows nothing: "
            "leave it out, or state data.mean and data.std"
        )
    return found


def line(source: Source) -> str:
    """What normalises the pictures, for the first lines of a run; empty of RGB of 8 bits without stated statistics."""
    found = statistics(source)
    if found is None:
        return ""
    measured = f"measured on {min(SAMPLE, source.size('train'))} training pictures"
    return f"data     {source.pixels.in_words}, {'stated' if stated(source) else measured}: {found.options}"
