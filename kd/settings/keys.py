"""Which keys of a configuration change no result, and how two configurations are compared by the others."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kd.system.files import json_digest

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")  # torch keeps an index in 8 bits, with a sign

#: Keys, and groups of keys, that change no result: where a run is stored and shown, how its data is read and cached.
#: A resumed run, a continued study and a retried trial may change them; reports list them apart. `data.root` is one
#: because its content is compared instead (`Source.fingerprint`).
RESULT_NEUTRAL = (
    "root", "tracking", "pictures", "trainer.workers", "trainer.checkpoint_minutes", "data.root", "data.cache",
    "data.cache_gb", "data.follow_links", "teacher.cache", "teacher.cache_gb",
)  # fmt: skip


def is_under(key: str, groups: Iterable[str]) -> bool:
    """Whether a dotted key is one of `groups` or lies below one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def changes_no_result(key: str) -> bool:
    """Whether a dotted key is result-neutral, whatever its value."""
    return is_under(key, RESULT_NEUTRAL)


def same_result(key: str, one: Any, other: Any) -> bool:
    """Whether two values of a key give the same result: equal ones, or any two of a result-neutral key.

    Only the kind of a `trainer.device` matters: cuda:0 is the same as cuda:1, and auto may stand for any kind.
    """
    if key == "trainer.device" and all(DEVICE.fullmatch(str(value)) for value in (one, other)):
        return len({str(value).partition(":")[0] for value in (one, other)} - {"auto"}) <= 1
    return one == other or changes_no_result(key)


def result_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ, without those that give the same result all the same."""
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if not same_result(key, one.get(key, ...), other.get(key, ...))]


def recipe_digest(config: Mapping[str, Any]) -> str:
    """A hash of what a nested configuration trains with: of all that may change a result, but for seed and device."""
    return json_digest(
        {
            key: value
            for key, value in flat(config)
            if not changes_no_result(key) and key not in ("seed", "trainer.device")
        }
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping as (dotted key, value) pairs; an empty mapping is a leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
