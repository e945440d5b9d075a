"""Checks of numbers that settings give."""

from typing import TypeGuard


def whole_number(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` is an integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {allowed}, but got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
