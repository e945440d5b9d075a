"""Data sets of the Hugging Face hub, or of its library on the disk, by the package `datasets` (the extra `hf`).

A column holds pictures, and another one masks. Both are taken undecoded and decoded as files are (`decode`), so
that the same formats are read, and refused, as in a folder. Code of a data set is never run.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.files.decode import height_width, read_image
from kd.data.files.image_file import open_file
from kd.data.files.orientation import other_size
from kd.data.layout.naming import SPLITS, UNLABELLED
from kd.data.layout.splitting import check_val_fraction
from kd.data.sets.coded import CodedMasks
from kd.data.sets.samples import divided, sample_at
from kd.data.source import known_split, spaced
from kd.errors import ConfigError, DataError, shown
from kd.system import files
from kd.system.installation import install_command

VERSION = 1  # part of the fingerprint: increase it whenever `read` returns something else for the same rows
SAMPLE = 16  # rows that `check` reads


@dataclass(frozen=True)
class HuggingFace(CodedMasks):
    """The data set `path` (owner/name on the hub, or a folder), its `subset`, at a `revision` of the hub.

    `split_names` maps train, val and test to its splits; without val, `val_fraction` of train becomes val. Masks are
    as for `Folder`: `mask_values`, `mask_threshold`, `mask_colours`, `ignore_index`, `ignore_values`, `ignore_colours`.
    """

    path: str
    subset: str | None = field(default=None, kw_only=True)
    revision: str | None = field(default=None, kw_only=True)
    split_names: Mapping[str, str | None] | None = field(default=None, kw_only=True)
    image_column: str = field(default="image", kw_only=True)
    mask_column: str = field(default="annotation", kw_only=True)
    val_fraction: float = field(default=0.15, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("path", "image_column", "mask_column"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key).strip():
                raise ValueError(f"{key} must be a name, but got {getattr(self, key)!r}")
        names = dict(self.split_names or {"train": "train", "val": None, "test": None})
        if not set(names) <= {*SPLITS} or not names.get("train"):
            raise ValueError(f"split_names must name train, and may name val and test, but got {names}")
        object.__setattr__(self, "split_names", {split: names.get(split) for split in SPLITS})
        check_val_fraction(self.val_fraction)
        self._read_mask_options()

    def size(self, split: str) -> int:
        return len(self._rows[known_split(split)])

    def unlabelled_size(self) -> int:
        return len(self._rows[UNLABELLED])

    def name(self, split: str, index: int) -> str:
        where, row = self._row(split, index)
        return f"{where}/{row:06}"

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = self.image(split, index)
        if split == UNLABELLED:
            return self.fitted(image)
        mask = self.mask(split, index)
        if height_width(image) != mask.shape:
            name = self.name(split, index)
            raise DataError(other_size([name, f"{name} ({self.mask_column})"], [height_width(image), mask.shape[:2]]))
        return self.fitted(image, mask)

    def image(self, split: str, index: int) -> np.ndarray:
        return read_image(Path(self.name(split, index)), self._content(self.image_column, *self._row(split, index)))

    def mask(self, split: str, index: int) -> np.ndarray:
        return self.coding.read(
            Path(self.name(split, index)), self._content(self.mask_column, *self._row(split, index))
        )

    def fingerprint(self) -> str:
        return self._fingerprint

    def unlabelled_fingerprint(self) -> str | None:
        return self._unlabelled_fingerprint

    @cached_property
    def _unlabelled_fingerprint(self) -> str | None:
        content = [self._digest(self.image_column, *row) for row in self._rows[UNLABELLED]]
        return files.json_digest([VERSION, *self.image_size, *self._fit_facts(), content]) if content else None

    def check(self) -> None:
        """Load the data set, downloading it if need be, and read some of its rows."""
        for split in SPLITS:
            for index in spaced(self.size(split), SAMPLE):
                self.read(split, index)

    @cached_property
    def _fingerprint(self) -> str:
        settings = [VERSION, self.classes, *self.image_size, *self.coding.fingerprint, *self._fit_facts()]
        columns = (self.image_column, self.mask_column)
        content = [
            [split, *(self._digest(column, *row) for column in columns)]
            for split in SPLITS
            for row in self._rows[split]
        ]
        return files.json_digest([settings, content])

    def _digest(self, column: str, where: str, row: int) -> str:
        return blake2b(self._content(column, where, row), digest_size=16).hexdigest()

    @cached_property
    def _columns(self) -> dict[tuple[str, str], Any]:
        """The rows of each column of each split of the data set, with undecoded pictures."""
        library, found = _library(), {}
        for where in dict.fromkeys(filter(None, dict(self.split_names or {}).values())):
            try:
                rows = library.load_dataset(self.path, self.subset, split=where, revision=self.revision)
            except Exception as error:  # the library's own, its transport's and the system's
                reason = next(iter(str(error).splitlines()), "")[:200]
                raise DataError(
                    f"data.path={shown(self.path)}: split {where} cannot be loaded ({type(error).__name__}: {reason}): "
                    "check the name, data.split_names and the network"
                ) from error
            for column in (self.image_column, self.mask_column):
                if column not in rows.column_names:
                    raise DataError(
                        f"data.path={shown(self.path)} has no column {shown(column)}, but "
                        f"{', '.join(rows.column_names)}: set data.image_column and data.mask_column"
                    )
                alone = rows.select_columns([column])
                found[where, column] = alone.cast_column(column, library.Image(decode=False))
        return found

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, int]]]:
        """The samples of each split, and the pictures that lose their masks: the split of the data set, and the row."""
        rows = {
            split: [(where, row) for row in range(len(self._columns[where, self.image_column]))]
            for split, where in dict(self.split_names or {}).items()
            if where
        }
        return divided(self, rows, lambda row: f"{row[1]:06}", self.val_fraction, f"data.path={shown(self.path)}")

    def _row(self, split: str, index: int) -> tuple[str, int]:
        return sample_at(self._rows, split, index)

    def _content(self, column: str, where: str, row: int) -> bytes:
        """The file of a picture or a mask: stored in the row, or beside it."""
        said = self._columns[where, column][row][column]
        try:
            content = said.get("bytes")
            if content is not None:
                return bytes(content)
            with open_file(Path(said["path"])) as file:
                return file.read()
        except (AttributeError, KeyError, TypeError, OSError) as error:
            raise DataError(
                f"{shown(self.path)}: row {row} of {where} has no picture in column {shown(column)} "
                f"({type(error).__name__}): choose another column, or remove the row"
            ) from error


def _library() -> Any:
    """The package `datasets`; raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"data=hugging_face needs the package datasets: {install_command('hf')}", page="your-data"
        ) from error
