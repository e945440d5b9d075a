"""Instantiating the transforms of `augment`: albumentations' public transforms and compositions, and nothing else."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates at import

from typing import Any

import albumentations
from pydantic import ValidationError

from kd.data.views.fog import RandomFog
from kd.errors import ConfigError, nearest

_CLASSES = [
    value
    for value in vars(albumentations).values()
    if isinstance(value, type) and issubclass(value, albumentations.BasicTransform | albumentations.BaseCompose)
]

#: Every allowed transform, as `albumentations.<Class>` and by the module that defines it.
TRANSFORMS = {f"{place}.{kind.__name__}": kind for kind in _CLASSES for place in ("albumentations", kind.__module__)}
TRANSFORMS |= {name: RandomFog for name, kind in TRANSFORMS.items() if kind is albumentations.RandomFog}  # faster
PUBLIC = [f"albumentations.{kind.__name__}" for kind in _CLASSES]


def build_transforms(nodes: list[dict[str, Any]]) -> list[Any]:
    """The albumentations transforms of a list of `_target_` mappings; no interpolation in them is resolved.

    Raises:
        ConfigError: albumentations has no such class or argument.
    """
    try:
        return [_built(node) for node in nodes]
    except (ValueError, TypeError) as error:
        reason = _reason(error)
        raise ConfigError(
            f"augment.transforms: {reason}; name transforms as albumentations.<Class>, with their own arguments"
        ) from error


def _reason(error: Exception) -> str:
    cause = error.__cause__  # albumentations raises a ValueError from it
    if not isinstance(cause, ValidationError):
        return str(error).splitlines()[0]
    first = cause.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}"


def _built(node: Any) -> Any:
    """A node with every `_target_` mapping in it, at any depth, replaced by its transform."""
    if isinstance(node, list):
        return [_built(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: _built(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return arguments
    if node["_target_"] not in TRANSFORMS:
        raise ValueError(f"{node['_target_']!r} is not a transform; {nearest(str(node['_target_']), PUBLIC)}")
    return TRANSFORMS[node["_target_"]](**arguments)
