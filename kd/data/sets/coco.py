"""COCO's instances as masks of classes: polygons and run lengths of a JSON file for each split.

    root/train/a.jpg ...     root/annotations/train.json     (templates say other places)

Where objects overlap, the smaller one is on top; of equal ones the one that is later in the file. Crowds (`iscrowd`)
are void, under all objects. Pictures without annotations show background alone. Without val, a validation split is
taken from train by the hash of each name; a missing test split is allowed.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kd.data.checks.survey import dark_pictures
from kd.data.files.decode import height_width
from kd.data.files.manifest import KeepsFindings
from kd.data.files.orientation import other_size
from kd.data.layout.listing import inside, leads_out
from kd.data.layout.naming import SPLIT, SPLITS, UNLABELLED, check_path
from kd.data.layout.splitting import check_val_fraction
from kd.data.sets.instances import Image, Instances, instances
from kd.data.sets.regions import is_box_alone, region
from kd.data.sets.samples import divided, sample_at
from kd.data.source import Source, Survey, default_names, known_split, spaced
from kd.errors import DataError, nearest, shown
from kd.system import files

VERSION = 1  # part of the fingerprint: increase it whenever `read` returns something else for the same files
SAMPLE = 64  # pictures that `check` and `survey` look at
OTHERS = ("background", "void")


class Sample(NamedTuple):
    """An image: the split whose file it is in, and its number there."""

    file: str
    number: int


class _Shape(NamedTuple):
    """A region: its label (None: it is not painted), and its pixels, counted row by row."""

    label: int | None
    pixels: np.ndarray


@dataclass(frozen=True)
class Coco(KeepsFindings, Source):
    """Pictures and instances files under `root`, which may start with ~ or be relative to the working directory.

    `images` is the folder of a split's pictures, and `annotations` its file. `categories[i]` is the category, or the
    list of categories, of class i + 1, by name: class 0 is background. Empty: `class_names` without the first; of
    binary data all categories. Objects of other categories are `others`: background or void. Without a val split,
    `val_fraction` of train becomes one. Links may lead out of `root` only with `follow_links`.
    """

    root: str | Path
    ignore_index: int | None = field(default=255, kw_only=True)
    images: str = field(default="{split}", kw_only=True)
    annotations: str = field(default="annotations/{split}.json", kw_only=True)
    categories: Sequence[str | Sequence[str]] = field(default=(), kw_only=True)
    others: str = field(default="background", kw_only=True)
    val_fraction: float = field(default=0.15, kw_only=True)
    follow_links: bool = field(default=False, kw_only=True)
    any_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", _groups(self.categories))
        if len(self.categories) == self.classes - 1 > 0 and not self.class_names:
            object.__setattr__(self, "class_names", ("background", *(group[0] for group in self.categories)))
        super().__post_init__()
        if self.ignore_index is None:
            raise ValueError("ignore_index must be a number, as crowds are void, but got None")
        if not str(self.root).strip():
            raise ValueError("root must name the folder with pictures and annotations, but is empty")
        object.__setattr__(self, "root", Path(self.root).expanduser())
        for key in ("images", "annotations"):
            check_path(key, getattr(self, key), (SPLIT,))
        if SPLIT not in self.annotations:
            raise ValueError(f"annotations={self.annotations} must have {SPLIT} in it, as annotations/{SPLIT}.json")
        if self.others not in OTHERS:
            raise ValueError(f"others must be {' or '.join(OTHERS)}, but got {self.others!r}")
        if not isinstance(self.follow_links, bool):
            raise ValueError(f"follow_links must be true or false, but got {self.follow_links!r}")
        check_val_fraction(self.val_fraction)
        self._check_categories()

    def size(self, split: str) -> int:
        return len(self._samples[known_split(split)])

    def unlabelled_size(self) -> int:
        return len(self._samples[UNLABELLED])

    def name(self, split: str, index: int) -> str:
        return self._image(self._sample(split, index)).name

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = self.image(split, index)
        self._check_size(self._sample(split, index), height_width(image))
        return self.fitted(image, None if split == UNLABELLED else self.mask(split, index))

    def read_size(self, split: str, index: int) -> tuple[int, int]:
        own = self._image(self._sample(split, index)).size
        return self.sizing.size_of(own) if self.sizing.crops else self.image_size

    def image(self, split: str, index: int) -> np.ndarray:
        return self.pixels.read(self._path(self._sample(split, index)))

    def mask(self, split: str, index: int) -> np.ndarray:
        sample = self._sample(split, index)
        mask = np.zeros(self._image(sample).size, np.uint8)
        if split == UNLABELLED:
            return mask
        for shape in sorted(
            self._shapes(sample), key=lambda each: (each.label != self.ignore_index, -len(each.pixels))
        ):
            if shape.label is not None:
                mask.reshape(-1)[shape.pixels] = shape.label
        return mask

    def fingerprint(self) -> str:
        return self._fingerprint

    def unlabelled_fingerprint(self) -> str | None:
        return self._unlabelled_fingerprint

    def check(self) -> None:
        """Check that the files can be read, that they have the categories, and that pictures have their sizes."""
        every = [sample for split in (*SPLITS, UNLABELLED) for sample in self._samples[split]]
        for index in spaced(len(every), SAMPLE):
            self._check_size(every[index], self.pixels.size(self._path(every[index])))
            [*self._shapes(every[index])]

    def survey(self) -> Survey:
        every = [(split, sample) for split in SPLITS for sample in self._samples[split]]
        images = []
        for index in spaced(len(every), SAMPLE) if self.pixels.usual else ():
            split, sample = every[index]
            with suppress(DataError):  # reading it says what is wrong
                images.append((split, self._path(sample)))
        return Survey([], dark_pictures(images))

    @cached_property
    def _fingerprint(self) -> str:
        settings = [VERSION, self.classes, *self.image_size, self.ignore_index, self.others, self.categories,
                    self.class_names, *self._fit_facts()]  # fmt: skip
        digests = self.digests([source.path for source in self._files.values()])
        every = [(split, sample) for split in SPLITS for sample in self._samples[split]]
        content = [[split, each] for (split, _), each in zip(every, self._content([s for _, s in every]), strict=True)]
        return files.json_digest([settings, digests, content])

    @cached_property
    def _unlabelled_fingerprint(self) -> str | None:
        content = self._content(self._samples[UNLABELLED])
        return files.json_digest([VERSION, *self.image_size, *self._fit_facts(), content]) if content else None

    @cached_property
    def _files(self) -> dict[str, Instances]:
        """The file of each split that has one; all of them must know the categories."""
        if not Path(self.root).is_dir():
            raise DataError(
                f"data.root={shown(self.root)} is not a folder (working directory: {shown(Path.cwd())}): give the "
                f"folder with {shown(self.annotations)} in it"
            )
        found = {}
        for split in SPLITS:
            path = Path(self.root) / self.annotations.replace(SPLIT, split)
            if split == "train" or path.exists():
                self._check_inside(path)
                found[split] = instances(path)
                self._check_names(found[split])
        return found

    @cached_property
    def _samples(self) -> dict[str, list[Sample]]:
        """The samples of each split, and the pictures that lose their masks."""
        rows = {split: [Sample(split, at) for at in range(len(each.images))] for split, each in self._files.items()}
        where = shown(self._files["train"].path)
        return divided(self, rows, lambda sample: self._image(sample).name, self.val_fraction, where)

    def _sample(self, split: str, index: int) -> Sample:
        return sample_at(self._samples, split, index)

    def _image(self, sample: Sample) -> Image:
        return self._files[sample.file].images[sample.number]

    def _path(self, sample: Sample) -> Path:
        path = Path(self.root) / self.images.replace(SPLIT, sample.file) / self._image(sample).name
        self._check_inside(path)
        return path

    def _content(self, samples: Sequence[Sample]) -> list[list[str]]:
        """The name and the digest of each picture."""
        digests = self.digests([self._path(sample) for sample in samples])
        return [[self._image(sample).name, each] for sample, each in zip(samples, digests, strict=True)]

    def _shapes(self, sample: Sample) -> Iterator[_Shape]:
        """The regions of a picture, in the order of the file; raises DataError, naming what is wrong with which."""
        source, image = self._files[sample.file], self._image(sample)
        for said in source.annotations(sample.number):
            try:
                number = said.get("category_id")
                if number not in source.categories:
                    raise ValueError(f"its category_id is {str(number)[:40]}")
                name = source.categories[number]
                if is_box_alone(said):
                    raise ValueError("it has a box but no outline")
                crowd = said.get("iscrowd", 0) not in (0, False)
                pixels = np.flatnonzero(region(said.get("segmentation"), image.size))
            except (ValueError, TypeError, OverflowError) as error:
                raise DataError(
                    f"{shown(source.path)}: annotation {str(said.get('id'))[:40]} of {shown(image.name)}: {error}: "
                    "correct or remove it"
                ) from error
            yield _Shape(self.ignore_index if crowd else self._labels.get(name, self._other), pixels.astype(np.int32))

    @cached_property
    def _labels(self) -> dict[str, int]:
        """The class of each category, by name."""
        groups = self.categories or tuple((name,) for name in self.class_names[1:])
        if self.classes == 1:
            known = self._files["train"].categories.values()
            return dict.fromkeys([name for group in self.categories for name in group] or known, 1)
        return {name: label for label, group in enumerate(groups, 1) for name in group}

    @property
    def _other(self) -> int | None:
        """The label of objects of other categories; None if they are not painted, and so cover nothing."""
        return self.ignore_index if self.others == "void" else None

    def _check_names(self, source: Instances) -> None:
        """Raise DataError if a category of the configuration is not in a file."""
        named = [name for group in self.categories for name in group]
        named = named or ([] if self.classes == 1 else [*self.class_names[1:]])
        for name in named:
            if name not in source.categories.values():
                raise DataError(
                    f"{shown(source.path)} has no category {shown(name)}; {nearest(name, source.categories.values())}"
                )

    def _check_size(self, sample: Sample, found: tuple[int, int]) -> None:
        image = self._image(sample)
        if image.size != found:
            path = self._path(sample)
            raise DataError(other_size([str(path), "in the instances file"], [found, image.size], path))

    def _check_inside(self, path: Path) -> None:
        if not self.follow_links and not inside(path, Path(self.root)):
            raise DataError(f"{shown(path)} {leads_out(Path(self.root))}")

    def _check_categories(self) -> None:
        """Raise ValueError unless there is a category, or a list of them, for each class but background."""
        if self.classes == 1:
            return
        if self.categories and len(self.categories) != self.classes - 1:
            raise ValueError(
                f"categories has {len(self.categories)} entries, and classes={self.classes} needs {self.classes - 1}: "
                "one for each class but background"
            )
        if not self.categories and self.class_names == default_names(self.classes):
            raise ValueError(
                f"classes={self.classes} needs the names of their categories: 'data.categories=[cat,dog]' for three "
                "classes, or 'data.class_names=[background,cat,dog]'"
            )


def _groups(value: Any) -> tuple[tuple[str, ...], ...]:
    """A list of names, or of lists of names, as a tuple of tuples; raises ValueError if it is anything else."""
    if value is None:
        return ()
    entries = value if isinstance(value, list | tuple) else None
    groups = [(each,) if isinstance(each, str) else each for each in entries or ()]
    names = [name for group in groups if isinstance(group, list | tuple) for name in group]
    valid = entries is not None and all(isinstance(group, list | tuple) and group for group in groups)
    if not valid or not all(isinstance(name, str) and name for name in names) or len({*names}) < len(names):
        raise ValueError(f"categories must be different names, or lists of them, as [cat,[car,bus]], but got {value}")
    return tuple(map(tuple, groups))
