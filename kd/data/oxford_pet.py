"""The Oxford-IIIT Pet data set as binary segmentation: pet against background, the unclear border ignored.

torchvision downloads it (about 800 MB, checksums verified) when it is first asked for and not there; a lock keeps the
parallel trials of a study from downloading together. Once on disk, torchvision is not needed and not imported.

Reference: Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012. Val is cut off the official trainval by a
hash of each name; test is the official test.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kd.data.decode import open_file, read_image, read_mask, resized
from kd.data.folder import check_val_fraction, cut_off
from kd.data.pairing import Pair
from kd.data.source import SPLITS, Source, known_split
from kd.errors import DataError, shown
from kd.system.files import json_digest

VERSION = 1
PET, BACKGROUND = 1, 2  # values of the published trimaps; 3 is the border


@dataclass(frozen=True)
class OxfordPet(Source):
    """The pets under `root`/oxford-iiit-pet; `download` fetches them if they are not there.

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
        """Where torchvision puts the files."""
        return Path(self.root) / "oxford-iiit-pet"

    @property
    def _again(self) -> str:
        return f"delete {shown(self.folder)} to download it again"

    def size(self, split: str) -> int:
        return len(self._names[known_split(split)])

    def name(self, split: str, index: int) -> str:
        return f"{self._name(split, index)}.jpg"

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self.image(split, index), self.mask(split, index)
        if image.shape[:2] != mask.shape:
            name = self.name(split, index)
            raise DataError(f"{name} and its trimap differ in size: {self._again}")
        return resized(image, mask, self.image_size)

    def files(self, split: str, index: int) -> Pair:
        name = self._name(split, index)
        return Pair(self.folder / "images" / f"{name}.jpg", self.folder / "annotations" / "trimaps" / f"{name}.png")

    def image(self, split: str, index: int) -> np.ndarray:
        return read_image(self.files(split, index).image)

    def mask(self, split: str, index: int) -> np.ndarray:
        trimap = read_mask(self.files(split, index).mask)
        mask = np.full(trimap.shape, self.ignore_index, dtype=np.uint8)
        mask[trimap == PET] = 1
        mask[trimap == BACKGROUND] = 0
        return mask

    def fingerprint(self) -> str:
        # The files are the published ones, verified when they were downloaded: names and settings tell all.
        content = [VERSION, self.image_size, self.ignore_index, self._names]
        return json_digest(content)

    def check(self) -> None:
        """Download if need be, and see that an interrupted download has not left a part of the files."""
        images = {path.stem for path in (self.folder / "images").glob("*.jpg")} if self._names else set()
        trimaps = {path.stem for path in (self.folder / "annotations" / "trimaps").glob("*.png")}
        for name in (name for split in SPLITS for name in self._names[split]):
            if name not in images or name not in trimaps:
                raise DataError(
                    f"{shown(self.folder)} is incomplete ({name} is missing): delete it to download it again"
                )

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        if not (self.folder / "annotations" / "trainval.txt").is_file():
            self._download()
        trainval, test = (self._listed(split) for split in ("trainval", "test"))
        val = cut_off(trainval, self.val_fraction, shown(self.folder))
        return {"train": [n for n in trainval if n not in val], "val": [n for n in trainval if n in val], "test": test}

    def _listed(self, split: str) -> list[str]:
        """The names in one of the published lists, each of a file in `folder`/images and of nothing else."""
        listing = self.folder / "annotations" / f"{split}.txt"
        with open_file(listing) as file:
            lines = file.read().decode("utf-8", "backslashreplace").splitlines()
        names = sorted(line.split()[0] for line in lines if line.strip())
        for name in names:
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise DataError(f"{shown(listing)} lists '{shown(name)}', which names no pet: {self._again}")
        if not names:
            raise DataError(f"{shown(listing)} lists no pets: {self._again}")
        return names

    def _name(self, split: str, index: int) -> str:
        if not 0 <= index < self.size(split):
            raise IndexError(f"index must be in 0..{self.size(split) - 1} for {split}, but got {index}")
        return self._names[split][index]

    def _download(self) -> None:
        if not self.download:
            raise DataError(
                f"{shown(self.folder)} does not hold the pets: set data.download=true, or data.root to a copy"
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
                f"the Oxford pets are not in {shown(self.folder)} and cannot be downloaded ({error}): connect to the "
                "network, set data.root to a copy, or use data=shapes"
            ) from error
