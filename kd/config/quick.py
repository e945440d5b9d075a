"""`quick=true`: everything of a run, with few pictures and epochs, before it is left alone for hours.

The values that result are those of the run: they stand in its config.yaml, its plan and its report. Light: no torch.
"""

from typing import Any

#: The most that is left of each number. Of four epochs, three train one, two and three blocks of the encoder.
MOST = {"trainer.epochs": 4, "teacher.epochs": 2, "unfreeze.start_epoch": 1, "unfreeze.rate": 1, "optimizer.warmup": 1}
STEPS = 2  # in an epoch


def shortened(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in plain containers with `quick` applied, if it is set; twice is as once."""
    if config.get("quick") is not True:
        return config
    found = {name: {**group} if isinstance(group, dict) else group for name, group in config.items()}
    for key, most in MOST.items():
        group, _, name = key.partition(".")
        _cut(found[group], name, most)
    size = found["trainer"]["batch_size"]
    if isinstance(size, int):
        found["data"].setdefault("limit", None)
        _cut(found["data"], "limit", STEPS * size)
    return found


def _cut(group: Any, name: str, most: int) -> None:
    """Lower a number of a group. Anything else is left for the check of all settings, which refuses it."""
    if not isinstance(group, dict) or name not in group:
        return
    value = group[name]
    if value is None and name == "limit":
        group[name] = most
    elif isinstance(value, int) and not isinstance(value, bool):
        group[name] = min(value, most)
