"""The Oxford pets, with torchvision replaced by a stub: no network and no torch."""

import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from kd.data import OxfordPet
from kd.data.checks.check import check
from kd.errors import DataError

TRIMAP = np.repeat(np.array([[2, 3, 1, 3]], dtype=np.uint8), 32, axis=0).repeat(16, axis=1)


def publish(root, trainval=20, test=3):
    """A small data set in the published layout under `root`."""
    folder = root / "oxford-iiit-pet"
    for split, names in (
        ("trainval", [f"cat_{i}" for i in range(trainval)]),
        ("test", [f"dog_{i}" for i in range(test)]),
    ):
        for name in names:
            for path, array in (
                ("images/{}.jpg", np.zeros((32, 64, 3), np.uint8)),
                ("annotations/trimaps/{}.png", TRIMAP),
            ):
                file = folder / path.format(name)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
        (folder / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))


@pytest.fixture
def torchvision(monkeypatch):
    """A stub of torchvision; `calls` counts downloads, `fails` is the error they raise."""
    fake = types.ModuleType("torchvision.datasets")
    fake.calls, fake.fails = [], None

    def download_pets(root, download):
        fake.calls.append(root)
        if fake.fails:
            raise fake.fails
        publish(root)

    fake.OxfordIIITPet = download_pets
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    return fake


def pets(root, **options):
    return OxfordPet(root, image_size=(32, 64), **options)


def test_the_border_is_ignored_the_pet_is_foreground(tmp_path):
    publish(tmp_path)
    image, mask = pets(tmp_path).read("test", 0)
    assert image.shape == (32, 64, 3)
    assert np.array_equal(mask[0, ::16], [0, 255, 1, 255])
    assert np.array_equal(pets(tmp_path, ignore_index=7).read("test", 0)[1][0, ::16], [0, 7, 1, 7])


def test_val_is_taken_from_trainval(tmp_path):
    publish(tmp_path)
    source = pets(tmp_path, val_fraction=0.3)
    names = {split: {source.name(split, i) for i in range(source.size(split))} for split in ("train", "val", "test")}
    assert names["train"] | names["val"] == {f"cat_{i}.jpg" for i in range(20)}
    assert names["train"]
    assert names["val"]
    assert not names["train"] & names["val"]
    assert names["test"] == {"dog_0.jpg", "dog_1.jpg", "dog_2.jpg"}


def test_existing_data_is_not_downloaded_again(tmp_path, torchvision):
    pets(tmp_path).check()
    assert torchvision.calls == [tmp_path]
    pets(tmp_path).check()
    assert torchvision.calls == [tmp_path]


def test_without_a_network_there_is_one_line_of_advice(tmp_path, torchvision):
    torchvision.fails = URLError("Name or service not known")
    with pytest.raises(DataError) as caught:
        pets(tmp_path).check()
    message = str(caught.value)
    assert "\n" not in message
    assert f"{tmp_path}/oxford-iiit-pet does not contain the data set and the download failed" in message
    assert "Name or service not known" in message
    assert "data=shapes" in message


def test_a_download_can_be_forbidden(tmp_path, torchvision):
    with pytest.raises(DataError, match=r"does not contain the data set: set data\.download=true"):
        pets(tmp_path, download=False).check()
    assert not torchvision.calls


def test_an_incomplete_download_is_detected(tmp_path):
    publish(tmp_path)
    (tmp_path / "oxford-iiit-pet/annotations/trimaps/cat_7.png").unlink()
    with pytest.raises(DataError, match=r"is incomplete \(cat_7 is missing\): delete it to download it again"):
        pets(tmp_path).check()


@pytest.mark.parametrize("entry", ["../../x", "/etc/passwd", "..", "cat_0/../../x", "\x1b[2J", "caf\xe9"])
@pytest.mark.parametrize("split", ["trainval", "test"])
def test_a_split_file_cannot_name_a_file_outside(tmp_path, split, entry):
    publish(tmp_path)
    listing = tmp_path / "oxford-iiit-pet" / "annotations" / f"{split}.txt"
    listing.write_bytes(listing.read_bytes() + f"{entry} 1 1 1\n".encode("latin-1"))
    with pytest.raises(DataError) as caught:
        pets(tmp_path).check()
    message = str(caught.value)
    assert message.startswith(f"{listing} lists '")
    assert message.endswith(f"which is not a pet's name: delete {tmp_path}/oxford-iiit-pet to download it again")
    assert message.isprintable()


def test_a_missing_or_empty_split_file_is_reported_in_one_line(tmp_path):
    publish(tmp_path)
    listing = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    listing.write_text("")
    with pytest.raises(DataError, match=r"test\.txt lists no pets: delete .* to download it again"):
        pets(tmp_path).check()
    listing.unlink()
    with pytest.raises(DataError, match=r"test\.txt cannot be read \(No such file or directory\)"):
        pets(tmp_path).check()


def test_kd_check_reads_the_trimaps(tmp_path):
    publish(tmp_path)
    Image.fromarray(np.full((32, 64, 3), 9, np.uint8)).save(tmp_path / "oxford-iiit-pet/images/dog_0.jpg")
    (tmp_path / "oxford-iiit-pet/images/cat_3.jpg").write_bytes(b"")
    (tmp_path / "oxford-iiit-pet/annotations/trimaps/dog_1.png").unlink()
    result = check(pets(tmp_path))
    assert [problem.file for problem in result.errors if problem.kind == "unreadable"] == [
        "oxford-iiit-pet/images/cat_3.jpg",
        "oxford-iiit-pet/annotations/trimaps/dog_1.png",
    ]
    shares = result.splits["test"]
    assert (shares.share("foreground"), shares.void) == (0.5, 2 * 32 * 32)


def test_the_fingerprint_depends_on_the_settings(tmp_path):
    publish(tmp_path)
    variants = [pets(tmp_path), pets(tmp_path, ignore_index=9), pets(tmp_path, val_fraction=0.5), OxfordPet(tmp_path)]
    assert len({source.fingerprint() for source in variants}) == len(variants)
    assert pets(tmp_path).fingerprint() == pets(tmp_path).fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 2}, "classes must be 1, pet against background, but got 2"),
        ({"ignore_index": None}, "ignore_index must be a number, as the border of every pet is ignored"),
        ({"val_fraction": 1}, "val_fraction must be between 0 and 1, both excluded, but got 1"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        OxfordPet("x", **options)
