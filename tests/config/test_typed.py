"""Paths that Hydra's grammar refuses are read as a shell user means them; all else is left to Hydra."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from kd.config.compose import compose
from kd.config.typed import readable

HOME = str(Path.home())


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.root=~/images", f"{HOME}/images"),
        ("data.root=~", HOME),
        ("data.root=/data/set#2", "/data/set#2"),
        ("data.root=/data/a=b", "/data/a=b"),
        ("data.root=/data/copy (1)", "/data/copy (1)"),
        ("data.root=/data/größe", "/data/größe"),
        ("data.root=a&b;c|d", "a&b;c|d"),
        ("data.root={split}/x", "{split}/x"),
    ],
)
def test_a_path_is_taken_as_typed(typed, value):
    assert compose(["data=folder", typed]).data.root == value


@pytest.mark.parametrize(
    "typed",
    [
        "seed=1,2", "data.image_size=[64,64]", "schedule.initial=interval(1,2)", "loss.alpha=0.5", "data.root='a#b'",
        "data.root=${root}/x", "~unfreeze", "schedule.initial=[1", "seed=$(mkdir)", "-m", "--config-dir=~x#y", "seed",
        "data.root=null", "pictures=false", "+tracking.tags.a=b",
    ],
)  # fmt: skip
def test_what_hydra_reads_or_a_quote_must_settle_stays_as_it_is(typed):
    assert readable([typed]) == [typed]


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1))
def test_reading_twice_changes_nothing_more(value):
    once = readable([f"data.root={value}"])
    assert readable(once) == once
    if once != [f"data.root={value}"] and not value.startswith("~"):
        assert OverridesParser.create().parse_override(once[0]).value() == value
