"""What data sets share whose masks are pictures, which store classes in one of many ways."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from kd.data.masks.coding import MaskCoding
from kd.data.masks.options import MaskOptions
from kd.data.source import Source, default_names


@dataclass(frozen=True)
class CodedMasks(Source):
    """A data set with the options of masks that `kd.data.Folder` describes; `coding` is what they say together."""

    ignore_values: tuple[int, ...] = field(default=(), kw_only=True)
    mask_values: tuple[int | tuple[int, ...], ...] = field(default=(), kw_only=True)
    mask_threshold: int | None = field(default=None, kw_only=True)
    mask_colours: Sequence[Any] = field(default=(), kw_only=True)
    ignore_colours: Sequence[Any] = field(default=(), kw_only=True)
    coding: MaskCoding = field(init=False, repr=False, compare=False)

    def _read_mask_options(self) -> None:
        """Set `coding`; raises ValueError."""
        named = self.class_names != default_names(self.classes)
        options = MaskOptions(**{each.name: getattr(self, each.name) for each in fields(MaskOptions)})
        object.__setattr__(self, "coding", options.coding(self.classes, self.class_names, named))
        for key in ("ignore_values", "mask_values", "mask_colours", "ignore_colours"):
            object.__setattr__(self, key, _frozen(getattr(self, key)))
        self._check_padding()

    def _check_ignored(self) -> None:
        """`ignore_index` may be any stored value."""

    @property
    def ignored(self) -> int | None:
        return self.coding.void

    @property
    def void_option(self) -> str:
        return self.coding.void_option

    @property
    def lossy_masks(self) -> bool:
        return self.coding.threshold is not None


def _frozen(value: Any) -> Any:
    """Lists as tuples, those in lists too; None as an empty one."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else () if value is None else value
