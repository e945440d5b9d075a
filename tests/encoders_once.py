"""smp's temporary encoders, built once in a process.

smp builds each of timm's encoders twice: first one without data, to look at its features, then the one that it keeps.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import timm
from segmentation_models_pytorch.encoders import timm_universal


def use() -> None:
    """From now on smp looks at the features of an encoder once."""
    looked_at = cache(lambda name: timm.create_model(name, features_only=True))

    def create_model(name: str, **options: Any) -> Any:
        return looked_at(name) if options == {"features_only": True} else timm.create_model(name, **options)

    timm_universal.timm = SimpleNamespace(create_model=create_model)
