"""What grows how: an epoch with the number of images, their size and the classes; the cache with the views."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cache import bytes_per_image
from benchmarks.case import PAIR, Case, Sizes, write_shapes
from benchmarks.rounds import exponent, race, spread

ROUNDS = 3
IMAGES, SIDES, CLASSES, VIEWS = (16, 32, 64), (64, 96, 128), (1, 4, 12), (1, 2, 4)
SIDE, FEW = 64, 32  # of what is not varied


def measured(sizes: Sizes, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds per epoch along each axis, distilling live with everything unfrozen, and the power it grows with."""
    few, side = (4, 32) if sizes.quick else (FEW, SIDE)
    axes = {
        "images": [(number, side, 1) for number in ((4, 8) if sizes.quick else IMAGES)],
        "side": [(few, pixels, 1) for pixels in ((32, 64) if sizes.quick else SIDES)],
        "classes": [(few, side, classes) for classes in ((1, 3) if sizes.quick else CLASSES)],
    }
    found: dict[str, Any] = {}
    for name, points in axes.items():
        with ExitStack() as stack:
            cases = [_case(sizes, *point, stack) for point in points]
            at = [point[list(axes).index(name)] for point in points]
            turns = {
                str(x): case.fit(case.loader(), case.live(), "unfrozen") for x, case in zip(at, cases, strict=True)
            }
            seconds = {x: spread(values) for x, values in race(turns, ROUNDS).items()}
        say(f"{name}: {', '.join('{}: {:.2f} s'.format(x, each['median']) for x, each in seconds.items())}")
        found[name] = {"seconds": seconds, "exponent": exponent(at, [each["median"] for each in seconds.values()])}
    with ExitStack() as stack:
        case = _case(sizes, few, side, 1, stack)
        found["cache_bytes_per_image"] = {str(views): bytes_per_image(case, views) for views in VIEWS}
    return found


def _case(sizes: Sizes, images: int, side: int, classes: int, stack: ExitStack) -> Case:
    place = stack.enter_context(TemporaryDirectory())
    write_shapes(Path(place), side, {"train": images, "val": 1}, classes)
    shape = ["data=folder", f"data.root={place}", f"data.image_size=[{side},{side}]", f"data.classes={classes}"]
    root = f"root={Path(place) / 'root'}"
    return Case.of(replace(sizes, steps=images // sizes.batch), [root, *PAIR, "tracking=none", *shape])
