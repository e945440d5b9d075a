"""Waiting for an event, however slow the machine is: the only clock is one that ends a test which would hang."""

import time
from collections.abc import Callable
from typing import Any

LIMIT = 120.0  # seconds


def until(happened: Callable[[], Any], what: str = "the condition", seconds: float = LIMIT) -> Any:
    """Wait until a function returns something true, and return that.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := happened()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.01)
    return value
