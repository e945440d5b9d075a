"""Which pairs are in which split: by folders, by lists in text files, or by fractions of the names' hashes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path
from typing import Any, NamedTuple

from kd.data.files.image_file import open_file
from kd.data.layout.listing import Found, counted, inside, leads_out
from kd.data.layout.naming import ARRAY_SUFFIXES, IMAGE_SUFFIXES, SPELLINGS, SPLIT, SPLITS, nfc
from kd.data.layout.pairing import Files, Pair, files_of, nothing_to_train, paired, pairs_of
from kd.data.layout.split_folders import Fault, Layout
from kd.data.numbers import is_number, whole_number
from kd.data.random_streams import key
from kd.errors import DataError, shown

Pairs = dict[str, dict[str, Pair]]  # by split and stem, both in order


class Splitting(NamedTuple):
    """The pairs of every split, the faults of all other files, and notes on what is not read."""

    pairs: Pairs
    faults: list[Fault]
    notes: list[Fault]


@dataclass(frozen=True)
class Fractions:
    """How much of train becomes val or test, where that split is missing; `seed` chooses which pictures.

    A sample's place follows from its name and the seed, so that more samples never move others between the splits.

    Raises:
        ValueError: one is invalid, or nothing is left for train.
    """

    val: float = 0.15
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_val_fraction(self.val)
        if not is_number(self.test) or not 0 <= self.test < 1:
            raise ValueError(f"test_fraction must be 0 or more and below 1, but got {self.test!r}")
        if self.val + self.test >= 1:
            raise ValueError(
                f"test_fraction={self.test} and data.val_fraction={self.val} leave nothing for train: together they "
                "must be below 1"
            )
        whole_number("split_seed", self.seed, 0)


def check_val_fraction(value: float) -> None:
    """Raise ValueError unless `value` is a valid fraction of train to become val."""
    if not is_number(value) or not 0 < value < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, both excluded, but got {value!r}")


def split(found: Layout, fractions: Fractions, lossy_masks: bool = False) -> Splitting:
    """The pairs of every split. Raises DataError if there is nothing to train on, or if a list cannot be read."""
    if found.names.split_lists is not None:
        splitting = _by_lists(found, lossy_masks)
    else:
        by_folder = found.names.images.has_split or found.names.masks.has_split
        each = {name: paired(found, name, lossy_masks) for name in (SPLITS if by_folder else ("train",))}
        splitting = Splitting(
            {name: each[name].pairs if name in each else {} for name in SPLITS},
            [fault for one in each.values() for fault in one.faults],
            [*found.notes, *(note for one in each.values() for note in one.notes)],
        )
    if not splitting.pairs["train"] and not splitting.faults:
        raise DataError(nothing_to_train(found))
    _split_off(splitting, fractions, found.images_of("train"))
    return splitting


def _split_off(splitting: Splitting, fractions: Fractions, where: Path) -> None:
    """Make a part of train val or test, where that split is missing."""
    pairs, faulty = splitting.pairs, {fault.split for fault in splitting.faults}
    stems = [*pairs["train"]]
    chosen: dict[str, frozenset[str]] = {}
    try:
        if not pairs["val"] and "val" not in faulty:
            chosen["val"] = val_stems(stems, fractions.val, shown(where), fractions.seed)
        if fractions.test and not pairs["test"] and "test" not in faulty:
            others = [stem for stem in stems if stem not in chosen.get("val", ())]
            chosen["test"] = _test_stems(others, fractions, shown(where))
    except DataError as error:
        splitting.faults.append(Fault("no_val", "val", where, error))
        return
    for name, taken in chosen.items():
        pairs[name] = {stem: pairs["train"][stem] for stem in stems if stem in taken}
    taken = frozenset().union(*chosen.values())
    pairs["train"] = {stem: pair for stem, pair in pairs["train"].items() if stem not in taken}


def val_stems(stems: Sequence[str], fraction: float, where: str, seed: int = 0) -> frozenset[str]:
    """The stems that become the validation split: about `fraction` of them, by the hash of each, at least one.

    Raises DataError, naming `where`, if there are too few for two splits.
    """
    if len(stems) < 2:
        raise DataError(
            f"{where} contains too few images ({len(stems)}) to split off a validation set: add some, or a val split"
        )
    return _at_least_one(stems, lambda place: place < fraction, seed)


def _test_stems(stems: Sequence[str], fractions: Fractions, where: str) -> frozenset[str]:
    """The stems, of those that are not val's, that become the test split: the next part of the hashes, at least one.

    Raises DataError, naming `where`, if there are too few.
    """
    if len(stems) < 2:
        raise DataError(
            f"{where} contains too few images ({len(stems)}) to split off a test set: add some, or data.test_fraction=0"
        )
    return _at_least_one(stems, lambda place: fractions.val <= place < fractions.val + fractions.test, fractions.seed)


def _at_least_one(stems: Sequence[str], chosen: Callable[[float], bool], seed: int) -> frozenset[str]:
    """The stems whose place in [0, 1) is chosen; the first if none is, and never the last."""
    place = {stem: key("val", stem, *([seed] if seed else [])) / 2**128 for stem in stems}
    ranked = sorted(stems, key=place.__getitem__)
    return frozenset(({stem for stem in stems if chosen(place[stem])} or {ranked[0]}) - {ranked[-1]}) or frozenset(
        ranked[:1]
    )


def _by_lists(found: Layout, lossy_masks: bool) -> Splitting:
    files = files_of(found, "train")
    splitting = Splitting({name: {} for name in SPLITS}, [], [*found.notes])
    unusable = {key for each in files[1:] for key, _, _ in each.unusable}
    known, where = {*files.images.files, *files.masks.files, *unusable}, dict[str, str]()
    for name, path in _lists(found).items():
        stems = set()
        for number, line in enumerate(_lines(found, path), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            stem = _stem_of(nfc(line.strip()), found, known)
            if where.get(stem, name) != name:
                message = f"{shown(path)}, line {number}: {shown(stem)} is in the list of {where[stem]}, too: remove it"
                splitting.faults.append(Fault("two_lists", name, path, DataError(f"{message} from one of them")))
            elif stem in known:
                where[stem] = name
                stems.add(stem)
            else:
                expected = found.names.images.file(files.folders[0], name, stem) + found.names.images.suffix
                message = f"{shown(path)}, line {number}: there is no {expected}: correct the list, or data.images="
                message += shown(found.names.images.text)
                splitting.faults.append(Fault("not_there", name, path, DataError(message)))
        part = Files(files.folders, _only(files.images, stems), _only(files.masks, stems))
        done = pairs_of(found, name, part, lossy_masks)
        splitting.pairs[name] = done.pairs
        splitting.faults.extend(done.faults)
    left = [files.images.files[stem] for stem in sorted(files.images.files.keys() & files.masks.files - where.keys())]
    if left:
        message = f"{counted(left)} with masks are in no list of data.split_lists, and not read"
        splitting.notes.append(Fault("no_list", "", files.folders[0], DataError(message)))
    return splitting


def _only(found: Found, stems: set[str]) -> Found:
    """The part of what was found that is of some stems."""
    return Found(
        {key: path for key, path in found.files.items() if key in stems},
        [each for each in found.twice if each[0] in stems],
        [each for each in found.unusable if each[0] in stems],
        found.ignored,
        [],
    )


def _stem_of(line: str, found: Layout, known: set[str]) -> str:
    """The sample that a line of a list names: a stem, a file name, or the path of an image, with others behind it."""
    first = line.split()[0].removeprefix("/").removeprefix("./")
    template = found.names.images
    folder = nfc(template.folder(Path(), "").as_posix())
    below = first.removeprefix(f"{folder}/") if folder != "." else first
    forms = [line, first, *(splitext(each)[0] for each in (line, first) if _has_suffix(each))]
    if _has_suffix(below) and (stem := template.stems_of("train")(splitext(below)[0])):
        forms.append(stem)
    return next((form for form in forms if form in known), line)


def _has_suffix(name: str) -> bool:
    return splitext(name)[1].lower() in (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)


def _lists(found: Layout) -> dict[str, Path]:
    """The list of each split that has one; raises DataError if train has none, or if one that was named is missing."""
    lists: Any = found.names.split_lists
    if isinstance(lists, str):
        spelled: Mapping[str, list[Path]] = {
            name: [path for word in SPELLINGS[name] if (path := _place(found, lists.replace(SPLIT, word))).exists()]
            for name in SPLITS
        }
        for paths in spelled.values():
            if len(paths) > 1:
                raise DataError(f"{shown(paths[0])} and {shown(paths[1])} are two lists of one split: keep one of them")
        if not spelled["train"]:
            expected = _place(found, lists.replace(SPLIT, "train"))
            raise DataError(f"{shown(expected)} does not exist: correct data.split_lists={shown(lists)}, or data.root")
        return {name: paths[0] for name, paths in spelled.items() if paths}
    return {name: _place(found, path) for name, path in lists}


def _place(found: Layout, path: str) -> Path:
    return found.root / Path(path).expanduser()


def _lines(found: Layout, path: Path) -> list[str]:
    if found.bounds and path.is_relative_to(found.bounds) and not inside(path, found.bounds):
        raise DataError(f"{shown(path)} {leads_out(found.bounds)}")
    with open_file(path) as file:
        try:
            return file.read().decode("utf-8-sig", "backslashreplace").splitlines()
        except OSError as error:
            raise DataError(
                f"{shown(path)} cannot be read ({error.strerror}): data.split_lists names text files"
            ) from error
