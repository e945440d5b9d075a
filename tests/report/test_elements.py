"""Cells of numbers keep the number; a page knows how many class colours it needs."""

import math

import pytest

from kd.report.elements import Cell, Folded, Legend, Page, Section, Table, barred, facts, figure, row


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (0.123456, "test/miou", "0.1235"),
        (1234567, "student.parameters", "1,234,567"),
        (2.5e9, "macs", "2,500,000,000"),
        (12.345, "student.latency_ms", "12.3"),
        (3, "", "3.0000"),
    ],
)
def test_a_number_is_rounded_by_the_last_part_of_its_key_and_kept(value, key, text):
    assert figure(value, key) == Cell(text, value, key)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (math.nan, "nan"), (math.inf, "inf"), (True, "True"), ("x", "x"), ([1], "[1]")]
)
def test_anything_but_a_finite_number_is_a_text(value, text):
    assert figure(value, "test/miou") == Cell(text)


@pytest.mark.parametrize(("value", "bar"), [(0.25, 0.25), (-1, 0.0), (7, 1.0), (None, None)])
def test_a_bar_is_within_its_cell(value, bar):
    assert barred(figure(value)).bar == bar


def test_facts_without_a_value_are_left_out():
    assert facts([("a", 1), ("b", None), ("c", "")]).rows == [("a", Cell("1")), ("c", Cell(""))]


def test_a_row_keeps_cells():
    assert row(Cell("a", 1), 2, None) == [Cell("a", 1), Cell("2"), Cell("None")]


@pytest.mark.parametrize(
    ("blocks", "count"),
    [
        ([], 0),
        ([Legend(["a", "b"])], 2),
        ([Table([""], [[Cell("x", swatch=4)], [Cell("y")]])], 5),
        ([Folded("more", [Folded("inside", [Legend(["a", "b", "c"])])])], 3),
        ([Folded("empty", [])], 0),
    ],
)
def test_a_page_needs_a_colour_for_each_class_it_shows(blocks, count):
    assert Page("", "", [], [], [Section("x", "x", blocks)]).classes() == count
