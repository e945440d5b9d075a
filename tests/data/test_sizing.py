"""How pictures of any size become what a network sees: laws of the geometry, and of what sources read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairs import put

from kd.data import Folder, Shapes
from kd.data.batches.loading import TrainLoader
from kd.data.batches.unlabelled import BatchSize
from kd.data.cache import cached
from kd.data.sizing import Sizing, inside
from kd.data.views.augmentation import Augmentation
from kd.data.views.crops import Crop

SIDES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(SIDES, st.sampled_from([(32, 32), (64, 96), (128, 32)]))
def test_a_letterboxed_picture_touches_two_sides_keeps_its_aspect_and_is_centred(own, size):
    top, left, height, width = inside(own, size)
    assert height == size[0] or width == size[1]
    assert 1 <= height <= size[0]
    assert 1 <= width <= size[1]
    assert 0 <= size[0] - height - 2 * top <= 1
    assert 0 <= size[1] - width - 2 * left <= 1
    factor = min(size[0] / own[0], size[1] / own[1])
    assert abs(height - own[0] * factor) <= 1
    assert abs(width - own[1] * factor) <= 1


@given(SIDES, st.integers(0, 9))
def test_padding_is_black_and_its_labels_are_padding_and_nothing_else_is(own, seed):
    random = np.random.default_rng(seed)
    image, labels = random.integers(1, 256, (*own, 3), np.uint8), random.integers(0, 2, own, np.uint8)
    sizing = Sizing((64, 96), "letterbox")
    padded, mask = sizing.image(image), sizing.mask(labels, 255)
    top, left, height, width = inside(own, (64, 96))
    shown = np.zeros((64, 96), bool)
    shown[top : top + height, left : left + width] = True
    assert padded.shape == (64, 96, 3)
    assert not padded[~shown].any()
    assert np.array_equal(mask != 255, shown)


@given(SIDES)
def test_crops_keep_pictures_as_they_are(own):
    image = np.random.default_rng(0).integers(0, 256, (*own, 3), np.uint8)
    assert Sizing((64, 64), "crop").image(image) is image
    assert Sizing((64, 64), "crop", scale=0.5).size_of(own) == (max(1, round(own[0] / 2)), max(1, round(own[1] / 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "squeeze"}, "fit must be one of resize, letterbox, crop, but got 'squeeze'"),
        ({"fit": "crop", "scale": 0}, "scale must be a number from 1/64 to 64, but got 0"),
        ({"fit": "crop", "scale": True}, "scale must be a number"),
        ({"fit": "crop", "scale": float("nan")}, "scale must be a number"),
        ({"scale": 0.5}, "scale=0.5 needs fit=crop"),
        ({"fit": "letterbox", "scale": 0.5}, "scale=0.5 needs fit=crop"),
        ({"window_overlap": 1}, "window_overlap must be a share from 0 to 0.9, but got 1"),
        ({"fit": "crop", "crop_foreground": 2}, "crop_foreground must be a share from 0 to 1, but got 2"),
        ({"crop_foreground": 0.5}, "crop_foreground=0.5 needs fit=crop, but fit is resize"),
        ({"fit": "crop", "cache": "disk"}, "cache=disk keeps samples of one size"),
    ],
)
def test_sizes_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)


def test_padding_needs_a_value_of_its_own():
    with pytest.raises(ValueError, match=r"254 at most for fit=letterbox with data\.ignore_index=255"):
        Folder("x", classes=255, ignore_index=255, fit="letterbox")
    assert Folder("x", classes=255, fit="crop").padding == 255
    source = Folder("x", classes=254, ignore_index=255, fit="crop")
    assert (source.padding, source.void) == (254, 255)
    assert (Shapes().padding, Shapes().void) == (None, None)
    assert Shapes(fit="crop").void == 255


@pytest.fixture
def folder(tmp_path):
    """Five pictures of their own sizes; the third lies in no aspect of the network's."""
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 64), (33, 100), (20, 90), (96, 32), (64, 64)]):
        image = random.integers(1, 256, (height, width, 3), np.uint8)
        put(tmp_path, f"p{number}", image, (image[..., 0] > 127).astype(np.uint8))
        put(tmp_path, f"q{number}", image[::-1].copy(), (image[::-1, :, 0] > 127).astype(np.uint8), split="val")
    return tmp_path


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_pictures_of_their_own_sizes_are_read_aligned_and_cached(folder, cache, tmp_path):
    source = Folder(folder, image_size=(32, 32), fit="crop", cache=cache)
    samples = cached(source, tmp_path / "cache")
    for _ in range(2):
        for split in ("train", "val"):
            for index in range(source.size(split)):
                image, mask = samples.read(split, index)
                assert image.shape[:2] == mask.shape == source.read_size(split, index)
                assert np.array_equal(image, source.image(split, index))
                assert np.array_equal(mask, image[..., 0] > 127)


def test_a_budget_of_memory_holds_the_first_samples(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.data.cache._memory", {})
    source = Folder(folder, image_size=(32, 32), fit="crop", cache_gb=3 * 4 * 40 * 64 / 1e9)
    samples = cached(source, tmp_path)
    assert 0 < samples._records["train"].count < 5
    for index in range(5):
        assert np.array_equal(samples.read("train", index)[0], source.image("train", index))


def test_the_fingerprint_says_how_pictures_are_fitted_and_is_the_old_one_without(folder):
    """Else cached samples and answers of one would be taken for the other's."""
    for make in (lambda **more: Folder(folder, image_size=(32, 32), **more), lambda **more: Shapes(**more)):
        plain = make().fingerprint()
        others = [make(fit="letterbox"), make(fit="crop"), make(fit="crop", scale=0.5)]
        assert len({plain, *(other.fingerprint() for other in others)}) == 4
        assert make(window_overlap=0.5).fingerprint() == plain
        assert make().view_facts() == make().measuring_facts() == {}
        crop = make(fit="crop", crop_foreground=0.5, window_overlap=0.5)
        assert crop.fingerprint() == others[1].fingerprint()
        assert (crop.view_facts(), crop.measuring_facts()) == ({"crop_foreground": 0.5}, {"window_overlap": 0.5})


def test_fingerprints_of_before_there_were_fits_hold():
    assert Shapes(train=6, val=2, test=1).fingerprint() == "8ea34c38d58a9dea33bf14f72683616a"


@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
@pytest.mark.parametrize("void", [None, 9, 255])
def test_a_batch_says_which_pixels_are_content_and_its_masks_say_void_elsewhere(folder, fit, void):
    source = Folder(folder, image_size=(64, 64), fit=fit, ignore_index=void, labelled=3)
    crop = Crop((64, 64), 0, source.padding, 2) if fit == "crop" else None
    views = Augmentation((), 0, source.padding, crop)
    (batch,) = TrainLoader(source, views, BatchSize(3, 2), 0).epoch(0)
    assert batch.masks.shape == (3, 64, 64)
    if fit == "resize":
        assert batch.all_content() is None
        return
    assert np.array_equal(batch.masks == source.void, ~batch.content)
    assert not batch.images.permute(0, 2, 3, 1)[~batch.content].any()
    assert batch.images.permute(0, 2, 3, 1)[batch.content].any(-1).all()
    assert batch.all_content().shape == (5, 64, 64)
    assert batch.unlabelled.masks.shape == (0, 64, 64)
    assert 0 < batch.all_content().float().mean() < 1
