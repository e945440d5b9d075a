"""Which training samples keep their masks, which pictures have none, and what these do not change."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import mask, picture, put, save

from kd.data import Folder, OxfordPet, Shapes
from kd.data.cache import cached
from kd.data.checks.check import check
from kd.data.checks.check_report import as_json, show
from kd.data.layout.labelled import kept_and_dropped, pictures_per_batch
from kd.errors import DataError

SOURCE = Shapes(image_size=(32, 32), train=23, val=3, test=2, unlabelled=10)
NAMES = st.lists(st.text("abcdef", min_size=1), unique=True, min_size=1)


def small(root, **options):
    return Folder(root, image_size=(32, 64), **options)


@pytest.fixture
def folder(tmp_path):
    """Nine pairs for training, two for validation, no pictures without masks."""
    root = tmp_path / "data"
    for number in range(9):
        put(root, f"s{number}", picture(value=10 * number))
    for number in range(2):
        put(root, f"v{number}", picture(value=200 + number), split="val")
    return root


# which masks are kept


@given(NAMES, st.floats(0.01, 0.99))
def test_a_fraction_keeps_so_many_masks_and_every_sample_is_kept_or_dropped(names, fraction):
    kept, dropped = kept_and_dropped(names, fraction)
    assert len(kept) == max(1, round(fraction * len(names)))
    assert sorted(kept + dropped) == list(range(len(names)))


@given(NAMES, st.data())
def test_the_choice_depends_on_names_alone_and_a_smaller_one_is_part_of_a_larger(names, data):
    few, many = sorted(data.draw(st.integers(1, len(names))) for _ in range(2))
    shuffled = data.draw(st.permutations(names))

    def chosen(order, count):
        return {order[index] for index in kept_and_dropped(order, count)[0]}

    assert chosen(names, few) <= chosen(names, many)
    assert chosen(names, few) == chosen(shuffled, few)


def test_a_third_of_a_folder_is_the_folder_of_that_third(folder, tmp_path):
    """Its fingerprint too, so a teacher is trained on the kept masks alone; the others lose theirs."""
    third, everything = small(folder, labelled=0.33), small(folder)
    names = {third.name("train", index) for index in range(third.size("train"))}
    assert third.size("train") == 3
    assert {third.name("unlabelled", index) for index in range(third.unlabelled_size())} == {
        f"s{number}.png" for number in range(9)
    } - names
    shutil.copytree(folder, tmp_path / "third")
    for number in range(9):
        if f"s{number}.png" not in names:
            (tmp_path / "third" / "images" / "train" / f"s{number}.png").unlink()
            (tmp_path / "third" / "masks" / "train" / f"s{number}.png").unlink()
    assert small(tmp_path / "third").fingerprint() == third.fingerprint() != everything.fingerprint()


def test_a_drawn_sample_that_loses_its_mask_stays_the_same_picture():
    drawn = {SOURCE.name("train", index): SOURCE.read("train", index)[0] for index in range(23)}
    third = Shapes(image_size=(32, 32), train=23, labelled=8)
    assert (third.size("train"), third.unlabelled_size()) == (8, 15)
    for split, count in (("train", 8), ("unlabelled", 15)):
        for index in range(count):
            assert np.array_equal(third.read(split, index)[0], drawn.pop(third.name(split, index)))
    assert not drawn


def test_pets_that_lose_their_masks_are_pictures_without_masks(tmp_path):
    pets = tmp_path / "oxford-iiit-pet"
    for number in range(9):
        save(picture(value=10 * number), pets / "images" / f"pet_{number}.jpg")
        save(mask(values=(1, 2, 3)), pets / "annotations" / "trimaps" / f"pet_{number}.png")
    lists = {"trainval": range(7), "test": range(7, 9)}
    for name, numbers in lists.items():
        (pets / "annotations" / f"{name}.txt").write_text("".join(f"pet_{number} 1 1 1\n" for number in numbers))
    whole, two = (OxfordPet(tmp_path, image_size=(32, 32), labelled=labelled) for labelled in (None, 2))
    assert (two.size("train"), two.unlabelled_size()) == (2, whole.size("train") - 2)
    assert whole.unlabelled_fingerprint() is None
    assert two.fingerprint() != whole.fingerprint()
    image, labels = two.read("unlabelled", 0)
    assert image.shape == (32, 32, 3)
    assert not labels.any()
    assert [file.suffix for file in two.files("unlabelled", 0)] == [".jpg"]
    two.check()


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.0, 1.5, True, "half", float("nan")])
def test_a_fraction_is_between_0_and_1_and_a_number_at_least_1(value):
    with pytest.raises(ValueError, match=r"labelled must be a fraction .*, but got"):
        Shapes(labelled=value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, True, "half", float("nan")])
def test_a_share_leaves_room_for_masks(value):
    with pytest.raises(ValueError, match=r"unlabelled_share must be a share .*, but got"):
        Shapes(unlabelled_share=value)


def test_more_masks_than_there_are_cannot_be_kept(folder):
    for source, count in ((small(folder, labelled=10), 9), (Shapes(train=4, labelled=10), 4)):
        with pytest.raises(DataError, match=f"data.labelled=10, but there are only {count} training samples"):
            source.check()


# where they are


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
def test_a_folder_beside_the_training_images_is_found_by_itself(folder, name):
    before = small(folder)
    assert (before.unlabelled_size(), before.unlabelled_fingerprint()) == (0, None)
    for stem, height in (("b", 40), ("a", 32)):
        save(picture(height=height), folder / "images" / name / f"{stem}.jpg")
    (folder / "images" / name / "notes.txt").write_text("not a picture")
    source = small(folder)
    assert [source.name("unlabelled", index) for index in range(source.unlabelled_size())] == ["a.jpg", "b.jpg"]
    image, labels = source.read("unlabelled", 1)
    assert (image.shape, labels.shape, labels.any()) == ((32, 64, 3), (32, 64), False)
    assert source.image("unlabelled", 1).shape == (40, 64, 3)
    assert small(folder, unlabelled_share=0).unlabelled_size() == 0
    with pytest.raises(IndexError):
        source.read("unlabelled", 2)


def test_another_folder_is_named_absolute_or_below_the_root(folder, tmp_path):
    save(picture(), tmp_path / "more" / "a.png")
    save(picture(), folder / "images" / "unlabelled" / "b.png")
    for named in (str(tmp_path / "more"), "../more"):
        source = small(folder, unlabelled=named)
        assert [file.name for file in source.files("unlabelled", 0)] == ["a.png"]
        assert source.unlabelled_size() == 1


def test_pictures_without_masks_have_a_fingerprint_of_their_own(folder):
    """That of the pairs stays, so the teacher and its cached logits do."""
    before, seen = small(folder).fingerprint(), set()
    for stem, value in (("a", 1), ("b", 2), ("b", 3)):
        save(picture(value=value), folder / "images" / "unlabelled" / f"{stem}.png")
        assert small(folder).fingerprint() == before
        seen.add(small(folder).unlabelled_fingerprint())
    assert len(seen) == 3
    assert Shapes(unlabelled=5).fingerprint() == Shapes().fingerprint() != Shapes(labelled=5).fingerprint()
    assert Shapes(unlabelled=5).unlabelled_fingerprint() != Shapes(unlabelled=6).unlabelled_fingerprint()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ([], {"unlabelled": "more"}, r"data.unlabelled=more: .*/more is not a folder"),
        (["more"], {"unlabelled": "more"}, r"more contains no images \(.jpg, .*\): add some"),
        (["images/unlabelled"], {}, r"images/unlabelled contains no images .* data.unlabelled_share=0"),
        (["images/unlabelled", "images/unlabeled"], {}, r"two spellings of one folder: keep one"),
        (["images/unlabelled/a.png"], {}, r"a.png is not a file but a folder"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_named_in_one_line(folder, make, options, message):
    for name in make:
        (folder / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message) as caught:
        small(folder, **options).check()
    assert "\n" not in str(caught.value)
    small(folder, unlabelled_share=0, **options).check()


def test_a_link_out_of_the_data_is_refused(folder, tmp_path):
    save(picture(), tmp_path / "elsewhere.png")
    (folder / "images" / "unlabelled").mkdir()
    (folder / "images" / "unlabelled" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match=r"a.png is a link out of"):
        small(folder).check()


@pytest.mark.parametrize("value", ["", " ", 3])
def test_the_folders_name_is_checked_without_accessing_files(value):
    with pytest.raises(ValueError, match="unlabelled must be a folder of pictures without masks"):
        Folder("/nowhere", unlabelled=value)


@given(st.integers(1, 64), st.floats(0.01, 0.95))
def test_the_share_of_a_batch_is_the_nearest_that_whole_pictures_allow(labelled, share):
    count = pictures_per_batch(labelled, share)
    assert count >= 1
    assert abs(count - labelled * share / (1 - share)) <= 0.5 or count == 1
    assert pictures_per_batch(labelled, 0) == 0
    assert pictures_per_batch(labelled, 0.5) == labelled


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_decoded_pictures_are_cached_and_the_pairs_cache_stays_valid(cache, folder, root, monkeypatch):
    def fill(source):
        samples = cached(source, root / "cache")
        splits = {"train": source.size("train"), "unlabelled": source.unlabelled_size()}
        return [samples.read(split, index) for split, count in splits.items() for index in range(count)]

    fill(small(folder, cache=cache))
    for number in range(3):
        save(picture(value=number), folder / "images" / "unlabelled" / f"p{number}.png")
    reads = []
    read = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, *where: (reads.append(where), read(self, *where))[1])
    first, again = fill(small(folder, cache=cache)), fill(small(folder, cache=cache))
    assert reads == [("unlabelled", index) for index in range(3)]
    for (image, labels), (other, others) in zip(first, again, strict=True):
        assert np.array_equal(image, other)
        assert np.array_equal(labels, others)


# kd check


@pytest.mark.parametrize("headers", [False, True])
def test_check_counts_pictures_names_unreadable_ones_and_warns_of_copies_of_held_out_pictures(folder, headers, capsys):
    pictures = folder / "images" / "unlabelled"
    for stem, value in (("new", 77), ("trained", 10), ("leak", 201)):
        save(picture(value=value), pictures / f"{stem}.png")
    (pictures / "broken.png").write_bytes(b"<html>")
    report = check(small(folder), headers)
    assert [split.pairs for split in report.splits.values()] == [9, 2, 0]
    assert report.unlabelled.pairs == 4
    assert report.unlabelled.images == {"PNG RGB": 3}
    assert [(p.kind, p.split, p.file) for p in report.errors] == [
        ("unreadable", "unlabelled", "images/unlabelled/broken.png")
    ]
    leaks = [problem for problem in report.warnings if problem.kind == "leak"]
    assert [problem.file for problem in leaks] == ([] if headers else ["images/unlabelled/leak.png"])
    assert all("is the same picture as images/val/v1.png" in problem.message for problem in leaks)
    assert as_json(report)["unlabelled"]["pictures"] == 4
    show(report)
    out = capsys.readouterr().out
    assert "unlabelled 4 pictures  64x32 (3)  images PNG RGB (3)" in out
    assert "11 pairs, 4 pictures without masks, 1 error" in out


def test_check_reads_no_mask_that_is_not_used(folder):
    """The masks that `labelled` drops may be wrong."""
    third = small(folder, labelled=3)
    for index in range(third.unlabelled_size()):
        save(mask(values=(7, 9)), folder / "masks" / "train" / third.name("unlabelled", index))
    report = check(small(folder, labelled=3))
    assert report.errors == []
    assert (report.splits["train"].pairs, report.unlabelled.pairs) == (3, 6)
