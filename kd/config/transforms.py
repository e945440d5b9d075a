"""Instantiating the transforms of `augment`: albumentations' public transforms and compositions, and nothing else."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates at import

from typing import Any

import albumentations
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kd.errors import ConfigError

_CLASSES = [
    value
    for value in vars(albumentations).values()
    if isinstance(value, type) and issubclass(value, albumentations.BasicTransform | albumentations.BaseCompose)
]

#: Every allowed transform, as `albumentations.<Class>` and by the module that defines it.
TRANSFORMS = sorted({f"{place}.{kind.__name__}" for kind in _CLASSES for place in ("albumentations", kind.__module__)})


def build_transforms(nodes: list[dict[str, Any]]) -> list[Any]:
    """The albumentations transforms of a list of `_target_` mappings.

    Raises:
        ConfigError: albumentations has no such class or argument.
    """
    try:
        return instantiate(nodes, _convert_="all", _execution_whitelist_=TRANSFORMS)
    except (InstantiationException, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"augment.transforms: {reason}; name transforms as albumentations.<Class>, with their own arguments"
        ) from error
