"""Which albumentations classes a recipe may name: the library's own public transforms and compositions."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates at import

import albumentations

_CLASSES = [
    value
    for value in vars(albumentations).values()
    if isinstance(value, type) and issubclass(value, albumentations.BasicTransform | albumentations.BaseCompose)
]

#: Every transform, as `albumentations.<Class>` and under its own module; a recipe builds nothing else.
TRANSFORMS = sorted({f"{place}.{kind.__name__}" for kind in _CLASSES for place in ("albumentations", kind.__module__)})
