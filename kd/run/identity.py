"""The kinds of values in run.json, which a damaged or foreign file may have otherwise."""

from collections.abc import Callable, Mapping
from typing import Any

LATEST = 32_503_680_000  # seconds since 1970, the year 3000: MLflow and datetime end somewhere beyond it


def is_time(value: Any) -> bool:
    """Whether a value is a number of seconds since 1970 that every reader can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LATEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("a text", _is_text),
    "name": ("a text", _is_text),
    "status": ("a text", _is_text),
    "begun": ("a time in seconds since 1970", is_time),
    "ended": ("a time in seconds since 1970, or null", _or_null(is_time)),
    "tags": ("a mapping of texts", _are_texts),
    "choices": ("a mapping", _is_mapping),
    "parameters": ("a mapping", _is_mapping),
    "environment": ("a mapping", _is_mapping),
    "inputs": ("a mapping", _is_mapping),
    "data_fingerprint": ("a text", _is_text),
    "config_dir": ("a text", _is_text),
    "tracking": ("a mapping", _is_mapping),
}
TRACKING: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "experiment": ("a text", _is_text),
    "root": ("a text", _is_text),
    "uri": ("a text or null", _or_null(_is_text)),
    "address": ("a text", _is_text),
    "run_id": ("a text or null", _or_null(_is_text)),
}


def check(facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless every fact that is there has the kind that it is written with."""
    for kinds, found, prefix in ((KINDS, facts, ""), (TRACKING, facts.get("tracking", {}), "tracking.")):
        for key, (wanted, is_one) in kinds.items():
            if key in found and not is_one(found[key]):
                raise ValueError(f"{prefix}{key} should be {wanted}")
