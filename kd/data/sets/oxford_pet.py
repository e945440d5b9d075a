"""The Oxford-IIIT Pet data set as binary segmentation: pet against background, ignoring the ambiguous border.

torchvision downloads it at first use (about 800 MB, checksums verified); a lock keeps the parallel trials of a study
from downloading it together. Once it is on disk, torchvision is not imported.

Reference: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012. Val is taken from the official trainval
by a hash of each name; test is the official test.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kd.data.files.decode import read_image, read_mask
from kd.data.files.image_file import open_file
from kd.data.layout.naming import SPLITS, UNLABELLED
from kd.data.layout.pairing import Pair
from kd.data.layout.splitting import check_val_fraction
from kd.data.sets.samples import divided, sample_at
from kd.data.source import Source, known_split
from kd.errors import DataError, shown
from kd.system.files import json_digest

VERSION = 1
PET, BACKGROUND = 1, 2  # values of the published trimaps; 3 is the border


@dataclass(frozen=True)
class OxfordPet(Source):
    """The data set in `root`/oxford-iiit-pet; with `download` it is downloaded if missing.

    `ignore_index` marks the border. `val_fraction` of trainval becomes val.
    """

    root: str | Path
    ignore_index: int | None = field(default=255, kw_only=True)
    val_fraction: float = field(default=0.15, kw_only=True)
    download: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes != 1:
            raise ValueError(f"classes must be 1, pet against background, but got {self.classes}")
        if self.ignore_index is None:
            raise ValueError("ignore_index must be a number, as the border of every pet is ignored, but got None")
        object.__setattr__(self, "root", Path(self.root).expanduser())
        check_val_fraction(self.val_fraction)

    @property
    def folder(self) -> Path:
        """The folder that torchvision downloads to."""
        return Path(self.root) / "oxford-iiit-pet"

    @property
    def _trimaps(self) -> Path:
        return self.folder / "annotations" / "trimaps"

    @property
    def _advice(self) -> str:
        return f"delete {shown(self.folder)} to download it again"

    def size(self, split: str) -> int:
        return len(self._names[known_split(split)])

    def unlabelled_size(self) -> int:
        return len(self._names[UNLABELLED])

    def name(self, split: str, index: int) -> str:
        return f"{self._name(split, index)}.jpg"

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        if split == UNLABELLED:
            return self.fitted(self.image(split, index))
        image, mask = self.image(split, index), self.mask(split, index)
        if image.shape[:2] != mask.shape:
            name = self.name(split, index)
            raise DataError(f"{name} and its trimap differ in size: {self._advice}")
        return self.fitted(image, mask)

    def files(self, split: str, index: int) -> tuple[Path, ...]:
        name = self._name(split, index)
        image = self.folder / "images" / f"{name}.jpg"
        return (image,) if split == UNLABELLED else Pair(image, self._trimaps / f"{name}.png")

    def image(self, split: str, index: int) -> np.ndarray:
        return read_image(self.files(split, index)[0])

    def mask(self, split: str, index: int) -> np.ndarray:
        trimap = read_mask(self._trimaps / f"{self._name(split, index)}.png")
        mask = np.full(trimap.shape, self.ignore_index, dtype=np.uint8)
        mask[trimap == PET] = 1
        mask[trimap == BACKGROUND] = 0
        return mask

    def fingerprint(self) -> str:
        # The files are the published ones, verified when downloaded, so names and settings suffice.
        names = {split: self._names[split] for split in SPLITS}
        return json_digest([VERSION, self.image_size, self.ignore_index, names, *self._fit_facts()])

    def unlabelled_fingerprint(self) -> str | None:
        names = self._names[UNLABELLED]
        return json_digest([VERSION, self.image_size, names, *self._fit_facts()]) if names else None

    def check(self) -> None:
        """Download the data set if missing, and check that it is complete."""
        images = {path.stem for path in (self.folder / "images").glob("*.jpg")} if self._names else set()
        trimaps = {path.stem for path in self._trimaps.glob("*.png")}
        for name in (name for split in SPLITS for name in self._names[split]):
            if name not in images or name not in trimaps:
                raise DataError(
                    f"{shown(self.folder)} is incomplete ({name} is missing): delete it to download it again"
                )

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        if not (self.folder / "annotations" / "trainval.txt").is_file():
            self._download()
        listed = {"train": self._listed("trainval"), "test": self._listed("test")}
        return divided(self, listed, lambda name: name, self.val_fraction, shown(self.folder))

    def _listed(self, split: str) -> list[str]:
        """The names in one of the published lists; each is checked to be a plain file name."""
        listing = self.folder / "annotations" / f"{split}.txt"
        with open_file(listing) as file:
            lines = file.read().decode("utf-8", "backslashreplace").splitlines()
        names = sorted(line.split()[0] for line in lines if line.strip())
        for name in names:
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise DataError(f"{shown(listing)} lists '{shown(name)}', which is not a pet's name: {self._advice}")
        if not names:
            raise DataError(f"{shown(listing)} lists no pets: {self._advice}")
        return names

    def _name(self, split: str, index: int) -> str:
        return sample_at(self._names, split, index)

    def _download(self) -> None:
        if not self.download:
            raise DataError(
                f"{shown(self.folder)} does not contain the data set: set data.download=true, or data.root to a copy"
            )
        from filelock import FileLock
        from torchvision.datasets import OxfordIIITPet

        root = Path(self.root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".oxford-iiit-pet.lock"):
                OxfordIIITPet(root, download=True)
        except (OSError, RuntimeError) as error:  # no network, a full disk, a checksum that does not match
            raise DataError(
                f"{shown(self.folder)} does not contain the data set and the download failed ({error}): connect to the "
                "network, set data.root to a copy, or use data=shapes"
            ) from error
