"""Settings and methods that all data sets share, every option file of conf/data, and how light kd.data is to import."""

import importlib
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.config.compose import PROJECT, compose, plain
from kd.data import Shapes
from kd.data.numbers import whole_number
from kd.data.source import known_split, spaced

CONF = PROJECT / "conf" / "data"


def test_importing_and_checking_is_light():
    program = (
        "import sys, kd.data; kd.data.Shapes().check(); kd.data.Folder('x'); kd.data.OxfordPet('x'); "
        "print([m for m in ('torch', 'torchvision', 'albumentations', 'cv2', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": [180, 240]}, r"image_size must be multiples of 32, but got \[180,240\]: use \[160,224\] or"),
        ({"image_size": [10, 20]}, r"but got \[10,20\]: use \[32,32\]$"),
        ({"image_size": 96}, r"image_size must be \[height,width\] in pixels, but got 96"),
        ({"image_size": "96"}, r"image_size must be \[height,width\] in pixels, but got '96'"),
        ({"image_size": [96.0, 96]}, r"image_size must be \[height,width\] in pixels"),
        ({"ignore_index": 1}, "ignore_index must be a whole number, from 2 to 255, but got 1"),
        ({"ignore_index": 256}, "ignore_index must be a whole number, from 2 to 255, but got 256"),
        ({"classes": 4, "ignore_index": 3}, "ignore_index must be a whole number, from 4 to 255, but got 3"),
        ({"class_names": ["a", "b"]}, "class_names must be empty if classes is 1"),
        ({"classes": 3, "class_names": ["a", "b"]}, "class_names must be 3 different names"),
        ({"classes": 2, "class_names": ["a", "a"]}, "class_names must be 2 different names"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)


@pytest.mark.parametrize(("value", "says"), [(True, "got True"), (1.0, "got 1.0"), (0, "got 0"), (9, "got 9")])
def test_a_number_outside_the_range_is_refused(value, says):
    with pytest.raises(ValueError, match=f"^steps must be a whole number, from 1 to 8, but {says}$"):
        whole_number("steps", value, 1, 8)
    whole_number("steps", 8, 1, 8)


def test_yaml_s_off_disables_the_cache():
    assert Shapes(cache=False).cache == "off"
    with pytest.raises(ValueError, match="cache must be one of ram, disk, off, but got 'tape'"):
        Shapes(cache="tape")


@pytest.mark.parametrize("size", [-1, float("nan"), True, "8"])
def test_the_size_of_the_cache_is_checked(size):
    with pytest.raises(ValueError, match="cache_gb must be a number of gigabytes, 0 or more"):
        Shapes(cache_gb=size)


def test_an_unknown_split_is_refused():
    assert known_split("val") == "val"
    with pytest.raises(ValueError, match="split must be one of train, val, test, but got 'dev'"):
        known_split("dev")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_of_conf_data_can_be_built(path):
    text = path.read_text(encoding="utf-8")
    needed = [f"data.{key}=somewhere" for key in ("root", "path") if f"\n{key}: ???" in text]
    chosen = compose([f"data={path.stem}", *needed])
    options = plain(chosen)["data"]
    module, name = options.pop("_target_").rsplit(".", 1)
    source = getattr(importlib.import_module(module), name)(**options)
    assert len(source.class_names) == max(source.classes, 2)
    assert {"classes", "image_size", "ignore_index", "class_names"} <= options.keys()
    assert text.startswith("# ")
    assert len(text.splitlines()) <= (34 if path.stem == "folder" else 30)


# spaced indices


def test_few_indices_are_all_taken_and_a_single_one_is_the_first():
    assert spaced(6, 8) == [0, 1, 2, 3, 4, 5]
    assert spaced(9, 3) == [0, 4, 8]
    assert spaced(5, 1) == [0]


@given(st.integers(0, 300), st.integers(1, 40))
def test_spaced_indices_are_even_and_include_both_ends(samples, most):
    indices = spaced(samples, most)
    assert len(indices) == min(samples, most)
    assert indices == sorted(set(indices))
    if samples and most > 1:
        assert (indices[0], indices[-1]) == (0, samples - 1)
    gaps = {after - before for before, after in pairwise(indices)}
    assert not gaps or max(gaps) - min(gaps) <= 1
